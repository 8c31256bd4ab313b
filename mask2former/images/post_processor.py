"""Post-processing as methods of the image processor, where its documentation has it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor

from mask2former.images import hf_compat, post_processing
from mask2former.images.resize import Size


class PostProcessor:
    """Logits -> segmentations, by the settings that a Mask2FormerImageProcessor has for it.

    Attributes:
        hf_compat: as transformers does it, instead of as the paper's code does.
        thing_label_ids: labels of countable things, if they are known.
    """

    hf_compat: bool
    thing_label_ids: Collection[int] | None

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Sequence[Size] | Tensor | None = None
    ) -> list[Tensor]:
        """A class map int64 (height, width) per image; see `post_processing.semantic_segmentation`.

        target_sizes are (height, width) per image in pixels; without them the maps have the
        resolution of the mask logits.
        """
        module = hf_compat if self.hf_compat else post_processing
        return module.semantic_segmentation(outputs, target_sizes)

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: Sequence[Size] | Tensor | None = None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
    ) -> list[dict[str, Any]]:
        """{"segmentation", "segments_info"} per image; see `post_processing.instance_segmentation`.

        The map is int32 with -1 for void and ids from 0. With `thing_label_ids` only things are
        returned.
        """
        forms = {
            "return_coco_annotation": bool(return_coco_annotation),
            "return_binary_maps": bool(return_binary_maps),
        }
        if self.hf_compat:
            return hf_compat.instance_segmentation(outputs, threshold, target_sizes, **forms)
        results = post_processing.instance_segmentation(
            outputs,
            threshold,
            mask_threshold,
            overlap_mask_area_threshold,
            target_sizes,
            thing_label_ids=self.thing_label_ids,
            **forms,
        )
        for result in results:
            for segment in result["segments_info"]:
                segment["id"] -= 1
            if not any(forms.values()):
                result["segmentation"] -= 1
        return results

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Collection[int] | None = None,
        target_sizes: Sequence[Size] | Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """{"segmentation", "segments_info"} per image; see `post_processing.panoptic_segmentation`.

        The map is int32 with 0 for void and ids from 1. `label_ids_to_fuse` None means all labels
        but `thing_label_ids` if those are known, else none.
        """
        if label_ids_to_fuse is None:
            label_ids_to_fuse = set()
            if self.thing_label_ids is not None and not self.hf_compat:
                labels = range(outputs.class_queries_logits.shape[-1] - 1)
                label_ids_to_fuse = set(labels) - set(self.thing_label_ids)
        module = hf_compat if self.hf_compat else post_processing
        return module.panoptic_segmentation(
            outputs,
            threshold,
            mask_threshold,
            overlap_mask_area_threshold,
            label_ids_to_fuse,
            target_sizes,
        )
