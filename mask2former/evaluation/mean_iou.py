"""Mean intersection over union of semantic segmentations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Map = np.ndarray | torch.Tensor


class MeanIoU:
    """Mean intersection over union, from the pixels of all images taken together.

    Args:
        num_labels: label ids are 0 to num_labels - 1.
        ignore_label: pixels of the truth with this value are left out altogether; a prediction may
            use it for pixels it leaves unlabelled, which then count as missed.

    Raises:
        ValueError: if `ignore_label` is also a label.
    """

    def __init__(self, num_labels: int, ignore_label: int = 255) -> None:
        if 0 <= ignore_label < num_labels:
            raise ValueError(
                f"ignore_label {ignore_label} is also one of the {num_labels} labels: give a value "
                f"outside of 0 to {num_labels - 1}."
            )
        self.num_labels = num_labels
        self.ignore_label = ignore_label
        # Rows: truth. Columns: prediction, the last one for unlabelled pixels.
        self.confusion = np.zeros((num_labels, num_labels + 1), np.int64)

    def update(self, prediction_map: Map, truth_map: Map) -> None:
        """Add one image, or several of one shape.

        Args:
            prediction_map, truth_map: integers of any one shape, array or tensor: label ids or
                `ignore_label`.

        Raises:
            ValueError: if the shapes differ, or a value is neither a label nor `ignore_label`.
        """
        prediction = self._labels(prediction_map, "prediction_map")
        truth = self._labels(truth_map, "truth_map")
        if prediction.shape != truth.shape:
            raise ValueError(
                f"prediction_map is {prediction.shape} but truth_map is {truth.shape}: "
                "resize the prediction to the size of the truth."
            )
        counted = truth < self.num_labels
        pairs = truth[counted] * (self.num_labels + 1) + prediction[counted]
        self.confusion += np.bincount(pairs, minlength=self.confusion.size).reshape(
            self.confusion.shape
        )

    def add(self, other: MeanIoU) -> None:
        """Add the pixels of another one with the same labels."""
        self.confusion += other.confusion

    def _labels(self, label_map: Map, name: str) -> np.ndarray:
        """The map as int64, with `num_labels` instead of `ignore_label`."""
        if isinstance(label_map, torch.Tensor):
            label_map = label_map.cpu().numpy()
        label_map = np.asarray(label_map)
        if not np.issubdtype(label_map.dtype, np.integer):
            raise ValueError(f"{name} holds {label_map.dtype}: give integer label ids.")
        label_map = label_map.astype(np.int64)
        ignored = label_map == self.ignore_label
        wrong = ~ignored & ((label_map < 0) | (label_map >= self.num_labels))
        if wrong.any():
            raise ValueError(
                f"{name} holds {label_map[wrong][0]}: labels are 0 to {self.num_labels - 1}, and "
                f"{self.ignore_label} for pixels without one."
            )
        return np.where(ignored, self.num_labels, label_map)

    def compute(self) -> dict[str, Any]:
        """The result over all images so far, as fractions of one.

        Returns:
            "miou": the mean over the classes that occur in the truth or the prediction (pixels that
            the truth ignores aside); "per_class": a list with the intersection over union of every
            label, nan if it does not occur; "pixel_accuracy": the share of pixels whose label is
            right. All nan where there is no pixel to judge.
        """
        right = np.diag(self.confusion)
        predicted = self.confusion[:, : self.num_labels].sum(axis=0)
        union = self.confusion.sum(axis=1) + predicted - right
        with np.errstate(invalid="ignore"):
            iou = right / union
            accuracy = right.sum() / self.confusion.sum()
        occurs = union > 0
        return {
            "miou": float(iou[occurs].mean()) if occurs.any() else float("nan"),
            "per_class": [float(value) for value in iou],
            "pixel_accuracy": float(accuracy),
        }
