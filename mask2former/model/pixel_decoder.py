"""Pixel decoder: multi-scale deformable attention over three levels, then one FPN level per finer
feature map (Cheng et al. 2022, section 3.2.1 and appendix)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mask2former.configuration import NUM_LEVELS, NUM_POINTS, Mask2FormerConfig
from mask2former.model.gradient_checkpointing import LayerStack
from mask2former.model.padding import group_norm, mask_at, mask_padding, resize, valid_sizes
from mask2former.model.position import sine_position_embedding
from mask2former.model.precision import full_precision
from mask2former_ops.modules import MSDeformAttn

NUM_GROUPS = 32  # of every group normalisation


class PixelDecoderOutput(NamedTuple):
    """What the transformer decoder looks at.

    `levels` are (N, feature_size, H_i, W_i), coarsest first, with `valid` bool (N, H_i, W_i) beside
    them; `mask_features` is (N, mask_feature_size, H, W) at the common stride. `pixel_mask` is the
    batch's, bool at the resolution of the input, or None when nothing is padding.
    """

    levels: list[Tensor]
    valid: list[Tensor]
    mask_features: Tensor
    pixel_mask: Tensor | None


class EncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward network, post-norm."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        dim = config.feature_size
        self.self_attn = MSDeformAttn(dim, NUM_LEVELS, config.num_attention_heads, NUM_POINTS)
        self.self_attn_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, config.encoder_feedforward_dim)
        self.fc2 = nn.Linear(config.encoder_feedforward_dim, dim)
        self.final_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference_points: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        padding: Tensor | None,
    ) -> Tensor:
        attended = self.self_attn(
            x + position, reference_points, x, spatial_shapes, level_start_index, padding
        )
        x = self.self_attn_norm(x + self.dropout(attended))
        return self.final_norm(x + self.dropout(self.mlp(x)))

    def mlp(self, x: Tensor) -> Tensor:
        """Two linear layers with a ReLU between them, on each position."""
        return self.fc2(self.dropout(self.fc1(x).relu_()))


def reference_points(valid: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Centre of each position, seen from each level.

    Args:
        valid: bool (N, H_i, W_i) per level, True in the image's top-left rectangle.

    Returns:
        (N, S, levels, 2) as (x, y), in fractions of the padded level.
    """
    sizes = [valid_sizes(mask).flip(1).to(dtype) for mask in valid]  # (width, height)
    centres = []
    for mask, size in zip(valid, sizes, strict=True):
        _, height, width = mask.shape
        y, x = torch.meshgrid(
            torch.arange(height, dtype=dtype, device=mask.device) + 0.5,
            torch.arange(width, dtype=dtype, device=mask.device) + 0.5,
            indexing="ij",
        )
        centres.append(torch.stack((x, y), dim=-1).view(1, -1, 2) / size[:, None])
    ratios = [s / s.new_tensor(v.shape[:0:-1]) for v, s in zip(valid, sizes, strict=True)]
    return torch.cat(centres, dim=1)[:, :, None] * torch.stack(ratios, dim=1)[:, None]


def _conv_norm(in_channels: int, out_channels: int, kernel: int, bias: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias),
        nn.GroupNorm(NUM_GROUPS, out_channels),
    )


def _convolutions(*parts: nn.Module) -> list[nn.Conv2d]:
    return [m for part in parts for m in part.modules() if isinstance(m, nn.Conv2d)]


def _apply(layers: Any, x: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """Those of `_conv_norm` on the image alone; `x` is zero in the padding."""
    convolution, norm = layers
    return group_norm(convolution(x), norm, pixel_mask)


class PixelDecoder(LayerStack):
    """Mixes the three coarsest backbone levels, then climbs to the common stride.

    Args:
        config: the model's configuration.
        channels: widths of the backbone's feature maps, finest first.

    Raises:
        ValueError: the feature maps, strides or widths do not fit together.
    """

    def __init__(self, config: Mask2FormerConfig, channels: list[int]) -> None:
        super().__init__()
        dim = config.feature_size
        if dim % NUM_GROUPS:
            raise ValueError(f"feature_size is {dim}; it must be a multiple of {NUM_GROUPS}.")
        finest = min(config.feature_strides[-NUM_LEVELS:])
        self.num_fpn_levels = int(math.log2(finest) - math.log2(config.common_stride))
        if len(config.feature_strides) < NUM_LEVELS or finest < config.common_stride:
            raise ValueError(
                f"feature_strides {config.feature_strides} must have at least {NUM_LEVELS} "
                f"entries, the last {NUM_LEVELS} of them no smaller than common_stride "
                f"{config.common_stride}."
            )
        if len(channels) < NUM_LEVELS + self.num_fpn_levels:
            raise ValueError(
                f"The backbone returns {len(channels)} feature maps, but feature_strides "
                f"{config.feature_strides} and common_stride {config.common_stride} need "
                f"{NUM_LEVELS + self.num_fpn_levels}; name more stages in out_features."
            )
        coarse = channels[-NUM_LEVELS:][::-1]
        self.input_projections = nn.ModuleList([_conv_norm(c, dim, 1, bias=True) for c in coarse])
        self.level_embed = nn.Parameter(torch.empty(NUM_LEVELS, dim))
        self.layers = nn.ModuleList([EncoderLayer(config) for _ in range(config.encoder_layers)])
        fine = channels[: self.num_fpn_levels]
        self.lateral_convs = nn.ModuleList([_conv_norm(c, dim, 1, bias=False) for c in fine])
        self.output_convs = nn.ModuleList([_conv_norm(dim, dim, 3, bias=False) for _ in fine])
        self.mask_projection = nn.Conv2d(dim, config.mask_feature_size, 1)
        self._initialise()

    def _initialise(self) -> None:
        """As in the paper's code; deformable attention initialises itself."""
        nn.init.normal_(self.level_embed)
        for layer in self.layers.modules():
            if isinstance(layer, EncoderLayer):
                nn.init.xavier_uniform_(layer.fc1.weight)
                nn.init.xavier_uniform_(layer.fc2.weight)
        for convolution in _convolutions(self.input_projections):
            nn.init.xavier_uniform_(convolution.weight)
        for convolution in _convolutions(
            self.lateral_convs, self.output_convs, self.mask_projection
        ):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        for convolution in _convolutions(self):
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)

    def forward(self, features: list[Tensor], pixel_mask: Tensor | None) -> PixelDecoderOutput:
        """`features` finest first; `pixel_mask` bool (N, H, W), True where there is image.

        Under autocast all is computed in the dtype of the parameters, as in the paper's code.
        """
        with full_precision(features[0].device):
            return self._decode([x.to(self.level_embed.dtype) for x in features], pixel_mask)

    def _decode(self, features: list[Tensor], pixel_mask: Tensor | None) -> PixelDecoderOutput:
        levels, valid = self._encode(features, pixel_mask)
        return PixelDecoderOutput(
            levels, valid, self._climb(levels[-1], features, pixel_mask), pixel_mask
        )

    def _encode(
        self, features: list[Tensor], pixel_mask: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Deformable self-attention over the coarsest maps at once; also each level's mask."""
        coarse = features[-NUM_LEVELS:][::-1]
        levels = [
            _apply(projection, x, pixel_mask)
            for projection, x in zip(self.input_projections, coarse, strict=True)
        ]
        dtype, device = levels[0].dtype, levels[0].device
        shapes = [tuple(x.shape[-2:]) for x in levels]
        sizes = [height * width for height, width in shapes]
        if pixel_mask is None:
            valid = [
                torch.ones(len(x), *x.shape[-2:], dtype=torch.bool, device=device) for x in levels
            ]
        else:
            valid = [mask_at(pixel_mask, height, width) for height, width in shapes]
        spatial_shapes = torch.tensor(shapes, device=device)
        level_start_index = spatial_shapes.prod(1).cumsum(0) - spatial_shapes.prod(1)
        positions = [
            sine_position_embedding(mask, x.shape[1], dtype) + embed[:, None, None]
            for mask, x, embed in zip(valid, levels, self.level_embed, strict=True)
        ]
        position = torch.cat([p.flatten(2).transpose(1, 2) for p in positions], dim=1)
        x = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        padding = None
        if pixel_mask is not None:
            padding = ~torch.cat([mask.flatten(1) for mask in valid], dim=1)
        # float16 cannot tell positions half a pixel apart beyond 128; sampling needs better.
        points = reference_points(valid, torch.promote_types(dtype, torch.float32))
        for layer in self.layers:
            x = self.run(layer, x, position, points, spatial_shapes, level_start_index, padding)
        levels = [
            part.unflatten(1, shape).permute(0, 3, 1, 2)
            for part, shape in zip(x.split(sizes, dim=1), shapes, strict=True)
        ]
        return levels, valid

    def _climb(self, x: Tensor, features: list[Tensor], pixel_mask: Tensor | None) -> Tensor:
        """Mask features from the finest level, by an FPN over the finer feature maps."""
        for index in reversed(range(self.num_fpn_levels)):
            convolutions = self.lateral_convs[index], self.output_convs[index]
            x = self.run(_fpn_level, *convolutions, x, features[index], pixel_mask)
        return self.mask_projection(x)


def _fpn_level(
    lateral: nn.Sequential,
    output: nn.Sequential,
    coarse: Tensor,
    fine: Tensor,
    pixel_mask: Tensor | None,
) -> Tensor:
    """One step of an FPN: a backbone map joins the next coarser level."""
    x = _apply(lateral, fine, pixel_mask)
    x = mask_padding(x + resize(coarse, x.shape[-2:], pixel_mask), pixel_mask)
    return _apply(output, x, pixel_mask).relu_()
