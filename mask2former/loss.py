"""The training loss: matching, then cross-entropy on classes and masks, and dice, on sampled points
(Cheng et al. 2022, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mask2former.annotations import Annotation
from mask2former.configuration import Mask2FormerConfig
from mask2former.matcher import Matches, match
from mask2former.precision import full_precision
from mask2former_ops import point_sample
from mask2former_ops.compat.detectron2 import get_uncertain_point_coords_with_randomness

CERTAIN = 1e4  # a logit so far from zero that no point is drawn there for being unsure


def segmentation_losses(
    class_logits: Tensor,
    mask_embeddings: Tensor,
    mask_features: Tensor,
    annotations: list[Annotation],
    config: Mask2FormerConfig,
) -> dict[str, Tensor]:
    """All weighted losses by name: the last prediction's, then with suffix `_i` the earlier ones'.

    Half-precision inputs are taken to float32 first, also under autocast, as in the paper's code.

    Args:
        class_logits: (L, N, Q, num_labels + 1) of L predictions, the last one the model's answer.
        mask_embeddings: (L, N, Q, C).
        mask_features: (N, C, H, W).
        annotations: one per image, on the device of the features.
    """
    with full_precision(mask_features.device):
        if mask_features.dtype != torch.float64:
            class_logits, mask_embeddings = class_logits.float(), mask_embeddings.float()
            mask_features = mask_features.float()
        matches = match(class_logits, mask_embeddings, mask_features, annotations, config)
        class_labels = [annotation.labels for annotation in annotations]
        num_masks, total_weight = average_counts(
            class_labels, class_logits.shape[2], config.no_object_weight, class_logits.dtype
        )
        losses = {}
        last = len(matches) - 1
        for layer in [last, *range(last)]:
            suffix = "" if layer == last else f"_{layer}"
            bce, dice = mask_losses(
                mask_embeddings[layer],
                mask_features,
                annotations,
                matches[layer],
                num_masks,
                config,
            )
            losses[f"loss_mask{suffix}"] = config.mask_weight * bce
            losses[f"loss_dice{suffix}"] = config.dice_weight * dice
            losses[f"loss_cross_entropy{suffix}"] = config.class_weight * class_loss(
                class_logits[layer],
                class_labels,
                matches[layer],
                config.no_object_weight,
                total_weight,
            )
    return losses


def class_loss(
    class_logits: Tensor,
    class_labels: list[Tensor],
    matches: Matches,
    no_object_weight: float,
    total_weight: Tensor,
) -> Tensor:
    """Cross-entropy of (N, Q, K + 1) logits over `total_weight`; unmatched queries are "no object"
    and have `no_object_weight`, matched ones 1."""
    no_object = class_logits.shape[-1] - 1
    target = class_labels[0].new_full(class_logits.shape[:2], no_object)
    for i, (queries, targets) in enumerate(matches):
        target[i, queries.to(target.device)] = class_labels[i][targets.to(target.device)]
    weight = class_logits.new_ones(no_object + 1)
    weight[no_object] = no_object_weight
    loss = F.cross_entropy(class_logits.transpose(1, 2), target, weight, reduction="sum")
    return loss / total_weight


def mask_losses(
    mask_embeddings: Tensor,
    mask_features: Tensor,
    annotations: list[Annotation],
    matches: Matches,
    num_masks: Tensor,
    config: Mask2FormerConfig,
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice of the matched queries' masks, one prediction of (N, Q, C).

    Only the matched queries' masks are built. Points are drawn for each mask by itself, most of
    them where the prediction is unsure; of these, points that touch ignored pixels do not count.
    """
    device = mask_features.device
    matches = [(queries.to(device), targets.to(device)) for queries, targets in matches]
    logits = torch.cat(
        [
            torch.einsum("qc,chw->qhw", mask_embeddings[i, queries], mask_features[i])
            for i, (queries, _) in enumerate(matches)
        ]
    )
    if len(logits) == 0:
        zero = logits.sum()  # of which every parameter has a gradient, as DDP wants it
        return zero, zero
    logits = logits[:, None]
    matched = [
        annotation.chosen(targets)
        for annotation, (_, targets) in zip(annotations, matches, strict=True)
    ]
    points, labels, weights = _draw_points(logits, matched, config)
    sampled = point_sample(logits, points)[:, 0]
    bce = F.binary_cross_entropy_with_logits(sampled, labels, weights, reduction="none").sum(-1)
    bce = bce / weights.sum(-1).clamp(min=1)
    probabilities, labels = sampled.sigmoid() * weights, labels * weights
    overlap = (probabilities * labels).sum(-1)
    dice = 1 - (2 * overlap + 1) / (probabilities.sum(-1) + labels.sum(-1) + 1)
    return bce.sum() / num_masks, dice.sum() / num_masks


@torch.no_grad()
def _draw_points(
    logits: Tensor, matched: list[Annotation], config: Mask2FormerConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Points (M, P, 2) for logits (M, 1, H, W); labels and weights of the points, (M, P) each."""
    points = get_uncertain_point_coords_with_randomness(
        _without_ignored(logits, matched),
        lambda sampled: -sampled.abs(),
        config.train_num_points,
        config.oversample_ratio,
        config.importance_sample_ratio,
    )
    per_image = points.split([len(annotation.labels) for annotation in matched])
    pairs = list(zip(matched, per_image, strict=True))
    labels = torch.cat([annotation.sample(own) for annotation, own in pairs])
    weights = torch.cat([annotation.weights(own) for annotation, own in pairs])
    return points, labels, weights


def _without_ignored(logits: Tensor, matched: list[Annotation]) -> Tensor:
    """Logits (M, 1, H, W) in which no cell that is ignored seems unsure."""
    if all(annotation.ignored is None for annotation in matched):
        return logits
    parts = []
    for part, annotation in zip(
        logits.split([len(annotation.labels) for annotation in matched]), matched, strict=True
    ):
        ignored = annotation.ignored
        if ignored is not None and len(part) > 0:
            ignored = ignored[:, None].to(torch.uint8)
            cells = F.interpolate(ignored, part.shape[-2:], mode="nearest-exact")
            part = part.masked_fill(cells.bool(), CERTAIN)
        parts.append(part)
    return torch.cat(parts)


def average_counts(
    class_labels: list[Tensor], queries: int, no_object_weight: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What mask losses and class loss are divided by: the number of annotated masks, and the sum of
    the queries' class weights, in `dtype`.

    Both are the mean over all ranks of torch.distributed. So the gradients that data parallelism
    averages over ranks are exactly those of one process with the whole batch. Micro-batches of
    gradient accumulation know nothing of each other: each is divided by its own counts, and their
    mean is the whole batch's gradient only if all have as many masks.
    """
    counts = [len(labels) for labels in class_labels]
    matched = sum(min(count, queries) for count in counts)
    weight = matched + no_object_weight * (len(counts) * queries - matched)
    totals = torch.tensor([sum(counts), weight], dtype=dtype, device=class_labels[0].device)
    ranks = 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(totals)
        ranks = torch.distributed.get_world_size()
    # Where there is no mask, or no weight, there is no loss to be divided either.
    masks, weight = totals / ranks
    return masks.clamp(min=1 / ranks), weight.clamp(min=torch.finfo(dtype).tiny)
