"""Images in any container (PIL, numpy, torch, lists of these) to one tensor each."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mask2former.io.errors import DataError

CHANNELS = (1, 3, 4)


def image_list(images: Any, dimensions: int) -> list[Any]:
    """The images one by one. An array or tensor with one dimension more than `dimensions` is a
    batch.

    Raises:
        ValueError: there are none.
    """
    is_batch = isinstance(images, (np.ndarray, Tensor)) and images.ndim == dimensions + 1
    images = list(images) if is_batch or isinstance(images, (list, tuple)) else [images]
    if not images:
        raise ValueError("There are no images; give at least one.")
    return images


def image_tensor(
    image: Any, index: int, input_data_format: str | None = None, convert_rgb: bool = True
) -> Tensor:
    """An image as (3, H, W): uint8 if it has 8 or 16 bits or is binary, else float32, unscaled.

    Args:
        image: PIL image, or array or tensor (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels.
        index: its number in the batch, for messages.
        input_data_format: "channels_first", "channels_last" or "none"; inferred if None.
        convert_rgb: if False, refuse an image that is not RGB.

    Raises:
        DataError: it cannot be decoded, has no pixels, or is of PIL mode I or F.
        ValueError: type, dtype or shape do not suit an image, or it is not RGB but should be.
    """
    name = f"Image {index}"
    if isinstance(image, Image.Image):
        pixels = torch.from_numpy(np.array(rgb_image(image, name))).permute(2, 0, 1)
        is_rgb = image.mode == "RGB"
    else:
        pixels = _channels_first(as_tensor(image, name), name, input_data_format)
        is_rgb = len(pixels) == 3
    if pixels.numel() == 0:
        raise DataError(f"{name} has no pixels (shape {tuple(pixels.shape)}); leave it out.")
    if not (is_rgb or convert_rgb):
        raise ValueError(
            f"{name} is not RGB, which do_convert_rgb=False demands; convert it first."
        )
    pixels = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels[:3]
    if pixels.dtype == torch.uint16:
        return _high_byte(pixels.int()).to(torch.uint8)
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    return pixels if pixels.dtype == torch.uint8 else pixels.float()


def warn_of_small_values(images: list[Tensor]) -> None:
    """Warns of images that seem to be rescaled already."""
    for i, image in enumerate(images):
        if image.is_floating_point() and 0 < image.max() <= 1:
            warnings.warn(
                f"Image {i} has values in 0 to 1, and rescale_factor would rescale them again; set "
                "do_rescale=False.",
                stacklevel=3,
            )


def rgb_image(image: Image.Image, name: str) -> Image.Image:
    """A PIL image of any mode but I and F, upright and in RGB. `name` begins the messages.

    Raises:
        DataError: it cannot be decoded, or is of mode I or F.
    """
    # Older versions of Pillow give 16-bit PNG files the mode I.
    has_16_bits = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG")
    image = upright(image, name)
    if has_16_bits:
        image = Image.fromarray(_high_byte(np.array(image, np.int32)).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(
            f"{name} is a PIL image of mode {image.mode}, whose range of values is unknown; "
            "convert it to 8 bits per channel first."
        )
    if "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns if this step is left out
    return image.convert("RGB")


def _high_byte(values: Any) -> Any:
    """16-bit values, int32 array or tensor, divided by 257 and rounded: 0 to 255."""
    return (values + 128) // 257


def upright(image: Image.Image, name: str) -> Image.Image:
    """The decoded image, rotated according to its EXIF orientation."""
    filename = getattr(image, "filename", "")
    if filename not in name:
        name = f"{name} ({filename})"
    try:
        image.load()
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError) as error:
        raise DataError(f"{name} cannot be decoded ({error}); replace the file.") from error


def as_tensor(values: Any, name: str) -> Tensor:
    """A tensor as it is, or a numpy array copied into one. `name` is for messages."""
    if isinstance(values, Tensor):
        tensor = values
    elif isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        # A copy: torch supports neither negative strides nor foreign byte order nor read-only.
        tensor = torch.from_numpy(np.array(values, values.dtype.newbyteorder("="), order="C"))
    else:
        kind = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(
            f"{name} must be a PIL image, a numpy array of numbers or a torch tensor, not {kind}."
        )
    if tensor.is_complex():
        raise ValueError(f"{name} must hold real numbers, not {tensor.dtype}.")
    return tensor


def _channels_first(pixels: Tensor, name: str, input_data_format: str | None) -> Tensor:
    """(C, H, W) of an image in either order or without channels.

    If both orders are possible, as in (3, H, 3), channels come first, as in transformers.
    """
    if pixels.ndim == 2 and input_data_format in (None, "none"):
        return pixels[None]
    if pixels.ndim == 3:
        if input_data_format is None:
            first = pixels.shape[0] in CHANNELS or pixels.shape[-1] not in CHANNELS
            input_data_format = "channels_first" if first else "channels_last"
        if input_data_format == "channels_last":
            pixels = pixels.permute(2, 0, 1)
        if input_data_format in ("channels_first", "channels_last") and len(pixels) in CHANNELS:
            return pixels
    raise ValueError(
        f"{name} of shape {tuple(pixels.shape)} and input_data_format {input_data_format!r} "
        "is not (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels."
    )
