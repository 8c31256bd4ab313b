"""Losses and metrics of a run, in a file that survives interruptions, and their curves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mask2former.io.errors import DataError
from mask2former.io.files import write_text
from mask2former.training.callback import Callback, StepAverages

HISTORY_FILE = "history.jsonl"
CURVES_FILE = "curves.png"


class History(Callback):
    """Writes `out`/history.jsonl, and draws it as `out`/curves.png at evaluations and at the end.

    The file has JSON objects, one per line: the means of some steps, as `StepAverages` gives them,
    with "step", the last of these steps; or {"step", "metrics"} of an evaluation. Numbers that are
    not finite are null. When a run is resumed, lines of later steps than the checkpoint's are
    dropped.

    Args:
        out: the run's folder, which exists.
        every: steps that a line has the means of.
        report: called with each sentence for the user.

    Raises:
        DataError: in every method, if the folder cannot be written to or the file is damaged.
    """

    def __init__(self, out: Path, every: int = 10, report: Callable[[str], None] = print) -> None:
        self.path, self.every, self.report = out / HISTORY_FILE, every, report
        self.draws = find_spec("matplotlib") is not None
        self.averages = StepAverages()
        self.step = 0
        self.opened = False

    def on_step(
        self, step: int, losses: Mapping[str, float], lr: float, images: int, seconds: float
    ) -> None:
        self._open(step - 1)
        self.step = step
        self.averages.add(losses, lr, images, seconds)
        if step % self.every == 0:
            self._write_means()

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._open(step)
        self._write({"step": step, "metrics": _finite(metrics)})
        self._draw()

    def close(self) -> None:
        if self.opened:
            self._write_means()
            self._draw()

    def _open(self, step: int) -> None:
        """Drop lines of later steps, once."""
        if self.opened:
            return
        kept = [record for record in read_history(self.path) if record["step"] <= step]
        with _disk_errors(self.path):
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self.opened = True
        if not self.draws:
            self.report(
                f"The curves in {self.path} are not drawn, because matplotlib is not installed; "
                "pip install mask2former[train]."
            )

    def _write_means(self) -> None:
        means = self.averages.take()
        if means is not None:
            self._write({"step": self.step, **_finite(means)})

    def _write(self, record: Mapping[str, Any]) -> None:
        with _disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def _draw(self) -> None:
        if not self.draws:
            return
        from mask2former.training.curves import draw_curves

        path = self.path.with_name(CURVES_FILE)
        with _disk_errors(path):
            draw_curves(read_history(self.path), path)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}); make room there and resume the run."
        ) from error


def read_history(path: Path) -> list[dict[str, Any]]:
    """All lines of a history, none if there is no file. An incomplete last line is left out.

    Raises:
        DataError: another line is damaged, or the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the folder.") from error
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # the last one is empty or incomplete
        try:
            record = json.loads(line)
            _ = record["step"] + 0
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"Line {number} of {path} is damaged ({error!r}); delete the line, or the file: it "
                "is needed for the curves only."
            ) from error
        records.append(record)
    return records


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
