"""`mask2former predict`: images in; overlays, id maps and lists of segments out."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mask2former.cli.options import (
    TASKS,
    add_model,
    add_thresholds,
    choose_device,
    load_predictor,
    make_folder,
    thresholds,
)
from mask2former.cli.usage import UsageError
from mask2former.images.thresholds import DEFAULT_THRESHOLDS
from mask2former.io.errors import DataError

if TYPE_CHECKING:
    from mask2former.predictor import Predictor

DESCRIPTION = """\
Segment images. For every image NAME.jpg this writes into the output folder:

  NAME.overlay.png   the image with coloured masks, contours, labels and scores
  NAME.ids.png       the segment id of every pixel, id = R + 256 G + 65536 B as in COCO panoptic
                     files; 0 is no segment
  NAME.json          image, size, model, task, and for every segment its id, label, score, area
                     in pixels and bounding box [x, y, width, height]
"""
EPILOG = """\
examples:
  mask2former predict photo.jpg
  mask2former predict holiday/ --out segmented --task instance
  mask2former predict photo.jpg --model facebook/mask2former-swin-tiny-coco-panoptic
  mask2former predict a.png b.png --model my-model/ --device cpu --threshold 0.8
"""


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `predict` to the command line."""
    parser = commands.add_parser(
        "predict",
        help="segment images or folders of images",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="image file, or folder of images")
    add_model(parser)
    add("--task", choices=TASKS, help="default: what the model was trained for, else panoptic")
    add("--out", type=Path, default=Path("mask2former-out"), help="default: ./mask2former-out")
    add_thresholds(parser, "thresholds of instance and panoptic segmentation", DEFAULT_THRESHOLDS)


def run(args: argparse.Namespace) -> int:
    """Segment every image that can be read; 1 if any could not, else 0."""
    device = choose_device(args.device)
    images, errors = _find_images(args.images)
    _check_names(images, args.out)
    for error in errors:
        _report(error)
    done = 0
    if images:
        make_folder(args.out)
        if args.model is None:
            print(
                "mask2former: the bundled model knows only rendered shapes on sky, ground and "
                "water; for photographs name a model with --model.",
                file=sys.stderr,
            )
        predictor = load_predictor(args.model, device, task=args.task, thresholds=thresholds(args))
        done = _predict_all(images, predictor, args)
    failed = len(images) - done + len(errors)
    where = f"; the results are in {args.out}" if done else ""
    print(f"{done} {'image' if done == 1 else 'images'} segmented, {failed} failed{where}")
    return 1 if failed else 0


def _find_images(paths: list[Path]) -> tuple[list[Path], list[DataError]]:
    """The image files that the arguments name, each once, and the errors of the others."""
    images: dict[Path, Path] = {}
    errors = []
    for path in paths:
        try:
            images.update((image.resolve(), image) for image in _expand(path))
        except DataError as error:
            errors.append(error)
    return list(images.values()), errors


def _expand(path: Path) -> list[Path]:
    from mask2former.images.read import IMAGE_SUFFIXES

    try:
        if not path.exists():
            raise DataError(f"{path} does not exist; check the path.")
        if not path.is_dir():
            return [path]
        images = [file for file in sorted(path.iterdir()) if file.suffix.lower() in IMAGE_SUFFIXES]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    if not images:
        raise DataError(f"The folder {path} holds no images ({' '.join(IMAGE_SUFFIXES)}).")
    return images


def _check_names(images: list[Path], out: Path) -> None:
    """UsageError if a result would replace another image's, or an input."""
    owners: dict[str, Path] = {}
    inputs = {image.resolve() for image in images}
    for image in images:
        # In some file systems cat.png and Cat.png are one file.
        other = owners.setdefault(image.stem.casefold(), image)
        if other is not image:
            raise UsageError(
                f"{other} and {image} would have results of the same name, "
                f"{_outputs(image, out)[0].name}; rename one, or use two runs and two --out folders"
            )
        for path in _outputs(image, out):
            if path.resolve() in inputs:
                raise UsageError(
                    f"the result {path} would replace an input of that name; give another --out"
                )


def _outputs(image: Path, out: Path) -> tuple[Path, Path, Path]:
    """Where the overlay, the id map and the JSON of an image go."""
    stem = image.stem
    return out / f"{stem}.overlay.png", out / f"{stem}.ids.png", out / f"{stem}.json"


def _predict_all(images: list[Path], predictor: Predictor, args: argparse.Namespace) -> int:
    """Segment the images one by one and return how many were done."""
    from tqdm import tqdm

    done = 0
    for image in tqdm(images, unit="image", disable=len(images) < 2):
        try:
            _predict_one(image, predictor, args)
            done += 1
        except DataError as error:
            _report(error)
    return done


def _predict_one(path: Path, predictor: Predictor, args: argparse.Namespace) -> None:
    from mask2former.images.read import read_image
    from mask2former.images.visualization import draw_segments, id_map_to_rgb, save_png
    from mask2former.io.files import write_text

    image = read_image(path)
    found = predictor(image)
    about = {
        "image": str(path),
        "height": image.height,
        "width": image.width,
        "model": args.model or "bundled",
        "task": predictor.task,
        "segments": found.segments,
    }
    overlay, ids, segments = _outputs(path, args.out)
    try:
        save_png(draw_segments(image, found.ids, found.segments), overlay)
        save_png(id_map_to_rgb(found.ids), ids)
        write_text(segments, json.dumps(about, indent=2) + "\n")
    except OSError as error:
        raise DataError(
            f"The results of {path} cannot be written to {args.out} ({error.strerror}); "
            "make room and check permissions, or give another --out."
        ) from error


def _report(error: DataError) -> None:
    """Print to stderr, above a progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(f"mask2former: {error}", file=sys.stderr)
