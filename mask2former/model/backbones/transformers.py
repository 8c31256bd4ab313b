"""Backbones of the transformers library that this package has no code of its own for."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from mask2former.io.errors import DataError
from mask2former.model.backbones.library import LibraryBackbone, is_plain, last_map_per_stride

# Every stride up to 64 and every usual patch size divides it.
PROBE_SIZE = 448


class TransformersBackbone(LibraryBackbone):
    """Any backbone of transformers; see `LibraryBackbone`.

    `config.out_features` chooses some of its stages. The library's default, the last stage alone,
    becomes the last stage of each of `feature_strides`, unless the network is a plain vision
    transformer.

    Args:
        config: a configuration object of transformers that its AutoBackbone takes.
        feature_strides: of the whole model's configuration.
        pretrained: hub name or folder to load the weights from; default: random weights.

    Raises:
        DataError: the weights cannot be fetched.
        ValueError: the network has no maps of the wanted strides, or takes images of one size only.
    """

    def __init__(
        self, config: Any, feature_strides: list[int], pretrained: str | None = None
    ) -> None:
        shapes = stage_shapes(config)
        strides = {name: stride for name, (_, stride) in shapes.items()}
        names = list(shapes)
        plain = is_plain(list(strides.values()))
        if not plain and config.out_features == names[-1:]:
            chosen = last_map_per_stride(
                list(strides.values()), feature_strides, f"The backbone {config.model_type!r}"
            )
            config.out_features = [names[index] for index in chosen]
        body = _create(config, pretrained)
        for name, parameter in body.named_parameters():
            # Of its pretraining; without a gradient it would stop distributed training.
            if name.endswith("mask_token"):
                parameter.requires_grad_(False)
        super().__init__(
            body,
            # Measured: HGNetV2's own list of its channels is another.
            [shapes[name][0] for name in config.out_features],
            [strides[name] for name in config.out_features],
            feature_strides if plain else None,
        )

    def read(self, pixel_values: Tensor) -> list[Tensor]:
        return list(self.body(pixel_values).feature_maps)

    def checkpoint_layers(self, value: bool) -> bool:
        if not self.body.supports_gradient_checkpointing:
            return False
        # The older of the two names goes away in transformers 6.
        kind = "activation" if hasattr(self.body, "activation_checkpointing_enable") else "gradient"
        getattr(self.body, f"{kind}_checkpointing_{'enable' if value else 'disable'}")()
        return value


def stage_shapes(config: Any) -> dict[str, tuple[int, int]]:
    """(channels, stride in pixels) of each stage of a backbone, found without any weights.

    Raises:
        ValueError: the network takes images of one size only, or its maps have no whole stride.
    """
    everything = copy.deepcopy(config)
    everything.out_features = list(config.stage_names)
    with torch.device("meta"):
        probe = _create(everything, None).eval()
        try:
            maps = probe(torch.empty(1, config.num_channels, PROBE_SIZE, PROBE_SIZE)).feature_maps
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"The backbone {config.model_type!r} cannot be used, because it does not take an "
                f"image of {PROBE_SIZE}x{PROBE_SIZE} ({error})."
            ) from error
    shapes = {}
    for name, (_, channels, *size) in zip(config.stage_names, (x.shape for x in maps), strict=True):
        if len(size) != 2 or len(set(size)) != 1 or PROBE_SIZE % size[0]:
            raise ValueError(
                f"Stage {name!r} of the backbone {config.model_type!r} makes {tuple(size)} of an "
                f"image of {PROBE_SIZE}x{PROBE_SIZE}, which is no map of a whole stride."
            )
        shapes[name] = (channels, PROBE_SIZE // size[0])
    return shapes


def _create(config: Any, pretrained: str | None) -> Any:
    from transformers import AutoBackbone

    body = AutoBackbone.from_config(config)
    if pretrained is None:
        return body
    try:
        return type(body).from_pretrained(
            pretrained, config=config, dtype=torch.get_default_dtype()
        )
    except OSError as error:
        raise DataError(
            f"The pretrained weights of {pretrained!r} could not be fetched ({error}); connect to "
            "the network, give a folder, or leave out use_pretrained_backbone."
        ) from error
