"""What is annotated in the images of a batch, checked and made ready for matching and loss.

Three things count for nothing there: pixels whose value in a mask is the configuration's
`ignore_value`, the padding of the batch, and a whole annotation whose class is `ignore_value`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mask2former.configuration import Mask2FormerConfig
from mask2former_ops import point_sample

# In a label map, whose other values are the places of annotations:
VOID = -1  # a pixel that belongs to none of them
IGNORED = -2  # a pixel that counts for nothing


class Annotation(NamedTuple):
    """The T annotated masks of one image.

    `masks` (T, H, W) bool, uint8 or floating, with values from 0 to 1, 0 where they are ignored;
    `labels` int64 (T,); `ignored` bool (T or 1, H, W), True in pixels that count for nothing, or
    None when all pixels count.
    """

    masks: Tensor
    labels: Tensor
    ignored: Tensor | None = None


def make_annotations(
    mask_labels: list[Tensor],
    class_labels: list[Tensor],
    pixel_mask: Tensor | None,
    config: Mask2FormerConfig,
    device: torch.device,
) -> list[Annotation]:
    """One annotation per image, on `device`.

    Args:
        mask_labels: per image (T_i, H, W), as `check_labels` wants them.
        class_labels: per image (T_i,).
        pixel_mask: bool (N, H, W), True where there is image, or None.
        config: whose `ignore_value` is looked for. A class of the model is never ignored, nor is a
            mask's own 0 or 1.
    """
    annotations = []
    for i, (masks, labels) in enumerate(zip(mask_labels, class_labels, strict=True)):
        masks, labels = masks.to(device), labels.to(device, torch.int64)
        if config.ignore_value >= config.num_labels:
            kept = labels != config.ignore_value
            if not bool(kept.all()):
                masks, labels = masks[kept], labels[kept]
        ignored = None if pixel_mask is None else ~pixel_mask[i : i + 1].to(device)
        if _exceeds_one(masks):
            marked = _is_ignored(masks, config)
            masks = masks.masked_fill(marked, 0)
            ignored = marked if ignored is None else marked | ignored
        annotations.append(Annotation(_sampleable(masks), labels, ignored))
    return annotations


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """Masks at points, sampled as they lie, in the dtype of the points.

    Args:
        masks: (N, C, H, W), bool, uint8 or floating.
        points: (N or 1, P, 2) as (x, y) in [0, 1], float32 or float64.

    Returns:
        (N, C, P).
    """
    # Non-floating masks are sampled into float32, which would cost a float64 model its precision.
    masks = masks.double() if points.dtype == torch.float64 else masks
    return point_sample(masks, points).to(points.dtype)


def point_weights(ignored: Tensor | None, points: Tensor) -> Tensor:
    """1 at points that count, 0 at those that touch an ignored pixel, in the dtype of the points.

    Args:
        ignored: bool (N, C, H, W), or None.
        points: (N or 1, P, 2), as `sample_masks` takes them.

    Returns:
        (N, C, P), or (N, 1, P) for N sets of points when nothing is ignored.
    """
    if ignored is None:
        return points.new_ones(points.shape[0], 1, points.shape[1])
    return (sample_masks(ignored, points) == 0).to(points.dtype)


def _sampleable(masks: Tensor) -> Tensor:
    """Masks in a dtype that `point_sample` reads as it lies, at no precision lost."""
    if masks.dtype in (torch.bool, torch.uint8, torch.float32):
        return masks
    return masks.float() if masks.is_floating_point() else masks.to(torch.uint8)


def _exceeds_one(masks: Tensor) -> bool:
    return masks.dtype != torch.bool and masks.numel() > 0 and bool(masks.max() > 1)


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
        if len(labels) > 0:
            _check_classes(labels, i, config)
            _check_values(masks, i, config)


def _check_classes(labels: Tensor, i: int, config: Mask2FormerConfig) -> None:
    known = ((labels >= 0) & (labels < config.num_labels)) | (labels == config.ignore_value)
    if not bool(known.all()):
        raise ValueError(
            f"class_labels[{i}] has labels from {int(labels.min())} to {int(labels.max())}, but "
            f"the model knows 0 to {config.num_labels - 1}, and {config.ignore_value} to ignore."
        )


def _is_ignored(masks: Tensor, config: Mask2FormerConfig) -> Tensor:
    """Where masks have `ignore_value`, which torch would wrap around in a small integer dtype."""
    if not masks.is_floating_point() and config.ignore_value > torch.iinfo(masks.dtype).max:
        return torch.zeros_like(masks, dtype=torch.bool)
    return masks == config.ignore_value


def _check_values(masks: Tensor, i: int, config: Mask2FormerConfig) -> None:
    if masks.dtype == torch.bool or (bool(masks.min() >= 0) and bool(masks.max() <= 1)):
        return
    own = (masks >= 0) & (masks <= 1)
    described = f"mask_labels[{i}] has values from {masks.min().item():g} to {masks.max().item():g}"
    if not bool((own | _is_ignored(masks, config)).all()):
        raise ValueError(
            f"{described}; give 0 and 1, for example masks > 0, and the configuration's "
            f"ignore_value, {config.ignore_value}, in pixels to ignore."
        )
    if not bool((own & (masks > 0)).any()):  # masks of 0 and 255, more likely than no object at all
        raise ValueError(
            f"{described} and no 1, but {config.ignore_value} is the configuration's ignore_value "
            "and marks pixels to ignore; give 0 and 1, for example masks > 0."
        )
