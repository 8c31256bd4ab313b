"""The devices of a run, and what its processes must agree about."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from mask2former.io.errors import DataError
from mask2former.io.optional import require_package
from mask2former.model.backbones.resnet import FrozenBatchNorm2d
from mask2former.training.recipe import Recipe, RecipeError

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
Network = TypeVar("Network", bound=nn.Module)
# Errors with a sentence for the user.
FAILURES = (DataError, RecipeError, FloatingPointError)


def make_accelerator(recipe: Recipe) -> Accelerator:
    """An Accelerator for the devices there are, with the recipe's precision.

    Raises:
        DataError: accelerate is not installed.
        RecipeError: the devices do not have the precision or cannot synchronise batch norms, the
            batch cannot be divided, or this process has trained in another precision.
    """
    require_package("accelerate", "Training", "mask2former[train]")
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.state import PartialState
    from accelerate.utils import parse_flag_from_env

    # The others wait while the first process writes, draws and reads checkpoints.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))
    # By default Accelerate looks for other processes only where there are GPUs.
    cpu = not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    state = PartialState(cpu=cpu, **patience.to_kwargs())
    assert state.device is not None  # the state has one from its start
    _check_devices(recipe, state.device, state.num_processes)
    precision = _precision(recipe, state.device)
    _check_unchanged(precision)
    return Accelerator(
        cpu=cpu,
        mixed_precision=precision,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        kwargs_handlers=[patience],
    )


def _check_devices(recipe: Recipe, device: torch.device, processes: int) -> None:
    if recipe.precision == "fp16" and device.type == "cpu":
        raise RecipeError("precision is 'fp16', which a CPU cannot train in; use 'bf16' or 'no'.")
    if recipe.images_per_pass % processes:
        raise RecipeError(
            f"global_batch_size / gradient_accumulation_steps is {recipe.images_per_pass}, which "
            f"cannot be divided among {processes} processes; change either."
        )
    if recipe.sync_batch_norm and processes > 1 and device.type == "cpu":
        raise RecipeError(
            "sync_batch_norm is on, but torch cannot synchronise batch norms on CPUs; turn it off."
        )


def _precision(recipe: Recipe, device: torch.device) -> str:
    if recipe.precision != "auto":
        return recipe.precision
    half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if half else "no"


def _check_unchanged(precision: str) -> None:
    """Accelerate has one precision per process, the first Accelerator's."""
    from accelerate.state import AcceleratorState, is_initialized

    before = AcceleratorState().mixed_precision if is_initialized() else precision
    if before != precision:
        raise RecipeError(
            f"precision is {precision!r}, but Accelerate has {before!r} in this process already "
            "and keeps it; train in a new process."
        )


def synchronised(model: Network) -> Network:
    """The model with batch norms that see the images of all devices. Frozen ones stay."""
    for name, child in model.named_children():
        if isinstance(child, FrozenBatchNorm2d):
            continue
        if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            child = nn.SyncBatchNorm.convert_sync_batchnorm(child)
        elif isinstance(child, nn.BatchNorm2d):  # timm's, which includes an activation
            from timm.layers import convert_sync_batchnorm  # pyright: ignore[reportMissingImports]

            child = convert_sync_batchnorm(child)
        else:
            child = synchronised(child)
        setattr(model, name, child)
    return model


def any_process(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Each flag, True if it is True in any process."""
    if accelerator.num_processes == 1:
        return list(flags)  # without waiting for a GPU
    counts = torch.tensor(flags, dtype=torch.float32, device=accelerator.device)
    total: Any = accelerator.reduce(counts, "sum")
    return (total > 0).tolist()


def together(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do some work in every process, wait until all are done, and return its result.

    If it raises one of `FAILURES` in any process, all processes raise the first such error. A
    process that raised it alone would leave the others waiting.
    """
    result: Any = None
    error = None
    try:
        result = work()
    except FAILURES as caught:
        error = caught
    if any_process(accelerator, error is not None)[0]:
        from accelerate.utils import gather_object

        raise next(other for other in gather_object([error]) if other is not None)
    return result
