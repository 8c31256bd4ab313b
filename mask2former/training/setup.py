"""Data set, model and recipe -> a training run."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import distributed

from mask2former.configuration import Mask2FormerConfig
from mask2former.data.augmentation import Augmentation, coco_lsj, few_images, semantic_crop
from mask2former.data.batches import make_loader
from mask2former.data.dataset import SegmentationDataset, Task
from mask2former.data.open_dataset import FoundDataset, as_task, find_dataset
from mask2former.evaluation.dataset_predictor import DatasetPredictor
from mask2former.evaluation.evaluate import evaluate
from mask2former.evaluation.report import draw_worst_images
from mask2former.images.processor import Mask2FormerImageProcessor
from mask2former.io.errors import DataError
from mask2former.io.optional import require_package
from mask2former.modeling import Mask2FormerForUniversalSegmentation
from mask2former.predictor import load_processor
from mask2former.training.callback import Callback
from mask2former.training.class_head import set_classes
from mask2former.training.history import History
from mask2former.training.progress import Progress, say
from mask2former.training.recipe import Recipe, RecipeError
from mask2former.training.run import Evaluation, Outcome, check_folder, nothing, train_on_batches
from mask2former.training.tensorboard import TensorBoard

PICTURES = 4  # validation images in TensorBoard
IMAGES_PER_WORKER = 200  # so many validation images at least for a process that reads them


def train(
    model: str | os.PathLike[str] | Mask2FormerForUniversalSegmentation,
    data: str | os.PathLike[str] | SegmentationDataset,
    out: str | os.PathLike[str],
    recipe: Recipe | None = None,
    *,
    validation: str | os.PathLike[str] | SegmentationDataset | None = None,
    processor: Mask2FormerImageProcessor | None = None,
    task: Task | None = None,
    skip_bad: bool = False,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    report: Callable[[str], None] = say,
) -> Outcome:
    """Fine-tune a model on a data set, on the devices that Accelerate finds or is launched on.

        train(model="my-model", data="scenes", out="run", recipe=Recipe(max_steps=150))

    The trained model gets the data set's classes. Rows of the class head are kept for classes that
    the model has by the same name, the others are re-initialised. The folder `out` gets model/,
    which `from_pretrained` reads: the best model where there is validation data, else the newest;
    checkpoints/, recipe.yaml, evaluated.json, history.jsonl, curves.png and tensorboard/. SIGTERM
    and SIGINT end the run after the step, with a checkpoint; a second SIGINT ends it at once.

    With `recipe.dataloader_num_workers` above 0, processes are spawned, so a script must call this
    below `if __name__ == "__main__":`.

    Args:
        model: a folder, a Hugging Face name, or a model, which stays as it is: a copy in float32 is
            trained.
        data: a folder or annotation file, as `mask2former.data.open_dataset` takes, of which the
            train split is used, or an open data set.
        out: the folder of the run, made if need be.
        recipe: all settings; default: `Recipe()`.
        validation: the data to evaluate on, as `data`; of a folder the val split, if it has one.
            Default: where `data` is a folder, its val split, if it has one; else none.
        processor: prepares images and is saved with the model; a copy is used. Default: the one in
            the model's folder, else `Mask2FormerImageProcessor()`.
        task: train for another task than the data set's; see `mask2former.data.task.as_task`.
        skip_bad: leave out samples with bad annotations and report them, instead of raising.
        callbacks: told about the run, beside progress bar, history and TensorBoard.
        resume: continue the run in `out`, if there is one. The recipe must be the same, apart from
            `mask2former.training.recipe.RESUMABLE`.
        report: called with each sentence for the user, in the first process. Default: prints to
            stderr.

    Raises:
        DataError: data or model cannot be read, `out` has a run already or cannot be written to, or
            a package is not installed.
        RecipeError: recipe, model, data and devices do not go together, or the run was begun with
            other settings.
        FloatingPointError: a loss or gradient is not finite. The message names step and images.
    """
    recipe, out = recipe or Recipe(), Path(out)
    if os.environ.get("RANK", "0") != "0":
        report = nothing
    check_run(out, recipe, resume)
    dataset, val = _open_both(data, validation, task, skip_bad)
    if val is not None:
        _check_same_classes(dataset, val)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        processor = make_processor(model, processor, dataset, recipe)
    network, sentences = make_model(model, dataset, recipe)
    for reason in (*dataset.skipped, *(val.skipped if val is not None else ())):
        report(f"skipped: {reason}")
    sentences += [str(warning.message) for warning in caught]
    for sentence in (*_summary(network, dataset, val, recipe), *sentences):
        report(sentence)
    batches = partial(
        make_loader,
        dataset,
        processor,
        augmentation(recipe, processor, network.config.ignore_value),
        batch_size=recipe.images_per_pass,
        seed=recipe.seed,
        workers=recipe.dataloader_num_workers,
        skip_bad=skip_bad,
    )
    workers = recipe.dataloader_num_workers
    outcome = train_on_batches(
        network,
        processor,
        batches,
        recipe,
        out,
        evaluate=None if val is None else partial(_evaluation, processor, val, skip_bad, workers),
        callbacks=[
            Progress(recipe.max_steps),
            History(out, report=report),
            TensorBoard(out, report=report),
            *callbacks,
        ],
        resume=resume,
        report=report,
    )
    for sentence in _ending(outcome, recipe):
        report(sentence)
    return outcome


def check_run(out: Path, recipe: Recipe, resume: bool) -> None:
    """What can be checked before the long work; errors are those of `train`."""
    require_package("accelerate", "Training", "mask2former[train]")
    check_folder(out, recipe, resume)


# ---- data ---------------------------------------------------------------------------------------


def _open_both(
    data: str | os.PathLike[str] | SegmentationDataset,
    validation: str | os.PathLike[str] | SegmentationDataset | None,
    task: Task | None,
    skip_bad: bool,
) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """The data to train on and the data to evaluate on, each recognised once."""
    found = data if isinstance(data, SegmentationDataset) else find_dataset(data)
    dataset = _open(found, None, task, skip_bad)
    if validation is None:
        if isinstance(found, SegmentationDataset) or val_split(found) is None:
            return dataset, None
        return dataset, _open(found, val_split(found), task, skip_bad)
    if isinstance(validation, SegmentationDataset):
        return dataset, _open(validation, None, task, skip_bad)
    found = find_dataset(validation)
    return dataset, _open(found, only_val_split(found), task, skip_bad)


def val_split(data: FoundDataset) -> str | None:
    """The name of a folder's split for validation; None where there is none, or no folder."""
    if not data.path.is_dir():
        return None
    return next((name for name in data.splits if name.startswith("val")), None)


def only_val_split(data: FoundDataset) -> str | None:
    """The split of a data set that is there for validation; None for the only one, or a file's own.

    Raises:
        DataError: it has several splits and none is for validation.
    """
    split = val_split(data)
    if split is None and data.path.is_dir() and len(data.splits) > 1:
        raise DataError(
            f"{data.path} has the splits {', '.join(data.splits)}, and none is called val; choose "
            "one with --val-split, or open it in Python."
        )
    return split


def _open(
    data: FoundDataset | SegmentationDataset,
    split: str | None,
    task: Task | None,
    skip_bad: bool,
) -> SegmentationDataset:
    """A data set, opened unless it is open, as one for the task."""
    if not isinstance(data, SegmentationDataset):
        data = data.open(split, skip_bad=skip_bad)
    try:
        return as_task(data, task or data.task)
    except ValueError as error:
        raise RecipeError(str(error)) from error


def _check_same_classes(dataset: SegmentationDataset, validation: SegmentationDataset) -> None:
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


def augmentation(
    recipe: Recipe, processor: Mask2FormerImageProcessor, ignore_value: int
) -> Augmentation:
    """The recipe's augmentation."""
    options = {"flip": recipe.flip, "void": recipe.void, "ignore_value": ignore_value}
    if recipe.augmentation == "lsj":
        return coco_lsj(recipe.crop_size, **options)
    if recipe.augmentation == "crop":
        return semantic_crop((recipe.crop_size, recipe.crop_size), **options)
    return few_images(processor, **options)


# ---- model --------------------------------------------------------------------------------------


def make_model(
    model: str | os.PathLike[str] | Mask2FormerForUniversalSegmentation,
    dataset: SegmentationDataset,
    recipe: Recipe,
) -> tuple[Mask2FormerForUniversalSegmentation, list[str]]:
    """The model to train, with the data set's classes, things and task; and sentences for the user.

    Raises:
        DataError: the model cannot be loaded.
        RecipeError: its backbone has no stochastic depth, but the recipe has a rate for it.
    """
    torch.manual_seed(recipe.seed)
    if isinstance(model, Mask2FormerForUniversalSegmentation):
        config = model.config
    else:
        config = Mask2FormerConfig.from_pretrained(os.fspath(model))
    config = Mask2FormerConfig.from_dict(config.to_dict())  # a copy, because it changes
    if recipe.dropout is not None:
        config.dropout = recipe.dropout
    if recipe.drop_path is not None:
        if not hasattr(config.backbone_config, "drop_path_rate"):
            raise RecipeError(
                f"drop_path is given, but the model's backbone ({config.backbone_config.model_type}"
                ") has no stochastic depth; leave drop_path out."
            )
        config.backbone_config.drop_path_rate = recipe.drop_path
    if isinstance(model, Mask2FormerForUniversalSegmentation):
        trained = Mask2FormerForUniversalSegmentation(config)
        trained.load_state_dict(model.state_dict())
        for ours, theirs in zip(trained.parameters(), model.parameters(), strict=True):
            ours.requires_grad_(theirs.requires_grad)
    else:
        name = os.fspath(model)
        trained = Mask2FormerForUniversalSegmentation.from_pretrained(name, config=config)
    sentences = []
    if trained.config.id2label != dataset.id2label:
        kept, new = set_classes(trained, dataset.id2label)
        sentences = [f"Class head: kept: {_names([*kept, 'no object'])}; new: {_names(new)}."]
    trained.config.task = dataset.task
    trained.config.thing_label_ids = sorted(dataset.thing_label_ids)
    return trained, sentences


def make_processor(
    model: str | os.PathLike[str] | Mask2FormerForUniversalSegmentation,
    processor: Mask2FormerImageProcessor | None,
    dataset: SegmentationDataset,
    recipe: Recipe,
) -> Mask2FormerImageProcessor:
    """A processor of the run's own, with the data set's things and the recipe's size."""
    if processor is not None:
        processor = copy.deepcopy(processor)
    elif isinstance(model, Mask2FormerForUniversalSegmentation):
        processor = Mask2FormerImageProcessor()
    else:
        processor = load_processor(os.fspath(model))
    processor.thing_label_ids = sorted(dataset.thing_label_ids)
    if recipe.short_side is not None:
        processor.size = _resized(processor.size, recipe.short_side)
    return processor


def _resized(size: dict[str, int], short_side: int) -> dict[str, int]:
    """The processor's size with another short side, and the longest in proportion to it."""
    if "shortest_edge" not in size:
        return {"shortest_edge": short_side}
    return {key: round(value * short_side / size["shortest_edge"]) for key, value in size.items()}


# ---- evaluation ---------------------------------------------------------------------------------


def _evaluation(
    processor: Mask2FormerImageProcessor,
    dataset: SegmentationDataset,
    skip_bad: bool,
    workers: int,
    model: Mask2FormerForUniversalSegmentation,
) -> Evaluation:
    """The model's metrics on a data set, and pictures of the first images."""
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


# ---- sentences ----------------------------------------------------------------------------------


def _summary(
    model: Mask2FormerForUniversalSegmentation,
    dataset: SegmentationDataset,
    validation: SegmentationDataset | None,
    recipe: Recipe,
) -> list[str]:
    frozen = model.model.backbone.parameters() if recipe.freeze_backbone else ()
    frozen = {id(parameter) for parameter in frozen}
    training = [p for p in model.parameters() if p.requires_grad and id(p) not in frozen]
    count, total = (
        sum(p.numel() for p in parameters) / 1e6 for parameters in (training, model.parameters())
    )
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    devices = "1 process" if processes == 1 else f"{processes} processes"
    epochs = recipe.max_steps * recipe.global_batch_size / len(dataset)
    classes = f"{len(dataset.id2label)} class" + ("" if len(dataset.id2label) == 1 else "es")
    return [
        f"{len(dataset)} images ({dataset.task}), {classes} "
        f"({_names(list(dataset.id2label.values()))}); "
        f"{len(validation) if validation else 'none'} to evaluate on.",
        f"{recipe.max_steps} steps of {recipe.global_batch_size} images ({epochs:.1f} epochs), "
        f"{devices}; {count:.1f} of {total:.1f} million parameters train.",
    ]


def _ending(outcome: Outcome, recipe: Recipe) -> list[str]:
    if not outcome.finished:
        return [
            f"Stopped after step {outcome.step} of {recipe.max_steps}; to go on from there, resume "
            "the run (--resume)."
        ]
    best = ""
    if outcome.best is not None:
        name = recipe.metric_for_best_model or next(iter(outcome.best["metrics"]))
        metric = outcome.best["metrics"][name]
        best = f", the best one, of step {outcome.best['step']} with {name} {metric:.3f}"
    return [
        f"The model is in {outcome.model}{best}.",
        f"Use it: mask2former predict IMAGE --model {outcome.model}",
    ]


def _names(names: list[str], most: int = 8) -> str:
    """The names, if they are few, else the first ones and their number."""
    shown = names if len(names) <= most else [*names[:most], f"... ({len(names)} in all)"]
    return ", ".join(shown) or "none"
