"""Every setting of a training run, where it comes from and what it may be."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mask2former.io.errors import DataError
from mask2former.io.files import write_text

# Settings that may change when a run is resumed, because the weights do not depend on them.
RESUMABLE = ("workers", "evaluate_every", "best_metric", "save_every", "keep")


class RecipeError(ValueError):
    """A setting is wrong, or does not go with the model, the devices or the run; a sentence."""


def _setting(default: Any, text: str, low: float = 0, high: float = math.inf) -> Any:
    """A field of the recipe: its default, what it is, and the least and greatest value."""
    return dataclasses.field(default=default, metadata={"help": text, "low": low, "high": high})


@dataclass(frozen=True)
class Recipe:
    """The settings of a run; `dataclasses.fields` has the meaning of each.

    Optimiser, decay of weights, backbone multiplier, clipping and milestones are those of the paper
    (Cheng et al. 2022, section 4.1 and its code). Batch size, steps and crop size are for a few
    hundred images on one GPU; the paper has batches of 16 and 368750 steps on COCO, at 1024x1024.

    Raises:
        RecipeError: a value is not of its field's kind or out of range; the message names it.
    """

    learning_rate: float = _setting(1e-4, "highest learning rate; the paper's")
    weight_decay: float = _setting(
        0.05, "of AdamW; none on norms, embeddings and position biases; the paper's"
    )
    backbone_multiplier: float = _setting(0.1, "of the backbone's learning rate; the paper's")
    clip_norm: float = _setting(
        0.01, "greatest norm of the whole model's gradient, 0 for no limit; the paper's"
    )
    batch_size: int = _setting(
        8, "images of one step, on all devices together; the paper has 16", low=1
    )
    gradient_accumulation: int = _setting(1, "parts that a step's batch is taken in", low=1)
    steps: int = _setting(2000, "updates of the weights", low=1)
    schedule: Literal["step", "poly", "one-cycle", "constant"] = _setting(
        "step",
        "of the learning rate: x0.1 at every milestone (the paper's on COCO), falling with power "
        "0.9 (the paper's on ADE20K and Cityscapes), one cycle (for training from scratch), or "
        "none",
    )
    milestones: tuple[float, ...] = _setting(
        (0.889, 0.963), "parts of the run after which the step schedule falls; the paper's", high=1
    )
    warmup_steps: int = _setting(
        10, "steps in which the rate rises from nearly zero; in one cycle, to the highest"
    )
    ema: float = _setting(
        0.0,
        "decay of averaged weights, such as 0.999, which are then the model; 0 for none",
        high=1,
    )
    precision: Literal["auto", "no", "bf16", "fp16"] = _setting(
        "auto", "of the forward pass; auto is bf16 on a GPU that has it, else no"
    )
    gradient_checkpointing: bool = _setting(False, "compute layers twice to save memory")
    freeze_backbone: bool = _setting(False, "leave the backbone as it is")
    sync_batch_norm: bool = _setting(False, "batch norms see the images of all devices")
    drop_path: float | None = _setting(
        None, "rate of the backbone's dropped branches; default: the model's", high=1
    )
    dropout: float | None = _setting(
        None, "in encoder and decoder layers; default: the model's", high=1
    )
    augmentation: Literal["few-images", "lsj", "crop"] = _setting(
        "few-images",
        "of images: flips at the size of prediction; large-scale jitter (the paper's on COCO); or "
        "random scale, varied crop and colours (the paper's on ADE20K and Cityscapes)",
    )
    crop_size: int = _setting(512, "side of lsj's and crop's squares, in pixels", low=1)
    short_side: int | None = _setting(
        None,
        "pixels that the short side of images is resized to; default: the model's processor's",
        low=1,
    )
    flip: float = _setting(0.5, "part of the images that are mirrored", high=1)
    void: Literal["background", "ignore"] = _setting(
        "background",
        "what pixels without annotation are: background of every mask (the paper's), or nothing",
    )
    seed: int = _setting(0, "of all random numbers")
    workers: int = _setting(2, "processes that read images, for each device; 0 for none")
    save_every: int = _setting(500, "steps between checkpoints", low=1)
    keep: int = _setting(2, "checkpoints that stay, the newest", low=1)
    evaluate_every: int = _setting(500, "steps between evaluations, if there is data for it", low=1)
    best_metric: str = _setting("", "the one that chooses the best model; default: the first")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        if self.batch_size % self.gradient_accumulation:
            raise RecipeError(
                f"batch_size is {self.batch_size}, which is not a multiple of "
                f"gradient_accumulation, {self.gradient_accumulation}."
            )

    @property
    def images_per_pass(self) -> int:
        """Images that all devices together take at a time."""
        return self.batch_size // self.gradient_accumulation

    def replace(self, **changes: Any) -> Recipe:
        """A copy with other values; RecipeError for a setting that there is not."""
        _check_names(changes)
        return dataclasses.replace(self, **changes)

    def values(self) -> dict[str, Any]:
        """All settings by name, as YAML can hold them."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def save(self, path: Path) -> None:
        """Write all settings as YAML."""
        import yaml

        write_text(path, yaml.safe_dump(self.values(), sort_keys=False))


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, checked; those that it leaves out are left out.

    Raises:
        DataError: it is not there, is no YAML mapping, or has a setting that is none or ill-typed.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"The recipe {path} cannot be read ({reason}); correct it.") from error
    values = {} if values is None else values
    if not isinstance(values, Mapping):
        raise DataError(f"The recipe {path} must hold lines such as `steps: 2000`.")
    try:
        _check_names(values)
        Recipe(**values)
    except RecipeError as error:
        raise DataError(f"The recipe {path} cannot be used: {error}") from error
    return dict(values)


def parse(field: dataclasses.Field, text: str) -> Any:
    """The value that a text on the command line means; RecipeError if it is of another kind."""
    what, _ = kind(field)
    if what is int:
        with contextlib.suppress(ValueError):  # refused below, with what it should be
            text = int(text)
    elif typing.get_origin(what) is tuple:
        text = [part for part in text.split(",") if part]
    return _checked(field, text)


def _check_names(values: Mapping[str, Any]) -> None:
    names = [field.name for field in dataclasses.fields(Recipe)]
    unknown = [name for name in values if name not in names]
    if unknown:
        raise RecipeError(f"{unknown[0]!r} is no setting; the settings are {', '.join(names)}.")


def kind(field: dataclasses.Field) -> tuple[Any, bool]:
    """What a field holds: bool, int, float, str, a tuple of floats or its choices; may it be None.

    Choices are a tuple of strings.
    """
    hint = typing.get_type_hints(Recipe)[field.name]
    optional = isinstance(hint, types.UnionType)
    if optional:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint), optional
    return hint, optional


def _checked(field: dataclasses.Field, value: Any) -> Any:
    """The value in its field's type; RecipeError if it is of another kind or out of range."""
    what, optional = kind(field)
    if value is None and optional:
        return None
    if isinstance(what, tuple):
        if value not in what:
            raise RecipeError(f"{field.name} is {value!r}; it must be one of {', '.join(what)}.")
        return value
    if what in (bool, str):
        if not isinstance(value, what):
            expected = "true or false" if what is bool else "a text"
            raise RecipeError(f"{field.name} is {value!r}; it must be {expected}.")
        return value
    if what in (int, float):
        return _number(field, value, what)
    if not isinstance(value, list | tuple):
        raise RecipeError(f"{field.name} is {value!r}; it must be a list of numbers.")
    return tuple(_number(field, part, float) for part in value)


def _number(field: dataclasses.Field, value: Any, what: type) -> int | float:
    low, high = field.metadata["low"], field.metadata["high"]
    try:
        # YAML takes 1e-4, without a point, for a text.
        number = float(value) if isinstance(value, str) and what is float else value
        if isinstance(number, bool) or not isinstance(number, int | what):
            raise ValueError
        if not low <= number <= high or not math.isfinite(number):
            raise ValueError
    except ValueError:
        name = "an integer" if what is int else "a number"
        limit = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise RecipeError(f"{field.name} is {value!r}; it must be {name} {limit}.") from None
    return what(number)
