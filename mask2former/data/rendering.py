"""Renders scenes into data sets on disk: `python -m mask2former.data.rendering --out DIR`.

The layouts are as in published data sets, so every tool that reads these reads the scenes.
Pictures and masks are exact (PNG, RLE).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from mask2former.images.run_length import mask_to_rle
from mask2former.images.visualization import id_map_to_rgb, save_png
from mask2former.io.errors import DataError
from mask2former.io.files import write_text
from mask2former.scenes.scene import HELD_OUT_SEEDS, render_scene
from mask2former.scenes.taxonomies import TAXONOMIES, Category, Taxonomy

DESCRIPTION = f"""\
Render scenes as a data set of two splits, train and val, that no scene is common to.

formats:
  coco-panoptic   annotations/panoptic_SPLIT.json, annotations/panoptic_SPLIT/*.png, SPLIT/*.png
  coco-instances  annotations/instances_SPLIT.json (things only, RLE), SPLIT/*.png
  semantic        images/SPLIT/*.png, annotations/SPLIT/*.png whose pixels are 0 for the first class
                  of classes.txt, 1 for the second, ...

taxonomies:
  shapes          disc, box, triangle, star; sky, ground, water: what the bundled model knows
  outlines        round (discs), angular (boxes, triangles), spiky (stars); sky, surface (ground,
                  water): new classes to tune a model to

A scene is its seed. The splits take those from --first-seed on, train first. Seeds from
{HELD_OUT_SEEDS.start} never go into train; --held-out takes val from them.
"""


@dataclass(frozen=True)
class _Split:
    """One split of the data set to be written."""

    name: str
    root: Path
    size: int
    taxonomy: Taxonomy


# What `map` is, whether or not it works in several processes.
_Map = Callable[[Callable[[int], tuple[dict, list[dict]]], Sequence[int]], Iterator]
# Split and seed -> the picture's records for the json, if the format has one: (image, annotations).
_Writer = Callable[[_Split, int], tuple[dict, list[dict]]]


def render_dataset(
    out: Path,
    format: str,
    train: Sequence[int],
    val: Sequence[int],
    size: int = 192,
    taxonomy: str = "shapes",
    workers: int = 1,
) -> None:
    """Render scenes into a data set on disk. The same arguments give the same files.

    Args:
        out: folder that does not exist or is empty; after a failure it is as it was.
        format: "coco-panoptic", "coco-instances" or "semantic"; the command's help has the layouts.
        train, val: seeds of the scenes of each split; a split without seeds is not written.
        size: height and width in pixels.
        taxonomy: a key of `TAXONOMIES`.
        workers: processes that render; 1 is this process.

    Raises:
        ValueError: train and val have a seed in common, or train has one that is held out.
        DataError: the folder is not empty or cannot be written.
    """
    held_out = [seed for seed in train if seed >= HELD_OUT_SEEDS.start]
    if held_out:
        raise ValueError(
            f"train would hold the scene of seed {held_out[0]}, but seeds from "
            f"{HELD_OUT_SEEDS.start} are held out for tests; take smaller ones."
        )
    if common := set(train) & set(val):
        raise ValueError(f"Seed {min(common)} is in train and in val; give them different ones.")
    with _new_folder(out), _processes(workers) as run:
        for name, seeds in (("train", train), ("val", val)):
            if seeds:
                split = _Split(name, out, size, TAXONOMIES[taxonomy])
                _FORMATS[format](split, seeds, run)


@contextmanager
def _new_folder(out: Path) -> Iterator[None]:
    """Makes the folder; if writing into it fails, nothing of that stays behind."""
    existed = out.exists()
    if existed and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty folder; remove it or choose another.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        for path in out.iterdir() if out.is_dir() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if out.is_dir() and not existed:
            out.rmdir()
        if isinstance(error, OSError):
            raise DataError(
                f"{out} cannot be written ({error.strerror}); make room or choose another folder."
            ) from error
        raise


def _write_coco(kind: str, write: _Writer, split: _Split, seeds: Sequence[int], run: _Map) -> None:
    """Pictures first, then the JSON file that makes them a data set."""
    (split.root / split.name).mkdir()
    (split.root / "annotations").mkdir(exist_ok=True)
    if kind == "panoptic":
        (split.root / "annotations" / f"panoptic_{split.name}").mkdir()
    images, annotations = [], []
    for image, records in _for_all(write, split, seeds, run):
        images.append(image)
        annotations.extend(records)
    if kind == "instances":  # COCO numbers instances over the whole file
        annotations = [{"id": i, **record} for i, record in enumerate(annotations, start=1)]
    content = {
        "info": {"description": f"Scenes rendered by mask2former: {split.name}"},
        "images": images,
        "annotations": annotations,
        "categories": [
            _category_record(category, kind)
            for category in split.taxonomy.categories
            if category.is_thing or kind == "panoptic"
        ],
    }
    write_text(split.root / "annotations" / f"{kind}_{split.name}.json", json.dumps(content))


def _category_record(category: Category, kind: str) -> dict[str, Any]:
    supercategory = "thing" if category.is_thing else "stuff"
    record = {"id": category.id, "name": category.name, "supercategory": supercategory}
    return record | ({"isthing": int(category.is_thing)} if kind == "panoptic" else {})


def _panoptic_scene(split: _Split, seed: int) -> tuple[dict, list[dict]]:
    image, ids, segments = _picture(seed, split, split.root / split.name)
    path = split.root / "annotations" / f"panoptic_{split.name}" / image["file_name"]
    save_png(id_map_to_rgb(ids), path)
    records = [
        {"id": number, "category_id": category.id, "iscrowd": 0, **_area_and_box(ids == number)}
        for number, category in segments
    ]
    annotation = {"image_id": seed, "file_name": path.name, "segments_info": records}
    return image, [annotation]


def _instance_scene(split: _Split, seed: int) -> tuple[dict, list[dict]]:
    image, ids, segments = _picture(seed, split, split.root / split.name)
    return image, [
        {
            "image_id": seed,
            "category_id": category.id,
            "iscrowd": 0,
            **_area_and_box(ids == number),
            "segmentation": mask_to_rle(torch.from_numpy(ids == number)),
        }
        for number, category in segments
        if category.is_thing
    ]


def _write_semantic(split: _Split, seeds: Sequence[int], run: _Map) -> None:
    for folder in ("images", "annotations"):
        (split.root / folder / split.name).mkdir(parents=True)
    for _ in _for_all(_semantic_scene, split, seeds, run):
        pass
    names = [category.name for category in split.taxonomy.categories]
    write_text(split.root / "classes.txt", "\n".join(names) + "\n")


def _semantic_scene(split: _Split, seed: int) -> tuple[dict, list[dict]]:
    image, ids, segments = _picture(seed, split, split.root / "images" / split.name)
    labels = np.zeros(int(ids.max()) + 1, np.uint8)
    for number, category in segments:
        labels[number] = split.taxonomy.categories.index(category)
    path = split.root / "annotations" / split.name / image["file_name"]
    Image.fromarray(labels[ids]).save(path)
    return image, []


def _picture(
    seed: int, split: _Split, folder: Path
) -> tuple[dict, np.ndarray, list[tuple[int, Category]]]:
    """Write a scene's picture; its record in COCO's json, its map of ids, and its segments."""
    scene = render_scene(seed, split.size, split.size)
    record = {
        "id": seed,
        "file_name": f"{seed:012d}.png",
        "height": split.size,
        "width": split.size,
    }
    save_png(scene.image, folder / record["file_name"])
    return record, *split.taxonomy.annotate(scene)


def _area_and_box(mask: np.ndarray) -> dict[str, Any]:
    """Area and bounding box [x, y, width, height] of a mask, in pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    box = [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
    return {"area": int(mask.sum()), "bbox": box}


@contextmanager
def _processes(count: int) -> Iterator[_Map]:
    """A `map` that works in this many processes; one is this process."""
    if count == 1:
        yield map
        return
    # Two processes whose matrix library also starts threads wait for each other: 7 times slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with ProcessPoolExecutor(
        count, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        yield partial(pool.map, chunksize=16)


def _for_all(
    write: _Writer, split: _Split, seeds: Sequence[int], run: _Map
) -> Iterator[tuple[dict, list[dict]]]:
    """`write` on every seed; the results in the order of the seeds."""
    results = run(partial(write, split), seeds)
    return iter(tqdm(results, f"rendering {split.name}", len(seeds), unit="scene"))


_FORMATS: dict[str, Callable[[_Split, Sequence[int], _Map], None]] = {
    "coco-panoptic": partial(_write_coco, "panoptic", _panoptic_scene),
    "coco-instances": partial(_write_coco, "instances", _instance_scene),
    "semantic": _write_semantic,
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mask2former.data.rendering",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to make; may exist if it is empty")
    add("--format", choices=tuple(_FORMATS), default="coco-panoptic", help="default: %(default)s")
    add("--train", type=_count, default=300, metavar="N", help="scenes (default: %(default)s)")
    add("--val", type=_count, default=50, metavar="N", help="scenes (default: %(default)s)")
    add("--size", type=int, default=192, help="height and width in pixels (default: %(default)s)")
    add("--first-seed", type=_count, default=0, metavar="K", help="default: %(default)s")
    add("--held-out", action="store_true", help=f"take val from seeds {HELD_OUT_SEEDS.start} on")
    add("--taxonomy", choices=tuple(TAXONOMIES), default="shapes", help="default: %(default)s")
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    args = parser.parse_args(argv)
    middle = args.first_seed + args.train
    val_start = HELD_OUT_SEEDS.start if args.held_out else middle
    train, val = range(args.first_seed, middle), range(val_start, val_start + args.val)
    if not train and not val:
        parser.error("--train and --val are both 0; ask for at least one scene")
    if args.size < 32 or args.workers < 1:
        parser.error("--size must be at least 32 and --workers at least 1")
    try:
        render_dataset(args.out, args.format, train, val, args.size, args.taxonomy, args.workers)
    except DataError as error:
        print(f"mask2former: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        parser.error(str(error))
    print(f"{args.train} scenes for training and {args.val} for validation are in {args.out}")
    return 0


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


if __name__ == "__main__":
    sys.exit(main())
