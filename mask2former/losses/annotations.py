"""The annotations of the images in a batch, checked and ready for matching and loss.

The masks of an image are (T, H, W), which may overlap, or an index map (H, W), in which a pixel
belongs to at most one annotation. Ignored, which means that they take part neither in matching nor
in the mask losses, are: pixels whose value in a mask is `ignore_value`, or `IGNORED` in an index
map; and the padding of the batch. An annotation of class `ignore_value` is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mask2former.images.resize import padded, size_of
from mask2former.losses.index_map import sample_index_map
from mask2former_ops import point_sample

# Values of an index map beside the indices of annotations:
VOID = -1  # a pixel without annotation
IGNORED = -2  # a pixel that is ignored


@dataclass(frozen=True)
class Annotation:
    """The T annotated masks of one image.

    Attributes:
        masks: (T, H, W) bool, uint8 or floating, with values from 0 to 1, 0 where they are ignored;
            or an index map, integer (H, W).
        labels: int64 (T,).
        ignored: bool (T or 1, H, W), True in ignored pixels, or None without any.
        ids: integer (T,), the value of each annotation in the index map; None for masks.
        num_labels: the classes that `labels` were checked to be among, 0 to num_labels - 1.
    """

    masks: Tensor
    labels: Tensor
    ignored: Tensor | None = None
    ids: Tensor | None = None
    num_labels: int = 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Annotation:
        """The same on a device; `non_blocking` as for tensors."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Annotation:
        """The same in page-locked memory; a DataLoader calls it."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Annotation:
        tensors = {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})

    def with_padding(self, pixel_mask: Tensor) -> Annotation:
        """On a canvas, bool (H', W'), at least as large: ignored where `pixel_mask` is False."""
        size, ignored = size_of(pixel_mask), ~pixel_mask[None]
        masks = padded(self.masks, size, 0 if self.ids is None else VOID)
        if self.ignored is not None:
            ignored = ignored | padded(self.ignored, size)
        return replace(self, masks=masks, ignored=ignored)

    def chosen(self, which: Tensor) -> Annotation:
        """Some of the annotations: `which` are their indices (M,), or bool (T,)."""
        labels, ignored = self.labels[which], self.ignored
        if ignored is not None and len(ignored) != 1:
            ignored = ignored[which]
        if self.ids is None:
            return replace(self, masks=self.masks[which], labels=labels, ignored=ignored)
        return replace(self, labels=labels, ignored=ignored, ids=self.ids[which])

    def sample(self, points: Tensor) -> Tensor:
        """Masks at points, bilinear, without a floating copy of them.

        Args:
            points: (T or 1, P, 2) as (x, y) in [0, 1], float32 or float64; with a first size of 1
                they serve all masks.

        Returns:
            (T, P) in the dtype of the points.
        """
        if self.ids is not None:
            return sample_index_map(self.masks, self.ids, points)
        return _sample_masks(self.masks, points)

    def weights(self, points: Tensor) -> Tensor:
        """1 at points that count, 0 at those that touch an ignored pixel.

        Args:
            points: as for `sample`.

        Returns:
            (T, P) in the dtype of the points; (1, P) if all masks have the same points and the same
            ignored pixels, or none.
        """
        if self.ignored is None:
            return points.new_ones(()).expand(points.shape[:2])
        if len(self.ignored) == 1:  # one map, sampled at the points of all masks at once
            sampled = _sample_masks(self.ignored, points.flatten(0, 1)[None])
            return (sampled == 0).to(points.dtype).view(points.shape[:2])
        return (_sample_masks(self.ignored, points) == 0).to(points.dtype)


def _sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """Masks (T, H, W) at points (T or 1, P, 2): (T, P) in the dtype of the points."""
    # Non-floating masks are sampled into float32, which would cost a float64 model its precision.
    masks = masks.double() if points.dtype == torch.float64 else masks
    if len(points) == 1:
        return point_sample(masks[None], points)[0].to(points.dtype)
    return point_sample(masks[:, None], points)[:, 0].to(points.dtype)


def make_annotations(
    mask_labels: list[Tensor],
    class_labels: list[Tensor],
    batch: int,
    size: tuple[int, int],
    num_labels: int,
    ignore_value: int,
) -> list[Annotation]:
    """Check the labels of a batch, and make one annotation per image, on the device of its masks.

    On an accelerator every check waits for the device; on the CPU it is cheap.

    Args:
        mask_labels: per image (T_i, H, W) or an index map (H, W).
        class_labels: per image integer (T_i,).
        batch: images.
        size: their height and width.
        num_labels: classes.
        ignore_value: marks ignored pixels in masks, and annotations to leave out in class labels. A
            class is never ignored, nor is a mask's own 0 or 1, nor an index in an index map.

    Raises:
        ValueError: labels do not fit each other, the size or the classes; the message names the
            image.
    """
    if not len(mask_labels) == len(class_labels) == batch:
        raise ValueError(
            f"mask_labels has {len(mask_labels)} and class_labels {len(class_labels)} entries for "
            f"{batch} images; give one entry per image."
        )
    annotations = []
    for i, (masks, labels) in enumerate(zip(mask_labels, class_labels, strict=True)):
        _check_shapes(masks, labels, i, size)
        _check_classes(labels, i, num_labels, ignore_value)
        labels = labels.to(masks.device, torch.int64)
        if masks.dim() == 2:
            annotation = _from_index_map(masks, labels, i)
        else:
            annotation = _from_masks(masks, labels, i, ignore_value)
        if not 0 <= ignore_value < num_labels and bool((labels == ignore_value).any()):
            annotation = annotation.chosen(labels != ignore_value)
        annotations.append(replace(annotation, num_labels=num_labels))
    return annotations


def check_annotations(
    annotations: list[Annotation], batch: int, size: tuple[int, int], num_labels: int
) -> None:
    """Check that annotations, made earlier, fit a model and its images; waits for no device.

    Raises:
        ValueError: there are more or fewer than images, or one has another size or more classes.
    """
    if len(annotations) != batch:
        raise ValueError(
            f"annotations has {len(annotations)} entries for {batch} images; give one per image."
        )
    for i, annotation in enumerate(annotations):
        shape = tuple(annotation.masks.shape)
        if shape[-2:] != size:
            raise ValueError(
                f"annotations[{i}] has masks of shape {shape}, but pixel_values are {size}; make "
                "annotations of that size."
            )
        if len(annotation.labels) > 0 and annotation.num_labels == 0:
            raise ValueError(f"annotations[{i}] was never checked; make it with make_annotations.")
        if annotation.num_labels > num_labels:
            raise ValueError(
                f"annotations[{i}] is of {annotation.num_labels} classes, but the model knows "
                f"{num_labels}; give the model the classes of the data set."
            )


def _from_index_map(index_map: Tensor, labels: Tensor, i: int) -> Annotation:
    _check_index_map(index_map, len(labels), i)
    ignored = (index_map == IGNORED)[None]
    ids = torch.arange(len(labels), dtype=torch.int32, device=labels.device)
    return Annotation(
        index_map.to(torch.int32), labels, ignored if bool(ignored.any()) else None, ids
    )


def _from_masks(masks: Tensor, labels: Tensor, i: int, ignore_value: int) -> Annotation:
    if masks.dtype == torch.bool or len(labels) == 0:
        return Annotation(_sampleable(masks), labels)
    low, high = masks.min(), masks.max()
    if bool((low >= 0) & (high <= 1)):
        return Annotation(_sampleable(masks), labels)
    ignored = _is_ignored(masks, ignore_value)
    _check_values(masks, ignored, i, ignore_value)
    return Annotation(_sampleable(masks.masked_fill(ignored, 0)), labels, ignored)


def _sampleable(masks: Tensor) -> Tensor:
    """Masks in a dtype that `point_sample` takes, without loss of precision."""
    if masks.dtype in (torch.bool, torch.uint8, torch.float32):
        return masks
    return masks.float() if masks.is_floating_point() else masks.to(torch.uint8)


def _is_ignored(masks: Tensor, ignore_value: int) -> Tensor:
    """Where masks have `ignore_value`, which torch would wrap around in a small integer dtype."""
    if not masks.is_floating_point() and ignore_value > torch.iinfo(masks.dtype).max:
        return torch.zeros_like(masks, dtype=torch.bool)
    return masks == ignore_value


def _check_shapes(masks: Tensor, labels: Tensor, i: int, size: tuple[int, int]) -> None:
    counted = labels.dim() == 1 and masks.shape[:-2] in ((), labels.shape)
    if masks.dim() not in (2, 3) or masks.shape[-2:] != size or not counted:
        raise ValueError(
            f"mask_labels[{i}] has shape {tuple(masks.shape)} and class_labels[{i}] "
            f"{tuple(labels.shape)}; expected (T, {size[0]}, {size[1]}), the size of "
            f"pixel_values, or ({size[0]}, {size[1]}) for an index map, and (T,)."
        )


def _check_classes(labels: Tensor, i: int, num_labels: int, ignore_value: int) -> None:
    if labels.is_floating_point() and len(labels) > 0:
        raise ValueError(f"class_labels[{i}] is {labels.dtype}; give integers.")
    known = ((labels >= 0) & (labels < num_labels)) | (labels == ignore_value)
    if not bool(known.all()):
        raise ValueError(
            f"class_labels[{i}] has labels from {int(labels.min())} to {int(labels.max())}, but "
            f"the model knows 0 to {num_labels - 1}, and {ignore_value} to ignore."
        )


def _check_index_map(index_map: Tensor, count: int, i: int) -> None:
    if index_map.is_floating_point() or index_map.dtype == torch.bool:
        raise ValueError(
            f"mask_labels[{i}] has shape {tuple(index_map.shape)}, as an index map, but is "
            f"{index_map.dtype}; give integers, or masks (T, H, W)."
        )
    low, high = (int(value) for value in index_map.long().aminmax())  # uint16 has no aminmax
    if low < IGNORED or high >= count:
        raise ValueError(
            f"mask_labels[{i}] is an index map with values from {low} to {high}, but "
            f"class_labels[{i}] has {count} entries; give each pixel the index of its annotation "
            f"in class_labels, from 0, {VOID} where there is none, and {IGNORED} in pixels to "
            "ignore."
        )


def _check_values(masks: Tensor, ignored: Tensor, i: int, ignore_value: int) -> None:
    """Check masks that have values below 0 or above 1."""
    own = (masks >= 0) & (masks <= 1)
    described = f"mask_labels[{i}] has values from {masks.min().item():g} to {masks.max().item():g}"
    if not bool((own | ignored).all()):
        raise ValueError(
            f"{described}; give 0 and 1, for example masks > 0, and the configuration's "
            f"ignore_value, {ignore_value}, in pixels to ignore."
        )
    if not bool((own & (masks > 0)).any()):  # masks of 0 and 255, more likely than no object at all
        raise ValueError(
            f"{described} and no 1, but {ignore_value} is the configuration's ignore_value "
            "and marks pixels to ignore; give 0 and 1, for example masks > 0."
        )
