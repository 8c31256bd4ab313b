"""A data set of one task seen as one of another."""

from __future__ import annotations

import numpy as np
import torch

from mask2former.data.dataset import VOID, Sample, SegmentationDataset, Task
from mask2former.data.label_maps import class_segments

__all__ = ["as_task"]


def as_task(dataset: SegmentationDataset, task: Task) -> SegmentationDataset:
    """The data set for a task, itself where it has that task.

    - Panoptic as semantic: the segments of a class are joined, crowds too.
    - Panoptic as instance: the things as bool masks, crowds too; stuff is dropped and the classes
      are renumbered in their order.
    - Instance as semantic: the objects of a class are joined; where objects overlap, the
      smaller mask is on top, and crowds are below all. Pixels without an object are void: they
      teach a model that they are no object, but count for nothing in an evaluation.

    Raises:
        ValueError: the annotations do not tell what the task needs, or there are no things.
    """
    if dataset.task == task:
        return dataset
    if task == "semantic":
        return _AsSemantic(dataset)
    if (dataset.task, task) == ("panoptic", "instance"):
        if not dataset.thing_label_ids:
            raise ValueError("The data set has no things, so it has no instances; train semantic.")
        return _AsInstance(dataset)
    lack = "objects are not told apart" if dataset.task == "semantic" else "stuff is not annotated"
    raise ValueError(f"A data set of {dataset.task} annotations does not suit {task}: {lack}.")


class _View(SegmentationDataset):
    """The same images with other segments."""

    def __init__(self, dataset: SegmentationDataset, labels: list[int]) -> None:
        self.dataset = dataset
        self.id2label = {new: dataset.id2label[old] for new, old in enumerate(labels)}
        self.category_ids = [dataset.category_ids[label] for label in labels]
        self.skipped = dataset.skipped

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        return self.dataset.name(index)


class _AsSemantic(_View):
    task = "semantic"

    def __init__(self, dataset: SegmentationDataset) -> None:
        super().__init__(dataset, sorted(dataset.id2label))
        self.thing_label_ids = []

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        classes = _painted(sample) if sample.masks.dim() == 3 else _class_map(sample)
        masks, labels = class_segments(classes)
        crowd = torch.zeros(len(labels), dtype=torch.bool)
        return Sample(sample.name, sample.image, masks, labels, crowd)


def _class_map(sample: Sample) -> np.ndarray:
    """The class of every pixel of an index map."""
    table = np.append(sample.labels.numpy().astype(np.int32), np.int32(VOID))
    return table[sample.masks.numpy()]  # void, -1, is the last entry


def _painted(sample: Sample) -> np.ndarray:
    """The class of every pixel under masks."""
    classes = np.full(sample.size, VOID, np.int32)
    masks, crowd = sample.masks.numpy(), sample.crowd.tolist()
    areas = [np.count_nonzero(mask) for mask in masks]
    for i in sorted(range(len(masks)), key=lambda i: (not crowd[i], -areas[i])):
        classes[masks[i]] = int(sample.labels[i])
    return classes


class _AsInstance(_View):
    task = "instance"

    def __init__(self, dataset: SegmentationDataset) -> None:
        things = sorted(dataset.thing_label_ids)
        super().__init__(dataset, things)
        self.thing_label_ids = list(self.id2label)
        self._things = torch.tensor(things, dtype=torch.int64)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        kept = torch.isin(sample.labels, self._things)
        labels = torch.searchsorted(self._things, sample.labels[kept])
        masks = sample.masks_of(kept.nonzero().flatten())
        areas = None if sample.areas is None else sample.areas[kept]
        return Sample(sample.name, sample.image, masks, labels, sample.crowd[kept], areas)
