"""Checkpoints of the paper's own code (facebookresearch/Mask2Former, on detectron2): image models
with a Swin or ResNet backbone, as `.pkl` (the model zoo) or `.pth` (its training)."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mask2former.checkpoints.array_pickle import (
    PickledArray,
    load_array_pickle,
    numpy_stand_ins,
)
from mask2former.checkpoints.keys import COUNTER, Rule, load_state
from mask2former.checkpoints.weights import check_tensors, load_torch_file
from mask2former.configuration import (
    NUM_LEVELS,
    NUM_POINTS,
    Mask2FormerConfig,
    ResNetConfig,
    SwinConfig,
)
from mask2former.io.errors import DataError

PIXEL = "sem_seg_head.pixel_decoder."
PREDICTOR = "sem_seg_head.predictor."
STAGES = range(4)
OUR_ENCODER = "model.pixel_decoder.layers.*."
THEIR_ENCODER = PIXEL + "transformer.encoder.layers.*."
OUR_DECODER = "model.transformer_decoder.layers.*."
CROSS = PREDICTOR + "transformer_cross_attention_layers.*."
SELF = PREDICTOR + "transformer_self_attention_layers.*."
FFN = PREDICTOR + "transformer_ffn_layers.*."

OUR_SWIN = "model.backbone.stages.*.*."
THEIR_SWIN = "backbone.layers.*.blocks.*."
SWIN_RULES: list[Rule] = [
    ("model.backbone.patch_embed.*", "backbone.patch_embed.proj.*"),
    ("model.backbone.patch_norm.*", "backbone.patch_embed.norm.*"),
    (OUR_SWIN + "norm1.*", THEIR_SWIN + "norm1.*"),
    (OUR_SWIN + "attention.qkv.*", THEIR_SWIN + "attn.qkv.*"),
    (OUR_SWIN + "attention.position_bias", THEIR_SWIN + "attn.relative_position_bias_table"),
    (OUR_SWIN + "attention.output.*", THEIR_SWIN + "attn.proj.*"),
    (OUR_SWIN + "norm2.*", THEIR_SWIN + "norm2.*"),
    (OUR_SWIN + "fc1.*", THEIR_SWIN + "mlp.fc1.*"),
    (OUR_SWIN + "fc2.*", THEIR_SWIN + "mlp.fc2.*"),
    ("model.backbone.merges.*.norm.*", "backbone.layers.*.downsample.norm.*"),
    ("model.backbone.merges.*.reduction.*", "backbone.layers.*.downsample.reduction.*"),
    *((f"model.backbone.norms.stage{i + 1}.*", f"backbone.norm{i}.*") for i in STAGES),
]


def _convolution(ours: str, theirs: str, parts: tuple[str, str] = ("conv", "norm")) -> list[Rule]:
    """Rules of a convolution and its norm, which detectron2 keeps inside of the convolution."""
    convolution, norm = parts
    return [
        (f"{ours}.{convolution}.*", f"{theirs}.*"),
        (f"{ours}.{norm}.*", f"{theirs}.norm.*"),
    ]


RESNET_RULES: list[Rule] = [
    *_convolution("model.backbone.stem", "backbone.stem.conv1"),
    *(
        rule
        for stage in STAGES
        for ours, theirs in (
            ("shortcut", "shortcut"),
            *((f"convs.{i}", f"conv{i + 1}") for i in range(3)),
        )
        for rule in _convolution(
            f"model.backbone.stages.{stage}.*.{ours}", f"backbone.res{stage + 2}.*.{theirs}"
        )
    ),
]

HEAD_RULES: list[Rule] = [
    ("model.pixel_decoder.input_projections.*.*.*", PIXEL + "input_proj.*.*.*"),
    ("model.pixel_decoder.level_embed", PIXEL + "transformer.level_embed"),
    (OUR_ENCODER + "self_attn.*.*", THEIR_ENCODER + "self_attn.*.*"),
    (OUR_ENCODER + "self_attn_norm.*", THEIR_ENCODER + "norm1.*"),
    (OUR_ENCODER + "fc1.*", THEIR_ENCODER + "linear1.*"),
    (OUR_ENCODER + "fc2.*", THEIR_ENCODER + "linear2.*"),
    (OUR_ENCODER + "final_norm.*", THEIR_ENCODER + "norm2.*"),
    ("model.pixel_decoder.mask_projection.*", PIXEL + "mask_features.*"),
    ("model.transformer_decoder.query_features.*", PREDICTOR + "query_feat.*"),
    ("model.transformer_decoder.query_position.*", PREDICTOR + "query_embed.*"),
    ("model.transformer_decoder.level_embed.*", PREDICTOR + "level_embed.*"),
    ("model.transformer_decoder.input_projections.*.*", PREDICTOR + "input_proj.*.*"),
    (
        tuple(f"{OUR_DECODER}cross_attn.{part}.*" for part in ("query", "key", "value")),
        CROSS + "multihead_attn.in_proj_*",
    ),
    (OUR_DECODER + "cross_attn.output.*", CROSS + "multihead_attn.out_proj.*"),
    (OUR_DECODER + "cross_attn_norm.*", CROSS + "norm.*"),
    (
        tuple(f"{OUR_DECODER}self_attn.{part}.*" for part in ("query", "key", "value")),
        SELF + "self_attn.in_proj_*",
    ),
    (OUR_DECODER + "self_attn.output.*", SELF + "self_attn.out_proj.*"),
    (OUR_DECODER + "self_attn_norm.*", SELF + "norm.*"),
    (OUR_DECODER + "fc1.*", FFN + "linear1.*"),
    (OUR_DECODER + "fc2.*", FFN + "linear2.*"),
    (OUR_DECODER + "final_norm.*", FFN + "norm.*"),
    ("model.transformer_decoder.norm.*", PREDICTOR + "decoder_norm.*"),
    ("model.transformer_decoder.mask_embedder.*.*", PREDICTOR + "mask_embed.layers.*.*"),
    ("class_predictor.*", PREDICTOR + "class_embed.*"),
    *(
        rule
        for level in range(3)  # rules of FPN levels that are not there idle
        for ours, theirs in (("lateral_convs", "adapter"), ("output_convs", "layer"))
        for rule in _convolution(
            f"model.pixel_decoder.{ours}.{level}", f"{PIXEL}{theirs}_{level + 1}", ("0", "1")
        )
    ),
]

BACKBONE_RULES = {"swin": SWIN_RULES, "resnet": RESNET_RULES}

# Buffers that follow from the configuration.
EMPTY_WEIGHT = "criterion.empty_weight"
IGNORED_ENDINGS = (EMPTY_WEIGHT, "attn.relative_position_index", "pixel_mean", "pixel_std")

# What decides about results or training and leaves no trace in the tensors.
ASSUMED = (
    *("pre_norm", "activation_function", "dropout"),
    *("class_weight", "mask_weight", "dice_weight"),
)
SOMETIMES_ASSUMED = ("num_attention_heads", "no_object_weight")
BACKBONE_ASSUMED = {
    "swin": ("hidden_act", "drop_path_rate"),
    "resnet": ("hidden_act", "downsample_in_bottleneck"),
}
NO_MODEL = "give a file of the paper's model zoo or of its training, of an image model"


def read_detectron2(path: Path) -> dict[str, Tensor]:
    """The state dict in a `.pkl` or a `.pth` file, under the names of the code's last version.

    Raises:
        DataError: the file is damaged, or holds something else.
    """
    try:
        if path.suffix == ".pkl":
            contents = load_array_pickle(path)
        else:  # rates of an optimizer may be numpy's numbers
            with torch.serialization.safe_globals(numpy_stand_ins()):
                contents = load_torch_file(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    for key in ("model", "state_dict"):
        if isinstance(contents, dict) and isinstance(contents.get(key), dict):
            contents = contents[key]
    if isinstance(contents, dict):
        contents = {_current_name(k): _tensor(v) for k, v in contents.items()}
    check_tensors(contents, path)
    return contents


def _tensor(value: Any) -> Any:
    return torch.from_numpy(value.array) if isinstance(value, PickledArray) else value


def _current_name(name: Any) -> Any:
    """Before version 2 the pixel decoder was the head itself, and queries were called static."""
    if not isinstance(name, str):
        return name
    if name.startswith("sem_seg_head.") and not name.startswith((PIXEL, PREDICTOR)):
        name = PIXEL + name.removeprefix("sem_seg_head.")
    return name.replace(PREDICTOR + "static_query.", PREDICTOR + "query_feat.")


def from_detectron2(
    weights: dict[str, Tensor],
    expected: dict[str, Tensor],
    config: Mask2FormerConfig,
    path: Path,
) -> dict[str, Tensor]:
    """A state dict of ours from the tensors that `read_detectron2` found in a file.

    Args:
        weights: tensors by foreign name.
        expected: the state dict that is wanted, for names, shapes and dtypes.
        config: the model's configuration.
        path: the file, for messages.

    Raises:
        DataError: keys are missing or foreign, or a shape differs.
    """
    weights = {k: v for k, v in weights.items() if not k.endswith(IGNORED_ENDINGS)}
    rules = BACKBONE_RULES[config.backbone_config.model_type] + HEAD_RULES
    return load_state(weights, rules, expected, path, (NO_MODEL, NO_MODEL))


def infer_config(weights: dict[str, Tensor], path: Path) -> tuple[Mask2FormerConfig, list[str]]:
    """The configuration of a state dict of the paper's code, from names and shapes.

    Labels are numbered. The number of attention heads is read from the pixel decoder, which
    shares it; the size of the windows follows from the table of relative positions.

    Args:
        weights: tensors by foreign name, as `read_detectron2` returns them.
        path: the file, for messages.

    Returns:
        The configuration, and the names of its fields that had to be assumed, the backbone's
        as "backbone_config.NAME". They have the values of the model zoo.

    Raises:
        DataError: the tensors do not belong to such a model.
    """
    shapes = _Shapes(weights, path)
    swin = "backbone.patch_embed.proj.weight" in weights
    backbone = _swin_config(shapes) if swin else _resnet_config(shapes)
    head = _head_fields(shapes)
    try:
        config = Mask2FormerConfig(backbone_config=backbone, **head)
    except ValueError as error:
        raise DataError(f"The tensors in {path} make no model: {error}") from error
    head_fields = (name for name in SOMETIMES_ASSUMED if name not in head)
    backbone_fields = (f"backbone_config.{n}" for n in BACKBONE_ASSUMED[backbone.model_type])
    return config, [*ASSUMED, *head_fields, *backbone_fields]


def _head_fields(shapes: _Shapes) -> dict[str, Any]:
    """The fields of the configuration that the tensors outside of the backbone decide."""
    queries, hidden_dim = shapes.of(PREDICTOR + "query_feat.weight", 2)
    outputs, _ = shapes.of(PREDICTOR + "class_embed.weight", 2)
    mask_feature_size, feature_size, *_ = shapes.of(PIXEL + "mask_features.weight", 4)
    projects = PREDICTOR + "input_proj.0.weight" in shapes.weights
    fields: dict[str, Any] = {
        "num_queries": queries,
        "num_labels": outputs - 1,
        "hidden_dim": hidden_dim,
        "feature_size": feature_size,
        "mask_feature_size": mask_feature_size,
        "encoder_layers": shapes.count(PIXEL + "transformer.encoder.layers.#."),
        "decoder_layers": shapes.count(PREDICTOR + "transformer_ffn_layers.#.") + 1,
        "common_stride": 8 // 2 ** shapes.count(PIXEL + "adapter_#."),
        "enforce_input_projection": projects and hidden_dim == feature_size,
    }
    if fields["encoder_layers"]:
        layer = PIXEL + "transformer.encoder.layers.0."
        fields["encoder_feedforward_dim"] = shapes.of(layer + "linear1.weight", 2)[0]
        samples, _ = shapes.of(layer + "self_attn.attention_weights.weight", 2)
        fields["num_attention_heads"] = samples // (NUM_LEVELS * NUM_POINTS)
    if fields["decoder_layers"] > 1:
        layer = PREDICTOR + "transformer_ffn_layers.0."
        fields["dim_feedforward"] = shapes.of(layer + "linear1.weight", 2)[0]
    if EMPTY_WEIGHT in shapes.weights:
        shapes.of(EMPTY_WEIGHT, 1)
        fields["no_object_weight"] = round(float(shapes.weights[EMPTY_WEIGHT][-1]), 6)
    return fields


class _Shapes:
    """Shapes of tensors by name, and how many of a kind there are."""

    def __init__(self, weights: dict[str, Tensor], path: Path) -> None:
        self.weights, self.path = weights, path

    def of(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The shape of the tensor `name`, which is not empty; DataError if there is no such one."""
        shape = tuple(self.weights[name].shape) if name in self.weights else ()
        if len(shape) != dimensions or 0 in shape:
            raise DataError(
                f"{self.path} has no {name} of {dimensions} dimensions, so it holds no Mask2Former "
                f"of the paper's code; {NO_MODEL}."
            )
        return shape

    def count(self, pattern: str) -> int:
        """How many different numbers the names have where the pattern has #."""
        expression = re.compile(re.escape(pattern).replace(r"\#", r"(\d+)"))
        return len({m[1] for m in map(expression.match, self.weights) if m})


def _swin_config(shapes: _Shapes) -> SwinConfig:
    embed_dim, channels, patch_size, _ = shapes.of("backbone.patch_embed.proj.weight", 4)
    block = "backbone.layers.{}.blocks.0."
    table = block + "attn.relative_position_bias_table"
    rows, _ = shapes.of(table.format(0), 2)
    hidden, _ = shapes.of(block.format(0) + "mlp.fc1.weight", 2)
    return SwinConfig(
        num_channels=channels,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depths=[shapes.count(f"backbone.layers.{i}.blocks.#.") for i in STAGES],
        num_heads=[shapes.of(table.format(i), 2)[1] for i in STAGES],
        window_size=(math.isqrt(rows) + 1) // 2,  # the table has (2 window_size - 1)^2 rows
        mlp_ratio=hidden / embed_dim,
        qkv_bias=block.format(0) + "attn.qkv.bias" in shapes.weights,
        drop_path_rate=0.3,
    )


def _resnet_config(shapes: _Shapes) -> ResNetConfig:
    embedding_size, channels, *_ = shapes.of("backbone.stem.conv1.weight", 4)
    last = "conv3" if "backbone.res2.0.conv3.weight" in shapes.weights else "conv2"
    widths = [shapes.of(f"backbone.res{i + 2}.0.{last}.weight", 4)[0] for i in STAGES]
    return ResNetConfig(
        num_channels=channels,
        embedding_size=embedding_size,
        hidden_sizes=widths,
        depths=[shapes.count(f"backbone.res{i + 2}.#.") for i in STAGES],
        layer_type="bottleneck" if last == "conv3" else "basic",
        freeze_batch_norm_2d="backbone.stem.conv1.norm" + COUNTER not in shapes.weights,
    )
