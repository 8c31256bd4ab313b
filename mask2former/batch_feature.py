"""What the image processor returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class BatchFeature(dict):
    """A dict of tensors, or of lists of tensors, whose entries are also attributes.

    `model(**batch)` works, and so does `batch.pixel_values`.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the batch has no entry {name!r}; it has {list(self)}") from None

    def to(self, target: torch.device | torch.dtype | str | int) -> BatchFeature:
        """Moves every tensor to a device, or casts the floating-point ones to a dtype; in place."""

        def moved(tensor: Tensor) -> Tensor:
            keep = isinstance(target, torch.dtype) and not tensor.is_floating_point()
            return tensor if keep else tensor.to(target)

        return self._converted(moved)

    def numpy(self) -> BatchFeature:
        """Replaces every tensor by a numpy array; in place."""
        return self._converted(lambda tensor: tensor.cpu().numpy())

    def _converted(self, convert: Callable[[Tensor], Any]) -> BatchFeature:
        for name, value in self.items():
            self[name] = [convert(v) for v in value] if isinstance(value, list) else convert(value)
        return self
