"""Callbacks of a run, and figures from what they are told."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping

import torch
from PIL import Image

# The parts of the loss by the names that users see.
PARTS = {
    "cross-entropy": "loss_cross_entropy",
    "mask": "loss_mask",
    "dice": "loss_dice",
}

# The metrics to show where there is no room for all.
HEADLINES = "pq", "pq_things", "pq_stuff", "ap", "ap50", "boundary_ap", "miou"


class Callback:
    """Told about a run, in the first process only. The methods of this class do nothing.

    The first step of a resumed run is the one after the checkpoint. Callbacks open their files when
    they are first told something, because every process makes them.
    """

    def on_step(
        self, step: int, losses: Mapping[str, float], lr: float, images: int, seconds: float
    ) -> None:
        """After an update of the weights.

        Args:
            step: updates done, from 1.
            losses: the model's `loss_dict`, averaged over passes and processes, and "loss", their
                sum.
            lr: the highest learning rate of the update.
            images: images of the update, in all processes.
            seconds: duration of the update.
        """

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """After an evaluation of the weights of that step."""

    def on_samples(self, step: int, pictures: Mapping[str, Image.Image]) -> None:
        """After an evaluation: pictures of truth and prediction by the name of the image."""

    def close(self) -> None:
        """The run has ended, or failed."""


class StepAverages:
    """Means of what `Callback.on_step` is told, over the steps since the last `take`."""

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
        """Return the means and reset them; None if there was no step.

        Returns:
            Every loss by its name, "loss" (their sum), "lr" (the last step's), "images_per_second",
            "seconds" per step, and "memory" in GiB.
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


def sum_by_part(losses: Mapping[str, float]) -> dict[str, float]:
    """Cross-entropy, mask and dice loss, each summed over all predictions of the model."""
    totals: dict[str, float] = {}
    for part, _, value in by_prediction(losses):
        totals[part] = totals.get(part, 0.0) + value
    return totals


def by_prediction(losses: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """(part, prediction, value) of every loss. The prediction is a number, or "last"."""
    found = []
    for part, prefix in PARTS.items():
        for name, value in losses.items():
            match = re.fullmatch(rf"{prefix}(?:_(\d+))?", name)
            if match and value is not None:
                found.append((part, match[1] or "last", value))
    return found


def headlines(metrics: Collection[str]) -> list[str]:
    """The names that are in `HEADLINES`, or all if none is."""
    return [name for name in HEADLINES if name in metrics] or list(metrics)


def memory_in_use() -> int:
    """Peak bytes allocated on the GPU; if none was used, resident bytes of the process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated()
    import psutil  # comes with accelerate

    return psutil.Process().memory_info().rss
