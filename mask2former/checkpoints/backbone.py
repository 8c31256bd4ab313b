"""Weights of a backbone alone, from a classification model in the Hugging Face format."""

from __future__ import annotations

from torch import nn

from mask2former.checkpoints.huggingface import BACKBONE, BACKBONE_RULES
from mask2former.checkpoints.keys import reverse, translate
from mask2former.checkpoints.weights import read_weights
from mask2former.configuration import Mask2FormerConfig
from mask2former.errors import DataError

OURS = "model.backbone."

# What a classification model has besides the backbone: its head, the norm before it, and buffers
# that follow from the configuration.
CLASSIFIER = ("classifier.", "layernorm.")
BUFFERS = ("attention.self.relative_position_index",)


def load_backbone_weights(backbone: nn.Module, config: Mask2FormerConfig) -> None:
    """Load the weights that `config.backbone` names into a Swin or ResNet of this package.

    A Swin's norms of the returned maps are new when the file is a classification model's, and keep
    the values they have.

    Args:
        backbone: the backbone that `config.backbone_config` describes.
        config: its `backbone` is a hub name such as "microsoft/resnet-50", or a folder.

    Raises:
        DataError: the file is missing, keys are missing or foreign, or a shape differs.
    """
    model_type = config.backbone_config.model_type
    path, weights = read_weights(config.backbone)
    bare = {name.removeprefix(f"{model_type}."): tensor for name, tensor in weights.items()}
    prefixed = {
        BACKBONE + name: tensor
        for name, tensor in bare.items()
        if not name.startswith(CLASSIFIER) and not name.endswith(BUFFERS)
    }
    translated, foreign = translate(prefixed, reverse(BACKBONE_RULES[model_type]))
    state = {name.removeprefix(OURS): tensor for name, tensor in translated.items()}
    expected = backbone.state_dict()
    foreign += sorted(set(state) - set(expected))
    missing = [name for name in expected if name not in state and not name.startswith("norms.")]
    for problem, names in (("misses", missing), ("has foreign", foreign)):
        if names:
            raise DataError(
                f"{path} {problem} {len(names)} key(s), such as {names[0]!r}; it is not the "
                f"{model_type} that the config.json beside it describes."
            )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise DataError(
                f"{path} holds {name} with shape {tuple(tensor.shape)}, but the configuration "
                f"makes it {tuple(expected[name].shape)}; leave out backbone_kwargs that change it."
            )
    backbone.load_state_dict(expected | state)
