"""What an evaluation found: as JSON, as a table, and as a picture of the worst images."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from PIL import Image

import mask2former
from mask2former.data.dataset import Sample, SegmentationDataset
from mask2former.data.sample_picture import named, panoptic_map, shrunk
from mask2former.evaluation.dataset_predictor import DatasetPredictor
from mask2former.evaluation.evaluate import Results
from mask2former.images.visualization import draw_segments, side_by_side

PANEL_SIDE = 640  # pixels, the longer side of a picture

NAME_LENGTH = 48  # characters of an image's name above its picture
SCORES = {"pq": "PQ", "miou": "mIoU", "overlap": "mean best overlap"}

# Columns of the table: key of a class, heading.
COLUMNS = {
    "pq": "PQ",
    "sq": "SQ",
    "rq": "RQ",
    "ap": "AP",
    "ap50": "AP50",
    "boundary_ap": "bAP",
    "iou": "IoU",
}
# Lines below the table: keys of figures, headings.
SUMMARY = (
    {"pq": "PQ", "sq": "SQ", "rq": "RQ", "pq_things": "PQ things", "pq_stuff": "PQ stuff"},
    {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
    | {f"ap_{area}": f"AP {area}" for area in ("small", "medium", "large")},
    {"ar1": "AR1", "ar10": "AR10", "ar100": "AR100"},
    {"boundary_ap": "boundary AP", "boundary_ap50": "AP50", "boundary_ap75": "AP75"}
    | {f"boundary_ap_{area}": f"AP {area}" for area in ("small", "medium", "large")},
    {"miou": "mIoU", "pixel_accuracy": "pixel accuracy"},
)


def as_json(results: Results, about: Mapping[str, Any]) -> dict[str, Any]:
    """All that was measured, ready for JSON; unknown figures are None.

    Args:
        about: model, data and settings of the evaluation; they come first.
    """
    return _without_nan(
        {
            **about,
            "versions": _versions(),
            "figures": results.figures,
            "classes": results.classes,
            "score_of_images": results.score,
            "images": results.images,
            "skipped": results.skipped,
        }
    )


def _versions() -> dict[str, str]:
    versions = {
        "mask2former": mask2former.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    with suppress(PackageNotFoundError):  # an extra that not every metric needs
        versions["faster-coco-eval"] = version("faster-coco-eval")
    return versions


def _without_nan(value: Any) -> Any:
    """The same with None for nan, because JSON has no nan."""
    if isinstance(value, Mapping):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def class_table(results: Results) -> str:
    """One line per class and then the means, as text; "-" for an unknown figure."""
    columns = [key for key in COLUMNS if key in results.classes[0]]
    width = max(len("class"), *(len(row["name"]) for row in results.classes)) + 1
    lines = ["class".ljust(width) + "".join(f"{COLUMNS[key]:>8}" for key in columns)]
    for row in results.classes:
        cells = "".join(f"{_figure(row[key]):>8}" for key in columns)
        lines.append(row["name"].ljust(width) + cells)
    for headings in SUMMARY:
        parts = [
            f"{heading} {_figure(results.figures[key])}"
            for key, heading in headings.items()
            if key in results.figures
        ]
        if parts:
            lines.append("  ".join(parts))
    return "\n".join(lines)


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def worst_images(results: Results, count: int) -> list[dict[str, Any]]:
    """The images with the lowest scores, lowest first; none without a score."""
    scored = [image for image in results.images if not math.isnan(image["score"])]
    return sorted(scored, key=lambda image: image["score"])[:count]


def draw_worst_images(
    results: Results, predictor: DatasetPredictor, dataset: SegmentationDataset, count: int = 6
) -> Image.Image | None:
    """Truth beside prediction, one row per image, the worst on top; None if no image has a score.

    The images are segmented once more, one at a time. Void is not coloured. Instances are
    shown if they reach the predictor's threshold.
    """
    rows = []
    for image in worst_images(results, count):
        sample = dataset[image["index"]]
        truth = panoptic_map(sample)
        score = f"{SCORES[results.score]} {image['score']:.2f}"
        rows.append(
            side_by_side(
                [
                    (f"{_shortened(sample.name)}: truth", _drawn(sample, *truth, dataset.id2label)),
                    (f"prediction, {score}", _prediction(sample, results, predictor)),
                ]
            )
        )
    if not rows:
        return None
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, ((sheet.width - row.width) // 2, top))
        top += row.height
    return sheet


def _shortened(name: str) -> str:
    """The end of a name, where names differ."""
    return name if len(name) <= NAME_LENGTH else "..." + name[-NAME_LENGTH:]


def _prediction(sample: Sample, results: Results, predictor: DatasetPredictor) -> Image.Image:
    """The sample with the kind of prediction that its score measures."""
    segment = {
        "pq": predictor.panoptic,
        "miou": predictor.semantic,
        "overlap": predictor.instance,
    }[results.score]
    found = segment(predictor.logits(sample.image, sample.name))
    return _drawn(sample, torch.from_numpy(found.ids), found.segments, predictor.id2label)


def _drawn(
    sample: Sample,
    ids: torch.Tensor,
    segments: Sequence[Mapping[str, Any]],
    id2label: Mapping[int, str],
) -> Image.Image:
    """The picture with its segments, at most `PANEL_SIDE` pixels long."""
    picture, small = shrunk(sample.image, ids, PANEL_SIDE)
    drawn = draw_segments(picture, small, named(segments, id2label))  # enlarges small pictures
    drawn.thumbnail((PANEL_SIDE, PANEL_SIDE))
    return drawn
