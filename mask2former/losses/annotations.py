"""What is annotated in the images of a batch, checked and made ready for matching and loss.

The masks of an image are (T, H, W), which may overlap, or a label map (H, W), in which a pixel
belongs to one annotation at most. These count for nothing: pixels whose value in a mask is the
configuration's `ignore_value`, or `IGNORED` in a label map; the padding of the batch; and a whole
annotation whose class is `ignore_value`, which is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mask2former.configuration import Mask2FormerConfig
from mask2former.losses.label_map import sample_label_map
from mask2former_ops import point_sample

# In a label map, whose other values are the places of annotations:
VOID = -1  # a pixel that belongs to none of them
IGNORED = -2  # a pixel that counts for nothing


@dataclass(frozen=True)
class Annotation:
    """The T annotated masks of one image.

    Attributes:
        masks: (T, H, W) bool, uint8 or floating, with values from 0 to 1, 0 where they are ignored;
            or a label map, integer (H, W).
        labels: int64 (T,).
        ignored: bool (T or 1, H, W), True in pixels that count for nothing, or None when all
            pixels count.
        ids: integer (T,), what stands for each annotation in the label map; None for masks.
    """

    masks: Tensor
    labels: Tensor
    ignored: Tensor | None = None
    ids: Tensor | None = None

    def chosen(self, which: Tensor) -> Annotation:
        """Some of the annotations: `which` are their numbers (M,), or bool (T,)."""
        ignored = self.ignored
        if ignored is not None and len(ignored) != 1:
            ignored = ignored[which]
        if self.ids is None:
            return Annotation(self.masks[which], self.labels[which], ignored)
        return Annotation(self.masks, self.labels[which], ignored, self.ids[which])

    def sample(self, points: Tensor) -> Tensor:
        """Masks at points, sampled as they lie.

        Args:
            points: (T or 1, P, 2) as (x, y) in [0, 1], float32 or float64; with a first size of 1
                they serve all masks.

        Returns:
            (T, P) in the dtype of the points.
        """
        if self.ids is not None:
            return sample_label_map(self.masks, self.ids, points)
        return _sample_masks(self.masks, points)

    def weights(self, points: Tensor) -> Tensor:
        """1 at points that count, 0 at those that touch an ignored pixel.

        Args:
            points: as `sample` takes them.

        Returns:
            (T, P) in the dtype of the points; (1, P) if all masks have the same points and ignore
            the same, or nothing.
        """
        if self.ignored is None:
            return points.new_ones(()).expand(points.shape[:2])
        if len(self.ignored) == 1:  # which may be sampled at many sets of points, as one
            sampled = _sample_masks(self.ignored, points.flatten(0, 1)[None])
            return (sampled == 0).to(points.dtype).view(points.shape[:2])
        return (_sample_masks(self.ignored, points) == 0).to(points.dtype)


def make_annotations(
    mask_labels: list[Tensor],
    class_labels: list[Tensor],
    pixel_mask: Tensor | None,
    config: Mask2FormerConfig,
    device: torch.device,
) -> list[Annotation]:
    """One annotation per image, on `device`.

    Args:
        mask_labels: per image (T_i, H, W) or a label map (H, W), as `check_labels` wants them.
        class_labels: per image (T_i,).
        pixel_mask: bool (N, H, W), True where there is image, or None.
        config: whose `ignore_value` is looked for, in masks and classes. A class of the model is
            never ignored, nor is a mask's own 0 or 1, nor a place of a label map.
    """
    annotations = []
    for i, (masks, labels) in enumerate(zip(mask_labels, class_labels, strict=True)):
        masks, labels = masks.to(device), labels.to(device, torch.int64)
        padding = None if pixel_mask is None else ~pixel_mask[i : i + 1].to(device)
        make = _from_label_map if is_label_map(masks) else _from_masks
        annotation = make(masks, labels, padding, config)
        if config.ignore_value >= config.num_labels:
            kept = labels != config.ignore_value
            if not bool(kept.all()):
                annotation = annotation.chosen(kept)
        annotations.append(annotation)
    return annotations


def is_label_map(masks: Tensor) -> bool:
    """Whether the masks of an image are a label map."""
    return masks.dim() == 2


def _from_label_map(
    label_map: Tensor, labels: Tensor, padding: Tensor | None, config: Mask2FormerConfig
) -> Annotation:
    ignored = (label_map == IGNORED)[None]
    if padding is not None:
        ignored |= padding
    elif not bool(ignored.any()):
        ignored = None
    ids = torch.arange(len(labels), dtype=torch.int32, device=labels.device)
    return Annotation(label_map.to(torch.int32), labels, ignored, ids)


def _from_masks(
    masks: Tensor, labels: Tensor, padding: Tensor | None, config: Mask2FormerConfig
) -> Annotation:
    ignored = padding
    if _exceeds_one(masks):
        marked = _is_ignored(masks, config)
        masks = masks.masked_fill(marked, 0)
        ignored = marked if padding is None else marked | padding
    return Annotation(_sampleable(masks), labels, ignored)


def _sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """Masks (T, H, W) at points (T or 1, P, 2): (T, P) in the dtype of the points."""
    # Non-floating masks are sampled into float32, which would cost a float64 model its precision.
    masks = masks.double() if points.dtype == torch.float64 else masks
    if len(points) == 1:
        return point_sample(masks[None], points)[0].to(points.dtype)
    return point_sample(masks[:, None], points)[:, 0].to(points.dtype)


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
        of_map = is_label_map(masks)
        counted = labels.dim() == 1 and (of_map or len(masks) == len(labels))
        if masks.dim() not in (2, 3) or masks.shape[-2:] != size or not counted:
            raise ValueError(
                f"mask_labels[{i}] has shape {tuple(masks.shape)} and class_labels[{i}] "
                f"{tuple(labels.shape)}; expected (T, {size[0]}, {size[1]}), the size of "
                f"pixel_values, or ({size[0]}, {size[1]}) for a label map, and (T,)."
            )
        if len(labels) > 0:
            _check_classes(labels, i, config)
        if of_map:
            _check_label_map(masks, len(labels), i)
        elif len(labels) > 0:
            _check_values(masks, i, config)


def _check_classes(labels: Tensor, i: int, config: Mask2FormerConfig) -> None:
    known = ((labels >= 0) & (labels < config.num_labels)) | (labels == config.ignore_value)
    if not bool(known.all()):
        raise ValueError(
            f"class_labels[{i}] has labels from {int(labels.min())} to {int(labels.max())}, but "
            f"the model knows 0 to {config.num_labels - 1}, and {config.ignore_value} to ignore."
        )


def _check_label_map(label_map: Tensor, count: int, i: int) -> None:
    if label_map.is_floating_point() or label_map.dtype == torch.bool:
        raise ValueError(
            f"mask_labels[{i}] has shape {tuple(label_map.shape)}, as a label map, but is "
            f"{label_map.dtype}; give integers, or masks (T, H, W)."
        )
    low, high = (int(value) for value in label_map.long().aminmax())  # uint16 has no aminmax
    if low < IGNORED or high >= count:
        raise ValueError(
            f"mask_labels[{i}] is a label map with values from {low} to {high}, but "
            f"class_labels[{i}] has {count} entries; give the place of a pixel's annotation in "
            f"class_labels, counted from 0, {VOID} where there is none, and {IGNORED} in pixels to "
            "ignore."
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
