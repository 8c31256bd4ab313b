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

from mask2former.cli.predict import fraction, make_folder
from mask2former.cli.usage import UsageError
from mask2former.io.errors import DataError

if TYPE_CHECKING:
    from mask2former.data.open_dataset import FoundDataset

METRICS = ("pq", "ap", "boundary-ap", "miou")

DESCRIPTION = """\
Measure a model on a data set, at the images' own resolution: panoptic quality (pq), average
precision of instance masks (ap) and of their boundaries (boundary-ap), and mean intersection over
union of classes (miou). Prints a line per class and the means, and writes into the output folder:

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
    add("--model", help="model folder or Hugging Face name (default: the bundled small model)")
    add("--data", required=True, type=Path, help="folder or annotation file of the data set")
    add("--split", help="the part of the data set (default: val, or the only one)")
    add("--images", type=Path, help="folder of the images, where the data set does not say")
    add(
        "--metrics",
        type=_metrics,
        metavar="NAMES",
        help=f"some of {','.join(METRICS)} (default: pq,miou of panoptic data, ap of instances, "
        "miou of semantic data)",
    )
    add("--out", type=Path, default=Path("mask2former-evaluation"), help="default: ./%(default)s")
    add("--device", help="cpu, cuda, cuda:1, mps, ... (default: a GPU if there is one)")
    add(
        "--size",
        type=_size,
        metavar="SHORT[,LONG]",
        help="pixels that the short side of an image is resized to, and the most for the long one: "
        "800,1333 for COCO, 512,2048 or 640,2560 for ADE20K, 1024,2048 for Cityscapes in the paper "
        "(default: as in the model's folder)",
    )
    add("--worst", type=_count, default=6, metavar="N", help="images in worst.png (default: 6)")
    add("--reduce-labels", action="store_true", help="labels in PNG files count from 1, 0 is void")
    add("--skip-bad", action="store_true", help="leave out samples with bad annotations")
    add(
        "--workers",
        type=_whole,
        metavar="N",
        help="processes that read images ahead (default: 2 beside a GPU, else 0)",
    )
    thresholds = parser.add_argument_group("thresholds of panoptic segments, and of pixels in all")
    for name, default, meaning in (
        ("--threshold", 0.8, "class probability that a segment must exceed"),
        ("--mask-threshold", 0.5, "least mask probability of a pixel"),
        ("--overlap-threshold", 0.8, "least share of its mask that a segment keeps"),
    ):
        text = f"{meaning}, 0 to 1 (default: {default}, as in the paper)"
        thresholds.add_argument(name, type=fraction, default=default, metavar="X", help=text)


def _metrics(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in METRICS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(METRICS)}")
    return names


def _size(text: str) -> dict[str, int]:
    edges = [_count(edge) for edge in text.split(",")]
    if len(edges) > 2 or edges != sorted(edges):
        raise argparse.ArgumentTypeError(f"{text} is not the short and the long side, as 800,1333")
    return dict(zip(("shortest_edge", "longest_edge"), edges, strict=False))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer above 0")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 on")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table and write the report."""
    from mask2former.cli.inference import load_model
    from mask2former.data.open_dataset import as_task, find_dataset
    from mask2former.evaluation.evaluate import check_metrics, evaluate
    from mask2former.evaluation.segmenter import Segmenter

    with _processes(args.device) as (device, rank, ranks):
        found = find_dataset(args.data)
        split = _split(found, args)
        dataset = _open(found, split, args)
        metrics = check_metrics(dataset, args.metrics)
        if set(metrics) <= {"ap", "boundary-ap"}:
            dataset = as_task(dataset, "instance")  # the model need not know the stuff
        make_folder(args.out)
        model, processor = load_model(args.model, device)
        if args.size is not None:
            processor.size, processor.do_resize = args.size, True
        thresholds = {
            name: getattr(args, name)
            for name in ("threshold", "mask_threshold", "overlap_threshold")
        }
        results = evaluate(
            model,
            processor,
            dataset,
            metrics,
            skip_bad=args.skip_bad,
            gather=ranks > 1,
            workers=args.workers if args.workers is not None else 2 * (device.type == "cuda"),
            **thresholds,
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
            **thresholds,
        }
        segmenter = Segmenter(model, processor, dataset, **thresholds)
        _write_report(results, about, segmenter, dataset, args)
    return 0


def _split(found: FoundDataset, args: argparse.Namespace) -> str | None:
    """The split asked for, else of several the one for validation; None for a COCO file's own."""
    if args.split is not None or (args.data.is_file() and args.data.suffix.lower() == ".json"):
        return args.split
    names = list(found.splits)
    validation = [name for name in names if name.startswith("val")]
    for choice in (names, validation):
        if len(choice) == 1:
            return choice[0]
    if "val" in names:
        return "val"
    raise UsageError(f"{args.data} has {', '.join(names)}; say which with --split")


def _open(found: FoundDataset, split: str | None, args: argparse.Namespace):
    try:
        return found.open(
            split,
            images=args.images,
            reduce_labels=args.reduce_labels,
            skip_bad=args.skip_bad,
        )
    except ValueError as error:
        raise UsageError(str(error).rstrip(".")) from error


def _write_report(results, about: dict, segmenter, dataset, args: argparse.Namespace) -> None:
    from mask2former.evaluation.report import as_json, class_table, draw_worst_images
    from mask2former.images.visualization import save_png
    from mask2former.io.files import write_text

    table = class_table(results)
    print(table)
    text = json.dumps(as_json(results, about), indent=2, allow_nan=False)
    try:
        write_text(args.out / "evaluation.txt", table + "\n")
        write_text(args.out / "evaluation.json", text + "\n")
        (args.out / "worst.png").unlink(missing_ok=True)  # of another evaluation
        worst = draw_worst_images(results, segmenter, dataset, args.worst)
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
    """This process's device, its rank, and how many there are, which torchrun started."""
    import torch
    from torch import distributed

    from mask2former.cli.inference import choose_device

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
