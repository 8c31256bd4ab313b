"""A model's answers in the classes of a data set, at the images' own resolution."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mask2former.data.dataset import SegmentationDataset
from mask2former.evaluation.average_precision import Instances
from mask2former.evaluation.classes import class_order
from mask2former.images import post_processing
from mask2former.images.processor import PROCESSOR_FILE, Mask2FormerImageProcessor
from mask2former.io.errors import DataError
from mask2former.modeling import Mask2FormerForUniversalSegmentation

# Pairs of query and class that are instances, as in the paper's evaluation.
INSTANCES_PER_IMAGE = 100


class Segmenter:
    """Segments samples of a data set.

    Classes are matched by name, so labels are the data set's, whatever order the model has them in.
    What is a thing is the data set's to say. `hf_compat` of the processor concerns what goes into
    the model only.

    Args:
        threshold: class probability that a panoptic segment must exceed.
        mask_threshold: least mask probability of a pixel.
        overlap_threshold: least share of its mask that a panoptic segment keeps.

    Raises:
        DataError: model and data set have different classes. The model may have more than a data
            set of instances.
    """

    def __init__(
        self,
        model: Mask2FormerForUniversalSegmentation,
        processor: Mask2FormerImageProcessor,
        dataset: SegmentationDataset,
        threshold: float = 0.8,
        mask_threshold: float = 0.5,
        overlap_threshold: float = 0.8,
    ) -> None:
        instances = dataset.task == "instance"
        self.order = class_order(model.config.id2label, dataset.id2label, others_allowed=instances)
        self.things = set(dataset.id2label if instances else dataset.thing_label_ids)
        self.stuff = set(dataset.id2label) - self.things
        self.model, self.processor = model, processor
        self.threshold = threshold
        self.mask_threshold, self.overlap_threshold = mask_threshold, overlap_threshold

    @torch.inference_mode()
    def __call__(self, image: Tensor, name: str) -> SimpleNamespace:
        """Logits of one image, uint8 (3, H, W), for the methods below; messages call it `name`.

        Raises:
            DataError: the image does not suit the processor's settings.
        """
        try:
            inputs = self.processor(image, input_data_format="channels_first", return_tensors="pt")
        except ValueError as error:
            raise DataError(
                f"The settings in {PROCESSOR_FILE} do not suit {name}: {error}"
            ) from error
        outputs = self.model(**inputs.to(self.model.device), return_dict=True)
        return SimpleNamespace(
            class_queries_logits=outputs.class_queries_logits[..., [*self.order, -1]],
            masks_queries_logits=outputs.masks_queries_logits,
            image_sizes=outputs.image_sizes,
            target_sizes=[tuple(image.shape[-2:])],
        )

    def panoptic(self, logits: SimpleNamespace) -> dict[str, Any]:
        """ "segmentation", int32 (H, W) with 0 for void, and "segments_info"."""
        return post_processing.panoptic_segmentation(
            logits,
            self.threshold,
            self.mask_threshold,
            self.overlap_threshold,
            label_ids_to_fuse=self.stuff,
            target_sizes=logits.target_sizes,
        )[0]

    def semantic(self, logits: SimpleNamespace) -> Tensor:
        """The label of every pixel, int64 (H, W)."""
        return post_processing.semantic_segmentation(logits, logits.target_sizes)[0]

    def instances(self, logits: SimpleNamespace) -> Instances:
        """Things with their scores, the best first, from the 100 likeliest pairs of query and
        class: masks overlap, and one query may be there under several classes."""
        result = post_processing.instance_segmentation(
            logits,
            threshold=0.0,
            mask_threshold=self.mask_threshold,
            target_sizes=logits.target_sizes,
            return_coco_annotation=True,
            thing_label_ids=self.things,
            candidates=INSTANCES_PER_IMAGE,
        )[0]
        segments = result["segments_info"]
        return Instances(
            result["segmentation"],
            [segment["label_id"] for segment in segments],
            scores=[segment["score"] for segment in segments],
        )

    def instance_map(self, logits: SimpleNamespace) -> dict[str, Any]:
        """What `panoptic` returns, of the things that are surer than the threshold: the surer one
        covers the other."""
        return post_processing.instance_segmentation(
            logits,
            self.threshold,
            self.mask_threshold,
            overlap_mask_area_threshold=0.0,
            target_sizes=logits.target_sizes,
            thing_label_ids=self.things,
            candidates=INSTANCES_PER_IMAGE,
        )[0]
