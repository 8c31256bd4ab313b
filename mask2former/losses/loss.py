"""The training loss: matching, then cross-entropy on classes and masks, and dice, on sampled points
(Cheng et al. 2022, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mask2former.configuration import Mask2FormerConfig
from mask2former.losses.annotations import Annotation
from mask2former.losses.matcher import Matches, match
from mask2former.model.precision import full_precision
from mask2former_ops import point_sample, uncertain_points

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

    Only the matched queries' masks are built, those of one image at a time. Points are drawn for
    each mask by itself, most of them where the prediction is unsure; of these, points that touch
    ignored pixels do not count.
    """
    bce = dice = 0
    for i, (annotation, features) in enumerate(zip(annotations, mask_features, strict=True)):
        queries, targets = _by_targets([images[i] for images in matches], features.device)
        layers = torch.arange(len(matches), device=features.device)
        embeddings = mask_embeddings[layers, i, queries]
        if len(targets) == len(annotation.labels):
            of_image = _image_losses(embeddings, features, annotation, config)
        else:  # each prediction leaves others out
            one_by_one = zip(embeddings.split(1, 1), targets.unbind(1), strict=True)
            of_image = torch.cat(
                [_image_losses(e, features, annotation.chosen(t), config) for e, t in one_by_one], 1
            )
        bce, dice = bce + of_image[0], dice + of_image[1]
    return bce / num_masks, dice / num_masks


def _by_targets(matches: Matches, device: torch.device) -> tuple[Tensor, Tensor]:
    """Queries and targets of the predictions of an image, (T, L), in the order of the targets.

    So all predictions of an annotated mask are neighbours, and it is sampled once for all of them.
    """
    queries, targets = (torch.stack(indices) for indices in zip(*matches, strict=True))
    order = targets.argsort(1)
    return queries.gather(1, order).T.to(device), targets.gather(1, order).T.to(device)


def _image_losses(
    embeddings: Tensor, features: Tensor, annotation: Annotation, config: Mask2FormerConfig
) -> Tensor:
    """Binary cross-entropy and dice of L predictions, (2, L), each mask at points of its own.

    Args:
        embeddings: (T, L, C), those of each annotated mask.
        features: (C, H, W).
        annotation: of T masks.
    """
    masks, predictions, _ = embeddings.shape
    logits = (embeddings.flatten(0, 1) @ features.flatten(1)).unflatten(1, features.shape[1:])
    points = uncertain_points(
        _without_ignored(logits.detach(), annotation),
        config.train_num_points,
        config.oversample_ratio,
        config.importance_sample_ratio,
    )
    sampled = point_sample(logits[:, None], points)[:, 0]
    # All points of an annotated mask at once.
    together = points.view(masks, predictions * points.shape[1], 2)
    labels, weights = annotation.sample(together), annotation.weights(together)
    each = _point_losses(sampled, labels.view_as(sampled), weights.view_as(sampled))
    return torch.stack([loss.view(masks, predictions).sum(0) for loss in each])


def _point_losses(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice (M,) at points, all (M, P)."""
    bce = F.binary_cross_entropy_with_logits(logits, labels, weights, reduction="none").sum(-1)
    bce = bce / weights.sum(-1).clamp(min=1)
    probabilities, labels = logits.sigmoid() * weights, labels * weights
    overlap = (probabilities * labels).sum(-1)
    return bce, 1 - (2 * overlap + 1) / (probabilities.sum(-1) + labels.sum(-1) + 1)


def _without_ignored(logits: Tensor, annotation: Annotation) -> Tensor:
    """Logits (M, H, W) in which no cell that is ignored seems unsure."""
    if annotation.ignored is None:
        return logits
    ignored = annotation.ignored[:, None].to(torch.uint8)
    cells = F.interpolate(ignored, logits.shape[-2:], mode="nearest-exact")[:, 0].bool()
    cells = cells.repeat_interleave(len(logits) // max(1, len(cells)), 0)
    return logits.masked_fill(cells, CERTAIN)


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
