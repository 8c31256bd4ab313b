"""Mask2FormerImageProcessor: images and annotations to tensors, and logits to segmentations.

Names, arguments and defaults are those of transformers' documentation. All arithmetic is on torch
tensors on the device of the input.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mask2former.images.batch_feature import BatchFeature
from mask2former.images.hf_compat import TransformersRules
from mask2former.images.resize import (
    Size,
    center_cropped,
    padded,
    resized_by_pillow,
    resized_nearest,
    size_of,
    size_text,
)
from mask2former.images.rules import Rules
from mask2former.images.segmentation_maps import IdMap, id_map_per_image, map_tensors
from mask2former.images.settings import (
    AREA_KEYS,
    checked_choice,
    checked_size,
    modern,
    per_channel,
    resampling,
    resize_target,
)
from mask2former.images.tensors import image_list, image_tensor, warn_of_small_values
from mask2former.io.errors import DataError
from mask2former.io.files import read_json, write_text
from mask2former.io.hub import resolve_file

PROCESSOR_FILE = "preprocessor_config.json"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass
class Mask2FormerImageProcessor:
    """Prepares images and annotations for the model, and turns its outputs into segmentations.

    Args:
        do_resize: resize images and maps to `size`.
        size: {"shortest_edge": 800, "longest_edge": 1333} (the default; either the shortest edge
            gets its length or, if that would make the other too long, the longest), {"height": h,
            "width": w}, {"max_height": h, "max_width": w} (as large as fits), a sequence (w, h), or
            an int, the length of the shortest edge.
        size_divisor: the batch is padded at the bottom and right to a multiple of this; 0 for none.
        resample: a PIL.Image.Resampling, or torchvision's InterpolationMode. BILINEAR (the default)
            and NEAREST run on the input's device, the others in Pillow. Maps are always resized by
            nearest.
        do_rescale, rescale_factor: multiply pixel values by 1/255.
        do_normalize, image_mean, image_std: then subtract the mean and divide by the standard
            deviation, one number or one per channel; ImageNet's by default.
        ignore_index: id or label in segmentation maps whose pixels belong to nothing.
        do_reduce_labels: label 0 is background and belongs to nothing, and all others count from 1:
            they are decremented.
        num_labels: kept and saved for the reader of the file; nothing depends on it.
        pad_size: {"height": h, "width": w} to pad to instead of the largest of the batch.
        do_pad: if False nothing is padded, and only images of equal size can be stacked.
        default_to_square: a `size` that is an int is the length of all edges.
        do_center_crop, crop_size: after resizing, cut images and maps to at most {"height": h,
            "width": w} around their centre. A smaller image is left as it is.
        do_convert_rgb: if False, images that are not RGB are refused instead of converted.
        input_data_format: "channels_first", "channels_last" or "none"; inferred if not given.
        data_format: "channels_first" is the only one the model takes.
        device: where to work; default is where each image is.
        return_tensors: "pt" or "np" to stack the images, None for lists of tensors.
        disable_grouping: taken because it is documented; images are never grouped.
        thing_label_ids: labels of countable things. Instance segmentation then returns only these,
            and panoptic segmentation fuses all others unless told otherwise.
        hf_compat: reproduce transformers 5.23, bit-identical for uint8 images, where it departs
            from the paper's code or its own documentation: see docs/transformers.md.
        reduce_labels, size_divisibility, max_size: old names of do_reduce_labels, size_divisor and
            the longest edge of `size`.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    do_resize: bool = True
    size: Any = None  # in any form; a dict afterwards
    size_divisor: int = 32
    resample: Any = Image.Resampling.BILINEAR
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: float | Sequence[float] | None = None
    image_std: float | Sequence[float] | None = None
    ignore_index: int | None = None
    do_reduce_labels: bool = False
    num_labels: int | None = None
    pad_size: Mapping[str, int] | None = None
    _: dataclasses.KW_ONLY
    do_pad: bool = True
    default_to_square: bool = False
    do_center_crop: bool = False
    crop_size: Mapping[str, int] | None = None
    do_convert_rgb: bool = True
    input_data_format: str | None = None
    data_format: str = "channels_first"
    device: torch.device | str | None = None
    return_tensors: str | None = None
    disable_grouping: bool | None = None
    thing_label_ids: Collection[int] | None = None
    hf_compat: bool = False
    reduce_labels: dataclasses.InitVar[bool | None] = None
    size_divisibility: dataclasses.InitVar[int | None] = None
    max_size: dataclasses.InitVar[int | None] = None
    # keys of a loaded file that mean nothing here, written back by save_pretrained
    other_settings: dict[str, Any] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(
        self, reduce_labels: bool | None, size_divisibility: int | None, max_size: int | None
    ) -> None:
        old = {"reduce_labels": reduce_labels, "size_divisibility": size_divisibility}
        for name, value in modern({"size": self.size, "max_size": max_size, **old}).items():
            setattr(self, name, value)
        self.size = resize_target(self.size, self.default_to_square, self._rules.pair_keys)
        if self.pad_size is not None:
            self.pad_size = checked_size("pad_size", self.pad_size, AREA_KEYS)
        if self.do_center_crop or self.crop_size is not None:
            self.crop_size = checked_size("crop_size", self.crop_size, AREA_KEYS)
        if not isinstance(self.size_divisor, int) or self.size_divisor < 0:
            raise ValueError(f"size_divisor must be an integer >= 0, not {self.size_divisor!r}.")
        if not isinstance(self.rescale_factor, (int, float)) or self.rescale_factor == 0:
            raise ValueError(
                f"rescale_factor must be a number other than 0, not {self.rescale_factor!r}."
            )
        self.resample = resampling(self.resample)
        self.image_mean = per_channel("image_mean", self.image_mean, IMAGENET_MEAN)
        self.image_std = per_channel("image_std", self.image_std, IMAGENET_STD)
        if self.do_normalize and 0 in self.image_std:
            raise ValueError("image_std must not be 0; pixel values are divided by it.")
        checked_choice(
            "input_data_format",
            self.input_data_format,
            (None, "channels_first", "channels_last", "none"),
        )
        checked_choice("data_format", self.data_format, ("channels_first",))
        checked_choice("return_tensors", self.return_tensors, (None, "pt", "np"))
        if self.device is not None:
            self.device = str(self.device)  # as a file can hold it
        if self.thing_label_ids is not None:
            self.thing_label_ids = sorted(int(label) for label in self.thing_label_ids)

    @property
    def _rules(self) -> Rules:
        return TransformersRules() if self.hf_compat else Rules()

    # ---- images and maps to tensors -------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """`preprocess`."""
        return self.preprocess(*args, **kwargs)

    def preprocess(
        self,
        images: Any,
        segmentation_maps: Any = None,
        instance_id_to_semantic_id: IdMap | Sequence[IdMap] | None = None,
        **overrides: Any,
    ) -> BatchFeature:
        """Resizes, rescales, normalizes and pads images, and makes masks and labels of their maps.

        Args:
            images: one image or a list: PIL images of any mode but I and F (EXIF orientation is
                applied), numpy arrays or torch tensors (H, W), (H, W, C) or (C, H, W) with 1, 3 or
                4 channels, or a batch of four dimensions. Values are 0 to 255, uint16 0 to 65535;
                for values in 0 to 1 set do_rescale=False. Alpha is dropped.
            segmentation_maps: a map of integer ids (H, W) per image, as PIL image, array or tensor.
            instance_id_to_semantic_id: makes the ids of the maps instance ids; one mapping for all
                or one per image. Without it ids are labels.
            overrides: any argument of the constructor, for this call, such as return_tensors="pt",
                old names included; None means unchanged.

        Returns:
            pixel_values: float32 (N, 3, H, W).
            pixel_mask: int64 (N, H, W), 1 for pixels of the image and 0 for padding.
            mask_labels: with maps, a list of bool (labels, H, W), False in the padding. In
                transformers they are float32; the model takes both, bool is a quarter the memory.
            class_labels: with maps, a list of int64 (labels,), the label of each mask, in the order
                of ids.

        Raises:
            DataError: an image cannot be decoded, has a mode whose range is unknown, or does not
                fit its map.
            ValueError: an argument is wrong, or an instance id has no semantic id.
            TypeError: an override is no argument of the constructor.
        """
        processor = self.with_settings(**overrides)
        tensors = processor._tensors(images)
        maps = map_tensors(segmentation_maps, tensors)
        if processor.do_rescale:
            warn_of_small_values(tensors)
        if processor.do_resize:
            sizes = [processor.resized_size(size_of(image)) for image in tensors]
            tensors = [processor._resized_image(*pair) for pair in zip(tensors, sizes, strict=True)]
            if maps is not None:
                maps = [processor._resized_map(*pair) for pair in zip(maps, sizes, strict=True)]
        if (crop_size := processor.center_crop_size) is not None:
            tensors = [center_cropped(image, crop_size) for image in tensors]
            maps = maps and [center_cropped(ids, crop_size) for ids in maps]
        pixel_values = [processor._normalized(image) for image in tensors]
        return processor._batch(pixel_values, maps, instance_id_to_semantic_id)

    def encode_inputs(
        self,
        pixel_values_list: Sequence[Any],
        segmentation_maps: Any = None,
        instance_id_to_semantic_id: IdMap | Sequence[IdMap] | None = None,
        ignore_index: int | None = None,
        do_reduce_labels: bool | None = None,
        return_tensors: str | None = None,
        input_data_format: str | None = None,
        pad_size: dict[str, int] | None = None,
    ) -> BatchFeature:
        """`preprocess` without resizing, rescaling and normalizing: pads images and makes masks.

        Args:
            pixel_values_list: images (C, H, W) ready for the model, as `preprocess` takes them.

        Other arguments, results and errors are those of `preprocess`; None means the processor's.
        """
        processor = self.with_settings(
            ignore_index=ignore_index,
            do_reduce_labels=do_reduce_labels,
            return_tensors=return_tensors,
            input_data_format=input_data_format,
            pad_size=pad_size,
        )
        tensors = [image.float() for image in processor._tensors(pixel_values_list)]
        maps = map_tensors(segmentation_maps, tensors)
        return processor._batch(tensors, maps, instance_id_to_semantic_id)

    def resized_size(self, size: Size) -> Size:
        """(height, width) in pixels, at least 1, that an image of (height, width) is resized to."""
        height, width = size
        if "height" in self.size:
            new = (self.size["height"], self.size["width"])
        elif "max_height" in self.size:
            scale = min(self.size["max_height"] / height, self.size["max_width"] / width)
            new = (int(height * scale), int(width * scale))
        else:
            new = self._rules.shortest_edge_size(size, **self.size)
        new = (max(new[0], 1), max(new[1], 1))
        return self._rules.stretched_size(new, self.size_divisor)

    @property
    def center_crop_size(self) -> Size | None:
        """(height, width) in pixels that resized images are cut to; None if they are not."""
        if self.crop_size is None or not self._rules.crops(self.do_center_crop):
            return None
        return self.crop_size["height"], self.crop_size["width"]

    def with_settings(self, **changes: Any) -> Mask2FormerImageProcessor:
        """A copy with other settings. They are arguments of the constructor, old names included;
        None means unchanged.

        Raises:
            TypeError: one is no argument of the constructor. ValueError: one is out of range.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        # The old name of a part of the size, whose other part stays.
        if "max_size" in changes and "shortest_edge" in self.size:
            changes.setdefault("size", {"shortest_edge": self.size["shortest_edge"]})
        processor = dataclasses.replace(self, **modern(changes))
        processor.other_settings = dict(self.other_settings)
        return processor

    def _tensors(self, images: Any) -> list[Tensor]:
        return [
            image_tensor(image, i, self.input_data_format, self.do_convert_rgb).to(self.device)
            for i, image in enumerate(image_list(images, 3))
        ]

    def _resized_image(self, image: Tensor, size: Size) -> Tensor:
        return self._rules.resized_image(image, size, self.resample)

    def _resized_map(self, ids: Tensor, size: Size) -> Tensor:
        return self._rules.resized_map(ids, size)

    def _normalized(self, image: Tensor) -> Tensor:
        """float32 image (C, H, W); rescaling is folded into mean and deviation."""
        image = image.float()
        factor = self.rescale_factor if self.do_rescale else 1.0
        if not self.do_normalize:
            return image * factor
        mean, std = (
            torch.tensor(values, device=image.device)[:, None, None] * (1.0 / factor)
            for values in (self.image_mean, self.image_std)
        )
        return (image - mean) / std

    def _batch(
        self,
        images: list[Tensor],
        maps: list[Tensor] | None,
        id_maps: IdMap | Sequence[IdMap] | None,
    ) -> BatchFeature:
        """Padded images and what belongs to them; see `preprocess`."""
        sizes = self._padded_sizes([size_of(image) for image in images])
        ones = (torch.ones_like(image[0], dtype=torch.int64) for image in images)
        batch = BatchFeature(
            pixel_values=[padded(image, size) for image, size in zip(images, sizes, strict=True)],
            pixel_mask=[padded(mask, size) for mask, size in zip(ones, sizes, strict=True)],
        )
        if self.return_tensors is not None:
            if len(set(sizes)) > 1:
                raise ValueError(
                    f"Images of sizes {sizes} cannot be stacked without padding; set do_pad=True "
                    "or return_tensors=None."
                )
            batch.update({name: torch.stack(values) for name, values in batch.items()})
        if maps is not None:
            fill = self._rules.mask_padding(self.ignore_index)
            batch.update(mask_labels=[], class_labels=[])
            for i, id_map in enumerate(id_map_per_image(id_maps, len(maps))):
                masks, labels = self._rules.masks_and_labels(
                    maps[i], id_map, self.ignore_index, self.do_reduce_labels, i
                )
                batch["mask_labels"].append(padded(masks, sizes[i], fill))
                batch["class_labels"].append(labels)
        return batch.numpy() if self.return_tensors == "np" else batch

    def _padded_sizes(self, sizes: list[Size]) -> list[Size]:
        if not self._rules.pads(self.do_pad):
            return sizes
        if self.pad_size is None:
            largest = (max(height for height, _ in sizes), max(width for _, width in sizes))
            return [self._rules.padded_size(largest, self.size_divisor)] * len(sizes)
        target = (self.pad_size["height"], self.pad_size["width"])
        for i, size in enumerate(sizes):
            if size[0] > target[0] or size[1] > target[1]:
                raise ValueError(
                    f"Image {i} is {size_text(size)} after resizing, larger than pad_size "
                    f"{size_text(target)}; give a larger pad_size or a smaller size."
                )
        return [target] * len(sizes)

    # ---- outputs to segmentations ---------------------------------------------------------------

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Sequence[Size] | Tensor | None = None
    ) -> list[Tensor]:
        """A class map int64 (height, width) per image; see `post_processing.semantic_segmentation`.

        target_sizes are (height, width) per image in pixels; without them the maps have the
        resolution of the mask logits.
        """
        return self._rules.semantic_segmentation(outputs, target_sizes)

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: Sequence[Size] | Tensor | None = None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
    ) -> list[dict[str, Any]]:
        """{"segmentation", "segments_info"} per image; see `post_processing.instance_segmentation`.

        Unlike there, the map has -1 for void and ids from 0. With `thing_label_ids` only things are
        returned.
        """
        return self._rules.instance_segmentation(
            outputs,
            threshold,
            mask_threshold,
            overlap_mask_area_threshold,
            target_sizes,
            return_coco_annotation=bool(return_coco_annotation),
            return_binary_maps=bool(return_binary_maps),
            thing_label_ids=self.thing_label_ids,
        )

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Collection[int] | None = None,
        target_sizes: Sequence[Size] | Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """{"segmentation", "segments_info"} per image; see `post_processing.panoptic_segmentation`.

        The map is int32 with 0 for void and ids from 1. `label_ids_to_fuse` None means all labels
        but `thing_label_ids` if those are known, else none.
        """
        if label_ids_to_fuse is None:
            labels = outputs.class_queries_logits.shape[-1] - 1
            label_ids_to_fuse = self._rules.labels_to_fuse(labels, self.thing_label_ids)
        return self._rules.panoptic_segmentation(
            outputs,
            threshold,
            mask_threshold,
            overlap_mask_area_threshold,
            label_ids_to_fuse,
            target_sizes,
        )

    # ---- file -----------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The content of preprocessor_config.json: settings that are not None, and unknown keys."""
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        settings = {name: value for name, value in settings.items() if value is not None}
        # one name for all classes here, as transformers has it since version 5
        settings["image_processor_type"] = "Mask2FormerImageProcessor"
        return {**self.other_settings, **settings}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Mask2FormerImageProcessor:
        """A processor from the content of a preprocessor_config.json, old keys included.

        Keys that mean nothing here are kept. null means the default.

        Raises:
            ValueError: a setting is out of range, or they are for another kind of processor.
        """
        known = {f.name for f in dataclasses.fields(cls) if f.init}
        settings = modern(settings)
        processor = cls(**{k: v for k, v in settings.items() if k in known and v is not None})
        processor.other_settings = {k: v for k, v in settings.items() if k not in known}
        return processor

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> Mask2FormerImageProcessor:
        """A processor from the preprocessor_config.json of a local folder or a hub repository.

        `overrides` are arguments of the constructor, old names included; None means as in the file.

        Raises:
            DataError: the file is missing, is no JSON object, or holds a setting out of range.
        """
        path = resolve_file(
            name_or_folder,
            PROCESSOR_FILE,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        settings = read_json(path)
        try:
            processor = cls.from_dict(settings)
        except (TypeError, ValueError) as error:
            raise DataError(f"{path} cannot be used: {error}") from error
        return processor.with_settings(**overrides)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes preprocessor_config.json into `folder`, which is made if need be."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        write_text(Path(folder) / PROCESSOR_FILE, text)


class Mask2FormerImageProcessorPil(Mask2FormerImageProcessor):
    """Resizes images in Pillow on the CPU for every `resample`, so they are bit-identical to
    Pillow's; all else is the same. With `hf_compat` it agrees with transformers' processor of this
    name to 1e-6."""

    def _resized_image(self, image: Tensor, size: Size) -> Tensor:
        return resized_by_pillow(image, size, self.resample)

    def _resized_map(self, ids: Tensor, size: Size) -> Tensor:
        return resized_nearest(ids, size)


# transformers' other names for what is one class here
Mask2FormerImageProcessorFast = Mask2FormerImageProcessor
AutoImageProcessor = Mask2FormerImageProcessor
