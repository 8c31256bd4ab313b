"""The class head of a model that gets the classes of a data set."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from mask2former.modeling import Mask2FormerForUniversalSegmentation


def set_classes(
    model: Mask2FormerForUniversalSegmentation, id2label: Mapping[int, str]
) -> tuple[list[str], list[str]]:
    """Give a model other classes. Rows of the class head are kept for classes of the same name.

    They move to the new label of the class. The row of "no object", which is last, is kept too. The
    other rows are re-initialised as in a new model.

    Args:
        model: its class head and `config.id2label` change.
        id2label: names of the classes, with labels 0, 1, 2, ...

    Returns:
        The names that the model had, and the new ones.
    """
    before, old = model.config.id2label, model.class_predictor
    # The first label of a name that occurs twice.
    labels = {before[label]: label for label in sorted(before, reverse=True)}
    names = [id2label[label] for label in range(len(id2label))]
    rows = [labels.get(name) for name in names] + [len(before)]
    head = nn.Linear(old.in_features, len(rows)).to(old.weight)
    with torch.no_grad():
        nn.init.trunc_normal_(head.weight).mul_(model.config.init_std)
        nn.init.zeros_(head.bias)
        for label, row in enumerate(rows):
            if row is not None:
                head.weight[label], head.bias[label] = old.weight[row], old.bias[row]
    model.class_predictor, model.config.id2label = head, dict(enumerate(names))
    kept = [name for name in names if name in labels]
    return kept, [name for name in names if name not in labels]
