"""Rendered scenes as a data set, made when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mask2former.data.dataset import VOID, Sample, SegmentationDataset, Task
from mask2former.scenes.scene import ID2LABEL, THING_LABEL_IDS, Scene, render_scene


class SceneDataset(SegmentationDataset):
    """The scenes of `mask2former.scenes.scene` with these seeds.

    Args:
        seeds: one for each scene.
        size: height and width in pixels.
        task: "instance" keeps the things only; "semantic" joins the things of a class.
    """

    def __init__(self, seeds: Sequence[int], size: int = 192, task: Task = "panoptic") -> None:
        self.seeds, self.size, self.task = seeds, size, task
        classes = THING_LABEL_IDS if task == "instance" else tuple(ID2LABEL)
        self.id2label = {label: ID2LABEL[label] for label in classes}
        self.category_ids = list(classes)
        self.thing_label_ids = [] if task == "semantic" else list(THING_LABEL_IDS)

    def __len__(self) -> int:
        return len(self.seeds)

    def name(self, index: int) -> str:
        return f"scene {self.seeds[index]}"

    def __getitem__(self, index: int) -> Sample:
        scene = render_scene(self.seeds[index], self.size, self.size)
        image = torch.from_numpy(scene.image).permute(2, 0, 1)
        masks, labels = _segments(scene, self.task)
        crowd = torch.zeros(len(labels), dtype=torch.bool)
        return Sample(self.name(index), image, masks, labels, crowd)


def _segments(scene: Scene, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks and labels of a scene's segments, as `Sample` has them."""
    ids = torch.from_numpy(scene.segmentation)
    kept = [
        segment
        for segment in scene.segments_info
        if task != "instance" or segment["label_id"] in THING_LABEL_IDS
    ]
    labels = torch.tensor([segment["label_id"] for segment in kept], dtype=torch.int64)
    if task == "instance":
        numbers = torch.tensor([segment["id"] for segment in kept], dtype=torch.int32)
        return ids == numbers[:, None, None], labels
    places = torch.arange(len(kept), dtype=torch.int32)
    if task == "semantic":
        labels, inverse = labels.unique(return_inverse=True)
        places = inverse.to(torch.int32)
    table = torch.full((int(ids.max()) + 1,), VOID, dtype=torch.int32)
    for segment, place in zip(kept, places, strict=True):
        table[segment["id"]] = place
    return table[ids.long()], labels
