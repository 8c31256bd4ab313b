"""Average precision and recall of instance masks, and of their boundaries.

Lin et al., "Microsoft COCO", ECCV 2014, by the rules of COCO's evaluation; Cheng et al., "Boundary
IoU", CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mask2former.io.optional import require_package

DILATION_RATIO = 0.02  # width of a boundary over the image's diagonal
MAX_DETECTIONS = (1, 10, 100)  # per image and class
AREAS = ("all", "small", "medium", "large")  # up to 32^2, 96^2 and 10^10 pixels

RLE = dict[str, Any]


@dataclass(frozen=True)
class Instances:
    """The instances of one image, predicted or true; each list has one entry per instance.

    Attributes:
        masks: as `mask_to_rle` encodes them; they may overlap.
        labels: the class of each, from 0.
        scores: of predictions; higher is more certain.
        crowd: of the truth; True for a region of many objects. It need not be found, and a
            prediction inside it is no mistake.
        areas: of true instances in pixels, if the annotation file has them, else the areas of the
            masks. They decide what is small, medium and large.
    """

    masks: Sequence[RLE]
    labels: Sequence[int]
    scores: Sequence[float] = ()
    crowd: Sequence[bool] = ()
    areas: Sequence[float] | None = None


class AveragePrecision:
    """Average precision over any number of images, the same as pycocotools computes.

    Encoded masks of all images are kept, since precision needs all scores at once: about a kilobyte
    for a mask.

    Args:
        num_labels: label ids are 0 to num_labels - 1.

    Raises:
        DataError: faster-coco-eval is not installed.
    """

    def __init__(self, num_labels: int) -> None:
        require_package("faster_coco_eval", "Average precision", "mask2former[eval]")
        self.num_labels = num_labels
        self.truths: dict[int, Instances] = {}
        self.predictions: dict[int, Instances] = {}

    def update(self, image: int, predictions: Instances, truths: Instances) -> None:
        """Add one image.

        Args:
            image: its number, different for every image.
            predictions: with scores; of each class the 100 best count.
            truths: with crowd.

        Raises:
            ValueError: the image was added before, lists are not of one length, masks not of one
                size, or a label is out of range.
        """
        if image in self.truths:
            raise ValueError(f"Image {image} was added before; give each image once.")
        self._check(predictions, "predictions", "scores")
        self._check(truths, "truths", "crowd")
        sizes = {tuple(mask["size"]) for mask in (*predictions.masks, *truths.masks)}
        if len(sizes) > 1:
            raise ValueError(
                f"Masks of image {image} have the sizes {sorted(sizes)}; encode predictions at the "
                "size of the truth."
            )
        self.predictions[image], self.truths[image] = predictions, truths

    def _check(self, instances: Instances, name: str, column: str) -> None:
        lengths = {len(instances.masks), len(instances.labels), len(getattr(instances, column))}
        if instances.areas is not None:
            lengths.add(len(instances.areas))
        if len(lengths) > 1:
            raise ValueError(
                f"{name} has {len(instances.masks)} masks, but lists of {sorted(lengths)} entries; "
                f"give a label and an entry of {column} for each mask."
            )
        wrong = [label for label in instances.labels if not 0 <= label < self.num_labels]
        if wrong:
            raise ValueError(
                f"{name} holds the label {wrong[0]}: labels are 0 to {self.num_labels - 1}."
            )

    def add(self, other: AveragePrecision) -> None:
        """Add the images of another one, which must be different images."""
        for image, truths in other.truths.items():
            self.update(image, other.predictions[image], truths)

    def compute(self, of: Literal["masks", "boundaries"] = "masks") -> dict[str, Any]:
        """The result over all images so far, as fractions of one.

        Args:
            of: "boundaries" takes the smaller of the intersections over union of masks and of their
                boundaries, the pixels within 0.02 image diagonals of the contour.

        Returns:
            "ap", the mean over classes and the overlaps 0.50, 0.55, ..., 0.95; "ap50" and "ap75",
            at one overlap; "ap_small", "ap_medium", "ap_large"; "ar1", "ar10", "ar100": average
            recall with so many detections per image and class; "ar_small", "ar_medium", "ar_large";
            nan where there is no truth. "per_class": for every label a dict of "label_id", "ap" and
            "ap50".
        """
        precision, recall = self._tables("boundary" if of == "boundaries" else "segm")
        result: dict[str, Any] = {
            "ap": _mean(precision[:, :, :, 0, -1]),
            "ap50": _mean(precision[0, :, :, 0, -1]),
            "ap75": _mean(precision[5, :, :, 0, -1]),
        }
        for index, area in enumerate(AREAS[1:], start=1):
            result[f"ap_{area}"] = _mean(precision[:, :, :, index, -1])
        for index, count in enumerate(MAX_DETECTIONS):
            result[f"ar{count}"] = _mean(recall[:, :, 0, index])
        for index, area in enumerate(AREAS[1:], start=1):
            result[f"ar_{area}"] = _mean(recall[:, :, index, -1])
        result["per_class"] = [
            {
                "label_id": label,
                "ap": _mean(precision[:, :, label, 0, -1]),
                "ap50": _mean(precision[0, :, label, 0, -1]),
            }
            for label in range(self.num_labels)
        ]
        return result

    def _tables(self, kind: Literal["segm", "boundary"]) -> tuple[np.ndarray, np.ndarray]:
        """Precision (overlaps, recalls, classes, areas, detections) and recall, without the second
        dimension; -1 where there is no truth."""
        from faster_coco_eval import COCO, COCOeval_faster

        images = sorted(self.truths)
        header = {
            "images": [{"id": image} for image in images],
            "categories": [{"id": label} for label in range(self.num_labels)],
        }
        truth = COCO({**header, "annotations": self._annotations(self.truths)})
        found = COCO({**header, "annotations": self._annotations(self.predictions)})
        for image in header["images"]:
            masks = self.truths[image["id"]].masks or self.predictions[image["id"]].masks
            image["height"], image["width"] = masks[0]["size"] if masks else (1, 1)
        evaluation = COCOeval_faster(truth, found, kind, boundary_dilation_ratio=DILATION_RATIO)
        evaluation.params.maxDets = [*MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation.eval["precision"], evaluation.eval["recall"]

    @staticmethod
    def _annotations(instances: dict[int, Instances]) -> list[dict[str, Any]]:
        """COCO's records in the order of images, numbered from 1."""
        from faster_coco_eval import mask

        records = []
        for image in sorted(instances):
            these = instances[image]
            masks = list(these.masks)
            areas = these.areas
            if areas is None:
                areas = mask.area(masks).tolist() if masks else []
            for i, (rle, area) in enumerate(zip(masks, areas, strict=True)):
                record = {
                    "id": len(records) + 1,
                    "image_id": image,
                    "category_id": these.labels[i],
                    "segmentation": rle,
                    "area": area,
                    "iscrowd": int(these.crowd[i]) if these.crowd else 0,
                }
                if these.scores:
                    record["score"] = these.scores[i]
                records.append(record)
        return records


def _mean(values: np.ndarray) -> float:
    """The mean of the values that are known (not -1), or nan."""
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")
