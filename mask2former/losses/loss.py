"""The training loss (Cheng et al. 2022, section 3.3): cross-entropy of the classes, and of the
masks cross-entropy and dice, at points drawn for each matched pair as in PointRend."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mask2former.configuration import Mask2FormerConfig
from mask2former.losses.annotations import Annotation
from mask2former.losses.matcher import Pairs, match
from mask2former.model.precision import full_precision
from mask2former_ops import point_sample, uncertain_points

CERTAIN = 1e4  # a logit so far from zero that no point is drawn there for being uncertain


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
        masks, dice = mask_losses(mask_embeddings, mask_features, annotations, matches, config)
        classes = class_loss(class_logits, class_labels, matches, config.no_object_weight)
        losses = {
            "loss_mask": config.mask_weight * masks / num_masks,
            "loss_dice": config.dice_weight * dice / num_masks,
            "loss_cross_entropy": config.class_weight * classes / total_weight,
        }
    last = len(class_logits) - 1
    suffixes = {last: ""} | {layer: f"_{layer}" for layer in range(last)}
    return {
        name + suffix: values[layer]
        for layer, suffix in suffixes.items()
        for name, values in losses.items()
    }


def class_loss(
    class_logits: Tensor,
    class_labels: list[Tensor],
    matches: list[Pairs],
    no_object_weight: float,
) -> Tensor:
    """Sums of the cross-entropies of L predictions, (L,).

    Queries without a match are "no object" and have `no_object_weight`, the others 1.

    Args:
        class_logits: (L, N, Q, K + 1).
        class_labels: per image int64 (T,).
        matches: per image (queries, targets).
    """
    no_object = class_logits.shape[-1] - 1
    target = class_labels[0].new_full(class_logits.shape[:-1], no_object)
    for i, (queries, targets) in enumerate(matches):
        target[:, i].scatter_(1, queries, class_labels[i][targets])
    weight = class_logits.new_ones(no_object + 1)
    weight[no_object] = no_object_weight
    losses = F.cross_entropy(class_logits.movedim(-1, 1), target, weight, reduction="none")
    return losses.sum((1, 2))


def mask_losses(
    mask_embeddings: Tensor,
    mask_features: Tensor,
    annotations: list[Annotation],
    matches: list[Pairs],
    config: Mask2FormerConfig,
) -> Tensor:
    """Sums of the mask and dice losses of L predictions over their matched pairs, (2, L).

    Only the matched queries' masks are built, one image at a time.

    Args:
        mask_embeddings: (L, N, Q, C).
        mask_features: (N, C, H, W).
        annotations: one per image.
        matches: per image (queries, targets).
    """
    total = mask_features.new_zeros(2, len(mask_embeddings))
    images = zip(mask_embeddings.unbind(1), mask_features, annotations, matches, strict=True)
    for embeddings, features, annotation, (queries, targets) in images:
        embeddings = embeddings.take_along_dim(queries[..., None], 1)
        logits = torch.einsum("lmc,chw->lmhw", embeddings, features)
        losses = [
            pair_losses(masks, annotation.chosen(matched), config)
            for masks, matched in zip(logits, targets, strict=True)
        ]
        total = total + torch.stack(losses, 1)
    return total


def pair_losses(logits: Tensor, annotation: Annotation, config: Mask2FormerConfig) -> Tensor:
    """Mask and dice loss, (2,), of predicted masks (M, H, W) and their M annotated ones."""
    pairs = sample_pairs(logits, annotation, config)
    return torch.stack([mask_loss(*pairs).sum(), dice_loss(*pairs).sum()])


def sample_pairs(
    logits: Tensor, annotation: Annotation, config: Mask2FormerConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted masks (M, H, W) and their M annotated ones, each pair at points of its own.

    Most of the points are drawn where the prediction is uncertain (PointRend, section 3.1).

    Returns:
        Logits, targets from 0 to 1, and weights, 0 at points that touch ignored pixels, else 1: all
        (M, P), the weights perhaps (1, P).
    """
    points = uncertain_points(
        _certain_where_ignored(logits.detach(), annotation),
        config.train_num_points,
        config.oversample_ratio,
        config.importance_sample_ratio,
    )
    sampled = point_sample(logits[:, None], points)[:, 0]
    return sampled, annotation.sample(points), annotation.weights(points)


def mask_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy of M masks, (M,): the mean over the points that count."""
    total = F.binary_cross_entropy_with_logits(logits, targets, weights, reduction="none").sum(-1)
    return total / weights.sum(-1).clamp(min=1)


def dice_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Dice loss of M masks, (M,) (Milletari et al. 2016), smoothed by 1, over points that count."""
    probabilities, targets = logits.sigmoid() * weights, targets * weights
    overlap = (probabilities * targets).sum(-1)
    return 1 - (2 * overlap + 1) / (probabilities.sum(-1) + targets.sum(-1) + 1)


def _certain_where_ignored(logits: Tensor, annotation: Annotation) -> Tensor:
    """Logits (M, H, W), `CERTAIN` where pixels are ignored, so that these draw no points."""
    if annotation.ignored is None:
        return logits
    ignored = annotation.ignored[:, None].to(torch.uint8)
    resized = F.interpolate(ignored, logits.shape[-2:], mode="nearest-exact")[:, 0]
    return logits.masked_fill(resized.bool(), CERTAIN)


def average_counts(
    class_labels: list[Tensor], queries: int, no_object_weight: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The divisors of the mask losses and of the class loss: the number of annotated masks, and the
    sum of the queries' class weights, in `dtype`.

    Both are means over all ranks of torch.distributed. So data parallelism, which averages
    gradients over ranks, gives exactly the gradients of one process with the whole batch.
    Micro-batches of gradient accumulation are divided by their own counts. Their mean is the whole
    batch's gradient only if all have as many masks.
    """
    counts = [len(labels) for labels in class_labels]
    matched = sum(min(count, queries) for count in counts)
    weight = matched + no_object_weight * (len(counts) * queries - matched)
    totals = torch.tensor([sum(counts), weight], dtype=dtype, device=class_labels[0].device)
    ranks = 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(totals)
        ranks = torch.distributed.get_world_size()
    # Without masks, or without weight, the loss is zero, whatever divides it.
    masks, weight = totals / ranks
    return masks.clamp(min=1 / ranks), weight.clamp(min=torch.finfo(dtype).tiny)
