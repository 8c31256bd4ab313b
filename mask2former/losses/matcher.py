"""Hungarian matching of queries to annotated masks (Cheng et al. 2022, section 3.3)."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from mask2former.configuration import Mask2FormerConfig
from mask2former.losses.annotations import Annotation
from mask2former_ops import point_sample

# A pair whose cost is NaN or infinite must never attract; this is still far from overflow when the
# solver adds up a whole column of it.
REPELLENT_COST = 1e12

# Of one image (queries, targets), int64 (L, M): for each of L predictions the M matched pairs.
Pairs = tuple[Tensor, Tensor]


@torch.no_grad()
def match(
    class_logits: Tensor,
    mask_embeddings: Tensor,
    mask_features: Tensor,
    annotations: list[Annotation],
    config: Mask2FormerConfig,
) -> list[Pairs]:
    """Match each prediction's queries to the annotated masks of each image.

    Masks are compared at `config.train_num_points` random points, which all queries, masks and
    predictions of an image share. The full masks are never built: mask logits at a point are
    products of the embeddings with the mask features there, and exist for one prediction of one
    image at a time. All costs reach the host in one transfer.

    Args:
        class_logits: (L, N, Q, num_labels + 1) of L predictions.
        mask_embeddings: (L, N, Q, C).
        mask_features: (N, C, H, W).
        annotations: one per image, with T_i masks.

    Returns:
        Per image (queries, targets), int64 (L, min(Q, T_i)).
    """
    costs = []
    for i, annotation in enumerate(annotations):
        points = torch.rand(
            1, config.train_num_points, 2, dtype=mask_features.dtype, device=mask_features.device
        )
        features = point_sample(mask_features[i : i + 1], points)[0]
        masks = annotation.labels, annotation.sample(points), annotation.weights(points)
        predictions = zip(class_logits[:, i], mask_embeddings[:, i], strict=True)
        cost = [matching_cost(scores, e @ features, *masks, config) for scores, e in predictions]
        costs.append(torch.stack(cost))
    counts = [len(annotation.labels) for annotation in annotations]
    images = torch.cat(costs, -1).cpu().split(counts, -1)
    pairs = [assign(cost).to(mask_features.device) for cost in images]
    return [(queries, targets) for queries, targets in pairs]


def assign(costs: Tensor) -> Tensor:
    """Pairs (queries, targets) of least total cost, (2, L, M), of costs (L, Q, T) on the host."""
    return torch.from_numpy(np.stack([linear_sum_assignment(cost) for cost in costs], 1))


def matching_cost(
    class_logits: Tensor,
    mask_logits: Tensor,
    class_labels: Tensor,
    targets: Tensor,
    weights: Tensor,
    config: Mask2FormerConfig,
) -> Tensor:
    """Cost of giving each annotated mask to each query: the weighted sum of the three costs.

    Args:
        class_logits: (Q, num_labels + 1).
        mask_logits: of the queries' masks at P points, (Q, P).
        class_labels: int64 (T,).
        targets: annotated masks at the points, from 0 to 1, (T, P).
        weights: 1 where a point counts, 0 where it is ignored, (T or 1, P).

    Returns:
        (Q, T), finite.
    """
    cost = (
        config.class_weight * class_cost(class_logits, class_labels)
        + config.mask_weight * mask_cost(mask_logits, targets, weights)
        + config.dice_weight * dice_cost(mask_logits, targets, weights)
    )
    return torch.nan_to_num(cost, REPELLENT_COST, REPELLENT_COST, REPELLENT_COST)


def class_cost(class_logits: Tensor, class_labels: Tensor) -> Tensor:
    """Minus the probability of the label (MaskFormer, equation 3)."""
    return -class_logits.softmax(-1)[:, class_labels]


def mask_cost(mask_logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy of all pairs, the mean over the points that count."""
    # -t log(sigmoid(x)) - (1 - t) log(1 - sigmoid(x)) = softplus(x) - t x
    total = F.softplus(mask_logits) @ weights.T - mask_logits @ (targets * weights).T
    return total / weights.sum(-1).clamp(min=1)


def dice_cost(mask_logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Dice loss of all pairs (Milletari et al. 2016), smoothed by 1, over the points that count."""
    probabilities, targets = mask_logits.sigmoid(), targets * weights
    overlap = probabilities @ targets.T
    return 1 - (2 * overlap + 1) / (probabilities @ weights.T + targets.sum(-1) + 1)
