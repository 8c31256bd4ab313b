"""What decides whether a segment counts, and which pixels are its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of instance and panoptic segmentation, each from 0 to 1. What reaches a
    threshold counts. Semantic segmentation has none.

    The defaults are those of the documented post-processing functions.

    Attributes:
        threshold: least score of a segment: the probability of its class, in instance segmentation
            times the mean probability of its mask.
        mask_threshold: least mask probability of a segment's pixel.
        overlap_threshold: least share of its mask that a segment keeps where masks overlap.

    Raises:
        ValueError: a threshold is not from 0 to 1.
    """

    threshold: float = 0.5
    mask_threshold: float = 0.5
    overlap_threshold: float = 0.8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; give a number from 0 to 1.")


DEFAULT_THRESHOLDS = Thresholds()
# Of the paper's evaluation, which counts surer segments only.
PAPER_THRESHOLDS = Thresholds(threshold=0.8)
