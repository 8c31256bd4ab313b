"""Hungarian matching of queries to annotated masks (Cheng et al. 2022, section 3.3)."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from mask2former.annotations import Annotation
from mask2former.configuration import Mask2FormerConfig
from mask2former_ops import point_sample

# A pair whose cost is NaN or infinite must never attract; this is still far from overflow when the
# solver adds up a whole column of it.
REPELLENT_COST = 1e12

Matches = list[tuple[Tensor, Tensor]]


def matching_costs(
    class_logits: Tensor,
    mask_points: Tensor,
    class_labels: Tensor,
    label_points: Tensor,
    weights: Tensor,
    config: Mask2FormerConfig,
) -> Tensor:
    """Cost of giving each annotated mask to each query, for several predictions of one image.

    Class cost is minus the probability of the label; mask costs are binary cross-entropy and dice
    over sampled points, pairwise (equations 3 and 4 of the MaskFormer paper).

    Args:
        class_logits: (L, Q, num_labels + 1).
        mask_points: mask logits at the points, (L, Q, P).
        class_labels: int64 (T,).
        label_points: annotated masks at the points in [0, 1], (T, P).
        weights: 1 where a point counts, 0 where it is ignored, (T or 1, P).

    Returns:
        (L, Q, T), finite.
    """
    cost_class = -class_logits.softmax(-1)[..., class_labels]
    label_points = label_points * weights
    # Summed over points: t * softplus(-x) + (1 - t) * softplus(x) = softplus(x) - t * x.
    cross_entropy = F.softplus(mask_points) @ weights.T - mask_points @ label_points.T
    cost_mask = cross_entropy / weights.sum(-1).clamp(min=1)
    probabilities = mask_points.sigmoid()
    overlap = probabilities @ label_points.T
    total = probabilities @ weights.T + label_points.sum(-1)
    cost_dice = 1 - (2 * overlap + 1) / (total + 1)
    cost = (
        config.class_weight * cost_class
        + config.mask_weight * cost_mask
        + config.dice_weight * cost_dice
    )
    return torch.nan_to_num(cost, REPELLENT_COST, REPELLENT_COST, REPELLENT_COST)


@torch.no_grad()
def match(
    class_logits: Tensor,
    mask_embeddings: Tensor,
    mask_features: Tensor,
    annotations: list[Annotation],
    config: Mask2FormerConfig,
) -> list[Matches]:
    """Match each prediction's queries to the annotated masks of each image.

    Masks are compared at `config.train_num_points` random points, which all queries, masks and
    predictions of an image share; the full masks are never built. The costs of all predictions and
    images reach the host in one transfer.

    Args:
        class_logits: (L, N, Q, num_labels + 1) of L predictions.
        mask_embeddings: (L, N, Q, C).
        mask_features: (N, C, H, W).
        annotations: one per image, with T_i masks.

    Returns:
        Per prediction and image (queries, targets), int64 on the host, min(Q, T_i) each.
    """
    layers, _, queries, _ = class_logits.shape
    costs = []
    for i, annotation in enumerate(annotations):
        points = torch.rand(
            1, config.train_num_points, 2, dtype=mask_features.dtype, device=mask_features.device
        )
        features = point_sample(mask_features[i : i + 1], points)[0]
        costs.append(
            matching_costs(
                class_logits[:, i],
                mask_embeddings[:, i] @ features,
                annotation.labels,
                annotation.sample(points),
                annotation.weights(points),
                config,
            )
        )
    on_host = torch.cat([cost.flatten() for cost in costs]).cpu()
    sizes = [layers * queries * len(annotation.labels) for annotation in annotations]
    per_image = [
        part.view(layers, queries, len(annotation.labels)).numpy()
        for part, annotation in zip(on_host.split(sizes), annotations, strict=True)
    ]
    return [
        [
            tuple(torch.from_numpy(index) for index in linear_sum_assignment(cost[layer]))
            for cost in per_image
        ]
        for layer in range(layers)
    ]
