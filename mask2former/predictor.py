"""A model as one function: an image in, its segments out.

predictor = Predictor.from_pretrained("my-model")
found = predictor(Image.open("photo.jpg"))
found.ids, found.segments
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from mask2former.configuration.model import Task
from mask2former.images import post_processing
from mask2former.images.batch_feature import BatchFeature
from mask2former.images.processor import PROCESSOR_FILE, Mask2FormerImageProcessor
from mask2former.images.resize import Size, size_of
from mask2former.images.tensors import image_tensor
from mask2former.images.thresholds import DEFAULT_THRESHOLDS, Thresholds
from mask2former.io.errors import DataError
from mask2former.modeling import Mask2FormerForUniversalSegmentation


@dataclass(frozen=True)
class Segmentation:
    """The segments of one image.

    Attributes:
        ids: int32 (height, width), the segment of every pixel, from 1; 0 is void.
        segments: one dict per segment, in the order of ids: "id", "label_id", "label", "score"
            (not in semantic segmentation), "area" in pixels, "bbox" as [x, y, width, height] in
            pixels.
    """

    ids: np.ndarray
    segments: list[dict[str, Any]]


@dataclass(frozen=True)
class Logits:
    """What a model says of one image, in the form that post-processing takes.

    Attributes:
        class_queries_logits: floating (1, queries, classes + 1); the last is "no object".
        masks_queries_logits: floating (1, queries, h, w).
        image_sizes: [(valid height, valid width, padded height, padded width)] of the model's
            input in pixels; None where the masks show the image without padding.
        target_sizes: [(height, width)] of the image in pixels.
    """

    class_queries_logits: Tensor
    masks_queries_logits: Tensor
    image_sizes: Sequence[tuple[int, int, int, int]] | None
    target_sizes: list[Size]


class Predictor:
    """Segments images, one at a time and at their own resolution.

    Args:
        model: in evaluation mode, on any device.
        processor: prepares the images. Its `hf_compat` decides how images are prepared, never how
            segments are made.
        task: "panoptic", "instance" or "semantic"; default: the task in the model's configuration,
            or else panoptic.
        thresholds: of instance and panoptic segmentation.
        thing_label_ids: labels of countable things. Instance segmentation finds only these, and
            panoptic segmentation makes one segment of each other label. Default: those in the
            model's configuration, or else the processor's; where neither says, every label may
            be an instance.

    Raises:
        ValueError: there is no such task.
    """

    def __init__(
        self,
        model: Mask2FormerForUniversalSegmentation,
        processor: Mask2FormerImageProcessor,
        task: Task | None = None,
        *,
        thresholds: Thresholds = DEFAULT_THRESHOLDS,
        thing_label_ids: Collection[int] | None = None,
    ) -> None:
        self.model, self.processor, self.thresholds = model, processor, thresholds
        self.task: Task = task or model.config.task or "panoptic"
        if self.task not in get_args(Task):
            raise ValueError(f"task is {task!r}; give one of {', '.join(get_args(Task))}.")
        self.id2label = model.config.id2label
        if thing_label_ids is None:
            thing_label_ids = model.config.thing_label_ids
        if thing_label_ids is None:
            thing_label_ids = processor.thing_label_ids
        self.things = None if thing_label_ids is None else set(thing_label_ids)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        task: Task | None = None,
        device: torch.device | str | None = None,
        *,
        thresholds: Thresholds = DEFAULT_THRESHOLDS,
    ) -> Predictor:
        """Model and image processor from a folder or the hub.

        Args:
            name_or_folder: a folder that `save_pretrained` wrote, or a hub repository such as
                "facebook/mask2former-swin-tiny-coco-panoptic".
            device: default: a GPU if there is one that torch can use, else the CPU.

        Other arguments are those of the constructor. Where a folder has no settings for the image
        processor, it gets the default ones, with a warning.

        Raises:
            DataError: the folder, the repository or a file in it is missing or not what it should
                be.
            ValueError: there is no such task.
        """
        model = Mask2FormerForUniversalSegmentation.from_pretrained(name_or_folder)
        model.to(default_device() if device is None else device)
        return cls(model, load_processor(name_or_folder), task, thresholds=thresholds)

    def __call__(self, image: Any) -> Segmentation:
        """The segments of one image.

        Args:
            image: PIL image (EXIF orientation is applied), or array or tensor (H, W), (H, W, C) or
                (C, H, W) with 1, 3 or 4 channels and values from 0 to 255.

        Raises:
            DataError: the image cannot be decoded, or the processor's settings do not suit it.
            ValueError: type, dtype or shape do not suit an image.
        """
        segment = {
            "panoptic": self.panoptic,
            "instance": self.instance,
            "semantic": self.semantic,
        }[self.task]
        return segment(self.logits(image))

    @torch.inference_mode()
    def logits(self, image: Any, name: str = "the image") -> Logits:
        """The model's answer to one image, for the methods below; messages call the image `name`.

        Arguments and errors are as for a call.
        """
        processor = self.processor
        pixels = image_tensor(image, 0, processor.input_data_format, processor.do_convert_rgb)
        try:
            inputs = processor(pixels, input_data_format="channels_first", return_tensors="pt")
        except ValueError as error:
            raise DataError(
                f"The settings in {PROCESSOR_FILE} do not suit {name}: {error}"
            ) from error
        return self.forward(inputs.to(self.model.device), size_of(pixels))

    def forward(self, inputs: BatchFeature, size: Size) -> Logits:
        """Logits of prepared pixels; `size` is the image's own height and width."""
        outputs = self.model(**inputs, return_dict=True)
        return Logits(
            outputs.class_queries_logits,
            outputs.masks_queries_logits,
            outputs.image_sizes,
            [size],
        )

    def panoptic(self, logits: Logits) -> Segmentation:
        """Things and stuff; see `post_processing.panoptic_segmentation`."""
        stuff = set() if self.things is None else set(self.id2label) - self.things
        return self._segmentation(
            **post_processing.panoptic_segmentation(
                logits,
                self.thresholds.threshold,
                self.thresholds.mask_threshold,
                self.thresholds.overlap_threshold,
                label_ids_to_fuse=stuff,
                target_sizes=logits.target_sizes,
            )[0]
        )

    def instance(self, logits: Logits) -> Segmentation:
        """Things, the likelier above the other; see `post_processing.instance_segmentation`."""
        return self._segmentation(
            **post_processing.instance_segmentation(
                logits,
                self.thresholds.threshold,
                self.thresholds.mask_threshold,
                self.thresholds.overlap_threshold,
                target_sizes=logits.target_sizes,
                thing_label_ids=self.things,
            )[0]
        )

    def semantic(self, logits: Logits) -> Segmentation:
        """One segment for each label that occurs; its id is the label + 1."""
        labels = self.labels(logits)
        segments = [{"id": label + 1, "label_id": label} for label in labels.unique().tolist()]
        return self._segmentation((labels + 1).int(), segments)

    def labels(self, logits: Logits) -> Tensor:
        """The label of every pixel, int64 (H, W); see `post_processing.semantic_segmentation`."""
        return post_processing.semantic_segmentation(logits, logits.target_sizes)[0]

    def _segmentation(
        self, segmentation: Tensor, segments_info: list[dict[str, Any]]
    ) -> Segmentation:
        """The map, int32 (H, W), on the CPU, and all that is said of its segments."""
        ids = segmentation.cpu().numpy()
        segments = [
            {
                "id": segment["id"],
                "label_id": segment["label_id"],
                "label": self.id2label[segment["label_id"]],
                **({"score": segment["score"]} if "score" in segment else {}),
                **_measures(ids == segment["id"]),
            }
            for segment in segments_info
        ]
        return Segmentation(ids, segments)


def _measures(mask: np.ndarray) -> dict[str, Any]:
    """Area and bounding box of a mask, bool (H, W), with at least one pixel."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    x, y = int(columns[0]), int(rows[0])
    bbox = [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]
    return {"area": int(mask.sum()), "bbox": bbox}


def default_device() -> torch.device:
    """A GPU if there is one that torch can use, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


def load_processor(name_or_folder: str | Path) -> Mask2FormerImageProcessor:
    """The image processor of a model folder or a hub repository, as the paper's code has it.

    A folder that a training script wrote may hold the model only. Its images are then prepared in
    the default way, and a warning says so. A setting `hf_compat` in the file has no effect.

    Raises:
        DataError: the file is missing in a repository, or a setting is out of range.
    """
    if Path(name_or_folder).is_dir() and not Path(name_or_folder, PROCESSOR_FILE).exists():
        warnings.warn(
            f"{name_or_folder} has no {PROCESSOR_FILE}; images are resized to a short side of 800 "
            "pixels and normalised as for ImageNet.",
            stacklevel=2,
        )
        return Mask2FormerImageProcessor()
    return Mask2FormerImageProcessor.from_pretrained(name_or_folder, hf_compat=False)
