"""Configuration of the model, in the Hugging Face `config.json` format."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from mask2former.configuration.backbones import (
    CONFIG_NAME,
    Config,
    TimmBackboneConfig,
    as_backbone_config,
    check_activation,
    named_backbone,
)
from mask2former.io.errors import DataError
from mask2former.io.files import read_json, write_text
from mask2former.io.hub import resolve_file

# The three coarsest maps of the backbone go through the pixel decoder's deformable encoder, which
# samples each of them at four points for every head (Cheng et al. 2022, appendix). The published
# configurations have no name for either number.
NUM_LEVELS = 3
NUM_POINTS = 4

Task = Literal["panoptic", "instance", "semantic"]


@dataclass
class _NumLabelsArgument(Config):
    # Here and not in the class below, where the name stands for the property.
    num_labels: dataclasses.InitVar[int | None] = field(default=None, kw_only=True)


@dataclass
class Mask2FormerConfig(_NumLabelsArgument):
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
        oversample_ratio: candidates for each point, at least 1; importance_sample_ratio: the
            fraction of the points that are the most uncertain candidates, from 0 to 1.
        init_std: standard deviation of the truncated normal that the class head starts from. All
            other weights start as in the paper's code, such as learned queries and level embeddings
            from a standard normal, and Swin and ResNet as in their papers' code.
        init_xavier_std: gain of the Xavier initialisation of the transformer decoder.
        use_auxiliary_loss: whether every prediction has a loss, or only the last one.
        output_auxiliary_logits, output_hidden_states, output_attentions, return_dict: what the
            models return unless told otherwise in the call.
        id2label: name of each class; `num_labels`: their number, where they have no names.
        task: what the model was trained for, "panoptic", "instance" or "semantic"; None where the
            file does not say, as in published checkpoints.
        thing_label_ids: labels of countable things; None where the file does not say.

    The backbone is given in one of two ways:

    - `backbone_config`: a `SwinConfig`, `ResNetConfig` or `TimmBackboneConfig`, a dict with a
      `model_type`, or a configuration of transformers that its AutoBackbone takes.
    - `backbone`: with `use_timm_backbone` timm's name of a model, without it a hub name or a folder
      that holds a model in the Hugging Face format. Its configuration is read at once, changed by
      `backbone_kwargs` and kept as `backbone_config`, which alone is written to files. With
      `use_pretrained_backbone` (allowed for a `TimmBackboneConfig` too) a new model starts with the
      named model's weights. `from_pretrained` of a whole model never asks for them.

    Raises:
        DataError: this version has no such backbone, a library is not installed, or a name
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
    # Never None once __post_init__ has run.
    id2label: dict[int, str] = None  # pyright: ignore[reportAssignmentType]
    task: Task | None = None
    thing_label_ids: list[int] | None = None

    def __post_init__(self, num_labels: int | None) -> None:
        self.check_fields()
        check_activation("activation_function", self.activation_function)
        self.backbone_config = self._chosen_backbone()
        self.feature_strides = list(self.feature_strides)
        if self.id2label is None:
            self.id2label = _unnamed_labels(2 if num_labels is None else num_labels)
        if not isinstance(self.id2label, dict):
            raise ValueError(f"id2label is {self.id2label!r}; it must be a dict of id to label.")
        self.id2label = {_id(key): str(label) for key, label in self.id2label.items()}
        if num_labels not in (None, len(self.id2label)):
            raise ValueError(
                f"num_labels is {num_labels} but id2label has {len(self.id2label)} labels."
            )
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError("The keys of id2label must be 0, 1, 2, ... without gaps.")
        self._check_task()
        heads = self.num_attention_heads
        if self.hidden_dim % heads or self.feature_size % heads:
            raise ValueError(
                f"hidden_dim {self.hidden_dim} and feature_size {self.feature_size} must be "
                f"multiples of num_attention_heads {heads}."
            )

    def _check_task(self) -> None:
        if self.task not in (None, *get_args(Task)):
            raise ValueError(f"task is {self.task!r}; it must be one of {list(get_args(Task))}.")
        things = self.thing_label_ids
        if things is None:
            return
        if not isinstance(things, Collection) or not all(
            type(label) is int and label in self.id2label for label in things
        ):
            raise ValueError(
                f"thing_label_ids is {things!r}; it must be a list of labels, which are 0 to "
                f"{self.num_labels - 1}."
            )
        self.thing_label_ids = sorted(set(things))

    def _chosen_backbone(self) -> Any:
        if self.backbone is not None:
            if self.backbone_config is not None:
                raise ValueError("backbone and backbone_config cannot both be given.")
            options = self.backbone_kwargs or {}
            return named_backbone(self.backbone, self.use_timm_backbone, options)
        for name in ("use_timm_backbone", "backbone_kwargs"):
            if getattr(self, name):
                raise ValueError(f"{name} goes with the name of a backbone; give backbone as well.")
        chosen = as_backbone_config(self.backbone_config)
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
    def num_labels(self) -> int:
        """Number of labels. Setting it makes new, unnamed labels, of which no things are known."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        self.id2label = _unnamed_labels(count)
        self.thing_label_ids = None  # of the labels before

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
        fields = {k: v for k, v in values.items() if k not in derived}
        if values.get("id2label") is None:
            label2id, count = values.get("label2id"), values.get("num_labels")
            labels = None if label2id is None else labels_by_id(label2id)
            if count is not None and (labels is None or len(labels) != count):
                labels = _unnamed_labels(count)
            fields["id2label"] = labels
        return super().from_dict(fields)

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

        Arguments and errors are those of `mask2former.io.hub.resolve_file`.
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
        except (ValueError, DataError) as error:
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


def _unnamed_labels(count: Any) -> dict[int, str]:
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"num_labels is {count!r}; it must be an integer of at least 1.")
    return {index: f"LABEL_{index}" for index in range(count)}
