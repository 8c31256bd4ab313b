"""Weights of a backbone alone, from a classification model in the Hugging Face format."""

from __future__ import annotations

from torch import nn

from mask2former.checkpoints.huggingface import BACKBONE, BACKBONE_RULES, POSITION_INDEX
from mask2former.checkpoints.keys import Side, load_state, reverse, translate
from mask2former.checkpoints.weights import read_weights
from mask2former.configuration import Mask2FormerConfig

OURS = "model.backbone."

# What a classification model has besides the backbone: its head and the norm before it.
CLASSIFIER = ("classifier.", "layernorm.")


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
    assert config.backbone is not None  # pretrained weights have a name
    path, weights = read_weights(config.backbone)
    bare = {name.removeprefix(f"{model_type}."): tensor for name, tensor in weights.items()}
    kept = {
        name: tensor
        for name, tensor in bare.items()
        if not name.startswith(CLASSIFIER) and not name.endswith(POSITION_INDEX)
    }
    rules = [(ours, _alone(theirs)) for ours, theirs in BACKBONE_RULES[model_type]]
    there, _ = translate(kept, reverse(rules))
    expected = {
        OURS + name: tensor
        for name, tensor in backbone.state_dict().items()
        if not name.startswith("norms.") or OURS + name in there
    }
    remedies = (
        f"it is not the {model_type} that the config.json beside it describes",
        "leave out backbone_kwargs that change it",
    )
    state = load_state(kept, rules, expected, path, remedies)
    state = {name.removeprefix(OURS): tensor for name, tensor in state.items()}
    backbone.load_state_dict(backbone.state_dict() | state)


def _alone(theirs: Side) -> Side:
    """A name of the table as a file has it that holds the backbone alone."""
    if isinstance(theirs, tuple):
        return tuple(name.removeprefix(BACKBONE) for name in theirs)
    return theirs.removeprefix(BACKBONE)
