"""From a model name and an image to a segmentation: what the commands share."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import mask2former
from mask2former.cli.usage import UsageError
from mask2former.images.processor import PROCESSOR_FILE, Mask2FormerImageProcessor
from mask2former.io.errors import DataError
from mask2former.modeling import Mask2FormerForUniversalSegmentation


@dataclass(frozen=True)
class Segmentation:
    """What a model saw in one image.

    Attributes:
        ids: int32 (height, width); the segment of every pixel, from 1; 0 is no segment.
        segments: one dict each: "id", "label_id", "label", "score" (not in semantic results),
            "area" in pixels, "bbox" as [x, y, width, height] in pixels.
    """

    ids: np.ndarray
    segments: list[dict[str, Any]]


def choose_device(name: str | None) -> torch.device:
    """The device called `name`; without a name a GPU if there is one, else the CPU.

    Raises:
        UsageError: there is no such device in this machine, or torch cannot use it.
    """
    if name is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UsageError(
            f"device {name!r} cannot be used here ({reason}); give another --device or none"
        ) from error
    return device


def load_model(
    name_or_folder: str | Path | None, device: torch.device
) -> tuple[Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor]:
    """Model and image processor from a folder or the hub; None is the bundled model.

    A folder that a training script wrote may hold the model only; images are then prepared in the
    default way, which is said on stderr.

    Raises:
        DataError: the folder, the repository or a file in it is missing or not what it should be.
    """
    source = mask2former.BUNDLED_MODEL if name_or_folder is None else name_or_folder
    model = Mask2FormerForUniversalSegmentation.from_pretrained(source)
    return model.to(device), load_processor(source)


def load_processor(source: str | Path) -> Mask2FormerImageProcessor:
    """The image processor of a model folder or a repository, as `load_model` has it."""
    if Path(source).is_dir() and not Path(source, PROCESSOR_FILE).exists():
        print(
            f"mask2former: {source} has no {PROCESSOR_FILE}; images are resized to a short side of "
            "800 pixels and normalised as for ImageNet.",
            file=sys.stderr,
        )
        processor = Mask2FormerImageProcessor()
    else:
        processor = Mask2FormerImageProcessor.from_pretrained(source)
    processor.hf_compat = False  # whose segment ids can repeat, and id maps and lists cannot
    return processor


@torch.inference_mode()
def run_model(
    model: Mask2FormerForUniversalSegmentation,
    processor: Mask2FormerImageProcessor,
    image: Image.Image,
):
    """The model's output for one image, preprocessed by `processor` and moved to the model.

    Raises:
        DataError: the processor's settings do not suit the image, or the model.
    """
    try:
        inputs = processor(images=image, return_tensors="pt").to(model.device)
    except ValueError as error:
        raise DataError(f"The model's {PROCESSOR_FILE} does not suit the image: {error}") from error
    return model(**inputs, return_dict=True)


def segment_image(
    model: Mask2FormerForUniversalSegmentation,
    processor: Mask2FormerImageProcessor,
    image: Image.Image,
    task: str = "panoptic",
    *,
    threshold: float = 0.8,
    mask_threshold: float = 0.5,
    overlap_threshold: float = 0.8,
) -> Segmentation:
    """Segment one RGB image at its own resolution.

    The thresholds are those of the paper's evaluation code: a query counts if its score exceeds
    `threshold` (the class probability, in instance segmentation times the mean mask probability),
    a pixel belongs to it if its mask probability is at least
    `mask_threshold`, and a segment stays if at least `overlap_threshold` of its mask is not
    covered by others. Semantic segmentation has no thresholds.

    Args:
        task: "semantic", "instance" or "panoptic".
    """
    outputs = run_model(model, processor, image)
    sizes = [(image.height, image.width)]
    if task == "semantic":
        labels = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)[0]
        return _from_semantic(labels.cpu().numpy(), model.config.id2label)
    post_process = {
        "instance": processor.post_process_instance_segmentation,
        "panoptic": processor.post_process_panoptic_segmentation,
    }[task]
    result = post_process(
        outputs,
        threshold=threshold,
        mask_threshold=mask_threshold,
        overlap_mask_area_threshold=overlap_threshold,
        target_sizes=sizes,
    )[0]
    shift = 1 if task == "instance" else 0  # instance maps count from 0 and have void -1
    segments = [
        {
            "id": segment["id"] + shift,
            "label_id": segment["label_id"],
            "label": model.config.id2label[segment["label_id"]],
            "score": segment["score"],
        }
        for segment in result["segments_info"]
    ]
    return _measured(result["segmentation"].cpu().numpy() + shift, segments)


def _from_semantic(labels: np.ndarray, id2label: dict[int, str]) -> Segmentation:
    """One segment per class in the map; its id is the label id plus 1, since 0 is no segment."""
    segments = [
        {"id": label_id + 1, "label_id": label_id, "label": id2label[label_id]}
        for label_id in np.unique(labels).tolist()
    ]
    return _measured((labels + 1).astype(np.int32), segments)


def _measured(ids: np.ndarray, segments: list[dict[str, Any]]) -> Segmentation:
    """Add area and bounding box to every segment; each has at least one pixel in the map."""
    measured = []
    for segment in segments:
        mask = ids == segment["id"]
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        x, y = int(columns[0]), int(rows[0])
        bbox = [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]
        measured.append({**segment, "area": int(mask.sum()), "bbox": bbox})
    return Segmentation(ids, measured)
