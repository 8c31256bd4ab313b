"""Hungarian matching of queries to annotated masks (Cheng et al. 2022, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from mask2former.configuration import Mask2FormerConfig
from mask2former.losses.annotations import Annotation
from mask2former_ops import ms_deform_attn, point_sample

# A pair whose cost is NaN or infinite must never attract; this is still far from overflow when the
# solver adds up a whole column of it.
REPELLENT_COST = 1e12

# Mask logits that a processor computes at once, so that they stay in its cache.
LOGITS = 1 << 18

Matches = list[tuple[Tensor, Tensor]]


def matching_costs(
    class_logits: Tensor,
    mask_embeddings: Tensor,
    features: Tensor,
    class_labels: Tensor,
    label_points: Tensor,
    weights: Tensor,
    config: Mask2FormerConfig,
) -> Tensor:
    """Cost of giving each annotated mask to each query, for one or more predictions of an image.

    Class cost is minus the probability of the label; mask costs are binary cross-entropy and dice
    over sampled points, pairwise (equations 3 and 4 of the MaskFormer paper).

    Args:
        class_logits: (..., Q, num_labels + 1).
        mask_embeddings: (..., Q, C).
        features: mask features at the points, (P, C), whose products with the embeddings are the
            mask logits.
        class_labels: int64 (T,).
        label_points: annotated masks at the points in [0, 1], (T, P).
        weights: 1 where a point counts, 0 where it is ignored, (T or 1, P).

    Returns:
        (..., Q, T), finite.
    """
    cost_class = -class_logits.softmax(-1)[..., class_labels]
    label_points = label_points * weights
    # Summed over points: t * softplus(-x) + (1 - t) * softplus(x) = softplus(x) - t * x.
    cross_entropy = -mask_embeddings @ (label_points @ features).T
    overlap = total = 0
    for logits, labels, counted in _at_some_points(
        mask_embeddings, features, label_points, weights
    ):
        cross_entropy = cross_entropy + F.softplus(logits) @ counted.T
        probabilities = logits.sigmoid()
        overlap = overlap + probabilities @ labels.T
        total = total + probabilities @ counted.T
    cost_mask = cross_entropy / weights.sum(-1).clamp(min=1)
    cost_dice = 1 - (2 * overlap + 1) / (total + label_points.sum(-1) + 1)
    cost = (
        config.class_weight * cost_class
        + config.mask_weight * cost_mask
        + config.dice_weight * cost_dice
    )
    return torch.nan_to_num(cost, REPELLENT_COST, REPELLENT_COST, REPELLENT_COST)


def _at_some_points(
    mask_embeddings: Tensor, features: Tensor, *of_points: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """Mask logits (..., Q, some) and what else is given for each point, (..., some).

    So few points that the logits stay in a processor's cache; others work on more at once.
    """
    logits = LOGITS if features.device.type == "cpu" else 16 * LOGITS
    step = max(64, logits // max(1, mask_embeddings[..., 0].numel()))
    for start in range(0, len(features), step):
        some = slice(start, start + step)
        yield mask_embeddings @ features[some].T, *(x[:, some] for x in of_points)


def sampled_features(features: Tensor, points: Tensor) -> Tensor:
    """Mask features (C, H, W) at points (P, 2): (P, C).

    A map whose channels lie side by side need not be turned to be sampled row by row: this is
    deformable attention of one head to one sample of weight 1.
    """
    channels, height, width = features.shape
    rows = features.permute(1, 2, 0)
    if features.device.type != "cpu" or not rows.is_contiguous():
        return point_sample(features[None], points[None])[0].T
    shapes, start = torch.tensor([[height, width]]), torch.zeros(1, dtype=torch.int64)
    locations, weights = points[None, :, None, None, None], points.new_ones(1, len(points), 1, 1, 1)
    return ms_deform_attn(rows.reshape(1, -1, 1, channels), shapes, start, locations, weights)[0]


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
        features = sampled_features(mask_features[i], points[0])
        label_points, weights = annotation.sample(points), annotation.weights(points)
        costs.append(
            matching_costs(
                class_logits[:, i],
                mask_embeddings[:, i].contiguous(),
                features,
                annotation.labels,
                label_points,
                weights,
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
