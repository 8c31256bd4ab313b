"""Every setting of a training run, where it comes from and what it may be."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mask2former.io.errors import DataError
from mask2former.io.files import write_text

# Settings that may change when a run is resumed, because the weights do not depend on them.
RESUMABLE = (
    *("dataloader_num_workers", "eval_steps", "metric_for_best_model", "save_steps"),
    "save_total_limit",
)
# Names that settings had before they got those of transformers' Trainer.
RENAMED = {
    "steps": "max_steps",
    "batch_size": "global_batch_size",
    "gradient_accumulation": "gradient_accumulation_steps",
    "clip_norm": "max_grad_norm",
    "workers": "dataloader_num_workers",
    "save_every": "save_steps",
    "keep": "save_total_limit",
    "evaluate_every": "eval_steps",
    "best_metric": "metric_for_best_model",
}


class RecipeError(ValueError):
    """A setting is wrong, or does not go with the model, data, devices or run; a sentence."""


def _setting(default: Any, text: str, low: float = 0, high: float = math.inf) -> Any:
    """A field of the recipe: its default, what it is, and the least and greatest value."""
    return dataclasses.field(default=default, metadata={"help": text, "low": low, "high": high})


@dataclass(frozen=True)
class Recipe:
    """The settings of a run; `dataclasses.fields` has the meaning of each.

    Optimiser, weight decay, backbone multiplier, clipping and milestones are those of the paper
    (Cheng et al. 2022, section 4.1 and its code). Warm-up is ours: the paper has none. Batch size,
    steps and crop size are for a few hundred images on one GPU; the paper has batches of 16 and
    368750 steps on COCO, at 1024x1024.

    Names are those of transformers' `TrainingArguments` where it has the same setting. Three are
    not: `global_batch_size` is of all devices and passes together, where theirs is per device;
    `schedule` and `precision` have other values than `lr_scheduler_type`, and `bf16` and `fp16`.

    Raises:
        RecipeError: a name is no setting, or a value is not of its field's kind or out of range.
    """

    learning_rate: float = _setting(1e-4, "highest learning rate; the paper's")
    weight_decay: float = _setting(
        0.05, "of AdamW; none on norms, embeddings and position biases; the paper's"
    )
    backbone_multiplier: float = _setting(
        0.1, "factor of the backbone's learning rate; the paper's"
    )
    max_grad_norm: float = _setting(
        0.01, "greatest norm of the whole model's gradient, 0 for no limit; the paper's"
    )
    global_batch_size: int = _setting(
        8, "images of one step, all devices and passes together; 16 in the paper", low=1
    )
    gradient_accumulation_steps: int = _setting(
        1, "passes that a step takes its images in, to save memory", low=1
    )
    max_steps: int = _setting(2000, "updates of the weights", low=1)
    schedule: Literal["step", "poly", "one-cycle", "constant"] = _setting(
        "step",
        "of the learning rate, after warm-up: step is x0.1 at every milestone (the paper's on "
        "COCO); poly falls to 0 with power 0.9 (the paper's on ADE20K and Cityscapes); one-cycle "
        "is for training from scratch",
    )
    milestones: tuple[float, ...] = _setting(
        (8 / 9, 26 / 27),
        "fractions of the run after which the step schedule falls; default: 8/9,26/27, the paper's",
        high=1,
    )
    warmup_steps: int = _setting(
        10,
        "steps in which the learning rate rises linearly, in one-cycle along a cosine; the paper "
        "has none",
    )
    ema: float = _setting(
        0.0,
        "decay of a moving average of the weights, such as 0.999, which is then the model; 0 for "
        "none, as in the paper",
        high=1,
    )
    precision: Literal["auto", "no", "bf16", "fp16"] = _setting(
        "auto", "mixed precision of the forward pass; auto is bf16 on a GPU that has it, else no"
    )
    gradient_checkpointing: bool = _setting(False, "compute layers twice to save memory")
    freeze_backbone: bool = _setting(False, "do not train the backbone")
    sync_batch_norm: bool = _setting(False, "batch norms see the images of all devices")
    drop_path: float | None = _setting(
        None, "stochastic depth of the backbone; default: the model's; 0.3 in the paper", high=1
    )
    dropout: float | None = _setting(
        None, "in encoder and decoder layers; default: the model's; 0 in the paper", high=1
    )
    augmentation: Literal["few-images", "lsj", "crop"] = _setting(
        "few-images",
        "few-images only flips, at the size of prediction; lsj is large-scale jitter (the paper's "
        "on COCO); crop has random scales, crops and colours (the paper's on ADE20K and "
        "Cityscapes)",
    )
    crop_size: int = _setting(
        512, "height and width in pixels of the square that lsj and crop cut", low=1
    )
    short_side: int | None = _setting(
        None,
        "pixels that the short side of an image is resized to by few-images and in prediction; "
        "default: as in the model's image processor",
        low=1,
    )
    flip: float = _setting(0.5, "fraction of the images that are mirrored; the paper's", high=1)
    void: Literal["background", "ignore"] = _setting(
        "background",
        "pixels without annotation are background of every mask (the paper's), or are ignored",
    )
    seed: int = _setting(0, "of all random numbers")
    dataloader_num_workers: int = _setting(
        2, "processes that read images, for each device; 0 reads them in the training process"
    )
    save_steps: int = _setting(500, "steps between checkpoints", low=1)
    save_total_limit: int = _setting(2, "checkpoints to keep, the newest", low=1)
    eval_steps: int = _setting(500, "steps between evaluations, if there is data for them", low=1)
    metric_for_best_model: str | None = _setting(
        None, "the metric that chooses the best model, the greatest; default: the first one"
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        if self.global_batch_size % self.gradient_accumulation_steps:
            raise RecipeError(
                f"global_batch_size is {self.global_batch_size}, which is not a multiple of "
                f"gradient_accumulation_steps, {self.gradient_accumulation_steps}."
            )

    @property
    def images_per_pass(self) -> int:
        """Images that all devices together take at a time."""
        return self.global_batch_size // self.gradient_accumulation_steps

    def replace(self, **changes: Any) -> Recipe:
        """A copy with other values; raises what the constructor does."""
        return dataclasses.replace(self, **changes)

    def values(self) -> dict[str, Any]:
        """All settings by name, as YAML can hold them."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def save(self, path: Path) -> None:
        """Write all settings as YAML."""
        import yaml

        write_text(path, yaml.safe_dump(self.values(), sort_keys=False))


def _with_known_names(init: Callable[..., None]) -> Callable[..., None]:
    """The recipe's constructor, which answers to a wrong name in a sentence."""

    @functools.wraps(init)
    def checked(self: Recipe, *args: Any, **values: Any) -> None:
        _check_names(values)
        init(self, *args, **values)

    return checked


Recipe.__init__ = _with_known_names(Recipe.__init__)


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings that a YAML file gives, by name, checked.

    Raises:
        DataError: the file does not exist or is no YAML mapping, a name in it is no setting, or a
            value is wrong.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"The recipe {path} cannot be read ({reason}); correct it.") from error
    values = {} if values is None else values
    if not isinstance(values, Mapping):
        raise DataError(f"The recipe {path} must hold lines such as `max_steps: 2000`.")
    try:
        _check_names(values)
        Recipe(**values)
    except RecipeError as error:
        raise DataError(f"The recipe {path} cannot be used: {error}") from error
    return dict(values)


def parse(field: dataclasses.Field, text: str) -> Any:
    """The value that a text on the command line means; RecipeError if it is of another kind."""
    what, _ = kind(field)
    value: Any = text
    if what is int:
        with contextlib.suppress(ValueError):  # refused below, with what it should be
            value = int(text)
    elif typing.get_origin(what) is tuple:
        value = [part for part in text.split(",") if part]
    return _checked(field, value)


def _check_names(values: Mapping[str, Any]) -> None:
    names = [field.name for field in dataclasses.fields(Recipe)]
    for name in values:
        if name in RENAMED:
            raise RecipeError(f"{name} is called {RENAMED[name]} now; rename it.")
        if name not in names:
            raise RecipeError(f"{name!r} is no setting; the settings are {', '.join(names)}.")


def kind(field: dataclasses.Field) -> tuple[Any, bool]:
    """The type of a field, and whether it may be None.

    The type is bool, int, float, str, `tuple[float, ...]`, or a tuple of strings to choose from.
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


def _number(field: dataclasses.Field, value: Any, what: type[int] | type[float]) -> int | float:
    low, high = field.metadata["low"], field.metadata["high"]
    try:
        # YAML takes 1e-4, without a point, for a text.
        number = float(value) if isinstance(value, str) and what is float else value
        if isinstance(number, bool) or not isinstance(number, (int, what)):
            raise ValueError
        if not low <= number <= high or not math.isfinite(number):
            raise ValueError
    except ValueError:
        name = "an integer" if what is int else "a number"
        limit = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise RecipeError(f"{field.name} is {value!r}; it must be {name} {limit}.") from None
    return what(number)
