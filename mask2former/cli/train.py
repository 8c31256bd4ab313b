"""`mask2former train`: a model fine-tuned on annotated images."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mask2former import BUNDLED_MODEL
from mask2former.cli.options import TASKS, add_data, add_skip_bad, open_data
from mask2former.cli.usage import UsageError
from mask2former.training.recipe import RENAMED, Recipe, RecipeError, kind, parse, read_recipe

if TYPE_CHECKING:
    from mask2former.data.dataset import SegmentationDataset


DESCRIPTION = """\
Fine-tune a model on a data set. This writes into the output folder:

  model/             the model, for --model of the other commands: the best one where there is
                     data to evaluate it on, else the newest
  checkpoints/       for --resume
  recipe.yaml        all settings
  evaluated.json     metrics of the best model
  history.jsonl, curves.png, tensorboard/

The model gets the data set's classes. What it has learnt of a class of the same name is kept; the
rest of the class head is re-initialised. Ctrl-C and SIGTERM save before they end the run. From
Python: mask2former.training.train. Several GPUs:
accelerate launch -m mask2former train ...
"""
EPILOG = """\
examples:
  mask2former train --data scenes/ --out run/ --max-steps 150 --global-batch-size 4
  mask2former train --model facebook/mask2former-swin-tiny-coco-panoptic --data my-data/ --out run/
  mask2former train --model my-model/ --data train.json --val-data val.json --out run/
  mask2former train --model my-model/ --data my-data/ --out run/ --resume
  mask2former train --model my-model/ --data my-data/ --out run/ --config recipe.yaml --ema 0.999
"""


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `train` to the command line."""
    parser = commands.add_parser(
        "train",
        help="fine-tune a model on annotated images",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add(
        "--model",
        default=BUNDLED_MODEL,
        help="model folder or Hugging Face name to start from (default: the bundled small model)",
    )
    add("--data", required=True, type=Path, help="folder or annotation file of the data set")
    add("--out", required=True, type=Path, help="folder of the run")
    add_data(parser, "train")
    add_skip_bad(parser)
    add("--val-data", type=Path, help="data set to evaluate on (default: the val split of --data)")
    add("--val-split", help="the part of it (default: val, or the only one)")
    add("--val-images", type=Path, help="folder of its images")
    add("--task", choices=TASKS, help="train another task than the annotations are for")
    add("--resume", action="store_true", help="continue the run in --out, if there is one")
    add("--config", type=Path, metavar="YAML", help="settings; those given here override it")
    settings = parser.add_argument_group("settings")
    for setting in dataclasses.fields(Recipe):
        _add_setting(settings, setting)
    for name, new in RENAMED.items():
        hidden = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        parser.add_argument(_option(name), action=_Renamed, dest=new, nargs="?", **hidden)


def _option(setting: str) -> str:
    return "--" + setting.replace("_", "-")


class _Renamed(argparse.Action):
    """An option that has another name now."""

    def __call__(self, parser: argparse.ArgumentParser, *_) -> NoReturn:
        parser.error(f"{self.option_strings[0]} is called {_option(self.dest)} now")


def _add_setting(group: argparse._ArgumentGroup, setting: dataclasses.Field) -> None:
    name, text = _option(setting.name), setting.metadata["help"]
    what, _ = kind(setting)
    options: dict[str, Any] = {"dest": setting.name, "default": argparse.SUPPRESS}
    if what is bool:
        group.add_argument(name, action=argparse.BooleanOptionalAction, help=text, **options)
        return

    def value(given: str) -> Any:
        try:
            return parse(setting, given)
        except RecipeError as error:
            raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error

    if setting.default is not None and "default: " not in text:
        text += f" (default: {setting.default})"
    # Where there are choices, they are shown instead of a value.
    metavar = "{" + ",".join(what) + "}" if isinstance(what, tuple) else "X"
    group.add_argument(name, type=value, metavar=metavar, help=text.replace("%", "%%"), **options)


def run(args: argparse.Namespace) -> int:
    """Train; 0 when done, 130 when stopped before the end."""
    from mask2former.training import train
    from mask2former.training.setup import check_run

    try:
        recipe = _recipe(args)
        check_run(args.out, recipe, args.resume)
        dataset, validation = _open(args)
        outcome = train(
            args.model,
            dataset,
            args.out,
            recipe,
            validation=validation,
            skip_bad=args.skip_bad,
            resume=args.resume,
        )
    except RecipeError as error:
        raise UsageError(str(error).rstrip(".")) from error
    except FloatingPointError as error:
        print(f"mask2former: {error}", file=sys.stderr)
        return 1
    return 0 if outcome.finished else 130


def _recipe(args: argparse.Namespace) -> Recipe:
    """Defaults, then the settings of a run that is resumed, then the file's, then the arguments."""
    from mask2former.training.run import RECIPE_FILE

    values: dict[str, Any] = {}
    if args.resume and (args.out / RECIPE_FILE).exists():
        values |= read_recipe(args.out / RECIPE_FILE)
    if args.config is not None:
        values |= read_recipe(args.config)
    names = {setting.name for setting in dataclasses.fields(Recipe)}
    values |= {name: value for name, value in vars(args).items() if name in names}
    return Recipe(**values)


def _open(args: argparse.Namespace) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """The data set to train on, and the one to evaluate on if there is one."""
    from mask2former.data.open_dataset import find_dataset
    from mask2former.training.setup import only_val_split, val_split

    found = find_dataset(args.data)
    options = args.reduce_labels, args.skip_bad, args.task
    dataset = open_data(found, args.split, args.images, *options)
    if args.val_data is not None:
        found = find_dataset(args.val_data)
        split = args.val_split or only_val_split(found)
        return dataset, open_data(found, split, args.val_images, *options)
    split = args.val_split or val_split(found)
    if split is None:
        return dataset, None
    return dataset, open_data(found, split, args.val_images or args.images, *options)
