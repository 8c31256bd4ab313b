"""The settings of the image processor: their forms, checks, and old names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

SIZE_KEYS = (
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"height", "width"},
    {"max_height", "max_width"},
)
AREA_KEYS = ({"height", "width"},)
DEFAULT_SIZE = {"shortest_edge": 800, "longest_edge": 1333}

# What transformers has called processors with these settings. MaskFormer's are the same.
PROCESSOR_TYPES = re.compile(r"Mask2?Former(ImageProcessor(Fast|Pil)?|FeatureExtractor)")


def resize_target(size: Any, default_to_square: bool, pair_keys: tuple[str, str]) -> dict[str, int]:
    """`size` in any of its forms as a dict: see Mask2FormerImageProcessor. `pair_keys` says
    what the two numbers of a sequence are."""
    if size is None:
        return dict(DEFAULT_SIZE)
    if isinstance(size, int):
        size = {"height": size, "width": size} if default_to_square else {"shortest_edge": size}
    elif isinstance(size, (tuple, list)) and len(size) == 2:
        size = dict(zip(pair_keys, size, strict=True))
    return checked_size("size", size, SIZE_KEYS)


def checked_size(name: str, size: Any, allowed: Sequence[set[str]]) -> dict[str, int]:
    """The edges of `size` that are not None.

    Raises:
        ValueError: their names are not a set of `allowed`, or a length is no integer above 0.
    """
    if isinstance(size, Mapping):
        edges = {key: edge for key, edge in size.items() if edge is not None}
        if set(edges) in allowed and all(isinstance(e, int) and e > 0 for e in edges.values()):
            return edges
    keys = " or ".join(str(sorted(option)) for option in allowed)
    raise ValueError(f"{name} must be a dict with the keys {keys} and integers > 0, not {size!r}.")


def checked_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        choices = " or ".join(map(repr, allowed))
        raise ValueError(f"{name} must be {choices}, not {value!r}.")


def per_channel(name: str, values: Any, default: Sequence[float]) -> list[float]:
    """Three numbers, from three, from one for all, or from None for `default`."""
    values = default if values is None else values
    values = [values] * 3 if isinstance(values, (int, float)) else values
    numbers = isinstance(values, Sequence) and all(isinstance(v, (int, float)) for v in values)
    if numbers and len(values) == 3:
        return [float(value) for value in values]
    raise ValueError(f"{name} must be a number or three numbers, not {values!r}.")


def resampling(resample: Any) -> int:
    """The number of a PIL.Image.Resampling, given as one, as its number or name, or as a
    torchvision InterpolationMode, whose values are names."""
    name = getattr(resample, "value", resample)
    if name == "nearest-exact":
        name = "nearest"  # Pillow's NEAREST picks the same pixels
    if isinstance(name, str) and name.upper() in Image.Resampling.__members__:
        return int(Image.Resampling[name.upper()])
    if not isinstance(name, int) or name not in list(Image.Resampling):
        names = ", ".join(Image.Resampling.__members__)
        raise ValueError(f"resample must be one of {names}, not {resample!r}.")
    return name


def modern(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the names of old transformers versions replaced by today's.

    Raises:
        ValueError: they belong to another kind of processor.
    """
    settings = dict(settings)
    for key in ("image_processor_type", "feature_extractor_type"):
        kind = settings.pop(key, None)
        if kind is not None and not PROCESSOR_TYPES.fullmatch(str(kind)):
            raise ValueError(
                f"{key} is {kind!r}, which prepares images for another model; make the processor "
                "with Mask2FormerImageProcessor(...)."
            )
    for old, new in (("reduce_labels", "do_reduce_labels"), ("size_divisibility", "size_divisor")):
        value = settings.pop(old, None)
        if value is not None and settings.get(new) is None:
            settings[new] = value
    private, public = settings.pop("_max_size", None), settings.pop("max_size", None)
    longest = private if public is None else public
    size = settings.get("size")
    if longest is not None:
        size = DEFAULT_SIZE["shortest_edge"] if size is None else size
        size = {"shortest_edge": size} if isinstance(size, int) else size
        if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
            size = {**size, "longest_edge": longest}
        settings["size"] = size
    return settings
