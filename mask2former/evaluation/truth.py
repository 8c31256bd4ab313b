"""What is annotated in a sample, in the forms that the metrics take."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from mask2former.data.dataset import VOID, Sample
from mask2former.evaluation.average_precision import Instances
from mask2former.run_length import mask_to_rle


def semantic_truth(sample: Sample) -> Tensor:
    """The label of every pixel of a label map, int64 (H, W), `VOID` where there is none."""
    labels = torch.cat([sample.labels, torch.tensor([VOID])])  # which the index -1 reaches
    return labels[sample.masks.clamp(min=VOID).long()]


def true_instances(sample: Sample, things: Collection[int]) -> Instances:
    """The things of a sample, one mask at a time; their areas are the file's if it has them."""
    kept = [i for i, label in enumerate(sample.labels.tolist()) if label in things]
    areas = None if sample.areas is None else [float(sample.areas[i]) for i in kept]
    return Instances(
        [mask_to_rle(sample.masks_of(torch.tensor([i]))[0]) for i in kept],
        [int(sample.labels[i]) for i in kept],
        crowd=[bool(sample.crowd[i]) for i in kept],
        areas=areas,
    )
