"""ResNet backbone (He et al. 2016), with batch normalisation that learns or is frozen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mask2former.configuration.activations import ACTIVATIONS
from mask2former.configuration.backbones import ResNetConfig
from mask2former.model.gradient_checkpointing import LayerStack
from mask2former.model.padding import mask_at, mask_padding


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that stays as it was loaded: the same in training as in evaluation."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        return super().train(False)


class ConvNorm(nn.Module):
    """Convolution and batch normalisation, "same" padding, no bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class ResidualBlock(nn.Module):
    """A basic (3x3, 3x3) or bottleneck (1x1, 3x3, 1x1) residual block."""

    def __init__(
        self, config: ResNetConfig, in_channels: int, out_channels: int, stride: int
    ) -> None:
        super().__init__()
        if config.layer_type == "basic":
            shapes = [(in_channels, out_channels, 3, stride), (out_channels, out_channels, 3, 1)]
        else:
            width = out_channels // 4
            first, second = (stride, 1) if config.downsample_in_bottleneck else (1, stride)
            shapes = [
                (in_channels, width, 1, first),
                (width, width, 3, second),
                (width, out_channels, 1, 1),
            ]
        self.convs = nn.ModuleList([ConvNorm(*shape) for shape in shapes])
        projects = in_channels != out_channels or stride != 1
        self.shortcut = ConvNorm(in_channels, out_channels, 1, stride) if projects else None
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor, pixel_mask: Tensor | None) -> Tensor:
        residual = x if self.shortcut is None else self.shortcut(x)
        for conv in self.convs[:-1]:
            x = mask_padding(self.activation(conv(x)), pixel_mask)
        return mask_padding(self.activation(self.convs[-1](x) + residual), pixel_mask)


class ResNetBackbone(LayerStack):
    """Stem and stages; returns the feature maps of the stages in `config.out_features`.

    `channels` holds their widths, `stride` the coarsest stage's in pixels. Input
    (N, C, H, W); outputs have strides 4, 8, 16, 32 (twice that with `downsample_in_first_stage`).
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.out_features = config.out_features
        halvings = len(config.depths) - 1 + config.downsample_in_first_stage
        self.stride = 4 * 2**halvings
        self.stem = ConvNorm(config.num_channels, config.embedding_size, 7, stride=2)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        self.channels = []
        in_channels = config.embedding_size
        stages = zip(config.hidden_sizes, config.depths, strict=True)
        for index, (width, depth) in enumerate(stages):
            stride = 2 if index > 0 or config.downsample_in_first_stage else 1
            blocks = [ResidualBlock(config, in_channels, width, stride)]
            blocks += [ResidualBlock(config, width, width, 1) for _ in range(depth - 1)]
            self.stages.append(nn.ModuleList(blocks))
            in_channels = width
            if f"stage{index + 1}" in self.out_features:
                self.channels.append(width)
        if config.freeze_batch_norm_2d:
            for module in self.modules():
                if isinstance(module, ConvNorm):
                    module.norm = FrozenBatchNorm2d(module.norm.num_features)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> list[Tensor]:
        """`pixel_mask` bool (N, H, W), True where there is image; outputs are zero elsewhere."""
        x = self.activation(self.stem(mask_padding(pixel_values, pixel_mask)))
        if pixel_mask is not None:  # the pool pads with the same
            x = x.masked_fill(~mask_at(pixel_mask, *x.shape[-2:])[:, None], -torch.inf)
        x = mask_padding(self.pool(x), pixel_mask)
        features = []
        for index, stage in enumerate(self.stages):
            for block in stage.children():
                x = self.run(block, x, pixel_mask)
            if f"stage{index + 1}" in self.out_features:
                features.append(x)
        return features
