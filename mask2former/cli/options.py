"""Options that several commands have, and what their values mean."""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mask2former import BUNDLED_MODEL
from mask2former.cli.usage import UsageError
from mask2former.images.thresholds import Thresholds
from mask2former.io.errors import DataError

if TYPE_CHECKING:
    import torch

    from mask2former.configuration.model import Task
    from mask2former.data.dataset import SegmentationDataset
    from mask2former.data.open_dataset import FoundDataset
    from mask2former.predictor import Predictor

TASKS = ("panoptic", "instance", "semantic")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add --model and --device; see `load_predictor`."""
    parser.add_argument(
        "--model", help="model folder or Hugging Face name (default: the bundled small model)"
    )
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device; see `choose_device`."""
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1, mps, ... (default: a GPU if there is one)"
    )


def add_data(parser: argparse.ArgumentParser, default_split: str) -> None:
    """Add the options of a data set but its path; see `open_data`."""
    add = parser.add_argument
    add("--split", help=f"the part of the data set (default: {default_split}, or the only one)")
    add("--images", type=Path, help="folder of the images, where the data set does not say")
    add(
        "--reduce-labels",
        action="store_true",
        help="label 0 in PNG files is void, and classes count from 1",
    )


def add_skip_bad(parser: argparse.ArgumentParser) -> None:
    """Add --skip-bad; see `open_data`."""
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out samples with bad annotations"
    )


def add_thresholds(parser: argparse.ArgumentParser, title: str, defaults: Thresholds) -> None:
    """Add --threshold, --mask-threshold and --overlap-threshold; see `thresholds`."""
    group = parser.add_argument_group(title)
    for name, meaning in (
        ("threshold", "least score of a segment"),
        ("mask_threshold", "least mask probability of a pixel"),
        ("overlap_threshold", "least share of its mask that a segment keeps"),
    ):
        default = getattr(defaults, name)
        group.add_argument(
            "--" + name.replace("_", "-"),
            type=_fraction,
            default=default,
            metavar="X",
            help=f"{meaning}, 0 to 1 (default: {default})",
        )


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def positive(text: str) -> int:
    """The type of an option that is an integer above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer above 0")
    return int(text)


def not_negative(text: str) -> int:
    """The type of an option that is an integer from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 on")
    return int(text)


def thresholds(args: argparse.Namespace) -> Thresholds:
    """What the options of `add_thresholds` say."""
    return Thresholds(**{field.name: getattr(args, field.name) for field in fields(Thresholds)})


def choose_device(name: str | None) -> torch.device:
    """The device called `name`; without a name a GPU if there is one, else the CPU.

    Raises:
        UsageError: there is no such device in this machine, or torch cannot use it.
    """
    import torch

    from mask2former.predictor import default_device

    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UsageError(
            f"device {name!r} cannot be used here ({reason}); give another --device or none"
        ) from error
    return device


def load_predictor(name_or_folder: str | None, device: torch.device, **options: Any) -> Predictor:
    """A predictor with a model, by default the bundled one; warnings are printed to stderr.

    `options` and errors are those of `Predictor.from_pretrained`.
    """
    from mask2former.predictor import Predictor

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        predictor = Predictor.from_pretrained(
            name_or_folder or BUNDLED_MODEL, device=device, **options
        )
    for warning in caught:
        print(f"mask2former: {warning.message}", file=sys.stderr)
    return predictor


def open_data(
    found: FoundDataset,
    split: str | None,
    images: Path | None,
    reduce_labels: bool,
    skip_bad: bool,
    task: Task | None = None,
) -> SegmentationDataset:
    """A split of a data set, for `task` if that is given; see `FoundDataset.open`.

    Raises:
        UsageError: an option does not apply to the format, or the annotations do not suit `task`.
    """
    from mask2former.data.open_dataset import as_task

    try:
        dataset = found.open(split, images=images, reduce_labels=reduce_labels, skip_bad=skip_bad)
        return as_task(dataset, task or dataset.task)
    except ValueError as error:
        raise UsageError(str(error).rstrip(".")) from error


def make_folder(out: Path) -> None:
    """Make the folder of --out, and see before the long work that it can be written to.

    Raises:
        DataError: it cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise DataError(
            f"The output folder {out} cannot be made or written to ({error.strerror}); "
            "give another with --out."
        ) from error


def write_file(path: Path, option: str, write: Callable[[Path], Any]) -> None:
    """Make the folder of a file that `option` names, and write the file.

    Raises:
        DataError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}); give another file with {option}."
        ) from error
