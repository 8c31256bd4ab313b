"""Who is told how a run goes, and the figures that are made of what is told."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import torch
from PIL import Image

# The parts of the loss by the names that they are shown by.
PARTS = {
    "cross-entropy": "loss_cross_entropy",
    "mask": "loss_mask",
    "dice": "loss_dice",
}

# The metrics that are shown where there is no room for all.
HEADLINES = "pq", "pq_things", "pq_stuff", "ap", "ap50", "boundary_ap", "miou"


class Callback:
    """Told how a run goes, on the first process only; this one ignores it all.

    A run that was resumed tells of the step after the one that it was resumed from first. Callbacks
    open their files when they are told something, because every process has callbacks.
    """

    def on_step(
        self, step: int, losses: Mapping[str, float], lr: float, images: int, seconds: float
    ) -> None:
        """After an update of the weights.

        Args:
            step: updates done, from 1.
            losses: the model's `loss_dict`, averaged over ranks; a "loss" among them is their sum.
            lr: the learning rate of the update.
            images: that all processes took for it.
            seconds: that it took.
        """

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """After an evaluation of the weights of that step."""

    def on_samples(self, step: int, pictures: Mapping[str, Image.Image]) -> None:
        """Pictures by name, of validation images with the truth and what is predicted."""

    def close(self) -> None:
        """The run has ended, in whatever way."""


class StepAverages:
    """Means of what `Callback.on_step` is told, over the steps since they were last taken."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._losses: Counter[str] = Counter()
        self._steps, self._images, self._seconds, self._lr = 0, 0, 0.0, 0.0

    def add(self, losses: Mapping[str, float], lr: float, images: int, seconds: float) -> None:
        """Count one step."""
        self._losses.update({name: losses[name] for name in losses if name != "loss"})
        self._steps += 1
        self._images += images
        self._seconds += seconds
        self._lr = lr

    def take(self) -> dict[str, float] | None:
        """The means, and begin anew; None if there was no step.

        Returns:
            Every loss by its name, "loss" (their sum), "lr" (the last step's), "images_per_second",
            "seconds" of a step, and "memory", in GiB.
        """
        if self._steps == 0:
            return None
        losses = {name: total / self._steps for name, total in self._losses.items()}
        means = {
            "loss": sum(losses.values()),
            **losses,
            "lr": self._lr,
            "images_per_second": self._images / max(self._seconds, 1e-9),
            "seconds": self._seconds / self._steps,
            "memory": memory_in_use() / 2**30,
        }
        self._begin()
        return means


def parts_of(losses: Mapping[str, float]) -> dict[str, float]:
    """Cross-entropy, mask and dice loss, each the sum over all predictions of the model."""
    totals: dict[str, float] = {}
    for part, _, value in by_prediction(losses):
        totals[part] = totals.get(part, 0.0) + value
    return totals


def by_prediction(losses: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """(part, prediction, value) of every loss; the prediction is a number, or "last"."""
    found = []
    for part, prefix in PARTS.items():
        for name, value in losses.items():
            match = re.fullmatch(rf"{prefix}(?:_(\d+))?", name)
            if match and value is not None:
                found.append((part, match[1] or "last", value))
    return found


def headlines(metrics: Mapping[str, float]) -> list[str]:
    """The names of the most telling metrics; all if none of those is known here."""
    return [name for name in HEADLINES if name in metrics] or list(metrics)


def memory_in_use() -> int:
    """Bytes: the most that was allocated on the GPU; where none was used, what the process has."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated()
    import psutil  # comes with accelerate

    return psutil.Process().memory_info().rss
