"""Configurations of the backbones, and what they have in common with the model's."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mask2former.configuration.activations import ACTIVATIONS
from mask2former.configuration.transformers import transformers_config, with_our_stages
from mask2former.io.errors import DataError
from mask2former.io.files import read_json
from mask2former.io.hub import resolve_file

CONFIG_NAME = "config.json"


@dataclass
class Config:
    """Named fields plus every key that this package does not know, kept for the way back."""

    extra: dict[str, Any] = field(default_factory=dict, kw_only=True, repr=False)

    MAY_BE_ZERO: ClassVar = {"encoder_layers", "ignore_value"}
    RANGES: ClassVar[dict[str, tuple[float, float]]] = {}  # least and greatest, of floats

    def check_fields(self) -> None:
        """ValueError for a field whose value is not of the kind of its default."""
        for f in dataclasses.fields(self):
            default = f.default_factory() if callable(f.default_factory) else f.default
            value = getattr(self, f.name)
            least = 0 if f.name in self.MAY_BE_ZERO else 1
            numbers = value if isinstance(value, (list, tuple)) else ()
            if isinstance(default, bool):
                fits, kind = isinstance(value, bool), "true or false"
            elif isinstance(default, int):
                fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
                kind = f"an integer of at least {least}"
            elif isinstance(default, float):
                low, high = self.RANGES.get(f.name, (-math.inf, math.inf))
                is_bool = isinstance(value, bool)
                fits = not is_bool and isinstance(value, (int, float)) and low <= value <= high
                kind = "a number" if low == -math.inf else f"a number from {low} to {high}"
            elif isinstance(default, list):
                fits = len(numbers) > 0 and all(isinstance(n, int) and n > 0 for n in numbers)
                kind = "a list of positive integers"
            else:
                continue
            if not fits:
                raise ValueError(f"{f.name} is {value!r}; it must be {kind}.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]):
        """Build from a plain dict; keys that are no field go to `extra` and are kept."""
        names = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        known = {key: value for key, value in values.items() if key in names}
        unknown = {key: value for key, value in values.items() if key not in names}
        return cls(**known, extra=unknown)

    def to_dict(self) -> dict[str, Any]:
        """All fields and the unknown keys as a plain, JSON-ready dict."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**values.pop("extra"), **values}


def check_activation(field_name: str, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"{field_name} is {activation!r}; it must be one of {list(ACTIVATIONS)}.")


def _default_stages(depths: list[int], out_features: list[str] | None) -> list[str]:
    """Stage names of a backbone's outputs; all stages when none are named."""
    stages = [f"stage{index}" for index in range(1, len(depths) + 1)]
    if out_features is None:
        return stages
    unknown = [name for name in out_features if name not in stages]
    if unknown:
        raise ValueError(f"out_features names {unknown}, but this backbone has {stages}.")
    return [name for name in stages if name in out_features]


@dataclass
class SwinConfig(Config):
    """A Swin transformer (Liu et al. 2021); the defaults are Swin-T.

    `embed_dim` is the width of the first stage, doubled at each following one. `out_features` names
    the stages whose feature maps are returned (default: all four, strides 4, 8, 16, 32).
    """

    model_type = "swin"
    RANGES: ClassVar = {
        "hidden_dropout_prob": (0, 1),
        "attention_probs_dropout_prob": (0, 1),
        "drop_path_rate": (0, 1),
    }

    image_size: int = 224
    patch_size: int = 4
    num_channels: int = 3
    embed_dim: int = 96
    depths: list[int] = field(default_factory=lambda: [2, 2, 6, 2])
    num_heads: list[int] = field(default_factory=lambda: [3, 6, 12, 24])
    window_size: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    drop_path_rate: float = 0.1
    hidden_act: str = "gelu"
    use_absolute_embeddings: bool = False
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    # Never None once __post_init__ has run.
    out_features: list[str] = None  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size"):  # files may give a square as [side, side]
            side = getattr(self, name)
            if isinstance(side, (list, tuple)) and len(set(side)) == 1:
                setattr(self, name, side[0])
        self.check_fields()
        check_activation("hidden_act", self.hidden_act)
        self.depths, self.num_heads = list(self.depths), list(self.num_heads)
        if len(self.depths) != len(self.num_heads):
            raise ValueError(
                f"depths has {len(self.depths)} stages but num_heads has {len(self.num_heads)}; "
                "give one number of heads per stage."
            )
        self.out_features = _default_stages(self.depths, self.out_features)


@dataclass
class ResNetConfig(Config):
    """A ResNet (He et al. 2016); the defaults are ResNet-50.

    `layer_type` is "bottleneck" (three convolutions a layer) or "basic" (two).

    `freeze_batch_norm_2d` keeps the statistics, scales and shifts of all batch norms as they were
    loaded, while training too. So were the ResNets of the paper trained on COCO and ADE20K
    (detectron2's FrozenBN); on Cityscapes it used synchronised batch norm, which is
    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` of a model without this option. The default is
    transformers': batch norms learn, from the statistics of each batch. In evaluation mode
    there is no difference.
    """

    model_type = "resnet"

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: list[int] = field(default_factory=lambda: [256, 512, 1024, 2048])
    depths: list[int] = field(default_factory=lambda: [3, 4, 6, 3])
    layer_type: str = "bottleneck"
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    freeze_batch_norm_2d: bool = False
    # Never None once __post_init__ has run.
    out_features: list[str] = None  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        self.check_fields()
        check_activation("hidden_act", self.hidden_act)
        self.hidden_sizes, self.depths = list(self.hidden_sizes), list(self.depths)
        if self.layer_type not in ("basic", "bottleneck"):
            raise ValueError(
                f"layer_type is {self.layer_type!r}; it must be 'basic' or 'bottleneck'."
            )
        if len(self.depths) != len(self.hidden_sizes):
            raise ValueError(
                f"depths has {len(self.depths)} stages but hidden_sizes has "
                f"{len(self.hidden_sizes)}; give one width per stage."
            )
        self.out_features = _default_stages(self.depths, self.out_features)


@dataclass
class TimmBackboneConfig(Config):
    """A model of the timm library (`pip install mask2former[timm]`).

    `backbone` is timm's name for it, such as "convnext_tiny" or "vit_small_patch14_dinov2".
    `out_indices` chooses among its feature maps (default: the last of each of the model's
    `feature_strides`, or a plain vision transformer's last one), `freeze_batch_norm_2d` is as in
    `ResNetConfig`, and `model_kwargs` goes to `timm.create_model`, for example
    `{"drop_path_rate": 0.3}`.
    """

    model_type = "timm_backbone"

    backbone: str = ""
    num_channels: int = 3
    out_indices: list[int] | None = None
    features_only: bool = True
    freeze_batch_norm_2d: bool = False
    output_stride: int | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.check_fields()
        if not isinstance(self.backbone, str) or not self.backbone:
            raise ValueError(
                f"backbone is {self.backbone!r}; it must be timm's name of a model, such as "
                "'convnext_tiny'."
            )
        if not self.features_only:
            raise ValueError("features_only is false, but a backbone has to return feature maps.")
        if self.out_indices is not None:
            self.out_indices = list(self.out_indices)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TimmBackboneConfig:
        """Build from a plain dict; names of stages follow from `out_indices` and are left out."""
        derived = {"out_features", "stage_names"}
        return super().from_dict({k: v for k, v in values.items() if k not in derived})


BACKBONE_CONFIGS = {
    config.model_type: config for config in (SwinConfig, ResNetConfig, TimmBackboneConfig)
}

# Keys of a classification model's config.json that a backbone has no use for. The dtype is the
# weights' in the file.
CLASSIFIER_KEYS = {"id2label", "label2id", "architectures", "dtype", "torch_dtype"}


def as_backbone_config(value: Any) -> Any:
    """A backbone's configuration from a dict, one of ours, or one of transformers.

    Swin, ResNet and timm become our own; what only transformers has stays its object.
    """
    if value is None:  # the documented default: Swin-S
        return SwinConfig(depths=[2, 2, 18, 2], drop_path_rate=0.3)
    if isinstance(value, TimmBackboneConfig):
        return copy.deepcopy(value)  # a model completes it
    if isinstance(value, tuple(BACKBONE_CONFIGS.values())):
        return value
    if not isinstance(value, dict) and not hasattr(value, "to_dict"):
        raise ValueError(f"backbone_config is {value!r}; it must be a dict with a model_type.")
    values = dict(value if isinstance(value, dict) else value.to_dict())
    model_type = values.pop("model_type", None)
    if model_type not in BACKBONE_CONFIGS:
        return transformers_config(model_type, values, sorted(BACKBONE_CONFIGS))
    if model_type != TimmBackboneConfig.model_type:
        values = with_our_stages(values)
    return BACKBONE_CONFIGS[model_type].from_dict(values)


def named_backbone(name: str, use_timm: bool, options: dict[str, Any]) -> Any:
    """The configuration of the backbone that a name of timm, of the hub or of a folder stands for.

    For timm, `options` that are no field of `TimmBackboneConfig` go to `timm.create_model`.
    """
    if use_timm:
        fields = {f.name for f in dataclasses.fields(TimmBackboneConfig)}
        known = {k: v for k, v in options.items() if k in fields}
        rest = {k: v for k, v in options.items() if k not in fields}
        return TimmBackboneConfig(backbone=name, **{"model_kwargs": rest, **known})
    try:
        path = resolve_file(name, CONFIG_NAME)
    except DataError as error:
        raise DataError(
            f"There is no backbone {name!r} in the Hugging Face format: {error} For a model of "
            "timm give use_timm_backbone=True."
        ) from error
    values = read_json(path)
    values = {k: v for k, v in values.items() if k not in CLASSIFIER_KEYS}
    if "out_indices" in options:
        values.pop("out_features", None)
    if "out_features" in options:
        values.pop("out_indices", None)
    return as_backbone_config({**values, **options})
