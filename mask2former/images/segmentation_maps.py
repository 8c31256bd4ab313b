"""Maps of ids to binary masks and their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mask2former.images.resize import size_text
from mask2former.images.tensors import as_tensor, image_list, upright
from mask2former.io.errors import DataError

ID_MAP_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")

IdMap = Mapping[int, int]


def map_tensors(segmentation_maps: Any, images: list[Tensor]) -> list[Tensor] | None:
    """The maps (H, W), checked to have their images' sizes, on their images' devices."""
    if segmentation_maps is None:
        return None
    maps = image_list(segmentation_maps, 2)
    if len(maps) != len(images):
        raise ValueError(f"{len(maps)} segmentation maps for {len(images)} images; give one each.")
    tensors = [
        map_tensor(ids, i).to(image.device)
        for i, (ids, image) in enumerate(zip(maps, images, strict=True))
    ]
    for i, (ids, image) in enumerate(zip(tensors, images, strict=True)):
        if ids.shape != image.shape[-2:]:
            raise DataError(
                f"Segmentation map {i} is {size_text(ids.shape)} but its image is "
                f"{size_text(image.shape[-2:])} (height x width); give the map that belongs to it."
            )
    return tensors


def map_tensor(ids: Any, index: int) -> Tensor:
    """A map of ids as int64 (H, W).

    Args:
        ids: PIL image whose pixels are ids (of a palette image, its indices), or array or tensor
            (H, W), (1, H, W) or (H, W, 1) of integers, floating-point dtypes included.
        index: its number in the batch, for messages.

    Raises:
        DataError: it cannot be decoded. ValueError: it is not a map of integer ids.
    """
    name = f"Segmentation map {index}"
    if isinstance(ids, Image.Image):
        ids = id_array(ids, name)
    tensor = as_tensor(ids, name)
    if tensor.ndim == 3 and 1 in (tensor.shape[0], tensor.shape[2]):
        tensor = tensor.squeeze(0 if tensor.shape[0] == 1 else 2)
    if tensor.ndim != 2:
        raise ValueError(
            f"{name} must be of shape (height, width) with one id per pixel, not "
            f"{tuple(tensor.shape)}."
        )
    whole = tensor.long()
    if tensor.is_floating_point() and not torch.equal(whole.to(tensor.dtype), tensor):
        raise ValueError(f"{name} must hold integer ids, but it has fractions.")
    return whole


def id_array(image: Image.Image, name: str) -> np.ndarray:
    """An image of numbers as (height, width) of an integer or bool dtype.

    Args:
        image: of one channel; of a palette image, the numbers are the indices.
        name: begins the messages.

    Raises:
        DataError: it has colours, or cannot be decoded.
    """
    if image.mode not in ID_MAP_MODES:
        raise DataError(
            f"{name} is an image of mode {image.mode}, but a map has one number per pixel; decode "
            "its colours to numbers in one channel."
        )
    return np.array(upright(image, name))


def id_map_per_image(
    instance_id_to_semantic_id: IdMap | Sequence[IdMap] | None, images: int
) -> Sequence[IdMap | None]:
    """One mapping per image, from one for all or from None.

    Raises:
        ValueError: there are more or fewer mappings than images.
    """
    if instance_id_to_semantic_id is None or isinstance(instance_id_to_semantic_id, Mapping):
        return [instance_id_to_semantic_id] * images
    if len(instance_id_to_semantic_id) != images:
        raise ValueError(
            f"instance_id_to_semantic_id has {len(instance_id_to_semantic_id)} mappings for "
            f"{images} images; give one per image or a single one."
        )
    return instance_id_to_semantic_id


def masks_and_labels(
    ids: Tensor,
    instance_id_to_semantic_id: IdMap | None,
    ignore_index: int | None,
    do_reduce_labels: bool,
    index: int,
) -> tuple[Tensor, Tensor]:
    """bool masks (labels, H, W) and int64 labels (labels,) of an id map (H, W), in order of ids.

    Label `ignore_index` is dropped, and so is label 0 if labels are reduced. With a mapping, this
    holds for the labels of instances, and for ids that the mapping lacks. An id that the mapping
    gives another label is never dropped, whatever number it has.

    Raises:
        ValueError: an instance id has no semantic id; `index` says in which map.
    """
    void = {ignore_index, 0} if do_reduce_labels else {ignore_index}
    kept, labels = [], []
    for number in ids.unique().tolist():
        label = number
        if instance_id_to_semantic_id is not None and number not in instance_id_to_semantic_id:
            if number not in void:
                raise ValueError(
                    f"Segmentation map {index} has instance {number}, which "
                    "instance_id_to_semantic_id lacks; add it, or give it the ignore_index."
                )
        elif instance_id_to_semantic_id is not None:
            label = int(instance_id_to_semantic_id[number])
        if label not in void:
            kept.append(number)
            labels.append(label - do_reduce_labels)
    kept_ids, class_labels = torch.tensor([kept, labels], dtype=torch.int64, device=ids.device)
    return ids == kept_ids[:, None, None], class_labels
