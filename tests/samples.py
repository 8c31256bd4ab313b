"""Outputs of a model, made by hand."""

from types import SimpleNamespace

import torch


def made_outputs(*queries, labels=3, shape=(1, 4)):
    """Outputs of one image from (label, class probability, mask probabilities) per query; the rest
    of the class probability goes to "no object"."""
    class_probs = torch.full((len(queries), labels + 1), 1e-9)
    mask_probs = torch.zeros(len(queries), *shape)
    for i, (label, class_prob, probs) in enumerate(queries):
        class_probs[i, label] = class_prob
        class_probs[i, -1] = 1 - class_prob
        mask_probs[i] = torch.tensor(probs).reshape(shape)
    return SimpleNamespace(
        class_queries_logits=class_probs.log()[None],
        masks_queries_logits=torch.logit(mask_probs, eps=1e-6)[None],
    )
