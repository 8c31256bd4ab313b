"""Configuration of the model and of its backbones, in the Hugging Face `config.json` format."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mask2former.activations import ACTIVATIONS
from mask2former.checkpoints.folder import resolve_file
from mask2former.errors import DataError
from mask2former.files import read_json, write_text
from mask2former.transformers_configuration import transformers_config, with_our_stages

CONFIG_NAME = "config.json"


@dataclass
class _Config:
    """Named fields plus every key that this package does not know, kept for the way back."""

    extra: dict[str, Any] = field(default_factory=dict, kw_only=True, repr=False)

    MAY_BE_ZERO: ClassVar = {"encoder_layers", "ignore_value"}
    RANGES: ClassVar[dict[str, tuple[float, float]]] = {}  # least and greatest, of floats

    def _check_fields(self) -> None:
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
                fits = isinstance(value, (int, float)) and not isinstance(value, bool)
                fits = fits and low <= value <= high
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


def _check_activation(field_name: str, activation: str) -> None:
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
class SwinConfig(_Config):
    """A Swin transformer (Liu et al. 2021); the defaults are Swin-T.

    `embed_dim` is the width of the first stage, doubled at each following one. `out_features` names
    the stages whose feature maps are returned (default: all four, strides 4, 8, 16, 32).
    """

    model_type = "swin"

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
    out_features: list[str] | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size"):  # files may give a square as [side, side]
            side = getattr(self, name)
            if isinstance(side, (list, tuple)) and len(set(side)) == 1:
                setattr(self, name, side[0])
        self._check_fields()
        _check_activation("hidden_act", self.hidden_act)
        self.depths, self.num_heads = list(self.depths), list(self.num_heads)
        if len(self.depths) != len(self.num_heads):
            raise ValueError(
                f"depths has {len(self.depths)} stages but num_heads has {len(self.num_heads)}; "
                "give one number of heads per stage."
            )
        self.out_features = _default_stages(self.depths, self.out_features)


@dataclass
class ResNetConfig(_Config):
    """A ResNet (He et al. 2016); the defaults are ResNet-50.

    `layer_type` is "bottleneck" (three convolutions a layer) or "basic" (two).

    `freeze_batch_norm_2d` keeps the statistics, scales and shifts of all batch norms as they were
    loaded, while training too. So were the ResNets of the paper trained on COCO and ADE20K
    (detectron2's FrozenBN); on Cityscapes it used synchronised batch norm, which is
    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` of a model without this option. The default is
    that of transformers: batch norms learn, from the statistics of each batch. In evaluation mode
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
    out_features: list[str] | None = None

    def __post_init__(self) -> None:
        self._check_fields()
        _check_activation("hidden_act", self.hidden_act)
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
class TimmBackboneConfig(_Config):
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
        self._check_fields()
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

# What a classification model's config.json says and a backbone has no use for. The dtype is that of
# the file's weights.
CLASSIFIER_KEYS = {"id2label", "label2id", "architectures", "dtype", "torch_dtype"}


def _backbone_config(value: Any) -> Any:
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


def _named_backbone(name: str, use_timm: bool, options: dict[str, Any]) -> Any:
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
    return _backbone_config({**values, **options})


@dataclass
class Mask2FormerConfig(_Config):
    """Everything that defines a Mask2Former's architecture and loss.

    Names, meanings and defaults are those of the Hugging Face documentation. Note that
    `decoder_layers` counts predictions: 10 means nine layers plus the prediction from the learned
    queries. Labels come from `id2label` (default: two unnamed ones); `num_labels` may be given
    instead. Unknown keys are kept in `extra` and written back by `save_pretrained`.

    Args:
        backbone_config, backbone, use_timm_backbone, backbone_kwargs, use_pretrained_backbone: see
            below; default: Swin-S.
        feature_size: width of the pixel decoder, a multiple of 32.
        mask_feature_size: width of the features at the common stride that masks are read from.
        hidden_dim: width of the queries.
        encoder_feedforward_dim, encoder_layers: of the pixel decoder's deformable encoder.
        activation_function: between the two linear layers of decoder layers; see activations.py.
        decoder_layers: predictions, one more than there are layers.
        num_attention_heads: of encoder and decoder.
        dropout: probability of every dropout in encoder and decoder layers, in training mode.
        dim_feedforward: of the decoder layers.
        pre_norm: whether decoder layers normalise before each block instead of after it.
        enforce_input_projection: whether a 1x1 convolution leads from the pixel decoder to the
            transformer decoder even where feature_size equals hidden_dim.
        common_stride: of mask features and mask logits, in pixels.
        feature_strides: of the backbone's feature maps, finest first. The last three go through the
            encoder; from the finest of them log2(stride / common_stride) levels lead further up.
        ignore_value: marks pixels in mask labels, and whole annotations by their class, that the
            loss leaves out. A class of the model is never left out, nor a mask's own 0 and 1.
        num_queries: masks that are predicted for each image.
        no_object_weight: of the class "no object" in the cross-entropy.
        class_weight, mask_weight, dice_weight: of the three losses, and of the matching costs.
        train_num_points: points at which a mask is compared with an annotation.
        oversample_ratio: candidates for each of them, at least 1; importance_sample_ratio: the part
            of them that is chosen among the candidates for being unsure, from 0 to 1.
        init_std: standard deviation of the truncated normal that the class head starts from. All
            other weights start as in the paper's code: learned queries and level embeddings from a
            standard normal.
        init_xavier_std: gain of the Xavier initialisation of the transformer decoder.
        use_auxiliary_loss: whether every prediction has a loss, or only the last one.
        output_auxiliary_logits, output_hidden_states, output_attentions, return_dict: what the
            models return unless told otherwise in the call.
        id2label: name of each class; `num_labels`: their number, where they have no names.

    The backbone is given in one of two ways:

    - `backbone_config`: a `SwinConfig`, `ResNetConfig` or `TimmBackboneConfig`, a dict with a
      `model_type`, or a configuration of transformers that its AutoBackbone takes.
    - `backbone`: with `use_timm_backbone` timm's name of a model, without it a hub name or a folder
      that holds a model in the Hugging Face format. Its configuration is read at once, changed by
      `backbone_kwargs` and kept as `backbone_config`, which alone is written to files. With
      `use_pretrained_backbone` (allowed for a `TimmBackboneConfig` too) a new model starts with the
      named model's weights. `from_pretrained` of a whole model never asks for them.

    Raises:
        DataError: the backbone is none that this version has, a library is not installed, or a name
            leads to no configuration.
        ValueError: fields contradict each other.
    """

    model_type = "mask2former"
    RANGES: ClassVar = {
        "dropout": (0, 1),
        "no_object_weight": (0, math.inf),
        "class_weight": (0, math.inf),
        "mask_weight": (0, math.inf),
        "dice_weight": (0, math.inf),
        "oversample_ratio": (1, math.inf),
        "importance_sample_ratio": (0, 1),
        "init_std": (0, math.inf),
        "init_xavier_std": (0, math.inf),
    }

    backbone_config: Any = None
    feature_size: int = 256
    mask_feature_size: int = 256
    hidden_dim: int = 256
    encoder_feedforward_dim: int = 1024
    activation_function: str = "relu"
    encoder_layers: int = 6
    decoder_layers: int = 10
    num_attention_heads: int = 8
    dropout: float = 0.0
    dim_feedforward: int = 2048
    pre_norm: bool = False
    enforce_input_projection: bool = False
    common_stride: int = 4
    ignore_value: int = 255
    num_queries: int = 100
    no_object_weight: float = 0.1
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    train_num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75
    init_std: float = 0.02
    init_xavier_std: float = 1.0
    use_auxiliary_loss: bool = True
    feature_strides: list[int] = field(default_factory=lambda: [4, 8, 16, 32])
    output_auxiliary_logits: bool | None = None
    # How backbone_config came about; two configurations that only differ in it are equal.
    backbone: str | None = field(default=None, compare=False)
    use_pretrained_backbone: bool = field(default=False, compare=False)
    use_timm_backbone: bool = field(default=False, compare=False)
    backbone_kwargs: dict[str, Any] | None = field(default=None, compare=False)
    output_hidden_states: bool = False
    output_attentions: bool = False
    return_dict: bool = True
    id2label: dict[int, str] | None = None
    num_labels: dataclasses.InitVar[int | None] = None

    def __post_init__(self, num_labels: int | None) -> None:
        self._check_fields()
        _check_activation("activation_function", self.activation_function)
        self.backbone_config = self._chosen_backbone()
        self.feature_strides = list(self.feature_strides)
        if self.id2label is None:
            self.num_labels = 2 if num_labels is None else num_labels
        if not isinstance(self.id2label, dict):
            raise ValueError(f"id2label is {self.id2label!r}; it must be a dict of id to label.")
        self.id2label = {_id(key): str(label) for key, label in self.id2label.items()}
        if num_labels not in (None, len(self.id2label)):
            raise ValueError(
                f"num_labels is {num_labels} but id2label has {len(self.id2label)} labels."
            )
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError("The keys of id2label must be 0, 1, 2, ... without gaps.")
        heads = self.num_attention_heads
        if self.hidden_dim % heads or self.feature_size % heads:
            raise ValueError(
                f"hidden_dim {self.hidden_dim} and feature_size {self.feature_size} must be "
                f"multiples of num_attention_heads {heads}."
            )

    def _chosen_backbone(self) -> Any:
        if self.backbone is not None:
            if self.backbone_config is not None:
                raise ValueError("backbone and backbone_config cannot both be given.")
            options = self.backbone_kwargs or {}
            return _named_backbone(self.backbone, self.use_timm_backbone, options)
        for name in ("use_timm_backbone", "backbone_kwargs"):
            if getattr(self, name):
                raise ValueError(f"{name} goes with the name of a backbone; give backbone as well.")
        chosen = _backbone_config(self.backbone_config)
        if self.use_pretrained_backbone and not isinstance(chosen, TimmBackboneConfig):
            raise ValueError(
                "use_pretrained_backbone goes with the name of a backbone; give backbone instead "
                "of backbone_config."
            )
        return chosen

    @classmethod
    def from_backbone_config(cls, backbone_config: Any, **kwargs: Any) -> Mask2FormerConfig:
        """A configuration with this backbone; `kwargs` are the constructor's other arguments."""
        return cls(backbone_config=backbone_config, **kwargs)

    @property
    def label2id(self) -> dict[str, int]:
        """Label to its id, the inverse of `id2label`."""
        return {label: index for index, label in self.id2label.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Mask2FormerConfig:
        """Build from the contents of a `config.json`.

        `id2label` wins over `label2id`, and that over `num_labels`.
        """
        # What follows from other keys, or says how a file's weights were stored.
        derived = {"model_type", "architectures", "label2id", "num_labels", "dtype", "torch_dtype"}
        config = super().from_dict({k: v for k, v in values.items() if k not in derived})
        if values.get("id2label") is None:
            if values.get("label2id") is not None:
                config = dataclasses.replace(config, id2label=labels_by_id(values["label2id"]))
            if values.get("num_labels") not in (None, config.num_labels):
                config.num_labels = values["num_labels"]
        return config

    def to_dict(self) -> dict[str, Any]:
        """The contents of a `config.json`."""
        values = super().to_dict()
        backbone = {"model_type": self.backbone_config.model_type, **self.backbone_config.to_dict()}
        return {
            **values,
            "model_type": self.model_type,
            "architectures": ["Mask2FormerForUniversalSegmentation"],
            "backbone_config": backbone,
            "backbone": None,
            "use_pretrained_backbone": False,
            "use_timm_backbone": False,
            "backbone_kwargs": None,
            "label2id": self.label2id,
        }

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | None = None,
        local_files_only: bool = False,
    ) -> Mask2FormerConfig:
        """Read `config.json` from a local folder or a hub repository.

        Arguments and errors are those of `mask2former.checkpoints.folder.resolve_file`.
        """
        path = resolve_file(
            name_or_folder,
            CONFIG_NAME,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        values = read_json(path)
        if values.get("model_type") != cls.model_type:
            raise DataError(
                f"{path} describes a model of type {values.get('model_type')!r}; "
                "give the folder of a mask2former model."
            )
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise DataError(f"{path} holds an invalid configuration: {error}") from error

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `config.json` into `folder`, which is made if need be; returns the file's path."""
        path = Path(folder) / CONFIG_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n")
        return path


def labels_by_id(label2id: Any) -> dict[int, str]:
    """The inverse of `label2id`.

    Raises:
        ValueError: it is no dict of label to integer, or two labels have one id.
    """
    if not isinstance(label2id, dict):
        raise ValueError(f"label2id is {label2id!r}; it must be a dict of label to id.")
    inverse = {_id(index): label for label, index in label2id.items()}
    if len(inverse) < len(label2id):
        raise ValueError(f"label2id gives two labels the same id: {label2id!r}.")
    return inverse


def _id(value: Any) -> int:
    """A label's id, which in files may be a text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    raise ValueError(f"A label's id is {value!r}; ids are the integers 0, 1, 2, ...")


def _set_num_labels(config: Mask2FormerConfig, count: int) -> None:
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"num_labels is {count!r}; it must be an integer of at least 1.")
    config.id2label = {index: f"LABEL_{index}" for index in range(count)}


# Outside of the class body, where the name stands for the argument of the constructor.
Mask2FormerConfig.num_labels = property(
    lambda config: len(config.id2label),
    _set_num_labels,
    doc="Number of labels. Setting it makes `id2label` anew, with unnamed labels.",
)
