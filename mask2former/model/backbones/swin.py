"""Swin transformer backbone (Liu et al. 2021, "Hierarchical Vision Transformer using Shifted
Windows"), with a layer norm on each returned feature map, as dense prediction uses it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.configuration.activations import ACTIVATIONS
from mask2former.configuration.backbones import SwinConfig
from mask2former.model.backbones.window_attention import WindowAttention
from mask2former.model.gradient_checkpointing import LayerStack
from mask2former.model.padding import mask_at, mask_padding, pad_to_multiple


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): while training, a branch is dropped for some images.

    Args:
        rate: probability of a drop, from 0 to 1. Kept branches are divided by `1 - rate`, so that
            the mean stays.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """`x` (N, ...) with zeros for the dropped images."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        kept = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(keep)
        return x * (kept / (keep or 1.0))  # with rate 1 nothing is kept


class SwinBlock(nn.Module):
    """Window attention and MLP, each behind a layer norm, with residuals."""

    def __init__(
        self, config: SwinConfig, dim: int, num_heads: int, shifted: bool, drop_path: float
    ) -> None:
        super().__init__()
        shift = config.window_size // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attention = WindowAttention(config, dim, num_heads, shift)
        self.norm2 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(dim, int(config.mlp_ratio * dim))
        self.fc2 = nn.Linear(int(config.mlp_ratio * dim), dim)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path)

    def mlp(self, x: Tensor) -> Tensor:
        """Two linear layers with the activation between them, on each position."""
        return self.dropout(self.fc2(self.dropout(self.activation(self.fc1(x)))))

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """`x` (N, H, W, C); `valid` bool (N, H, W), True where there is image."""
        x = x + self.drop_path(self.attention(self.norm1(x), valid))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Halves the resolution and doubles the width: 2x2 neighbours, layer norm, linear."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (N, H/2, row, W/2, column, C)
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class SwinBackbone(LayerStack):
    """Patch embedding and stages; returns the normalised maps of the stages in `out_features`.

    `channels` holds their widths, `stride` the coarsest stage's in pixels. Input
    (N, C, H, W) of any size; it is padded with zeros to whole patches. Outputs are
    (N, C_i, H_i, W_i) with strides 4, 8, 16, 32 for a patch size of 4.
    """

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.config = config
        self.stride = config.patch_size * 2 ** (len(config.depths) - 1)
        self.patch_embed = nn.Conv2d(
            config.num_channels, config.embed_dim, config.patch_size, config.patch_size
        )
        self.patch_norm = nn.LayerNorm(config.embed_dim)
        self.position = None
        if config.use_absolute_embeddings:
            patches = (config.image_size // config.patch_size) ** 2
            self.position = nn.Parameter(torch.zeros(1, patches, config.embed_dim))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        blocks = sum(config.depths)
        rates = [config.drop_path_rate * number / max(blocks - 1, 1) for number in range(blocks)]
        self.stages = nn.ModuleList()
        self.merges = nn.ModuleList()
        self.norms = nn.ModuleDict()
        self.channels = []
        for index, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
            dim = config.embed_dim * 2**index
            if index > 0:
                self.merges.append(PatchMerging(dim // 2))
            # Every second block of a stage has shifted windows.
            blocks = [SwinBlock(config, dim, heads, i % 2 == 1, rates.pop(0)) for i in range(depth)]
            self.stages.append(nn.ModuleList(blocks))
            if f"stage{index + 1}" in config.out_features:
                self.norms[f"stage{index + 1}"] = nn.LayerNorm(dim)
                self.channels.append(dim)
        self._initialise(config.initializer_range)

    def _initialise(self, std: float) -> None:
        """As in Swin's own code: the patch embedding keeps nn.Conv2d's default."""
        tables: list[Tensor] = [
            m.position_bias for m in self.modules() if isinstance(m, WindowAttention)
        ]
        if self.position is not None:
            tables.append(self.position)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                tables.append(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for table in tables:
            nn.init.trunc_normal_(table, std=std)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> list[Tensor]:
        """`pixel_mask` bool (N, H, W), True where there is image; outputs are zero elsewhere."""
        pixel_values = mask_padding(pixel_values, pixel_mask)
        x = self.patch_embed(pad_to_multiple(pixel_values, self.config.patch_size))
        x = self.patch_norm(x.permute(0, 2, 3, 1))
        if self.position is not None:
            x = x + _resized_position(self.position, x.shape[1], x.shape[2])
        x = self.dropout(x)
        features = []
        valid = None
        for index, blocks in enumerate(self.stages):
            if index > 0:
                x = x if valid is None else x.masked_fill(~valid[..., None], 0.0)
                x = self.run(self.merges[index - 1], x)
            if pixel_mask is not None:
                valid = mask_at(pixel_mask, *x.shape[1:3])
            for block in blocks.children():
                x = self.run(block, x, valid)
            name = f"stage{index + 1}"
            if name in self.norms:
                feature = self.norms[name](x).permute(0, 3, 1, 2)
                features.append(mask_padding(feature, pixel_mask))
        return features


def _resized_position(position: Tensor, height: int, width: int) -> Tensor:
    """The embedding (1, side^2, C) of a square of patches as (1, height, width, C)."""
    side = math.isqrt(position.shape[1])
    position = position.view(1, side, side, -1)
    if (height, width) == (side, side):
        return position
    position = F.interpolate(position.permute(0, 3, 1, 2), (height, width), mode="bicubic")
    return position.permute(0, 2, 3, 1)
