"""The annotations of a sample, in the forms that the metrics take."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mask2former.data.dataset import VOID, Sample
from mask2former.data.sample_picture import panoptic_map
from mask2former.evaluation.average_precision import Instances
from mask2former.images.run_length import mask_to_rle
from mask2former.io.errors import DataError


@dataclass(frozen=True)
class Truth:
    """One image and its annotations, in the forms that metrics take; None for a form not needed.

    Attributes:
        name: of the image.
        image: uint8 (3, H, W).
        panoptic: what `panoptic_map` returns.
        semantic: what `semantic_truth` returns.
        instances: what `true_instances` returns.
    """

    name: str
    image: Tensor
    panoptic: tuple[Tensor, list[dict[str, Any]]] | None
    semantic: Tensor | None
    instances: Instances | None

    @classmethod
    def of(cls, sample: Sample, metrics: Collection[str], things: Collection[int]) -> Truth:
        """Of a sample, for metrics as `evaluate` names them.

        Raises:
            DataError: the masks are not of the image's size.
        """
        if sample.masks.shape[-2:] != sample.size:
            raise DataError(
                f"The masks of {sample.name} are {tuple(sample.masks.shape[-2:])} pixels high and "
                f"wide and the image is {sample.size}; give masks of the image's size."
            )
        wants_instances = "ap" in metrics or "boundary-ap" in metrics
        return cls(
            sample.name,
            sample.image,
            panoptic_map(sample) if "pq" in metrics else None,
            semantic_truth(sample) if "miou" in metrics else None,
            true_instances(sample, things) if wants_instances else None,
        )


def semantic_truth(sample: Sample) -> Tensor:
    """The label of every pixel of an index map, int32 (H, W), `VOID` where there is none."""
    labels = torch.cat([sample.labels, torch.tensor([VOID])]).int()  # the index -1 is void
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
