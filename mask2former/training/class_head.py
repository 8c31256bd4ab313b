"""What a model keeps of its class head when it gets the classes of a data set."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from mask2former.modeling import Mask2FormerForUniversalSegmentation


def set_classes(
    model: Mask2FormerForUniversalSegmentation, id2label: Mapping[int, str]
) -> tuple[list[str], list[str]]:
    """Give a model other classes; what it knows by the same name moves to its new place.

    So does "no object", the last row of the class head. The other rows start as in a new model.

    Args:
        model: its class head and `config.id2label` change.
        id2label: the classes, with labels from 0 on.

    Returns:
        The names that the model knew, and those that are new.
    """
    before, old = model.config.id2label, model.class_predictor
    labels = {before[label]: label for label in sorted(before, reverse=True)}  # the first of a name
    names = [id2label[label] for label in range(len(id2label))]
    rows = [labels.get(name) for name in names] + [len(before)]
    head = nn.Linear(old.in_features, len(rows)).to(old.weight)
    with torch.no_grad():
        nn.init.trunc_normal_(head.weight).mul_(model.config.init_std)
        nn.init.zeros_(head.bias)
        for place, row in enumerate(rows):
            if row is not None:
                head.weight[place], head.bias[place] = old.weight[row], old.bias[row]
    model.class_predictor, model.config.id2label = head, dict(enumerate(names))
    kept = [name for name in names if name in labels]
    return kept, [name for name in names if name not in labels]
