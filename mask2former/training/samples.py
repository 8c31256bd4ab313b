"""Validation images with the truth beside what a model makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from mask2former.data.dataset import VOID, Sample, SegmentationDataset
from mask2former.modeling import Mask2FormerForUniversalSegmentation
from mask2former.visualization import draw_segments, side_by_side

# Segment ids int32 (H, W), 0 for none, and a dict for each segment, as `draw_segments` takes them.
Segments = tuple[np.ndarray, Sequence[Mapping[str, Any]]]
Segment = Callable[[Mask2FormerForUniversalSegmentation, Image.Image], Segments]


class SamplePictures:
    """Pictures of a few images, the same at every evaluation.

    Args:
        dataset: images are taken at equal distances, from its first to its last.
        segment: what the model makes of an image.
        count: of images; fewer if the data set has fewer.
    """

    def __init__(self, dataset: SegmentationDataset, segment: Segment, count: int = 4) -> None:
        self.dataset, self.segment = dataset, segment
        places = np.linspace(0, len(dataset) - 1, min(count, len(dataset)))
        self.places = [int(place) for place in places.round()]

    def __call__(self, model: Mask2FormerForUniversalSegmentation) -> dict[str, Image.Image]:
        """Pictures by the names of the samples, for `Watcher.on_samples`."""
        pictures = {}
        for place in self.places:
            sample = self.dataset[place]
            image = Image.fromarray(sample.image.permute(1, 2, 0).contiguous().numpy())
            truth = truth_of(sample)
            pictures[sample.name] = side_by_side(
                [
                    (title, draw_segments(image, ids, segments, self.dataset.id2label))
                    for title, (ids, segments) in (
                        (f"truth: {sample.name}", truth),
                        ("prediction", self.segment(model, image)),
                    )
                ]
            )
        return pictures


def truth_of(sample: Sample) -> Segments:
    """Of overlapping masks the smaller lie on top."""
    if sample.masks.dim() == 2:
        ids = sample.masks.clamp(min=VOID).to(torch.int32) + 1
    else:
        ids = torch.zeros(sample.size, dtype=torch.int32)
        for segment in sample.masks.sum((1, 2)).argsort(descending=True, stable=True).tolist():
            ids[sample.masks[segment]] = segment + 1
    labels = sample.labels.tolist()
    return ids.numpy(), [{"id": i, "label_id": label} for i, label in enumerate(labels, start=1)]
