"""Image files to upright RGB images."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

from PIL import Image

from mask2former.images.tensors import rgb_image
from mask2former.io.errors import DataError

# Files of a folder with these suffixes are images. A file that is named may have any suffix.
IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg"),
    *(".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)

# What Pillow's decoders raise on damaged files, besides OSError.
DECODING_ERRORS = (SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def read_image(path: Path) -> Image.Image:
    """The image in a file, upright and in RGB (of an animation, the first frame).

    Raises:
        DataError: the file is missing, unreadable, truncated, not an image, too large, or its range
            of values is unknown.
    """
    return rgb_image(open_image(path), str(path))


def open_image(path: Path) -> Image.Image:
    """The image in a file, decoded, in the file's own mode and orientation.

    Raises:
        DataError: the file is missing, unreadable, truncated, not an image, or too large.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns at half of the size at which it raises. Only the error counts here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{path} is not an image that Pillow can read; convert it.") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large ({error}); scale it down or tile it.") from error
    except (OSError, *DECODING_ERRORS) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read ({reason}); is the file complete?") from error
    return image
