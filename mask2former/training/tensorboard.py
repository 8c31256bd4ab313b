"""Curves and sample pictures for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mask2former.training.callback import Callback, StepAverages, by_prediction, sum_by_part

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class TensorBoard(Callback):
    """Writes `out`/tensorboard; `tensorboard --logdir OUT` shows it.

    Scalars: loss/total, loss/PART and PART/PREDICTION for the parts cross-entropy, mask and dice
    and every prediction of the model, run/learning_rate, run/images_per_second, run/memory_GiB, and
    metrics/NAME. Images: samples/NAME. When a run is resumed, records of later steps than the
    checkpoint's are hidden.

    Args:
        out: the run's folder, which exists.
        every: steps that a point of a curve is the mean of.
        report: called with a sentence for the user if tensorboard is not installed. The run
            continues without it.
    """

    def __init__(self, out: Path, every: int = 10, report: Callable[[str], None] = print) -> None:
        self.folder, self.every, self.report = out / FOLDER, every, report
        self.averages = StepAverages()
        self.step = 0
        self.opened = False
        self.writer: SummaryWriter | None = None

    def on_step(
        self, step: int, losses: Mapping[str, float], lr: float, images: int, seconds: float
    ) -> None:
        self._open(step)
        self.step = step
        self.averages.add(losses, lr, images, seconds)
        if step % self.every == 0:
            self._write_means()

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._open(step)
        self._write(step, {f"metrics/{name}": value for name, value in metrics.items()})

    def on_samples(self, step: int, pictures: Mapping[str, Image.Image]) -> None:
        self._open(step)
        if self.writer is not None:
            for name, picture in pictures.items():
                pixels = np.asarray(picture.convert("RGB"))
                self.writer.add_image(f"samples/{name}", pixels, step, dataformats="HWC")
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self._write_means()
            self.writer.close()

    def _open(self, step: int) -> None:
        """Open the files, once. Earlier records from this step on are hidden."""
        if self.opened:
            return
        self.opened = True
        if find_spec("tensorboard") is None:
            self.report(
                "Nothing is written for TensorBoard, because it is not installed; "
                "pip install mask2former[train]."
            )
            return
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder), purge_step=step)

    def _write_means(self) -> None:
        means = self.averages.take()
        if means is None:
            return
        named = {f"loss/{part}": value for part, value in sum_by_part(means).items()}
        for part, prediction, value in by_prediction(means):
            named[f"{part}/{prediction}"] = value
        named |= {
            "loss/total": means["loss"],
            "run/learning_rate": means["lr"],
            "run/images_per_second": means["images_per_second"],
            "run/memory_GiB": means["memory"],
        }
        self._write(self.step, named)

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()
