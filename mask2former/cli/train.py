"""`mask2former train`: a model fine-tuned on annotated images."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
from pathlib import Path
from typing import Any

from mask2former import BUNDLED_MODEL
from mask2former.cli.options import TASKS, add_data, add_skip_bad, open_data
from mask2former.cli.usage import UsageError
from mask2former.io.errors import DataError
from mask2former.training.recipe import Recipe, RecipeError, kind, parse, read_recipe

PICTURES = 4  # of validation images, for TensorBoard
IMAGES_PER_WORKER = 200  # so many at least for a process that reads validation images

DESCRIPTION = """\
Fine-tune a model on a data set. This writes into the output folder:

  model/             the model, for --model of the other commands: the best one where there is
                     data to evaluate it on, else the newest
  checkpoints/       what --resume goes on from
  recipe.yaml        all settings
  evaluated.json     metrics of the best model
  history.jsonl, curves.png, tensorboard/

The model gets the data set's classes, and keeps what it knows of those it has by the same name.
Ctrl-C and SIGTERM save before they end the run. Several GPUs:
accelerate launch -m mask2former train ...
"""
EPILOG = """\
examples:
  mask2former train --data scenes/ --out run/ --steps 150 --batch-size 4 --learning-rate 5e-4
  mask2former train --model facebook/mask2former-swin-tiny-coco-panoptic --data my-data/ --out run/
  mask2former train --model my-model/ --data train.json --val-data val.json --out run/ --steps 5000
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
    add("--resume", action="store_true", help="go on with the run in --out, if there is one")
    add("--config", type=Path, metavar="YAML", help="settings; those given here override it")
    settings = parser.add_argument_group("settings")
    for setting in dataclasses.fields(Recipe):
        _add_setting(settings, setting)


def _add_setting(group: argparse._ArgumentGroup, setting: dataclasses.Field) -> None:
    name, text = "--" + setting.name.replace("_", "-"), setting.metadata["help"]
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

    if setting.default not in (None, ""):
        default = setting.default
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else f"{default}"
        text += f" (default: {shown})"
    # Where there are choices, they are named instead of a value.
    metavar = "{" + ",".join(what) + "}" if isinstance(what, tuple) else "X"
    group.add_argument(name, type=value, metavar=metavar, help=text.replace("%", "%%"), **options)


def run(args: argparse.Namespace) -> int:
    """Train; 0 when done, 130 when stopped before the end."""
    try:
        return _train(args)
    except RecipeError as error:
        raise UsageError(str(error).rstrip(".")) from error
    except FloatingPointError as error:
        print(f"mask2former: {error}", file=sys.stderr)
        return 1


def _train(args: argparse.Namespace) -> int:
    from functools import partial

    from mask2former.data.batches import make_loader
    from mask2former.io.optional import require_package
    from mask2former.training.history import History
    from mask2former.training.progress import Progress
    from mask2former.training.run import check_folder, train
    from mask2former.training.tensorboard import TensorBoard

    require_package("accelerate", "Training", "mask2former[train]")
    recipe = _recipe(args)
    check_folder(args.out, recipe, args.resume)  # before the long work
    dataset = _open(args.data, args.split, args.images, args)
    validation = _validation(args)
    if validation:
        _check_same_classes(dataset, validation)
    model, processor, news = make_model(args.model, dataset, recipe)
    report = _report if os.environ.get("RANK", "0") == "0" else _silent
    for reason in (*dataset.skipped, *(validation.skipped if validation else ())):
        report(f"skipped: {reason}")
    for sentence in (*_summary(model, dataset, validation, recipe), *news):
        report(sentence)
    batches = partial(
        make_loader,
        dataset,
        processor,
        augmentation(recipe, processor, model.config.ignore_value),
        batch_size=recipe.images_per_pass,
        seed=recipe.seed,
        workers=recipe.workers,
        skip_bad=args.skip_bad,
    )
    outcome = train(
        model,
        processor,
        batches,
        recipe,
        args.out,
        evaluate=validation
        and partial(_evaluation, processor, validation, args.skip_bad, recipe.workers),
        watchers=[
            Progress(recipe.steps),
            History(args.out, report=report),
            TensorBoard(args.out, report=report),
        ],
        resume=args.resume,
        report=report,
    )
    for sentence in _ending(outcome, recipe):
        report(sentence)
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


def _open(path: Path, split: str | None, images: Path | None, args: argparse.Namespace):
    """A data set, seen as one for the task."""
    return open_data(path, split, images, args.reduce_labels, args.skip_bad, args.task)


def _validation(args: argparse.Namespace):
    """The data set to evaluate on, or None."""
    from mask2former.data.open_dataset import available_splits

    path, split, images = args.val_data, args.val_split, args.val_images
    given = path is not None
    if not given:
        path, images = args.data, images or args.images
    if split is None and path.is_dir():
        names = available_splits(path)
        split = next((name for name in names if name.startswith("val")), None)
    if not given and split is None:
        return None
    return _open(path, split, images, args)


def _check_same_classes(dataset, validation) -> None:
    """DataError where the validation data is not of the classes that are trained."""
    both = [
        [
            f"{name!r} ({'thing' if label in part.thing_label_ids else 'stuff'})"
            for label, name in sorted(part.id2label.items())
        ]
        for part in (dataset, validation)
    ]
    for label, (trained, measured) in enumerate(itertools.zip_longest(*both, fillvalue="missing")):
        if trained != measured:
            raise DataError(
                f"Class {label} is {trained} in the training data, but {measured} in the "
                "validation data; give both the same classes in the same order."
            )


def make_model(name_or_folder: str, dataset, recipe: Recipe) -> tuple[Any, Any, list[str]]:
    """The model with the data set's classes, its processor, and what it kept, in sentences.

    Raises:
        DataError: the model cannot be loaded.
        RecipeError: its backbone has no dropped branches, but the recipe has a rate for them.
    """
    import torch

    from mask2former.configuration import Mask2FormerConfig
    from mask2former.modeling import Mask2FormerForUniversalSegmentation
    from mask2former.predictor import load_processor
    from mask2former.training.class_head import set_classes

    torch.manual_seed(recipe.seed)
    config = Mask2FormerConfig.from_pretrained(name_or_folder)
    if recipe.dropout is not None:
        config.dropout = recipe.dropout
    if recipe.drop_path is not None:
        if not hasattr(config.backbone_config, "drop_path_rate"):
            raise RecipeError(f"drop_path is given, but the backbone of {name_or_folder} has none.")
        config.backbone_config.drop_path_rate = recipe.drop_path
    model = Mask2FormerForUniversalSegmentation.from_pretrained(name_or_folder, config=config)
    news = []
    if config.id2label != dataset.id2label:
        kept, new = set_classes(model, dataset.id2label)
        news.append(f"Class head: kept: {_names([*kept, 'no object'])}; new: {_names(new)}.")
    processor = load_processor(name_or_folder)
    processor.thing_label_ids = sorted(dataset.thing_label_ids)
    if recipe.short_side is not None:
        processor.size = _resized(processor.size, recipe.short_side)
    return model, processor, news


def _resized(size: dict[str, int], short_side: int) -> dict[str, int]:
    """The processor's size with another short side, and the longest in proportion to it."""
    if "shortest_edge" not in size:
        return {"shortest_edge": short_side}
    return {key: round(value * short_side / size["shortest_edge"]) for key, value in size.items()}


def augmentation(recipe: Recipe, processor, ignore_value: int):
    """The recipe's augmentation."""
    from mask2former.data.augmentation import coco_lsj, few_images, semantic_crop

    options = {"flip": recipe.flip, "void": recipe.void, "ignore_value": ignore_value}
    if recipe.augmentation == "lsj":
        return coco_lsj(recipe.crop_size, **options)
    if recipe.augmentation == "crop":
        return semantic_crop((recipe.crop_size, recipe.crop_size), **options)
    return few_images(processor, **options)


def _evaluation(processor, dataset, skip_bad: bool, workers: int, model):
    """The model's figures on a data set, and pictures of the first images."""
    from torch import distributed

    from mask2former.evaluation.dataset_predictor import DatasetPredictor
    from mask2former.evaluation.evaluate import evaluate
    from mask2former.evaluation.report import draw_worst_images
    from mask2former.training.run import Evaluation

    several = distributed.is_initialized() and distributed.get_world_size() > 1
    # A process takes as long to start as to read some hundred images.
    workers = min(workers, len(dataset) // IMAGES_PER_WORKER)
    results = evaluate(
        model, processor, dataset, skip_bad=skip_bad, workers=workers, gather=several
    )
    if several and distributed.get_rank() > 0:
        return Evaluation(results.figures)
    predictor = DatasetPredictor(model, processor, dataset)
    pictures = {}
    for image in results.images[:PICTURES]:
        one = dataclasses.replace(results, images=[image])
        picture = draw_worst_images(one, predictor, dataset, 1)
        if picture is not None:
            pictures[image["image"]] = picture
    return Evaluation(results.figures, pictures)


def _summary(model, dataset, validation, recipe: Recipe) -> list[str]:
    training = [p for p in model.parameters() if p.requires_grad]
    if recipe.freeze_backbone:
        frozen = {id(p) for p in model.model.backbone.parameters()}
        training = [p for p in training if id(p) not in frozen]
    count, total = (
        sum(p.numel() for p in parameters) / 1e6 for parameters in (training, model.parameters())
    )
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    devices = "1 process" if processes == 1 else f"{processes} processes"
    epochs = recipe.steps * recipe.batch_size / len(dataset)
    sentences = [
        f"{len(dataset)} images ({dataset.task}), {_classes(dataset.id2label)}; "
        f"{len(validation) if validation else 'none'} to evaluate on.",
        f"{recipe.steps} steps of {recipe.batch_size} images ({epochs:.1f} epochs), {devices}; "
        f"{count:.1f} of {total:.1f} million parameters train.",
    ]
    return sentences


def _ending(outcome, recipe: Recipe) -> list[str]:
    if not outcome.finished:
        return [
            f"Stopped after step {outcome.step} of {recipe.steps}; the same command with --resume "
            "goes on from there."
        ]
    best = ""
    if outcome.best is not None:
        name = recipe.best_metric or next(iter(outcome.best["metrics"]))
        figure = outcome.best["metrics"][name]
        best = f", the best one, of step {outcome.best['step']} with {name} {figure:.3f}"
    return [
        f"The model is in {outcome.model}{best}.",
        f"Use it: mask2former predict IMAGE --model {outcome.model}",
    ]


def _classes(id2label: dict[int, str]) -> str:
    """The number of classes and their names."""
    count = f"{len(id2label)} class" + ("" if len(id2label) == 1 else "es")
    return f"{count} ({_names(list(id2label.values()))})"


def _names(names: list[str], most: int = 8) -> str:
    """The names, if they are few."""
    shown = names if len(names) <= most else [*names[:most], f"... ({len(names)} in all)"]
    return ", ".join(shown) or "none"


def _report(sentence: str) -> None:
    """Print to stderr, above a progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(f"mask2former: {sentence}", file=sys.stderr)


def _silent(_: str) -> None:
    """What processes but the first say."""
