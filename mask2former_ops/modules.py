"""The multi-scale deformable attention layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mask2former_ops.ms_deform_attn import ms_deform_attn


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention (Zhu et al. 2021, "Deformable DETR", section 4.1).

    Constructor, forward and state-dict keys are those of the upstream layer.

    Args:
        d_model: width of queries and values.
        n_levels: number of feature levels.
        n_heads: attention heads; must divide `d_model`.
        n_points: sampling points per head and level.

    Raises:
        ValueError: `d_model` is no multiple of `n_heads`.
    """

    def __init__(
        self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4
    ) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} must be a multiple of n_heads {n_heads}.")
        self.d_model, self.n_levels = d_model, n_levels
        self.n_heads, self.n_points = n_heads, n_points
        self.im2col_step = 64  # upstream's attribute; nothing here reads it
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Offsets start as rings: head h looks along 2 pi h / heads, point p at distance p + 1."""
        angles = torch.arange(self.n_heads, dtype=torch.float32) * (2 * math.pi / self.n_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions /= directions.abs().amax(dim=-1, keepdim=True)
        distances = torch.arange(1, self.n_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None, :] * distances[:, None]
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.copy_(offsets.expand(-1, self.n_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    _reset_parameters = reset_parameters  # upstream's name, which detectors call

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor,
        input_level_start_index: Tensor,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Sample every level around each query's reference points.

        Args:
            query: (N, Q, d_model).
            reference_points: (N, Q, n_levels, 2) as (x, y) in [0, 1], or (N, Q, n_levels, 4) as
                (x, y, width, height).
            input_flatten: (N, S, d_model), all levels one after the other.
            input_spatial_shapes: int64 (n_levels, 2) as (height, width).
            input_level_start_index: int64 (n_levels,).
            input_padding_mask: bool (N, S), True where a position is padding and counts as zero.

        Returns:
            (N, Q, d_model).

        Raises:
            ValueError: `reference_points` has neither 2 nor 4 coordinates.
        """
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0.0)
        samples = (self.n_heads, self.n_levels, self.n_points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*samples, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.n_heads, -1)).softmax(-1)
        out = ms_deform_attn(
            value.unflatten(-1, (self.n_heads, -1)),
            input_spatial_shapes,
            input_level_start_index,
            self._locations(reference_points, offsets, input_spatial_shapes),
            weights.unflatten(-1, samples[1:]),
        )
        return self.output_proj(out)

    def _locations(self, reference: Tensor, offsets: Tensor, spatial_shapes: Tensor) -> Tensor:
        """Reference points and offsets (N, Q, n_heads, n_levels, n_points, 2) to locations.

        An offset counts pixels of its level or, where the reference is a box, its half size divided
        by `n_points`. A float32 reference gives float32 locations, whatever the offsets are.
        """
        centers, boxes = reference[:, :, None, :, None, :2], reference[:, :, None, :, None, 2:]
        if reference.shape[-1] == 2:
            sizes = spatial_shapes.flip(1).to(reference)  # (width, height)
            return centers + offsets / sizes[:, None]
        if reference.shape[-1] == 4:
            return centers + offsets * (boxes / 2) / self.n_points
        raise ValueError(
            f"reference_points must have 2 or 4 coordinates, but has {reference.shape[-1]}."
        )
