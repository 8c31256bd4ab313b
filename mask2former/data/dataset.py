"""What every data set of annotated images offers, whatever its format on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import data

from mask2former.configuration.model import Task
from mask2former.losses.annotations import VOID

__all__ = ["VOID", "Sample", "SegmentationDataset", "Splits", "Task"]


@dataclass(frozen=True)
class Sample:
    """One image and what is annotated in it.

    Attributes:
        name: of the image, relative to its data set; messages and reports call it so.
        image: uint8 (3, H, W), RGB, upright, in any order of memory.
        masks: either bool (T, H, W), one mask for each segment, which may overlap; or an index map,
            int32 (H, W), whose pixels hold the segment they belong to, 0 to T - 1, or `VOID`. A
            segment may have no pixel.
        labels: int64 (T,), the class of every segment, 0 to the number of classes - 1.
        crowd: bool (T,), True for a region of many things that were not told apart.
        areas: float64 (T,), pixels of every segment as the annotation file has them, or None where
            it has none.
    """

    name: str
    image: Tensor
    masks: Tensor
    labels: Tensor
    crowd: Tensor
    areas: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.shape[-2], self.image.shape[-1]

    def masks_of(self, segments: Tensor) -> Tensor:
        """Masks bool (K, H, W) of some segments, given by number, int64 (K,)."""
        if self.masks.dim() == 3:
            return self.masks[segments]
        return self.masks == segments[:, None, None].to(self.masks.dtype)

    def id_map(self) -> Tensor:
        """Segments numbered from 1, and 0 where there is none, int32 (H, W).

        Of masks that overlap the smaller ones lie on top.
        """
        if self.masks.dim() == 2:
            return (self.masks.clamp(min=VOID) + 1).to(torch.int32)
        ids = torch.zeros(self.size, dtype=torch.int32)
        sizes = self.masks.flatten(1).sum(1)
        for segment in sizes.argsort(descending=True, stable=True).tolist():
            ids[self.masks[segment]] = segment + 1
        return ids


class SegmentationDataset(data.Dataset[Sample], ABC):
    """Annotated images, read from disk one at a time.

    Attributes:
        task: what is annotated: "panoptic" and "semantic" samples hold index maps, and every pixel
            of a semantic one that is not void belongs to its class's only segment; "instance"
            samples hold masks.
        id2label: names of the classes 0 to K - 1.
        category_ids: the number that each class has in the annotation files, K of them.
        thing_label_ids: classes whose objects are told apart; the others are stuff.
        skipped: one sentence for each bad record that was left out, naming file, record and reason.
    """

    task: Task
    id2label: dict[int, str]
    category_ids: list[int]
    thing_label_ids: list[int]
    skipped: Sequence[str] = ()

    @abstractmethod
    def __len__(self) -> int:
        """The number of images."""

    @abstractmethod
    def name(self, index: int) -> str:
        """The name of an image, without reading it."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Read one image and its annotation.

        Raises:
            DataError: a file is missing or damaged, or the annotation is not what it should be;
                the message names the file, the record and the reason.
        """


# What opens each split of a data set that was found on disk, by the name of the split. Called with
# skip_bad, and with images or reduce_labels where the format has them.
Splits = dict[str, Callable[..., SegmentationDataset]]
