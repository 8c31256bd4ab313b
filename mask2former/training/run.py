"""A training run: batches in, a model folder and checkpoints out."""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from mask2former.checkpoints.huggingface import to_huggingface
from mask2former.checkpoints.weights import save_weights
from mask2former.errors import DataError
from mask2former.image_processing import Mask2FormerImageProcessor
from mask2former.modeling import Mask2FormerForUniversalSegmentation
from mask2former.optional import require_package
from mask2former.training.checkpoint import (
    Checkpoint,
    has_checkpoint,
    load_newest,
    remove_unfinished,
    save_checkpoint,
)
from mask2former.training.ema import AveragedWeights
from mask2former.training.optimizer import make_optimizer, make_schedule
from mask2former.training.recipe import RESUMABLE, Recipe, RecipeError, read_recipe
from mask2former.training.watcher import Watcher

if TYPE_CHECKING:
    from accelerate import Accelerator

RECIPE_FILE, CHECKPOINTS, MODEL = "recipe.yaml", "checkpoints", "model"
# The whole state, whatever it is split over: on the host of the first process, or in every one.
ON_HOST = StateDictOptions(full_state_dict=True, cpu_offload=True)
EVERYWHERE = StateDictOptions(full_state_dict=True)

# `functools.partial(make_loader, dataset, ...)`: called with first_step, steps, rank and
# world_size, it has the batches first_step to steps - 1, and of each the images of one process.
Batches = Callable[..., Iterable[dict[str, Any]]]


@dataclass(frozen=True)
class Evaluation:
    """What a model was found to be worth: figures by name, the more the better, and pictures."""

    metrics: dict[str, float]
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)


# Called in every process with the whole model, with averaged weights if there are any; the metrics
# must be the same in all.
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


class _Losses(nn.Module):
    """The model as a function from a batch to its losses alone.

    It is this that Accelerate wraps, so that predictions, which are large and which nobody asks
    for, are neither converted nor searched for parameters.
    """

    def __init__(self, model: Mask2FormerForUniversalSegmentation) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        output = self.model(**batch)
        return {"loss": output.loss, **output.loss_dict}


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

    Writes `out`/recipe.yaml, `out`/checkpoints and `out`/model, a folder for `from_pretrained`.
    SIGTERM and SIGINT end the run after the step, with a checkpoint; a second SIGINT at once.

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
    if accelerator.is_main_process:
        _prepare_folder(out)
    run = _Run(accelerator, model, processor, recipe, out, evaluate, watchers, report)
    if resume:
        run.restore()
    if accelerator.is_main_process:
        run.recipe.save(out / RECIPE_FILE)
    with ExitStack() as ending:
        for watcher in run.watchers:
            ending.callback(watcher.close)
        return run.go(batches)


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Accelerate's view of the devices, with the recipe's precision.

    Raises:
        DataError: accelerate is not installed.
        RecipeError: the devices do not have the precision or cannot synchronise batch norms, or
            the batch cannot be divided.
    """
    require_package("accelerate", "Training", "mask2former[train]")
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.state import PartialState
    from accelerate.utils import parse_flag_from_env

    # The others wait while the first one evaluates.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))
    # Left to itself, Accelerate looks for other processes only where there are GPUs.
    cpu = not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    device = PartialState(cpu=cpu, **patience.to_kwargs()).device
    precision = recipe.precision
    if precision == "auto":
        half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if half else "no"
    if precision == "fp16" and device.type == "cpu":
        raise RecipeError("precision is 'fp16', which a CPU cannot train in; use 'bf16' or 'no'.")
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=precision,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        kwargs_handlers=[patience],
    )
    if recipe.images_per_pass % accelerator.num_processes:
        raise RecipeError(
            f"batch_size / gradient_accumulation is {recipe.images_per_pass}, which cannot be "
            f"divided among {accelerator.num_processes} processes; change either."
        )
    if recipe.sync_batch_norm and accelerator.num_processes > 1 and device.type == "cpu":
        raise RecipeError(
            "sync_batch_norm is on, but torch cannot synchronise batch norms on CPUs; turn it off."
        )
    return accelerator


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
    except OSError as error:
        raise DataError(
            f"The folder {out} cannot be made or written to ({error.strerror}); give another."
        ) from error


class _Run:
    """The state of a run, and the steps that it consists of."""

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
        self.accelerator, self.processor, self.recipe, self.out = (
            accelerator,
            processor,
            recipe,
            out,
        )
        self.evaluate = evaluate
        first = accelerator.is_main_process
        self.watchers = list(watchers) if first else []
        self.report = report if first else _nothing
        self.recipe = recipe.replace(precision=accelerator.mixed_precision)
        self.config = model.config
        self.shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        self.step, self.best = 0, None
        # Evaluation has a model of its own: nothing of the run changes, and each process can
        # measure its share of the images although the parameters may be split over all.
        self.copy = copy.deepcopy(model).cpu().eval() if evaluate else None
        model = _made_ready(model, recipe, accelerator.num_processes)
        optimizer = make_optimizer(model, recipe)
        self.model, self.optimizer = accelerator.prepare(_Losses(model), optimizer)
        self.schedule = make_schedule(self.optimizer.optimizer, recipe)
        self.average = AveragedWeights(self.model, recipe.ema) if recipe.ema else None
        self.clip_norm = recipe.clip_norm or math.inf

    # ---- the loop -------------------------------------------------------------------------------

    def go(self, batches: Batches) -> Outcome:
        """Train to the recipe's last step, or until a signal."""
        self._set_mode()
        passes = self.recipe.gradient_accumulation
        source = iter(
            batches(
                first_step=self.step * passes,
                steps=self.recipe.steps * passes,
                rank=self.accelerator.process_index,
                world_size=self.accelerator.num_processes,
            )
        )
        with _stop_signals() as stopping:
            while self.step < self.recipe.steps:
                stopped = self._advance(source, stopping)
                finished = self.step == self.recipe.steps
                if finished or self.step % self.recipe.evaluate_every == 0:
                    self._evaluate()
                if stopped or finished or self.step % self.recipe.save_every == 0:
                    self.save()
                if stopped and not finished:
                    break
        finished = self.step == self.recipe.steps
        return Outcome(self.step, finished, self.out / MODEL, self.best)

    def _advance(self, source: Iterator[dict[str, Any]], stopping: threading.Event) -> bool:
        """One update of the weights; True if any process was asked to stop meanwhile."""
        start = time.perf_counter()
        parts, names, stopped = [], [], False
        lr = max(self.schedule.get_last_lr())
        for number in range(self.recipe.gradient_accumulation):
            batch = next(source)
            names += batch.pop("names")
            for reason in batch.pop("skipped", ()):
                self.report(reason)
            self._seed(self.step * self.recipe.gradient_accumulation + number)
            with self.accelerator.accumulate(self.model):
                losses = self.model(**self._moved(batch))
                bad = not bool(torch.isfinite(losses["loss"]))
                bad, stopped = self._any(bad, stopping.is_set())
                if bad:
                    self._refuse("loss", names)
                self.accelerator.backward(losses["loss"])
                if self.accelerator.sync_gradients:
                    self._update(names)
            parts.append(torch.stack([loss.detach().float() for loss in losses.values()]))
        self.step += 1
        values = self.accelerator.reduce(torch.stack(parts).mean(0), "mean").tolist()
        seconds = time.perf_counter() - start
        named = dict(zip(losses, values, strict=True))
        for watcher in self.watchers:
            watcher.on_step(self.step, named, lr, self.recipe.batch_size, seconds)
        return stopped

    def _update(self, names: list[str]) -> None:
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        # With fp16 the scaler skips such a step and lowers its factor.
        if self.accelerator.scaler is None and not bool(torch.isfinite(norm)):
            self._refuse("gradient", names)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.accelerator.optimizer_step_was_skipped:
            self.schedule.step()
            if self.average is not None:
                self.average.update()

    def _refuse(self, what: str, names: list[str]) -> None:
        from accelerate.utils import gather_object

        images = ", ".join(gather_object(names))
        raise FloatingPointError(
            f"The {what} is not finite in step {self.step + 1}, whose images are {images}; look at "
            "them and their annotations, or train with a lower learning_rate or another precision. "
            f"The last checkpoint is intact in {self.out / CHECKPOINTS}."
        )

    def _any(self, *flags: bool) -> list[bool]:
        """Each flag, True if it is so in any process."""
        counts = torch.tensor(flags, dtype=torch.float32, device=self.accelerator.device)
        return (self.accelerator.reduce(counts, "sum") > 0).tolist()

    def _seed(self, number: int) -> None:
        """Random numbers of a pass depend on its number alone, so a resumed run has the same."""
        from accelerate.utils import set_seed

        sequence = [self.recipe.seed, self.accelerator.process_index, number]
        set_seed(int(np.random.SeedSequence(sequence).generate_state(1)[0]))

    def _set_mode(self) -> None:
        self.model.train()
        if self.recipe.freeze_backbone:
            self.accelerator.unwrap_model(self.model).model.model.backbone.eval()

    def _moved(self, batch: dict[str, Any]) -> dict[str, Any]:
        device = self.accelerator.device
        return {
            name: [part.to(device, non_blocking=True) for part in value]
            if isinstance(value, list)
            else value.to(device, non_blocking=True)
            for name, value in batch.items()
        }

    # ---- evaluating and saving ------------------------------------------------------------------

    def _evaluate(self) -> None:
        """Measure the model; if it is the best so far, save it."""
        if self.evaluate is None:
            return
        with self._averaged():
            weights = self._state(EVERYWHERE)
        self.copy.load_state_dict(weights)
        evaluation = self.evaluate(self.copy.to(self.accelerator.device))
        self.copy.cpu()
        metrics = evaluation.metrics
        for watcher in self.watchers:
            watcher.on_evaluation(self.step, metrics)
            watcher.on_samples(self.step, evaluation.pictures)
        name = self.recipe.best_metric or next(iter(metrics))
        if name not in metrics:
            raise RecipeError(f"best_metric is {name!r}; there are {', '.join(metrics)}.")
        if self.best is None or _known(metrics[name]) > _known(self.best["metrics"][name]):
            self.best = {"step": self.step, "metrics": metrics}
            self._save_model(weights)
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        """Write a checkpoint, and the model unless a better one was found by evaluation."""
        weights = self._state()
        average = None
        if self.average is not None:
            with self._averaged():
                average = self._state()
        optimizer = {
            "optimizer": get_optimizer_state_dict(
                self.model, self.optimizer.optimizer, options=ON_HOST
            ),
            "schedule": self.schedule.state_dict(),
            "scaler": None
            if self.accelerator.scaler is None
            else self.accelerator.scaler.state_dict(),
        }
        progress = {
            "best": self.best,
            "averaged_updates": self.average.updates if self.average is not None else 0,
        }
        if self.best is None:
            self._save_model(weights if average is None else average)
        if self.accelerator.is_main_process:
            checkpoint = Checkpoint(self.step, weights, average, optimizer, progress)
            with self._disk_errors():
                save_checkpoint(self.out / CHECKPOINTS, checkpoint, self.recipe.keep)
        self.accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Go back to the newest whole checkpoint, if there is any."""
        checkpoint = load_newest(self.out / CHECKPOINTS, self.report)
        if checkpoint is None:
            return
        if {name: tensor.shape for name, tensor in checkpoint.weights.items()} != self.shapes:
            raise DataError(
                f"The checkpoints in {self.out} are of another model; resume the run with the "
                "model and the classes that it was begun with."
            )
        if self.average is not None:
            with self.average.applied():
                self._load(checkpoint.average)
            self.average.updates = checkpoint.progress["averaged_updates"]
        self._load(checkpoint.weights)
        states = checkpoint.optimizer
        set_optimizer_state_dict(
            self.model, self.optimizer.optimizer, states["optimizer"], options=ON_HOST
        )
        self.schedule.load_state_dict(states["schedule"])
        if self.accelerator.scaler is not None and states["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(states["scaler"])
        self.step, self.best = checkpoint.step, checkpoint.progress["best"]

    def _averaged(self) -> AbstractContextManager[None]:
        """Within it the model has its averaged weights, if there are any."""
        return nullcontext() if self.average is None else self.average.applied()

    def _state(self, where: StateDictOptions = ON_HOST) -> dict[str, Tensor]:
        """Parameters and buffers by name; on the host there are none in other processes."""
        state = get_model_state_dict(self.model, options=where)
        # Cloned, because on a CPU these are the model's own tensors, which go on changing.
        return {
            name.removeprefix("model."): tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in state.items()
        }

    def _load(self, weights: dict[str, Tensor]) -> None:
        named = {f"model.{name}": tensor for name, tensor in weights.items()}
        set_model_state_dict(self.model, named, options=ON_HOST)

    def _save_model(self, weights: dict[str, Tensor]) -> None:
        if not self.accelerator.is_main_process:
            return
        folder = self.out / MODEL
        with self._disk_errors():
            self.config.save_pretrained(folder)
            self.processor.save_pretrained(folder)
            save_weights(folder, to_huggingface(weights, self.config))

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise DataError(
                f"Step {self.step} cannot be saved in {self.out} ({reason}); make room there and "
                "resume the run. The last checkpoint is intact."
            ) from error


def _known(metric: float) -> float:
    """What could not be measured, nan, is worse than anything."""
    return -math.inf if math.isnan(metric) else metric


def _nothing(_: str) -> None:
    """Said by a process that is not the first."""


def _made_ready(
    model: Mask2FormerForUniversalSegmentation, recipe: Recipe, processes: int
) -> Mask2FormerForUniversalSegmentation:
    """The model with what the recipe freezes, checkpoints or synchronises."""
    if recipe.freeze_backbone:
        model.model.backbone.requires_grad_(False)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if recipe.sync_batch_norm and processes > 1:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


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
