"""Outputs of a model, made by hand or at random, and images with their maps."""

from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F


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


def random_outputs(seed=0, batch=1, queries=9, labels=5, logits_size=(16, 24), image_sizes=None):
    """Overlapping blobs; every query has a label it is sure of, some of them "no object"."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, queries, 4, 5, generator=generator)
    return SimpleNamespace(
        class_queries_logits=torch.randn(batch, queries, labels + 1, generator=generator) * 4,
        masks_queries_logits=F.interpolate(coarse, size=logits_size, mode="bicubic") * 8,
        image_sizes=image_sizes,
    )


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def id_map(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 4, (height, width))
