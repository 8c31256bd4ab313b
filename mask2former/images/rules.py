"""The rules of the image processor that differ between the paper's code and transformers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor

from mask2former.images import post_processing
from mask2former.images.resize import (
    Size,
    next_multiple,
    resized_image,
    resized_nearest,
    shortest_edge_size,
)
from mask2former.images.segmentation_maps import masks_and_labels


def instance_segmentation(
    outputs: Any,
    threshold: float,
    mask_threshold: float,
    overlap_mask_area_threshold: float,
    target_sizes: Sequence[Size] | Tensor | None,
    *,
    return_coco_annotation: bool,
    return_binary_maps: bool,
    thing_label_ids: Collection[int] | None,
) -> list[dict[str, Any]]:
    """As documented: ids count from 0, and void is -1."""
    results = post_processing.instance_segmentation(
        outputs,
        threshold,
        mask_threshold,
        overlap_mask_area_threshold,
        target_sizes,
        return_coco_annotation=return_coco_annotation,
        return_binary_maps=return_binary_maps,
        thing_label_ids=thing_label_ids,
    )
    for result in results:
        for segment in result["segments_info"]:
            segment["id"] -= 1
        if not (return_coco_annotation or return_binary_maps):
            result["segmentation"] -= 1
    return results


class Rules:
    """The rules of the paper's code. `hf_compat.TransformersRules` has transformers'.

    The processor asks these methods where the two differ, and decides everything else by itself.
    """

    pair_keys = ("width", "height")  # what a `size` of two numbers is, as documented

    # ---- images and maps to tensors -------------------------------------------------------------

    shortest_edge_size = staticmethod(shortest_edge_size)
    resized_image = staticmethod(resized_image)
    resized_map = staticmethod(resized_nearest)
    masks_and_labels = staticmethod(masks_and_labels)

    def stretched_size(self, size: Size, divisor: int) -> Size:
        """The size to resize to instead of `size`. Images are padded, never stretched."""
        return size

    def crops(self, do_center_crop: bool) -> bool:
        return do_center_crop

    def pads(self, do_pad: bool) -> bool:
        return do_pad

    def padded_size(self, largest: Size, divisor: int) -> Size:
        """The size that images are padded to without a `pad_size`."""
        return next_multiple(largest, divisor)

    def mask_padding(self, ignore_index: int | None) -> int:
        """What masks hold in the padding."""
        return 0

    # ---- outputs to segmentations ---------------------------------------------------------------

    semantic_segmentation = staticmethod(post_processing.semantic_segmentation)
    panoptic_segmentation = staticmethod(post_processing.panoptic_segmentation)
    instance_segmentation = staticmethod(instance_segmentation)

    def labels_to_fuse(self, labels: int, thing_label_ids: Collection[int] | None) -> set[int]:
        """The labels whose panoptic segments are fused if nothing is said: stuff, if known."""
        return set() if thing_label_ids is None else set(range(labels)) - set(thing_label_ids)
