"""Swin transformer backbone (Liu et al. 2021, "Hierarchical Vision Transformer using Shifted
Windows"), with a layer norm on each returned feature map, as dense prediction uses it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.activations import ACTIVATIONS
from mask2former.backbone_configuration import SwinConfig
from mask2former.feed_forward import feed_forward
from mask2former.gradient_checkpointing import LayerStack, recomputed
from mask2former.in_parts import linear_in_parts
from mask2former.padding import cell_mask, without_padding

# Added to the attention scores of positions that a cyclic shift brought together from opposite
# sides. The published weights were trained with -100, whose probability of 4e-44 is as nothing in
# the result, but is a denormal number in float32, with which a processor is 70 times as slow.
SHIFT_PENALTY = -200.0


def partition_windows(x: Tensor, size: int) -> Tensor:
    """(N, H, W) -> (N * windows, size * size); H and W are multiples of `size`."""
    n, height, width = x.shape
    x = x.view(n, height // size, size, width // size, size)
    return x.transpose(2, 3).reshape(-1, size * size)


def relative_position_index(size: int) -> Tensor:
    """(size^2, size^2) row numbers in the bias table for each pair of positions in a window."""
    coordinates = torch.stack(
        torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    ).flatten(1)
    offsets = coordinates[:, :, None] - coordinates[:, None, :] + size - 1
    return offsets[0] * (2 * size - 1) + offsets[1]


def _whole(extent: int | Tensor, size: int) -> int | Tensor:
    """`extent` rounded up to a multiple of `size`."""
    return -(-extent // size) * size


def _shifted_windows(x: Tensor, size: int, shift: int) -> Tensor:
    """(N, H, W) -> (N * windows, size^2), shifted cyclically before it is cut into windows."""
    return partition_windows(x.roll((-shift, -shift), (1, 2)), size)


def window_cells(
    n: int, height: int, width: int, size: int, shift: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Which cell is where, when maps are shifted cyclically and cut into windows.

    Returns:
        the number of the cell in each place, (N * windows, size^2), cells of all maps counted row
        by row and -1 where the maps are filled up to whole windows; and the place of each cell,
        (N * H * W).
    """
    cells = torch.arange(n * height * width, device=device).view(n, height, width)
    cells = F.pad(cells, (0, -width % size, 0, -height % size), value=-1)
    cells = _shifted_windows(cells, size, shift)
    places = cells.new_empty(n * height * width + 1)
    # What is no cell ends up behind the others.
    places[cells] = torch.arange(cells.numel(), device=device).view_as(cells)
    return cells, places[:-1]


def shift_mask(height: int, width: int, size: int, shift: int, device: torch.device) -> Tensor:
    """bool (windows, size^2, size^2), True where the cyclic shift brought two places together."""

    def regions(extent: int) -> Tensor:
        extent = _whole(extent, size)
        place = torch.arange(extent, device=device)
        return (place >= extent - size).long() + (place >= extent - shift).long()

    region = regions(height)[:, None] * 3 + regions(width)[None, :]
    windows = partition_windows(region[None], size)
    return windows[:, None, :] != windows[:, :, None]


def into_windows(x: Tensor, cells: Tensor, places: Tensor) -> Tensor:
    """Rows of cells (cells, C) -> rows of places; those without a cell hold anything.

    `cells` (places) and `places` (cells) are `window_cells`'. Both directions of both passes copy
    rows, where autograd would add them up one after the other.
    """
    if not torch.is_grad_enabled():
        return x.index_select(0, cells.clamp(min=0))
    return _IntoWindows.apply(x, cells, places)


def out_of_windows(x: Tensor, cells: Tensor, places: Tensor) -> Tensor:
    """Rows of places -> rows of cells: the inverse of `into_windows`."""
    if not torch.is_grad_enabled():
        return x.index_select(0, places)
    return _OutOfWindows.apply(x, cells, places)


class _IntoWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cells: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(cells, places)
        return into_windows(x, cells, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return out_of_windows(grad, *ctx.saved_tensors), None, None


class _OutOfWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cells: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(cells, places)
        return out_of_windows(x, cells, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cells, places = ctx.saved_tensors
        if len(cells) == len(places):
            return into_windows(grad, cells, places), None, None
        rows = grad.new_zeros(len(cells), grad.shape[1])
        return rows.index_copy(0, places, grad), None, None


class DropPath(nn.Module):
    """Stochastic depth: drops a whole residual branch per sample while training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        shape = (x.shape[0],) + (1,) * (x.dim() - 1)
        return x * x.new_empty(shape).bernoulli_(keep) / keep


def _biased_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float
) -> Tensor:
    """Attention (B, heads, L, C) with `bias` (B or 1, heads, L, L) added to the scores."""
    if not torch.is_grad_enabled():
        bias = bias.detach()  # whose mere flag would make it take a much slower path
    if query.device.type != "cpu" or not bias.requires_grad:
        return F.scaled_dot_product_attention(query, key, value, bias, dropout)
    # On a processor it would come to this too, at twice the time: it looks for rows of -inf.
    batch = query.shape[:2]
    query, key, value = (x.flatten(0, 1) for x in (query, key, value))
    bias = bias.expand(*batch, -1, -1).flatten(0, 1)
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5)
    return (F.dropout(scores.softmax(-1), dropout) @ value).unflatten(0, batch)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned relative position bias."""

    def __init__(self, config: SwinConfig, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = config.attention_probs_dropout_prob
        size = config.window_size
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias)
        self.output = nn.Linear(dim, dim)
        self.position_bias = nn.Parameter(torch.zeros((2 * size - 1) ** 2, num_heads))
        self.register_buffer("position_index", relative_position_index(size), persistent=False)

    def forward(
        self, windows: Tensor, norm: nn.LayerNorm, blank: Tensor, hidden: Tensor | None
    ) -> Tensor:
        """Attention among the normalised positions of each window.

        Args:
            windows: (B, L, C).
            norm: applied first.
            blank: bool (B, L), True where the normalised features are zeros instead.
            hidden: bool (B, L or 1, L), True where a position must not look at another.
        """
        bias = self.position_bias[self.position_index].permute(2, 0, 1)[None]
        dropout = self.dropout if self.training else 0.0

        def inside(windows, blank, hidden, bias, qkv, norm) -> Tensor:
            x = norm(windows).masked_fill(blank[..., None], 0.0)
            query, key, value = qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            scores = bias.to(query.dtype)
            if hidden is not None:
                scores = torch.where(hidden[:, None], scores + SHIFT_PENALTY, scores)
            out = _biased_attention(query, key, value, scores, dropout)
            return out.transpose(1, 2).flatten(2)

        _, length, channels = windows.shape
        return linear_in_parts(
            inside,
            self.output,
            [self.qkv, norm],
            [windows, blank, hidden],
            shared=[bias],
            width=3 * channels + 2 * length * self.num_heads,
            random=dropout > 0,
        )


class SwinBlock(nn.Module):
    """Window attention and MLP, each behind a layer norm, with residuals."""

    def __init__(
        self, config: SwinConfig, dim: int, num_heads: int, shifted: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.window = config.window_size
        self.shift = config.window_size // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attention = WindowAttention(config, dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(dim, int(config.mlp_ratio * dim))
        self.fc2 = nn.Linear(int(config.mlp_ratio * dim), dim)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path)

    def _attend(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Window attention over a (N, H, W, C) map of any size."""
        n, height, width, _ = x.shape
        cells, places = window_cells(n, height, width, self.window, self.shift, x.device)
        blank, hidden = cells < 0, None
        if self.shift:
            apart = shift_mask(height, width, self.window, self.shift, x.device)
            hidden = apart.repeat(n, 1, 1)
        if valid is not None:
            blank = blank | ~valid.flatten()[cells]
            absent = self._absent(valid)
            hidden = absent if hidden is None else hidden | absent
        order = cells.flatten()
        windows = into_windows(x.flatten(0, 2), order, places).view(*cells.shape, -1)
        out = self.attention(windows, self.norm1, blank, hidden)
        return self.dropout(out_of_windows(out.flatten(0, 1), order, places).view_as(x))

    def _absent(self, valid: Tensor) -> Tensor:
        """bool (N * windows, 1, L), True in places that an image alone would not have.

        Alone, an image is filled up with zeros to whole windows; those zeros stay.
        """

        def present(of_images: Tensor) -> Tensor:
            extent, size = (_whole(x, self.window) for x in (of_images.sum(1), of_images.shape[1]))
            return torch.arange(size, device=valid.device) < extent[:, None]

        absent = ~(present(valid.any(2))[:, :, None] & present(valid.any(1))[:, None, :])
        return _shifted_windows(absent, self.window, self.shift)[:, None]

    def _feed_forward(self, x: Tensor) -> Tensor:
        out = feed_forward(x, self.fc1, self.activation, self.fc2, norm=self.norm2)
        return self.dropout(out)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """`x` (N, H, W, C); `valid` bool (N, H, W), True where there is image."""
        x = x + self.drop_path(self._attend(x, valid))
        return x + self._feed_forward(x)


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

    `channels` holds their widths, `stride` is that of the coarsest stage in pixels. Input
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
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _absolute_position(self, height: int, width: int) -> Tensor:
        side = math.isqrt(self.position.shape[1])
        position = self.position.view(1, side, side, -1)
        if (height, width) == (side, side):
            return position
        position = F.interpolate(position.permute(0, 3, 1, 2), (height, width), mode="bicubic")
        return position.permute(0, 2, 3, 1)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> list[Tensor]:
        """`pixel_mask` bool (N, H, W), True where there is image; outputs are zero elsewhere."""
        pixel_values = without_padding(pixel_values, pixel_mask)
        height, width = pixel_values.shape[-2:]
        patch = self.config.patch_size
        x = self.patch_embed(F.pad(pixel_values, (0, -width % patch, 0, -height % patch)))
        x = self.patch_norm(x.permute(0, 2, 3, 1))
        if self.position is not None:
            x = x + self._absolute_position(x.shape[1], x.shape[2])
        x = self.dropout(x)
        features = []
        valid = None
        for index, blocks in enumerate(self.stages):
            if index > 0:
                x = x if valid is None else x.masked_fill(~valid[..., None], 0.0)
                x = recomputed(self.merges[index - 1], x)
            if pixel_mask is not None:
                valid = cell_mask(pixel_mask, *x.shape[1:3])
            for block in blocks:
                x = self.run(block, x, valid)
            name = f"stage{index + 1}"
            if name in self.norms:
                feature = self.norms[name](x).permute(0, 3, 1, 2)
                features.append(without_padding(feature, pixel_mask))
        return features
