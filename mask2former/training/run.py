"""A training run: batches in, a model folder and checkpoints out."""

from __future__ import annotations

import copy
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from mask2former.checkpoints.huggingface import to_huggingface
from mask2former.checkpoints.weights import save_weights
from mask2former.images.processor import Mask2FormerImageProcessor
from mask2former.io.errors import DataError
from mask2former.io.files import read_json, write_text
from mask2former.modeling import Mask2FormerForUniversalSegmentation
from mask2former.training.checkpoint import (
    Checkpoint,
    has_checkpoint,
    load_newest,
    remove_unfinished,
    save_checkpoint,
)
from mask2former.training.devices import any_process, make_accelerator, together
from mask2former.training.recipe import RESUMABLE, Recipe, RecipeError, read_recipe
from mask2former.training.state import EVERYWHERE, TrainingState
from mask2former.training.watcher import Watcher

if TYPE_CHECKING:
    from accelerate import Accelerator

RECIPE_FILE, CHECKPOINTS, MODEL = "recipe.yaml", "checkpoints", "model"
# The step that was evaluated last, and the best one with its metrics.
EVALUATED = "evaluated.json"

# `functools.partial(make_loader, dataset, ...)`: called with first_step, steps, rank and
# world_size, it has the batches first_step to steps - 1, and of each the images of one process.
Batches = Callable[..., Iterable[dict[str, Any]]]


@dataclass(frozen=True)
class Evaluation:
    """What a model was found to be worth: figures by name, the more the better, and pictures."""

    metrics: dict[str, float]
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)


# Called in every process with the whole model, with averaged weights if there are any; the metrics
# must be the same in all. Where processes exchange something in it, none may fail before alone.
Evaluate = Callable[[Mask2FormerForUniversalSegmentation], Evaluation]


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        step: updates done.
        finished: False if it was asked to stop before the last one.
        model: the folder of the model: the best one where it was evaluated, else the last one.
        best: its metrics, or None.
    """

    step: int
    finished: bool
    model: Path
    best: dict[str, Any] | None


def train(
    model: Mask2FormerForUniversalSegmentation,
    processor: Mask2FormerImageProcessor,
    batches: Batches,
    recipe: Recipe,
    out: Path,
    *,
    evaluate: Evaluate | None = None,
    watchers: Sequence[Watcher] = (),
    resume: bool = False,
    report: Callable[[str], None] = print,
) -> Outcome:
    """Train a model, on whatever devices Accelerate finds or was launched on.

    Writes `out`/recipe.yaml, `out`/checkpoints, `out`/model, a folder for `from_pretrained`, and
    `out`/evaluated.json, the best metrics so far. SIGTERM and SIGINT end the run after the step,
    with a checkpoint; a second SIGINT at once. What fails in one process ends all.

    Args:
        model: trained in place; on several devices with FSDP its parameters move to shards.
        processor: saved beside the model.
        batches: `mask2former.data.batches.make_loader` with all its arguments but first_step,
            steps, rank and world_size, and with `recipe.images_per_pass` as its batch_size. Where
            gradients are accumulated, a step of it is one pass.
        evaluate: measures the model; the recipe's `best_metric` of it chooses the best one.
        watchers: told about every step and evaluation, on the first process.
        resume: go on from the newest whole checkpoint in `out`, or start where there is none.
        report: what to do with a sentence for the user, on the first process.

    Raises:
        DataError: accelerate is not installed, `out` has a run already, its checkpoints are
            damaged, or the disk is full.
        FloatingPointError: a loss or gradient is not finite; the message names step and images.
        RecipeError: recipe, model and devices do not go together.
    """
    check_folder(out, recipe, resume)
    accelerator = make_accelerator(recipe)
    first = accelerator.is_main_process
    recipe = recipe.replace(precision=accelerator.mixed_precision)
    if not first:
        watchers, report = (), _nothing
    together(accelerator, partial(_prepare_folder, out) if first else _nothing)
    run = _Run(accelerator, model, processor, recipe, out, evaluate, watchers, report)
    if resume:
        run.restore()
    run.write(partial(recipe.save, out / RECIPE_FILE))
    with ExitStack() as ending:
        for watcher in watchers:
            ending.callback(watcher.close)
        return run.go(batches)


def check_folder(out: Path, recipe: Recipe, resume: bool) -> None:
    """Whether a run can begin or go on in a folder.

    Raises:
        DataError: there is a run, but it is not to be resumed.
        RecipeError: it was begun with other settings.
    """
    if not has_checkpoint(out / CHECKPOINTS):
        return
    if not resume:
        raise DataError(f"{out} has a run already; resume it (--resume), or give another folder.")
    before = read_recipe(out / RECIPE_FILE)
    if recipe.precision == "auto":
        recipe = recipe.replace(precision=before["precision"])
    for name, value in recipe.values().items():
        if name not in RESUMABLE and value != before.get(name, value):
            raise RecipeError(
                f"The run in {out} was begun with {name} {before[name]}, not {value}; resume it "
                "with the same, or begin another one, from its model, in another folder."
            )


def _prepare_folder(out: Path) -> None:
    try:
        for folder in (out, out / CHECKPOINTS, out / MODEL):
            folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(folder)
        if not has_checkpoint(out / CHECKPOINTS):
            (out / EVALUATED).unlink(missing_ok=True)  # of a run that ended before its first one
    except OSError as error:
        raise DataError(
            f"The folder {out} cannot be made or written to ({error.strerror}); give another."
        ) from error


class _Run:
    """A run, and the steps that it consists of; every process has one."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: Mask2FormerForUniversalSegmentation,
        processor: Mask2FormerImageProcessor,
        recipe: Recipe,
        out: Path,
        evaluate: Evaluate | None,
        watchers: Sequence[Watcher],
        report: Callable[[str], None],
    ) -> None:
        self.accelerator, self.processor, self.recipe = accelerator, processor, recipe
        self.out, self.evaluate, self.watchers, self.report = out, evaluate, watchers, report
        self.config = model.config
        # Evaluation has a model of its own: nothing of the run changes, and each process can
        # measure its share of the images although the parameters may be split over all.
        self.copy = copy.deepcopy(model).cpu().eval() if evaluate else None
        self.state = TrainingState(accelerator, model, recipe)
        self.evaluated, self.best = 0, None

    # ---- the loop -------------------------------------------------------------------------------

    def go(self, batches: Batches) -> Outcome:
        """Train to the recipe's last step, or until a signal."""
        self.state.train_mode()
        passes = self.recipe.gradient_accumulation
        source = iter(
            batches(
                first_step=self.state.step * passes,
                steps=self.recipe.steps * passes,
                rank=self.accelerator.process_index,
                world_size=self.accelerator.num_processes,
            )
        )
        with _stop_signals() as stopping:
            stopped = False
            self._evaluate_if_due()  # a run that was stopped before it could
            while not (stopped or self._finished):
                stopped = self._advance(source, stopping)
                # Saved before it is evaluated, because that takes long and can fail.
                if stopped or self._finished or self.state.step % self.recipe.save_every == 0:
                    self.save()
                if not stopped:
                    self._evaluate_if_due()
        done = self._finished and not self._evaluation_is_due
        return Outcome(self.state.step, done, self.out / MODEL, self.best)

    @property
    def _finished(self) -> bool:
        return self.state.step == self.recipe.steps

    @property
    def _evaluation_is_due(self) -> bool:
        due = self._finished or self.state.step % self.recipe.evaluate_every == 0
        return due and self.evaluate is not None and self.evaluated < self.state.step

    def _advance(self, source: Iterator[dict[str, Any]], stopping: threading.Event) -> bool:
        """One update of the weights; True if any process was asked to stop meanwhile."""
        start = time.perf_counter()
        parts, names, stopped = [], [], False
        lr = max(self.state.schedule.get_last_lr())
        for number in range(self.recipe.gradient_accumulation):
            batch = together(self.accelerator, partial(next, source))
            names += batch.pop("names")
            for reason in batch.pop("skipped", ()):
                self.report(reason)
            self._seed(self.state.step * self.recipe.gradient_accumulation + number)
            losses, stopped = self._pass(batch, names, stopping)
            parts.append(torch.stack([loss.detach().float() for loss in losses.values()]))
        self.state.step += 1
        values = self.accelerator.reduce(torch.stack(parts).mean(0), "mean").tolist()
        seconds = time.perf_counter() - start
        named = dict(zip(losses, values, strict=True))
        self._tell("on_step", named, lr, self.recipe.batch_size, seconds)
        return stopped

    def _pass(
        self, batch: dict[str, Any], names: list[str], stopping: threading.Event
    ) -> tuple[dict[str, Tensor], bool]:
        """Forward, backward and, where it completes the step's gradient, the update.

        Returns:
            The losses, and whether any process was asked to stop.
        """
        from accelerate.utils import send_to_device

        with self.accelerator.accumulate(self.state.model):
            batch = send_to_device(batch, self.accelerator.device, non_blocking=True)
            losses = self.state.model(**batch)
            bad = not bool(torch.isfinite(losses["loss"]))
            bad, stopped = any_process(self.accelerator, bad, stopping.is_set())
            if bad:
                self._refuse("loss", names)
            self.accelerator.backward(losses["loss"])
            if self.accelerator.sync_gradients:
                norm = self.state.clip()
                # With fp16 the scaler sees to it.
                if self.accelerator.scaler is None and not bool(torch.isfinite(norm)):
                    self._refuse("gradient", names)
                self.state.update()
        return losses, stopped

    def _refuse(self, what: str, names: list[str]) -> None:
        from accelerate.utils import gather_object

        images = ", ".join(gather_object(names))
        raise FloatingPointError(
            f"The {what} is not finite in step {self.state.step + 1}, whose images are {images}; "
            "look at them and their annotations, or train with a lower learning_rate or another "
            f"precision. The last checkpoint is intact in {self.out / CHECKPOINTS}."
        )

    def _seed(self, number: int) -> None:
        """Random numbers of a pass depend on its number alone, so a resumed run has the same."""
        from accelerate.utils import set_seed

        sequence = [self.recipe.seed, self.accelerator.process_index, number]
        set_seed(int(np.random.SeedSequence(sequence).generate_state(1)[0]))

    def _tell(self, event: str, *values: Any) -> None:
        """Call a method of every watcher, with the step and these values."""

        def tell() -> None:
            for watcher in self.watchers:
                getattr(watcher, event)(self.state.step, *values)

        together(self.accelerator, tell)

    # ---- evaluating and saving ------------------------------------------------------------------

    def _evaluate_if_due(self) -> None:
        """Measure the model; if it is the best so far, save it."""
        if not self._evaluation_is_due:
            return
        with self.state.averaged():
            weights = self.state.weights(EVERYWHERE)
        self.copy.load_state_dict(weights)
        self.copy.to(self.accelerator.device)
        evaluation = together(self.accelerator, partial(self.evaluate, self.copy))
        self.copy.cpu()
        metrics = evaluation.metrics
        self._tell("on_evaluation", metrics)
        self._tell("on_samples", evaluation.pictures)
        worth = self._worth(metrics)
        better = self.best is None or worth > self._worth(self.best["metrics"])
        self.evaluated = self.state.step
        if better:
            self.best = {"step": self.state.step, "metrics": metrics}
        self.write(partial(self._write_evaluated, weights if better else None))

    def _worth(self, metrics: dict[str, float]) -> float:
        """What chooses the best model; nan, which could not be measured, is worse than anything."""
        name = self.recipe.best_metric or next(iter(metrics))
        if name not in metrics:
            raise RecipeError(f"best_metric is {name!r}; there are {', '.join(metrics)}.")
        return -math.inf if math.isnan(metrics[name]) else metrics[name]

    def save(self) -> None:
        """Write a checkpoint, and the model unless a better one was found by evaluation."""
        self.write(partial(self._write_checkpoint, self.state.checkpoint()))

    def restore(self) -> None:
        """Go back to the newest whole checkpoint, if there is any."""
        newest = partial(load_newest, self.out / CHECKPOINTS, self.report)
        checkpoint = together(self.accelerator, newest)
        if checkpoint is None:
            return
        shapes = {name: tensor.shape for name, tensor in checkpoint.weights.items()}
        if shapes != self.state.shapes:
            raise DataError(
                f"The checkpoints in {self.out} are of another model; resume the run with the "
                "model and the classes that it was begun with."
            )
        self.state.restore(checkpoint)
        record = together(self.accelerator, self._read_evaluated)
        self.best, self.evaluated = record["best"], min(record["step"], self.state.step)
        if self.best is not None:
            self._worth(self.best["metrics"])  # refuses a metric that there is not

    def write(self, write: Callable[[], None]) -> None:
        """Have the first process write files, and all know of it if the disk is full."""

        def written() -> None:
            try:
                if self.accelerator.is_main_process:
                    write()
            except (OSError, SafetensorError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise DataError(
                    f"Step {self.state.step} cannot be saved in {self.out} ({reason}); make room "
                    "there and resume the run. The last checkpoint is intact."
                ) from error

        together(self.accelerator, written)

    def _write_checkpoint(self, checkpoint: Checkpoint) -> None:
        if self.best is None:
            average = checkpoint.average
            self._write_model(checkpoint.weights if average is None else average)
        save_checkpoint(self.out / CHECKPOINTS, checkpoint, self.recipe.keep)

    def _write_evaluated(self, weights: dict[str, Tensor] | None) -> None:
        if weights is not None:
            self._write_model(weights)
        record = {"step": self.evaluated, "best": self.best}
        write_text(self.out / EVALUATED, json.dumps(record, indent=2) + "\n")

    def _read_evaluated(self) -> dict[str, Any]:
        path = self.out / EVALUATED
        return read_json(path) if path.exists() else {"step": 0, "best": None}

    def _write_model(self, weights: dict[str, Tensor]) -> None:
        folder = self.out / MODEL
        self.config.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        save_weights(folder, to_huggingface(weights, self.config))


def _nothing(*_: str) -> None:
    """Said and done by a process that is not the first."""


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that is set by SIGTERM and by the first SIGINT."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping  # only the main thread may ask for signals
        return

    def stop(number: int, _: Any) -> None:
        stopping.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
