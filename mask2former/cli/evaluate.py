"""`mask2former evaluate`: a model measured on a data set."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mask2former.cli.options import (
    add_data,
    add_model,
    add_skip_bad,
    add_thresholds,
    choose_device,
    load_predictor,
    make_folder,
    not_negative,
    open_data,
    positive,
    thresholds,
)
from mask2former.cli.usage import UsageError
from mask2former.images.thresholds import PAPER_THRESHOLDS
from mask2former.io.errors import DataError

if TYPE_CHECKING:
    from mask2former.data.open_dataset import FoundDataset

METRICS = ("pq", "ap", "boundary-ap", "miou")

DESCRIPTION = """\
Measure a model on a data set, at the images' own resolution: panoptic quality (pq), average
precision of instance masks (ap) and of their boundaries (boundary-ap), and mean intersection over
union of classes (miou). Prints one line per class and the means, and writes into the output folder:

  evaluation.json   every figure, per class and per image, with model, data, settings and versions
  evaluation.txt    what was printed
  worst.png         the images with the lowest scores, truth beside prediction

Classes are matched by name. Started by torchrun, every process takes its share of the images.
"""
EPILOG = """\
examples:
  mask2former evaluate --model my-model/ --data my-data/
  mask2former evaluate --model my-model/ --data coco/ --split val2017 --metrics ap,boundary-ap
  mask2former evaluate --model facebook/mask2former-swin-tiny-coco-panoptic --data coco/ \\
      --split val2017 --metrics pq,ap,miou --size 800,1333
"""


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `evaluate` to the command line."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a model on a data set",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add_model(parser)
    add("--data", required=True, type=Path, help="folder or annotation file of the data set")
    add_data(parser, "val")
    add_skip_bad(parser)
    add(
        "--metrics",
        type=_metrics,
        metavar="NAMES",
        help=f"some of {','.join(METRICS)} (default: pq,miou of panoptic data, ap of instances, "
        "miou of semantic data)",
    )
    add("--out", type=Path, default=Path("mask2former-evaluation"), help="default: ./%(default)s")
    add(
        "--size",
        type=_size,
        metavar="SHORT[,LONG]",
        help="pixels that the short side of an image is resized to, and the most for the long one: "
        "800,1333 for COCO, 512,2048 or 640,2560 for ADE20K, 1024,2048 for Cityscapes in the paper "
        "(default: as in the model's folder)",
    )
    add(
        "--paper-padding",
        action="store_true",
        help="let the padding of images take part in everything, as the paper's code does",
    )
    add("--worst", type=positive, default=6, metavar="N", help="images in worst.png (default: 6)")
    add(
        "--workers",
        type=not_negative,
        metavar="N",
        help="processes that read images ahead (default: 2 with a GPU, else 0)",
    )
    title = (
        "thresholds of panoptic segments, with the paper's defaults; of instances only the mask's"
    )
    add_thresholds(parser, title, PAPER_THRESHOLDS)


def _metrics(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in METRICS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(METRICS)}")
    return names


def _size(text: str) -> dict[str, int]:
    edges = [positive(edge) for edge in text.split(",")]
    if len(edges) > 2 or edges != sorted(edges):
        raise argparse.ArgumentTypeError(f"{text} is not the short and the long side, as 800,1333")
    return dict(zip(("shortest_edge", "longest_edge"), edges, strict=False))


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table and write the report."""
    from mask2former.data.open_dataset import as_task, find_dataset
    from mask2former.evaluation.dataset_predictor import DatasetPredictor
    from mask2former.evaluation.evaluate import check_metrics, evaluate

    with _processes(args.device) as (device, rank, ranks):
        found = find_dataset(args.data)
        split = _split(found, args)
        dataset = open_data(found, split, args.images, args.reduce_labels, args.skip_bad)
        metrics = check_metrics(dataset, args.metrics)
        if set(metrics) <= {"ap", "boundary-ap"}:
            dataset = as_task(dataset, "instance")  # the model may have no classes of stuff
        make_folder(args.out)
        loaded = load_predictor(args.model, device)
        model, processor = loaded.model, loaded.processor
        if args.size is not None:
            processor = replace(processor, size=args.size, do_resize=True)
        options = {"thresholds": thresholds(args), "paper_padding": args.paper_padding}
        results = evaluate(
            model,
            processor,
            dataset,
            metrics,
            skip_bad=args.skip_bad,
            gather=ranks > 1,
            workers=args.workers if args.workers is not None else 2 * (device.type == "cuda"),
            **options,
        )
        if rank > 0:
            return 0
        results = replace(results, skipped=[*dataset.skipped, *results.skipped])
        about = {
            "model": args.model or "bundled",
            "data": str(args.data),
            "split": split,
            "task": dataset.task,
            "metrics": list(metrics),
            "size": dict(processor.size) if processor.do_resize else None,
            **vars(thresholds(args)),
            "paper_padding": args.paper_padding,
        }
        predictor = DatasetPredictor(model, processor, dataset, **options)
        _write_report(results, about, predictor, dataset, args)
    return 0


def _split(found: FoundDataset, args: argparse.Namespace) -> str | None:
    """The split asked for, else the only one or the one for validation; None for a COCO file."""
    if args.split is not None or (args.data.is_file() and args.data.suffix.lower() == ".json"):
        return args.split
    names = list(found.splits)
    if not names:  # opening says so
        return None
    validation = [name for name in names if name.startswith("val")]
    for choice in (names, validation):
        if len(choice) == 1:
            return choice[0]
    if "val" in names:
        return "val"
    raise UsageError(f"{args.data} has {', '.join(names)}; say which with --split")


def _write_report(results, about: dict, predictor, dataset, args: argparse.Namespace) -> None:
    from mask2former.evaluation.report import as_json, class_table, draw_worst_images
    from mask2former.images.visualization import save_png
    from mask2former.io.files import write_text

    table = class_table(results)
    print(table)
    text = json.dumps(as_json(results, about), indent=2, allow_nan=False)
    try:
        write_text(args.out / "evaluation.txt", table + "\n")
        write_text(args.out / "evaluation.json", text + "\n")
        (args.out / "worst.png").unlink(missing_ok=True)  # left by another evaluation
        worst = draw_worst_images(results, predictor, dataset, args.worst)
        if worst is not None:
            save_png(worst, args.out / "worst.png")
    except OSError as error:
        raise DataError(
            f"The results cannot be written to {args.out} ({error.strerror}); make room and check "
            "permissions, or give another --out."
        ) from error
    for reason in results.skipped:
        print(f"mask2former: skipped: {reason}", file=sys.stderr)
    count = len(results.images)
    print(f"{count} {'image' if count == 1 else 'images'}; the report is in {args.out}")


@contextmanager
def _processes(device: str | None) -> Iterator[tuple]:
    """This process's device and rank, and the number of processes that torchrun started."""
    import torch
    from torch import distributed

    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        yield choose_device(device), 0, 1
        return
    if device in (None, "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield chosen, distributed.get_rank(), ranks
    finally:
        distributed.destroy_process_group()
