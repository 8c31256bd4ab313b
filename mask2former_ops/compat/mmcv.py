"""mmcv's names: `from mask2former_ops.compat.mmcv import ...` for `from mmcv.ops import ...`."""

from torch import Tensor, nn

from mask2former_ops.compat import detectron2
from mask2former_ops.compat.deformable_detr import (
    MSDeformAttnFunction as MultiScaleDeformableAttnFunction,
)
from mask2former_ops.compat.deformable_detr import (
    ms_deform_attn_core_pytorch as multi_scale_deformable_attn_pytorch,
)
from mask2former_ops.modules import MSDeformAttn

__all__ = [
    "MultiScaleDeformableAttention",
    "MultiScaleDeformableAttnFunction",
    "multi_scale_deformable_attn_pytorch",
    "point_sample",
]


class MultiScaleDeformableAttention(MSDeformAttn):
    """mmcv's layer: multi-scale deformable attention, dropout and residual connection.

    State-dict keys and initialisation are those of `MSDeformAttn`.

    Args:
        embed_dims: width of queries and values.
        num_heads: attention heads; must divide `embed_dims` and the width of the projected values.
        num_levels: number of feature levels.
        num_points: sampling points per head and level.
        im2col_step: ignored.
        dropout: probability of dropping a number of the output before the residual connection.
        batch_first: whether tensors are (N, length, embed_dims), not (length, N, embed_dims).
        norm_cfg, init_cfg: kept as attributes and ignored, as in mmcv.
        value_proj_ratio: width of the projected values divided by `embed_dims`.

    Raises:
        ValueError: a width is no multiple of `num_heads`.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = False,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
        value_proj_ratio: float = 1.0,
    ) -> None:
        super().__init__(embed_dims, num_levels, num_heads, num_points)
        self.embed_dims, self.num_heads = embed_dims, num_heads
        self.num_levels, self.num_points = num_levels, num_points
        self.im2col_step, self.batch_first = im2col_step, batch_first
        self.norm_cfg, self.init_cfg = norm_cfg, init_cfg
        self.dropout = nn.Dropout(dropout)
        width = int(embed_dims * value_proj_ratio)
        if width % num_heads:
            raise ValueError(
                f"embed_dims {embed_dims} times value_proj_ratio {value_proj_ratio} is {width}, "
                f"but must be a multiple of num_heads {num_heads}."
            )
        if width != embed_dims:
            self.value_proj = nn.Linear(embed_dims, width)
            self.output_proj = nn.Linear(width, embed_dims)
            self.reset_parameters()

    def init_weights(self) -> None:
        """`reset_parameters` by mmcv's name."""
        self.reset_parameters()

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        residual: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """Sample every level around each query's reference points, and add `identity`.

        Args:
            query: (Q, N, embed_dims), or (N, Q, embed_dims) with `batch_first`.
            key: ignored.
            value: (S, N, embed_dims) or (N, S, embed_dims), all levels one after the other; `query`
                by default.
            identity: what is added to the output, shaped like it; `query` by default.
            query_pos: position embedding, added to `query` first but not to the defaults above.
            key_padding_mask: bool (N, S), True where a position is padding and counts as zero.
            reference_points: (N, Q, num_levels, 2) as (x, y) in [0, 1], or (N, Q, num_levels, 4) as
                (x, y, width, height); in this order with and without `batch_first`.
            spatial_shapes: int64 (num_levels, 2) as (height, width).
            level_start_index: int64 (num_levels,).
            residual: the older name of `identity`.
            kwargs: ignored, as in mmcv.

        Returns:
            Shaped like `query`.

        Raises:
            ValueError: one of the three without a default is missing, or `reference_points` has
                neither 2 nor 4 coordinates.
        """
        reference_points = _given("reference_points", reference_points)
        spatial_shapes = _given("spatial_shapes", spatial_shapes)
        level_start_index = _given("level_start_index", level_start_index)
        value = query if value is None else value
        identity = residual if identity is None else identity
        identity = query if identity is None else identity
        if query_pos is not None:
            query = query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        output = super().forward(
            query, reference_points, value, spatial_shapes, level_start_index, key_padding_mask
        )
        if not self.batch_first:
            output = output.transpose(0, 1)
        return self.dropout(output) + identity


def _given(name: str, tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise ValueError(f"MultiScaleDeformableAttention needs {name}, but it is None.")
    return tensor


def point_sample(
    input: Tensor, points: Tensor, align_corners: bool = False, **kwargs: str
) -> Tensor:
    """`compat.detectron2.point_sample` with `align_corners` third."""
    return detectron2.point_sample(input, points, align_corners=align_corners, **kwargs)
