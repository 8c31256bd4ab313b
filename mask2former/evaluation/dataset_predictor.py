"""A predictor in the classes of a data set, as the paper's evaluation has it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.nn import functional as F

from mask2former.data.dataset import SegmentationDataset
from mask2former.evaluation.average_precision import Instances
from mask2former.evaluation.classes import class_order
from mask2former.images import post_processing
from mask2former.images.batch_feature import BatchFeature
from mask2former.images.processor import Mask2FormerImageProcessor
from mask2former.images.resize import Size
from mask2former.images.thresholds import PAPER_THRESHOLDS, Thresholds
from mask2former.modeling import Mask2FormerForUniversalSegmentation
from mask2former.predictor import Logits, Predictor, Segmentation

# Pairs of query and class that are instances, as in the paper's evaluation.
INSTANCES_PER_IMAGE = 100


class DatasetPredictor(Predictor):
    """Predicts the labels of a data set.

    Classes are matched by name, whatever order the model has them in. The data set says what is a
    thing.

    Args:
        model, processor, thresholds: see `Predictor`.
        paper_padding: let the padding of an image take part in everything, as in the paper's code:
            see `evaluate`.

    Raises:
        DataError: model and data set have different classes. The model may have more than a data
            set of instances.
    """

    def __init__(
        self,
        model: Mask2FormerForUniversalSegmentation,
        processor: Mask2FormerImageProcessor,
        dataset: SegmentationDataset,
        *,
        thresholds: Thresholds = PAPER_THRESHOLDS,
        paper_padding: bool = False,
    ) -> None:
        instances = dataset.task == "instance"
        self.order = class_order(model.config.id2label, dataset.id2label, others_allowed=instances)
        things = dataset.id2label if instances else dataset.thing_label_ids
        super().__init__(
            model, processor, dataset.task, thresholds=thresholds, thing_label_ids=things
        )
        self.id2label = dataset.id2label
        self.paper_padding = paper_padding

    def forward(self, inputs: BatchFeature, size: Size) -> Logits:
        """Logits of prepared pixels, with the classes in the data set's order."""
        if self.paper_padding:
            logits = self._with_padding(inputs, size)
        else:
            logits = super().forward(inputs, size)
        in_order = logits.class_queries_logits[..., [*self.order, -1]]
        return replace(logits, class_queries_logits=in_order)

    def _with_padding(self, inputs: BatchFeature, size: Size) -> Logits:
        """Without a pixel_mask, and with the masks cropped to the image as in the paper's code.

        Source: `MaskFormer.forward` of the original code, and detectron2's `sem_seg_postprocess`.
        """
        height, width = (int(inputs.pixel_mask[0].any(axis).sum()) for axis in (1, 0))
        outputs = self.model(pixel_values=inputs.pixel_values, return_dict=True)
        masks = F.interpolate(
            outputs.masks_queries_logits.float(),
            inputs.pixel_values.shape[-2:],
            mode="bilinear",
            align_corners=False,
        )
        cropped = masks[..., :height, :width]
        return Logits(outputs.class_queries_logits, cropped, None, [size])

    def instance(self, logits: Logits) -> Segmentation:
        """Instances that reach the threshold, the likelier above the other, however little of one
        stays visible."""
        found = self._instances(
            logits, threshold=self.thresholds.threshold, overlap_mask_area_threshold=0.0
        )
        return self._segmentation(**found)

    def instances(self, logits: Logits) -> Instances:
        """Things with their scores, the best first, from the 100 likeliest pairs of query and
        class: masks overlap, and one query may be there under several classes."""
        found = self._instances(logits, threshold=0.0, return_coco_annotation=True)
        segments = found["segments_info"]
        return Instances(
            found["segmentation"],
            [segment["label_id"] for segment in segments],
            scores=[segment["score"] for segment in segments],
        )

    def _instances(self, logits: Logits, **options: Any) -> dict[str, Any]:
        return post_processing.instance_segmentation(
            logits,
            mask_threshold=self.thresholds.mask_threshold,
            target_sizes=logits.target_sizes,
            thing_label_ids=self.things,
            candidates=INSTANCES_PER_IMAGE,
            **options,
        )[0]
