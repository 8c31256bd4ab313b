"""The state of a training run on its devices, and how it is saved and restored."""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from mask2former.modeling import Mask2FormerForUniversalSegmentation
from mask2former.training.checkpoint import Checkpoint
from mask2former.training.devices import synchronised
from mask2former.training.ema import AveragedWeights
from mask2former.training.optimizer import make_optimizer, make_schedule
from mask2former.training.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

# The whole state, also of sharded models: on the CPU in the first process, or in every process.
ON_CPU = StateDictOptions(full_state_dict=True, cpu_offload=True)
EVERYWHERE = StateDictOptions(full_state_dict=True)


class Losses(nn.Module):
    """The model as a function from a batch to its losses.

    Accelerate wraps this instead of the model. Otherwise it would convert predictions to float32
    and search them for parameters, which takes time, although nobody needs them.
    """

    def __init__(self, model: Mask2FormerForUniversalSegmentation) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        output = self.model(**batch)
        return {"loss": output.loss, **output.loss_dict}


class TrainingState:
    """Model, averaged weights, optimiser and schedule of a run, and the number of steps done.

    Every process of the run calls the same methods.

    Attributes:
        model: `Losses` of the model, as Accelerate has prepared it.
        shapes: shapes of the model's whole parameters and buffers by name.
        step: updates done.
    """

    def __init__(
        self, accelerator: Accelerator, model: Mask2FormerForUniversalSegmentation, recipe: Recipe
    ) -> None:
        self.accelerator, self.recipe, self.step = accelerator, recipe, 0
        self.shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        model = _made_ready(model, recipe, accelerator.num_processes)
        optimizer = make_optimizer(model, recipe)
        self.model, self.optimizer = accelerator.prepare(Losses(model), optimizer)
        self.schedule = make_schedule(self.optimizer.optimizer, recipe)
        self.average = AveragedWeights(self.model, recipe.ema) if recipe.ema else None

    def train_mode(self) -> None:
        """Put the model in training mode, except for a frozen backbone."""
        self.model.train()
        if self.recipe.freeze_backbone:
            self.accelerator.unwrap_model(self.model).model.model.backbone.eval()

    def clip(self) -> Tensor:
        """Limit the norm of the whole model's gradient. Returns the norm before."""
        limit = self.recipe.max_grad_norm or math.inf
        norm: Any = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        return norm

    def update(self) -> None:
        """Update the weights and their average.

        With fp16 the scaler skips the update where the gradient is not finite.
        """
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.accelerator.optimizer_step_was_skipped:
            self.schedule.step()
            if self.average is not None:
                self.average.update()

    def weights(self, where: StateDictOptions = ON_CPU) -> dict[str, Tensor]:
        """Parameters and buffers by name. With `ON_CPU` only the first process gets them."""
        state: dict[str, Any] = get_model_state_dict(self.model, options=where)
        # Cloned, because on a CPU these are the model's own tensors.
        return {
            name.removeprefix("model."): tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in state.items()
        }

    def averaged(self) -> AbstractContextManager[None]:
        """A block in which the model has its averaged weights, if there are any."""
        return nullcontext() if self.average is None else self.average.applied()

    def checkpoint(self) -> Checkpoint:
        """The whole state."""
        weights, average, updates = self.weights(), None, 0
        if self.average is not None:
            updates = self.average.updates
            with self.average.applied():
                average = self.weights()
        scaler = self.accelerator.scaler
        states = {
            "optimizer": get_optimizer_state_dict(
                self.model, self.optimizer.optimizer, options=ON_CPU
            ),
            # A copy, because the schedule changes its lists in place.
            "schedule": copy.deepcopy(self.schedule.state_dict()),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        return Checkpoint(self.step, weights, average, states, {"averaged_updates": updates})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint of the same recipe and of tensors of the same shapes."""
        if self.average is not None:
            assert checkpoint.average is not None  # the recipe is the same
            with self.average.applied():
                self._load(checkpoint.average)
            self.average.updates = checkpoint.progress["averaged_updates"]
        self._load(checkpoint.weights)
        states = checkpoint.optimizer
        set_optimizer_state_dict(
            self.model, self.optimizer.optimizer, states["optimizer"], options=ON_CPU
        )
        self.schedule.load_state_dict(states["schedule"])
        if self.accelerator.scaler is not None and states["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(states["scaler"])
        self.step = checkpoint.step

    def _load(self, weights: dict[str, Tensor]) -> None:
        named: dict[str, Any] = {f"model.{name}": tensor for name, tensor in weights.items()}
        set_model_state_dict(self.model, named, options=ON_CPU)


def _made_ready(
    model: Mask2FormerForUniversalSegmentation, recipe: Recipe, processes: int
) -> Mask2FormerForUniversalSegmentation:
    """The model, frozen, checkpointed and synchronised as the recipe says."""
    if recipe.freeze_backbone:
        model.model.backbone.requires_grad_(False)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if recipe.sync_batch_norm and processes > 1:
        return synchronised(model)
    return model
