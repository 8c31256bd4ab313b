"""Parameter names of the Hugging Face format, and strict translation both ways."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mask2former.checkpoints.keys import Rule, load_state, translate
from mask2former.configuration import Mask2FormerConfig

# A file of the model without the class head has the same names without this.
BASE_PREFIX = "model."

PIXEL = "model.pixel_level_module.decoder."
DECODER = "model.transformer_module.decoder."
OUR_ENCODER = "model.pixel_decoder.layers.*."
THEIR_ENCODER = PIXEL + "encoder.layers.*."
OUR_DECODER = "model.transformer_decoder.layers.*."
THEIR_DECODER = DECODER + "layers.*."
BACKBONE = "model.pixel_level_module.encoder."
SWIN_BLOCK = BACKBONE + "encoder.layers.*.blocks.*."
RESNET_BLOCK = BACKBONE + "encoder.stages.*.layers.*."

SWIN_RULES: list[Rule] = [
    ("model.backbone.patch_embed.*", BACKBONE + "embeddings.patch_embeddings.projection.*"),
    ("model.backbone.patch_norm.*", BACKBONE + "embeddings.norm.*"),
    ("model.backbone.position", BACKBONE + "embeddings.position_embeddings"),
    ("model.backbone.stages.*.*.norm1.*", SWIN_BLOCK + "layernorm_before.*"),
    (
        "model.backbone.stages.*.*.attention.qkv.*",
        tuple(f"{SWIN_BLOCK}attention.self.{part}.*" for part in ("query", "key", "value")),
    ),
    (
        "model.backbone.stages.*.*.attention.position_bias",
        SWIN_BLOCK + "attention.self.relative_position_bias_table",
    ),
    ("model.backbone.stages.*.*.attention.output.*", SWIN_BLOCK + "attention.output.dense.*"),
    ("model.backbone.stages.*.*.norm2.*", SWIN_BLOCK + "layernorm_after.*"),
    ("model.backbone.stages.*.*.fc1.*", SWIN_BLOCK + "intermediate.dense.*"),
    ("model.backbone.stages.*.*.fc2.*", SWIN_BLOCK + "output.dense.*"),
    ("model.backbone.merges.*.norm.*", BACKBONE + "encoder.layers.*.downsample.norm.*"),
    ("model.backbone.merges.*.reduction.*", BACKBONE + "encoder.layers.*.downsample.reduction.*"),
    ("model.backbone.norms.*.*", BACKBONE + "hidden_states_norms.*.*"),
]

RESNET_RULES: list[Rule] = [
    ("model.backbone.stem.conv.*", BACKBONE + "embedder.embedder.convolution.*"),
    ("model.backbone.stem.norm.*", BACKBONE + "embedder.embedder.normalization.*"),
    ("model.backbone.stages.*.*.convs.*.conv.*", RESNET_BLOCK + "layer.*.convolution.*"),
    ("model.backbone.stages.*.*.convs.*.norm.*", RESNET_BLOCK + "layer.*.normalization.*"),
    ("model.backbone.stages.*.*.shortcut.conv.*", RESNET_BLOCK + "shortcut.convolution.*"),
    ("model.backbone.stages.*.*.shortcut.norm.*", RESNET_BLOCK + "shortcut.normalization.*"),
]

HEAD_RULES: list[Rule] = [
    ("model.pixel_decoder.input_projections.*.*.*", PIXEL + "input_projections.*.*.*"),
    ("model.pixel_decoder.level_embed", PIXEL + "level_embed"),
    (OUR_ENCODER + "self_attn.*.*", THEIR_ENCODER + "self_attn.*.*"),
    (OUR_ENCODER + "self_attn_norm.*", THEIR_ENCODER + "self_attn_layer_norm.*"),
    (OUR_ENCODER + "fc1.*", THEIR_ENCODER + "fc1.*"),
    (OUR_ENCODER + "fc2.*", THEIR_ENCODER + "fc2.*"),
    (OUR_ENCODER + "final_norm.*", THEIR_ENCODER + "final_layer_norm.*"),
    ("model.pixel_decoder.mask_projection.*", PIXEL + "mask_projection.*"),
    ("model.transformer_decoder.query_features.*", "model.transformer_module.queries_features.*"),
    ("model.transformer_decoder.query_position.*", "model.transformer_module.queries_embedder.*"),
    ("model.transformer_decoder.level_embed.*", "model.transformer_module.level_embed.*"),
    (
        "model.transformer_decoder.input_projections.*.*",
        "model.transformer_module.input_projections.*.*",
    ),
    (
        tuple(f"{OUR_DECODER}cross_attn.{part}.*" for part in ("query", "key", "value")),
        THEIR_DECODER + "cross_attn.in_proj_*",
    ),
    (OUR_DECODER + "cross_attn.output.*", THEIR_DECODER + "cross_attn.out_proj.*"),
    (OUR_DECODER + "cross_attn_norm.*", THEIR_DECODER + "cross_attn_layer_norm.*"),
    (OUR_DECODER + "self_attn.query.*", THEIR_DECODER + "self_attn.q_proj.*"),
    (OUR_DECODER + "self_attn.key.*", THEIR_DECODER + "self_attn.k_proj.*"),
    (OUR_DECODER + "self_attn.value.*", THEIR_DECODER + "self_attn.v_proj.*"),
    (OUR_DECODER + "self_attn.output.*", THEIR_DECODER + "self_attn.out_proj.*"),
    (OUR_DECODER + "self_attn_norm.*", THEIR_DECODER + "self_attn_layer_norm.*"),
    (OUR_DECODER + "fc1.*", THEIR_DECODER + "fc1.*"),
    (OUR_DECODER + "fc2.*", THEIR_DECODER + "fc2.*"),
    (OUR_DECODER + "final_norm.*", THEIR_DECODER + "final_layer_norm.*"),
    ("model.transformer_decoder.norm.*", DECODER + "layernorm.*"),
    ("model.transformer_decoder.mask_embedder.*.*", DECODER + "mask_predictor.mask_embedder.*.0.*"),
    ("class_predictor.*", "class_predictor.*"),
]

# Backbones of other libraries keep their names. The pyramid is unknown to transformers.
PYRAMID_RULE: Rule = ("model.backbone.pyramid.**", "model.pixel_level_module.pyramid.**")
TIMM_RULES: list[Rule] = [("model.backbone.body.**", BACKBONE + "_backbone.**"), PYRAMID_RULE]
LIBRARY_RULES: list[Rule] = [("model.backbone.body.**", BACKBONE + "**"), PYRAMID_RULE]

BACKBONE_RULES = {"swin": SWIN_RULES, "resnet": RESNET_RULES, "timm_backbone": TIMM_RULES}

# A buffer of Swin that follows from the configuration, in files of older versions.
POSITION_INDEX = "attention.self.relative_position_index"

# Foreign keys that hold nothing of the model: an unused norm, buffers that follow from the
# configuration.
IGNORED_ENDINGS = (
    "encoder.swin.layernorm.weight",
    "encoder.swin.layernorm.bias",
    POSITION_INDEX,
    "criterion.empty_weight",
)


def key_table(config: Mask2FormerConfig) -> list[Rule]:
    """(ours, theirs) for this configuration's backbone and number of FPN levels."""
    fpn = []
    for level in range(len(config.feature_strides)):  # rules of levels that are not there idle
        ours = "model.pixel_decoder."
        fpn.append((f"{ours}lateral_convs.{level}.*.*", f"{PIXEL}adapter_{level + 1}.*.*"))
        fpn.append((f"{ours}output_convs.{level}.*.*", f"{PIXEL}layer_{level + 1}.*.*"))
    backbone = BACKBONE_RULES.get(config.backbone_config.model_type, LIBRARY_RULES)
    return backbone + fpn + HEAD_RULES


def to_huggingface(weights: dict[str, Tensor], config: Mask2FormerConfig) -> dict[str, Tensor]:
    """Our state dict under the Hugging Face names, complete for transformers' strict loading.

    Without a class head the names lose `BASE_PREFIX`.
    """
    translated, rest = translate(weights, key_table(config))
    if rest:
        raise RuntimeError(f"The key table does not cover {rest}.")
    if config.backbone_config.model_type == "swin":
        backbone = config.backbone_config
        width = backbone.embed_dim * 2 ** (len(backbone.depths) - 1)
        translated[BACKBONE + "swin.layernorm.weight"] = torch.ones(width)
        translated[BACKBONE + "swin.layernorm.bias"] = torch.zeros(width)
    translated = {name: tensor.contiguous() for name, tensor in translated.items()}
    if "class_predictor.weight" not in weights:
        return {name.removeprefix(BASE_PREFIX): tensor for name, tensor in translated.items()}
    empty_weight = torch.ones(config.num_labels + 1)
    empty_weight[-1] = config.no_object_weight
    return translated | {"criterion.empty_weight": empty_weight}


def from_huggingface(
    weights: dict[str, Tensor],
    expected: dict[str, Tensor],
    config: Mask2FormerConfig,
    path: Path,
    ignore_mismatched_sizes: bool = False,
) -> dict[str, Tensor]:
    """A state dict of ours from the tensors of a checkpoint file.

    Args:
        weights: tensors by foreign name, of the model with or without class head.
        expected: the state dict that is wanted, for names, shapes and dtypes. Where it has no class
            head, the file's is left out.
        config: the model's configuration.
        path: the file, for messages.
        ignore_mismatched_sizes: leave out what has another shape, and name it in a warning.

    Raises:
        DataError: keys are missing or foreign, or a shape differs.
    """
    if not any(name.startswith(BASE_PREFIX) for name in weights):
        weights = {BASE_PREFIX + name: tensor for name, tensor in weights.items()}
    if "class_predictor.weight" not in expected:
        weights = {k: v for k, v in weights.items() if k.startswith(BASE_PREFIX)}
    weights = {k: v for k, v in weights.items() if not k.endswith(IGNORED_ENDINGS)}
    remedies = (
        "it does not belong to the config.json beside it, so download or save the folder again",
        "correct the configuration, or give ignore_mismatched_sizes=True to re-initialise these",
    )
    return load_state(weights, key_table(config), expected, path, remedies, ignore_mismatched_sizes)
