"""Backbones of the timm library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mask2former.configuration.backbones import TimmBackboneConfig
from mask2former.io.errors import DataError
from mask2former.io.optional import require_package
from mask2former.model.backbones.library import LibraryBackbone, is_plain, last_map_per_stride


class TimmBackbone(LibraryBackbone):
    """Any model of timm that returns feature maps; see `LibraryBackbone`.

    `config.out_indices` chooses among the model's maps. By default it becomes the last map of each
    of `feature_strides`, or a plain vision transformer's last one. A plain vision transformer's
    maps have gone through its final norm.

    Args:
        config: the model's name and options.
        feature_strides: of the whole model's configuration.
        pretrained: download the model's weights, as its name in timm says.

    Raises:
        DataError: timm is not installed, or the weights cannot be fetched.
        ValueError: timm has no such model, or the model has no such maps or takes images of one
            size only.
    """

    def __init__(
        self, config: TimmBackboneConfig, feature_strides: list[int], pretrained: bool = False
    ) -> None:
        require_package("timm", f"The backbone {config.backbone!r} of timm")
        # Without weights: it says which maps there are and whether it insists on its image size.
        with torch.device("meta"):
            probe = _create(config, features_only=True, out_indices=[-1])
        info = probe.feature_info.info
        strides = [entry["reduction"] for entry in info]
        options: dict[str, Any] = {"pretrained": pretrained}
        if any(getattr(module, "strict_img_size", False) for module in probe.modules()):
            options["dynamic_img_size"] = True
        plain = is_plain(strides)
        if config.out_indices in (None, [-1]):
            wanted = [max(strides)] if plain else feature_strides
            config.out_indices = last_map_per_stride(strides, wanted, config.backbone)
        if not all(-len(info) <= index < len(info) for index in config.out_indices):
            raise ValueError(
                f"out_indices is {config.out_indices}, but {config.backbone!r} has maps 0 to "
                f"{len(info) - 1}."
            )
        chosen = [index % len(info) for index in config.out_indices]
        if plain:
            body = _create(config, num_classes=0, **options)
            body.prune_intermediate_layers(chosen)
            # A final norm may have a projection.
            widths = [entry.get("num_chs_norm", entry["num_chs"]) for entry in body.feature_info]
        else:
            body = _create(config, features_only=True, out_indices=chosen, **options)
            widths = [entry["num_chs"] for entry in info]
        if config.freeze_batch_norm_2d:
            from timm.layers import freeze_batch_norm_2d  # pyright: ignore[reportMissingImports]

            body = freeze_batch_norm_2d(body)
        super().__init__(
            body,
            [widths[index] for index in chosen],
            [strides[index] for index in chosen],
            feature_strides if plain else None,
        )
        self.indices = chosen

    def read(self, pixel_values: Tensor) -> list[Tensor]:
        if self.pyramid is not None:
            return self.body.forward_intermediates(
                pixel_values, indices=self.indices, norm=True, intermediates_only=True
            )
        maps = self.body(pixel_values)
        if getattr(self.body, "output_fmt", "NCHW") == "NHWC":
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        return maps

    def checkpoint_layers(self, value: bool) -> bool:
        try:
            self.body.set_grad_checkpointing(value)
        except AssertionError:  # timm's way of saying that the network cannot
            return False
        return value


def _create(config: TimmBackboneConfig, pretrained: bool = False, **options: Any) -> Any:
    from huggingface_hub.errors import HfHubHTTPError
    from timm.models import create_model  # pyright: ignore[reportMissingImports]

    name = config.backbone
    options = {"in_chans": config.num_channels, **options}
    if config.output_stride is not None:
        options["output_stride"] = config.output_stride
    try:
        return create_model(name, pretrained=pretrained, **options, **config.model_kwargs)
    except (OSError, HfHubHTTPError) as error:
        raise DataError(
            f"timm could not fetch {name!r} ({error}); connect to the network, or leave out "
            "use_pretrained_backbone."
        ) from error
    except RuntimeError as error:
        if "Unknown model" not in str(error):
            raise
        raise ValueError(
            f"timm has no model {name!r}; timm.list_models() names those that it has."
        ) from error
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        raise ValueError(
            f"{name!r} takes images of one size only; choose a backbone that takes any."
        ) from error
