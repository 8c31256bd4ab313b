"""The loop of a training run: batches in, a model folder and checkpoints out."""

from __future__ import annotations

import copy
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
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
from mask2former.training.callback import Callback
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

if TYPE_CHECKING:
    from accelerate import Accelerator

RECIPE_FILE, CHECKPOINTS, MODEL = "recipe.yaml", "checkpoints", "model"
# The step that was evaluated last, and the best one with its metrics.
EVALUATED = "evaluated.json"

# Such as `functools.partial(make_loader, dataset, ...)`. Called with first_step, steps, rank and
# world_size, it returns the batches first_step to steps - 1, each with the images of one process.
Batches = Callable[..., Iterable[dict[str, Any]]]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model by name, for all of which greater is better, and pictures by name."""

    metrics: dict[str, float]
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)


# Called in every process with the whole model, which has the averaged weights if there are any. All
# processes must return the same metrics. Where they communicate in it, none may raise before alone.
Evaluate = Callable[[Mask2FormerForUniversalSegmentation], Evaluation]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: updates done.
        finished: False if it was asked to stop before the last one.
        model: the folder of the model: the best one where models were evaluated, else the last one.
        best: "step" and "metrics" of the best one, or None.
    """

    step: int
    finished: bool
    model: Path
    best: dict[str, Any] | None


def train_on_batches(
    model: Mask2FormerForUniversalSegmentation,
    processor: Mask2FormerImageProcessor,
    batches: Batches,
    recipe: Recipe,
    out: Path,
    *,
    evaluate: Evaluate | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    report: Callable[[str], None] = print,
) -> Outcome:
    """Train a model on batches of your own, on the devices that Accelerate finds or is launched on.

    `mask2former.training.train` opens a data set and a model and calls this. Of the recipe,
    settings of the data and of dropout have no effect here.

    Writes `out`/recipe.yaml, `out`/checkpoints, `out`/model, a folder for `from_pretrained`, and
    `out`/evaluated.json, the best metrics so far. SIGTERM and SIGINT end the run after the step,
    with a checkpoint; a second SIGINT ends it at once. An error in one process ends all.

    Args:
        model: trained in place. On several devices with FSDP its parameters become shards.
        processor: saved beside the model.
        batches: `mask2former.data.batches.make_loader` with all its arguments but first_step,
            steps, rank and world_size, and with `recipe.images_per_pass` as its batch_size. Where
            gradients are accumulated, a step of the loader is one pass.
        evaluate: measures the model. `recipe.metric_for_best_model` is one of its metrics.
        callbacks: told about every step and evaluation, in the first process.
        resume: continue from the newest undamaged checkpoint in `out`, or start where there is
            none.
        report: called with each sentence for the user, in the first process.

    Raises:
        DataError: accelerate is not installed, `out` has a run already, its checkpoints are
            damaged, or the disk is full.
        FloatingPointError: a loss or gradient is not finite; the message names step and images.
        RecipeError: recipe, model and devices do not go together, or the run was begun with other
            settings.
    """
    check_folder(out, recipe, resume)
    accelerator = make_accelerator(recipe)
    first = accelerator.is_main_process
    recipe = recipe.replace(precision=accelerator.mixed_precision)
    if not first:
        callbacks, report = (), nothing
    together(accelerator, partial(_prepare_folder, out) if first else nothing)
    run = _Run(accelerator, model, processor, recipe, out, evaluate, callbacks, report)
    if resume:
        run.restore()
    run.write(partial(recipe.save, out / RECIPE_FILE))
    with ExitStack() as ending:
        for callback in callbacks:
            ending.callback(callback.close)
        return run.go(batches)


def check_folder(out: Path, recipe: Recipe, resume: bool) -> None:
    """Check that a run can begin, or be resumed, in a folder.

    Raises:
        DataError: the folder has a run and `resume` is off, or the run's recipe cannot be read.
        RecipeError: the run was begun with other settings.
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
            (out / EVALUATED).unlink(missing_ok=True)  # its run ended before the first checkpoint
    except OSError as error:
        raise DataError(
            f"The folder {out} cannot be made or written to ({error.strerror}); give another."
        ) from error


class _Run:
    """A run and its steps. Every process has one."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: Mask2FormerForUniversalSegmentation,
        processor: Mask2FormerImageProcessor,
        recipe: Recipe,
        out: Path,
        evaluate: Evaluate | None,
        callbacks: Sequence[Callback],
        report: Callable[[str], None],
    ) -> None:
        self.accelerator, self.processor, self.recipe = accelerator, processor, recipe
        self.out, self.evaluate, self.callbacks, self.report = out, evaluate, callbacks, report
        self.config = model.config
        # Evaluation uses a copy of the model. So it changes nothing in the run, and each process
        # can measure its share of the images although the parameters may be sharded.
        self.copy = copy.deepcopy(model).cpu().eval() if evaluate else None
        self.state = TrainingState(accelerator, model, recipe)
        self.evaluated, self.best = 0, None

    # ---- the loop -------------------------------------------------------------------------------

    def go(self, batches: Batches) -> Outcome:
        """Train to the recipe's last step, or until a signal."""
        self.state.train_mode()
        # Closed, because the frames of an error keep it alive, and Python waits for its worker
        # processes before it exits.
        with _stop_signals() as stopping, closing(self._rest(batches)) as source:
            stopped = False
            self._evaluate_if_due()  # if the run was stopped before it could
            while not (stopped or self._finished):
                stopped = self._advance(source, stopping)
                # Saved before the evaluation, because that takes long and can fail.
                if stopped or self._finished or self.state.step % self.recipe.save_steps == 0:
                    self.save()
                if not stopped:
                    self._evaluate_if_due()
        done = self._finished and not self._evaluation_is_due
        return Outcome(self.state.step, done, self.out / MODEL, self.best)

    def _rest(self, batches: Batches) -> Generator[dict[str, Any], None, None]:
        """The batches of all passes that are left."""
        passes = self.recipe.gradient_accumulation_steps
        yield from batches(
            first_step=self.state.step * passes,
            steps=self.recipe.max_steps * passes,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )

    @property
    def _finished(self) -> bool:
        return self.state.step == self.recipe.max_steps

    @property
    def _evaluation_is_due(self) -> bool:
        due = self._finished or self.state.step % self.recipe.eval_steps == 0
        return due and self.evaluate is not None and self.evaluated < self.state.step

    def _advance(self, source: Iterator[dict[str, Any]], stopping: threading.Event) -> bool:
        """One update of the weights. Returns True if any process was asked to stop meanwhile."""
        start = time.perf_counter()
        passes, names, stopped = [], [], False
        lr = max(self.state.schedule.get_last_lr())
        for number in range(self.recipe.gradient_accumulation_steps):
            batch = together(self.accelerator, partial(next, source))
            names += batch.pop("names")
            for reason in batch.pop("skipped", ()):
                self.report(reason)
            self._seed(self.state.step * self.recipe.gradient_accumulation_steps + number)
            losses, stopped = self._pass(batch, names, stopping)
            passes.append(torch.stack([loss.detach().float() for loss in losses.values()]))
        self.state.step += 1
        means: Any = self.accelerator.reduce(torch.stack(passes).mean(0), "mean")
        seconds = time.perf_counter() - start
        named = dict(zip(losses, means.tolist(), strict=True))
        self._tell("on_step", named, lr, self.recipe.global_batch_size, seconds)
        return stopped

    def _pass(
        self, batch: dict[str, Any], names: list[str], stopping: threading.Event
    ) -> tuple[dict[str, Tensor], bool]:
        """Forward and backward, and the update if this is the step's last pass.

        Returns:
            The losses by name, scalars, and whether any process was asked to stop.
        """
        from accelerate.utils import send_to_device

        with self.accelerator.accumulate(self.state.model):
            inputs: Any = send_to_device(batch, self.accelerator.device, non_blocking=True)
            losses = self.state.model(**inputs)
            bad = not bool(torch.isfinite(losses["loss"]))
            bad, stopped = any_process(self.accelerator, bad, stopping.is_set())
            if bad:
                self._refuse("loss", names)
            self.accelerator.backward(losses["loss"])
            if self.accelerator.sync_gradients:
                norm = self.state.clip()
                # With fp16 the scaler skips the update where the gradient is not finite.
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
        """Make random numbers depend on the pass alone, so that a resumed run draws the same."""
        from accelerate.utils import set_seed

        sequence = [self.recipe.seed, self.accelerator.process_index, number]
        set_seed(int(np.random.SeedSequence(sequence).generate_state(1)[0]))

    def _tell(self, event: str, *values: Any) -> None:
        """Call a method of every callback with the step and these values."""

        def tell() -> None:
            for callback in self.callbacks:
                getattr(callback, event)(self.state.step, *values)

        together(self.accelerator, tell)

    # ---- evaluating and saving ------------------------------------------------------------------

    def _evaluate_if_due(self) -> None:
        """Evaluate the model if it is time, and save it if it is the best so far."""
        if self.evaluate is None or self.copy is None or not self._evaluation_is_due:
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
        score = self._score(metrics)
        better = self.best is None or score > self._score(self.best["metrics"])
        self.evaluated = self.state.step
        if better:
            self.best = {"step": self.state.step, "metrics": metrics}
        self.write(partial(self._write_evaluated, weights if better else None))

    def _score(self, metrics: dict[str, float]) -> float:
        """The metric that chooses the best model. nan, which is no measurement, is the worst."""
        name = self.recipe.metric_for_best_model or next(iter(metrics))
        if name not in metrics:
            raise RecipeError(f"metric_for_best_model is {name!r}; there are {', '.join(metrics)}.")
        return -math.inf if math.isnan(metrics[name]) else metrics[name]

    def save(self) -> None:
        """Write a checkpoint, and the model too while none has been evaluated."""
        self.write(partial(self._write_checkpoint, self.state.checkpoint()))

    def restore(self) -> None:
        """Continue from the newest undamaged checkpoint, if there is any."""
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
            self._score(self.best["metrics"])  # raises if there is no such metric

    def write(self, write: Callable[[], None]) -> None:
        """Write files in the first process; if the disk is full, raise in all."""

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
        save_checkpoint(self.out / CHECKPOINTS, checkpoint, self.recipe.save_total_limit)

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


def nothing(*_: str) -> None:
    """What processes but the first report and prepare."""


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and the first SIGINT set."""
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
