"""Panoptic quality: Kirillov et al., "Panoptic Segmentation", CVPR 2019, section 4."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

VOID = 0

Map = np.ndarray | torch.Tensor
SegmentsInfo = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Segments:
    """The segments of one map, in the order of the rows or columns of the intersection table."""

    labels: np.ndarray  # (segments,) int64
    areas: np.ndarray  # (segments,) int64 pixels
    crowds: np.ndarray  # (segments,) bool
    index: np.ndarray  # (pixels,) the segment of every pixel, `len(labels)` for void


class PanopticQuality:
    """Panoptic quality over any number of images, by the rules of COCO's panoptic evaluation.

    A predicted and a true segment of the same class match if their intersection over union exceeds
    0.5; void pixels of the truth count towards neither the intersection nor the union. Crowd
    segments of the truth are neither matched nor missed. A predicted segment without a match is not
    a false positive if more than half of it lies in void and crowd segments of its class. (COCO has
    at most one crowd segment per class and image; where there are more, all of them count.)

    Args:
        num_labels: label ids are 0 to num_labels - 1.
        thing_label_ids: which of them are things; the others are stuff. This only groups the
            results.

    Raises:
        ValueError: if a thing label is out of range.
    """

    def __init__(self, num_labels: int, thing_label_ids: Iterable[int]) -> None:
        self.num_labels = num_labels
        self.is_thing = np.zeros(num_labels, bool)
        for label_id in thing_label_ids:
            if not 0 <= label_id < num_labels:
                raise ValueError(
                    f"thing_label_ids holds {label_id}: give ids from 0 to {num_labels - 1}."
                )
            self.is_thing[label_id] = True
        self.true_positives = np.zeros(num_labels, np.int64)
        self.false_positives = np.zeros(num_labels, np.int64)
        self.false_negatives = np.zeros(num_labels, np.int64)
        self.matched_iou = np.zeros(num_labels, np.float64)

    def update(
        self,
        prediction_map: Map,
        prediction_segments: SegmentsInfo,
        truth_map: Map,
        truth_segments: SegmentsInfo,
    ) -> None:
        """Add one image.

        Args:
            prediction_map, truth_map: (height, width) integers, array or tensor: segment ids, 0 for
                void.
            prediction_segments, truth_segments: one {"id", "label_id"} per segment of the map; a
                true segment may also have "iscrowd" (0 or 1, default 0).

        Raises:
            ValueError: if the maps differ in shape or are not 2-D integers, or if a map and its
                segments do not list the same ids, each once, with labels in range.
        """
        prediction_map = _as_id_map(prediction_map, "prediction_map")
        truth_map = _as_id_map(truth_map, "truth_map")
        if prediction_map.shape != truth_map.shape:
            raise ValueError(
                f"prediction_map is {prediction_map.shape} but truth_map is {truth_map.shape}: "
                "resize the prediction to the size of the truth."
            )
        prediction = self._segments(prediction_map, prediction_segments, "prediction")
        truth = self._segments(truth_map, truth_segments, "truth")
        shape = len(truth.labels) + 1, len(prediction.labels) + 1
        pairs = truth.index * shape[1] + prediction.index
        table = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
        self._count(prediction, truth, table[:-1, :-1], table[-1, :-1])

    def add(self, other: PanopticQuality) -> None:
        """Add the images of another one with the same labels."""
        self.true_positives += other.true_positives
        self.false_positives += other.false_positives
        self.false_negatives += other.false_negatives
        self.matched_iou += other.matched_iou

    def _segments(self, id_map: np.ndarray, segments: SegmentsInfo, name: str) -> _Segments:
        ids, index, areas = np.unique(id_map, return_inverse=True, return_counts=True)
        by_id: dict[int, Mapping[str, Any]] = {}
        for segment in segments:
            segment_id, label_id = int(segment["id"]), segment["label_id"]
            if segment_id in by_id or segment_id == VOID:
                problem = "is void" if segment_id == VOID else "is listed twice"
                raise ValueError(
                    f"Segment {segment_id} in {name}_segments {problem}: "
                    f"give every segment an id of its own other than {VOID}."
                )
            if not 0 <= label_id < self.num_labels:
                raise ValueError(
                    f"Segment {segment_id} in {name}_segments has label_id {label_id}: "
                    f"labels are 0 to {self.num_labels - 1}."
                )
            by_id[segment_id] = segment
        present = [int(segment_id) for segment_id in ids if segment_id != VOID]
        _require_same_ids(set(present), set(by_id), name)
        # Void goes last, whether or not the map has any, so that its index is always the same.
        order = np.cumsum(ids != VOID) - 1
        order[ids == VOID] = len(present)
        return _Segments(
            labels=np.array([by_id[segment_id]["label_id"] for segment_id in present], np.int64),
            areas=areas[ids != VOID],
            crowds=np.array([by_id[i].get("iscrowd", 0) == 1 for i in present], bool),
            index=order[index].ravel(),
        )

    def _count(
        self, prediction: _Segments, truth: _Segments, inside: np.ndarray, in_void: np.ndarray
    ) -> None:
        """Count matches and misses; `inside` is (truths, predictions), `in_void` (predictions,)."""
        same_label = truth.labels[:, None] == prediction.labels
        union = truth.areas[:, None] + prediction.areas - inside - in_void
        iou = inside / union
        matches = same_label & ~truth.crowds[:, None] & (iou > 0.5)
        true_index, predicted_index = np.nonzero(matches)
        np.add.at(self.true_positives, truth.labels[true_index], 1)
        np.add.at(self.matched_iou, truth.labels[true_index], iou[true_index, predicted_index])

        missed = ~matches.any(axis=1) & ~truth.crowds
        np.add.at(self.false_negatives, truth.labels[missed], 1)

        excused = in_void + (inside * (same_label & truth.crowds[:, None])).sum(axis=0)
        wrong = ~matches.any(axis=0) & (2 * excused <= prediction.areas)
        np.add.at(self.false_positives, prediction.labels[wrong], 1)

    def compute(self) -> dict[str, Any]:
        """The quality over all images so far, as fractions of one.

        Returns:
            "pq", "sq", "rq" (panoptic, segmentation and recognition quality) averaged over the
            classes that occur, in truth or prediction, and the same over things ("pq_things", ...)
            and over stuff ("pq_stuff", ...); nan where no class occurs. "per_class": for every
            label a dict of "label_id", "pq", "sq", "rq" (nan if the class does not occur, "sq" 0
            without a match), the counts "tp", "fp", "fn", and "iou", the sum over the matches.
        """
        occurs = self.true_positives + self.false_positives + self.false_negatives > 0
        with np.errstate(invalid="ignore"):
            rq = self.true_positives / (
                self.true_positives + (self.false_positives + self.false_negatives) / 2
            )
        sq = np.where(occurs, self.matched_iou / np.maximum(self.true_positives, 1), np.nan)
        qualities = {"pq": sq * rq, "sq": sq, "rq": rq}
        groups = {"": occurs, "_things": occurs & self.is_thing, "_stuff": occurs & ~self.is_thing}
        result: dict[str, Any] = {
            name + suffix: float(values[group].mean()) if group.any() else float("nan")
            for suffix, group in groups.items()
            for name, values in qualities.items()
        }
        result["per_class"] = [
            {
                "label_id": label_id,
                **{name: float(values[label_id]) for name, values in qualities.items()},
                "tp": int(self.true_positives[label_id]),
                "fp": int(self.false_positives[label_id]),
                "fn": int(self.false_negatives[label_id]),
                "iou": float(self.matched_iou[label_id]),
            }
            for label_id in range(self.num_labels)
        ]
        return result


def _as_id_map(id_map: Map, name: str) -> np.ndarray:
    if isinstance(id_map, torch.Tensor):
        id_map = id_map.cpu().numpy()
    id_map = np.asarray(id_map)
    if id_map.ndim != 2 or not np.issubdtype(id_map.dtype, np.integer):
        raise ValueError(
            f"{name} is {id_map.dtype} of shape {id_map.shape}: give integers of shape "
            "(height, width)."
        )
    return id_map


def _require_same_ids(in_map: set[int], listed: set[int], name: str) -> None:
    if in_map - listed:
        raise ValueError(
            f"{name}_map holds segment {min(in_map - listed)}, which {name}_segments does not "
            "list: list every segment of the map."
        )
    if listed - in_map:
        raise ValueError(
            f"{name}_segments lists segment {min(listed - in_map)}, which has no pixel in "
            f"{name}_map: list only segments of the map."
        )
