"""The training loss: matching, then cross-entropy on classes and masks, and dice, on sampled points
(Cheng et al. 2022, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mask2former.annotations import Annotation
from mask2former.configuration import Mask2FormerConfig
from mask2former.gradient_checkpointing import recomputed
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
        bce, dice = mask_losses(
            mask_embeddings, mask_features, annotations, matches, num_masks, config
        )
        losses = {}
        last = len(matches) - 1
        for layer in [last, *range(last)]:
            suffix = "" if layer == last else f"_{layer}"
            losses[f"loss_mask{suffix}"] = config.mask_weight * bce[layer]
            losses[f"loss_dice{suffix}"] = config.dice_weight * dice[layer]
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
    matches: list[Matches],
    num_masks: Tensor,
    config: Mask2FormerConfig,
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice of the matched queries' masks, (L,) of L predictions.

    Only the matched queries' masks are built, those of one image at a time with gradients, and they
    are not kept for the backward pass. Points are drawn for each mask by itself, most of them where
    the prediction is unsure; of these, points that touch ignored pixels do not count.
    """
    device, layers = mask_features.device, len(matches)
    features = mask_features.unbind()
    matches = [[[index.to(device) for index in pair] for pair in images] for images in matches]
    embeddings = [
        torch.stack([mask_embeddings[layer, i, matches[layer][i][0]] for layer in range(layers)])
        for i in range(len(features))
    ]
    drawn = [
        _draw_points(
            [matched[layer] for matched in embeddings],
            features,
            [a.chosen(targets) for a, (_, targets) in zip(annotations, images, strict=True)],
            config,
        )
        for layer, images in enumerate(matches)
    ]
    bce = dice = 0
    for i, matched in enumerate(embeddings):
        sets = (torch.cat(parts) for parts in zip(*(images[i] for images in drawn), strict=True))
        each = recomputed(_point_losses, matched.flatten(0, 1), features[i], *sets)
        bce_sums, dice_sums = (loss.view(matched.shape[:2]).sum(1) for loss in each)
        bce, dice = bce + bce_sums, dice + dice_sums
    return bce / num_masks, dice / num_masks


def _point_losses(
    embeddings: Tensor, features: Tensor, points: Tensor, labels: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice (M,) of masks of an image, each at points (M, P, 2) of its own.

    Args:
        embeddings: (M, C).
        features: (C, H, W).
        labels, weights: (M, P).
    """
    logits = torch.einsum("mc,chw->mhw", embeddings, features)
    sampled = point_sample(logits[:, None], points)[:, 0]
    bce = F.binary_cross_entropy_with_logits(sampled, labels, weights, reduction="none").sum(-1)
    bce = bce / weights.sum(-1).clamp(min=1)
    probabilities, labels = sampled.sigmoid() * weights, labels * weights
    overlap = (probabilities * labels).sum(-1)
    return bce, 1 - (2 * overlap + 1) / (probabilities.sum(-1) + labels.sum(-1) + 1)


@torch.no_grad()
def _draw_points(
    embeddings: list[Tensor],
    features: Sequence[Tensor],
    matched: list[Annotation],
    config: Mask2FormerConfig,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For one prediction, per image: points (M, P, 2), their labels and their weights (M, P).

    Args:
        embeddings: per image those of the matched queries, (M, C).
        features: per image (C, H, W).
        matched: per image the annotations that the queries are matched to.
    """
    logits = [
        torch.einsum("mc,chw->mhw", *pair)[:, None]
        for pair in zip(embeddings, features, strict=True)
    ]
    points = get_uncertain_point_coords_with_randomness(
        torch.cat([_without_ignored(*pair) for pair in zip(logits, matched, strict=True)]),
        lambda sampled: -sampled.abs(),
        config.train_num_points,
        config.oversample_ratio,
        config.importance_sample_ratio,
        ordered=False,
    )
    per_image = points.split([len(part) for part in logits])
    return [(own, a.sample(own), a.weights(own)) for a, own in zip(matched, per_image, strict=True)]


def _without_ignored(logits: Tensor, annotation: Annotation) -> Tensor:
    """Logits (M, 1, H, W) in which no cell that is ignored seems unsure."""
    if annotation.ignored is None:
        return logits
    ignored = annotation.ignored[:, None].to(torch.uint8)
    cells = F.interpolate(ignored, logits.shape[-2:], mode="nearest-exact")
    return logits.masked_fill(cells.bool(), CERTAIN)


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
