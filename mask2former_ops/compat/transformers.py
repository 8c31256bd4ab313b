"""The attention layer of transformers' Deformable-DETR, Grounding DINO, RT-DETR and their kin.

Give it to the modelling file before a model is made:
`modeling_deformable_detr.MultiScaleDeformableAttention = MultiScaleDeformableAttention`.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from mask2former_ops.compat.deformable_detr import ms_deform_attn_forward

__all__ = ["MultiScaleDeformableAttention"]


class MultiScaleDeformableAttention(nn.Module):
    """The layer without parameters that transformers looks up among the hub's kernels."""

    can_torch_compile = True  # read by the package `kernels`

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: Sequence[tuple[int, int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """`compat.deformable_detr.ms_deform_attn_forward`; the list repeats the tensor's shapes."""
        return ms_deform_attn_forward(
            value,
            value_spatial_shapes,
            level_start_index,
            sampling_locations,
            attention_weights,
            im2col_step,
        )
