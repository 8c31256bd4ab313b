"""The training loss: matching, then cross-entropy on classes and masks, and dice, on sampled points
(Cheng et al. 2022, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mask2former.configuration import Mask2FormerConfig
from mask2former.matcher import Matches, match, sample_masks
from mask2former_ops import point_sample
from mask2former_ops.compat.detectron2 import get_uncertain_point_coords_with_randomness


def segmentation_losses(
    class_logits: Tensor,
    mask_embeddings: Tensor,
    mask_features: Tensor,
    mask_labels: list[Tensor],
    class_labels: list[Tensor],
    config: Mask2FormerConfig,
) -> dict[str, Tensor]:
    """All weighted losses by name: the last prediction's, then with suffix `_i` the earlier ones'.

    Half-precision inputs are taken to float32 first, also under autocast, as in the paper's code.

    Args:
        class_logits: (L, N, Q, num_labels + 1) of L predictions, the last one the model's answer.
        mask_embeddings: (L, N, Q, C).
        mask_features: (N, C, H, W).
        mask_labels: per image (T_i, H, W) with values from 0 to 1, as `check_labels` wants them.
        class_labels: per image (T_i,).
    """
    device = mask_features.device
    mask_labels = [_sampleable(masks.to(device)) for masks in mask_labels]
    class_labels = [labels.to(device, torch.int64) for labels in class_labels]
    with torch.autocast(device.type, enabled=False):
        if mask_features.dtype != torch.float64:
            class_logits, mask_embeddings = class_logits.float(), mask_embeddings.float()
            mask_features = mask_features.float()
        matches = match(
            class_logits, mask_embeddings, mask_features, mask_labels, class_labels, config
        )
        num_masks = average_num_masks(class_labels)
        losses = {}
        last = len(matches) - 1
        for layer in [last, *range(last)]:
            suffix = "" if layer == last else f"_{layer}"
            bce, dice = mask_losses(
                mask_embeddings[layer],
                mask_features,
                mask_labels,
                matches[layer],
                num_masks,
                config,
            )
            losses[f"loss_mask{suffix}"] = config.mask_weight * bce
            losses[f"loss_dice{suffix}"] = config.dice_weight * dice
            losses[f"loss_cross_entropy{suffix}"] = config.class_weight * class_loss(
                class_logits[layer], class_labels, matches[layer], config.no_object_weight
            )
    return losses


def class_loss(
    class_logits: Tensor, class_labels: list[Tensor], matches: Matches, no_object_weight: float
) -> Tensor:
    """Weighted cross-entropy of (N, Q, K + 1) logits; unmatched queries are "no object"."""
    no_object = class_logits.shape[-1] - 1
    target = class_labels[0].new_full(class_logits.shape[:2], no_object)
    for i, (queries, targets) in enumerate(matches):
        target[i, queries.to(target.device)] = class_labels[i][targets.to(target.device)]
    weight = class_logits.new_ones(no_object + 1)
    weight[no_object] = no_object_weight
    return F.cross_entropy(class_logits.transpose(1, 2), target, weight)


def mask_losses(
    mask_embeddings: Tensor,
    mask_features: Tensor,
    mask_labels: list[Tensor],
    matches: Matches,
    num_masks: Tensor,
    config: Mask2FormerConfig,
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice of the matched queries' masks, one prediction of (N, Q, C).

    Only the matched queries' masks are built. Points are drawn for each mask by itself, most of
    them where the prediction is unsure.
    """
    device = mask_features.device
    logits = torch.cat(
        [
            torch.einsum("qc,chw->qhw", mask_embeddings[i, queries.to(device)], mask_features[i])
            for i, (queries, _) in enumerate(matches)
        ]
    )
    if len(logits) == 0:
        zero = mask_embeddings.sum() * 0 + mask_features.sum() * 0
        return zero, zero
    logits = logits[:, None]
    with torch.no_grad():
        points = get_uncertain_point_coords_with_randomness(
            logits,
            lambda sampled: -sampled.abs(),
            config.train_num_points,
            config.oversample_ratio,
            config.importance_sample_ratio,
        )
        per_image = points.split([len(targets) for _, targets in matches])
        labels = torch.cat(
            [
                sample_masks(masks[targets.to(device), None], part)[:, 0]
                for masks, (_, targets), part in zip(mask_labels, matches, per_image, strict=True)
            ]
        )
    sampled = point_sample(logits, points)[:, 0]
    bce = F.binary_cross_entropy_with_logits(sampled, labels, reduction="none").mean(1).sum()
    probabilities = sampled.sigmoid()
    overlap = (probabilities * labels).sum(-1)
    dice = 1 - (2 * overlap + 1) / (probabilities.sum(-1) + labels.sum(-1) + 1)
    return bce / num_masks, dice.sum() / num_masks


def average_num_masks(class_labels: list[Tensor]) -> Tensor:
    """Annotated masks per process, at least 1: the mean over all ranks of torch.distributed."""
    count = torch.tensor(
        float(sum(len(labels) for labels in class_labels)), device=class_labels[0].device
    )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count /= torch.distributed.get_world_size()
    return count.clamp(min=1)


def _sampleable(masks: Tensor) -> Tensor:
    """Masks in a dtype that `point_sample` reads as it lies, at no precision lost."""
    if masks.dtype in (torch.bool, torch.uint8, torch.float32):
        return masks
    return masks.float() if masks.is_floating_point() else masks.to(torch.uint8)


def check_labels(
    mask_labels: list[Tensor],
    class_labels: list[Tensor],
    batch: int,
    size: tuple[int, int],
    config: Mask2FormerConfig,
) -> None:
    """Whether labels fit each other, pixel values of (height, width) `size`, and the classes.

    Raises:
        ValueError: they do not; the message names the image.
    """
    if not len(mask_labels) == len(class_labels) == batch:
        raise ValueError(
            f"mask_labels has {len(mask_labels)} and class_labels {len(class_labels)} entries for "
            f"{batch} images; give one entry per image."
        )
    for i, (masks, labels) in enumerate(zip(mask_labels, class_labels, strict=True)):
        if masks.dim() != 3 or masks.shape[1:] != size or labels.shape != masks.shape[:1]:
            raise ValueError(
                f"mask_labels[{i}] has shape {tuple(masks.shape)} and class_labels[{i}] "
                f"{tuple(labels.shape)}; expected (T, {size[0]}, {size[1]}), the size of "
                "pixel_values, and (T,)."
            )
        if len(labels) == 0:
            continue
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0 or highest >= config.num_labels:
            raise ValueError(
                f"class_labels[{i}] has labels from {lowest} to {highest}, but the model knows 0 "
                f"to {config.num_labels - 1}."
            )
        if masks.dtype != torch.bool and (masks.min() < 0 or masks.max() > 1):
            raise ValueError(
                f"mask_labels[{i}] has values from {masks.min().item():g} to "
                f"{masks.max().item():g}; give 0 and 1, for example masks > 0."
            )
