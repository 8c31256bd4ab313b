"""`mask2former inspect`: what is in a data set, and what is wrong with it."""

from __future__ import annotations

import argparse
import json
import os
import warnings
from dataclasses import asdict
from pathlib import Path

from mask2former.cli.options import add_data, not_negative, open_data, write_file

MOST_WORKERS = 8  # by default

DESCRIPTION = """\
Read every image and annotation of a data set once; print how much there is of each class, sizes,
void, every missing or damaged file, and what looks wrong in the labels; and draw a sheet of samples
with their masks. Look at it before you train.
"""
EPILOG = """\
examples:
  mask2former inspect coco/ --split val2017
  mask2former inspect my-data/ --out my-data.png --samples 24 --json my-data.json

exit status: 0 every file could be read, 1 some could not, 2 wrong usage
"""


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `inspect` to the command line."""
    parser = commands.add_parser(
        "inspect",
        help="count what is in a data set, and find what is wrong with it",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="folder or annotation file of the data set")
    add_data(parser, "train")
    add(
        "--out",
        type=Path,
        default=Path("contact-sheet.png"),
        help="the sheet to write (default: ./contact-sheet.png)",
    )
    add(
        "--samples",
        type=not_negative,
        default=12,
        metavar="N",
        help="samples on the sheet, 0 for no sheet (default: 12)",
    )
    add("--json", type=Path, metavar="FILE", help="write all results as JSON")
    add(
        "--workers",
        type=not_negative,
        default=min(MOST_WORKERS, os.cpu_count() or 1),
        help="processes that read the data; 0 reads it in this process (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the report and write the sheet; 1 if a file could not be read, else 0."""
    from mask2former.data.inspection.inspect_dataset import inspect_dataset
    from mask2former.data.inspection.text_report import report
    from mask2former.io.files import write_text

    dataset, notes = _open(args)
    found = inspect_dataset(dataset, args.workers, notes, progress=True)
    print(report(found))
    if args.json:
        content = json.dumps(asdict(found), indent=2, ensure_ascii=False) + "\n"
        write_file(args.json, "--json", lambda path: write_text(path, content))
    if args.samples and found.images:
        _write_sheet(dataset, args)
    return 1 if found.errors else 0


def _open(args: argparse.Namespace):
    """The data set, and the warnings raised by opening it."""
    from mask2former.data.open_dataset import find_dataset

    data = find_dataset(args.data)
    if args.split is None and args.data.is_dir() and len(data.splits) > 1:
        print(f"splits: {', '.join(data.splits)}; without --split this is train\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        dataset = open_data(data, args.split, args.images, args.reduce_labels, skip_bad=True)
    return dataset, [str(warning.message) for warning in caught]


def _write_sheet(dataset, args: argparse.Namespace) -> None:
    from mask2former.data.inspection.contact_sheet import contact_sheet
    from mask2former.images.visualization import save_png

    sheet = contact_sheet(dataset, args.samples)
    write_file(args.out, "--out", lambda path: save_png(sheet, path))
    print(f"\nsamples with their masks: {args.out}")
