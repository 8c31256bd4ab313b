"""What the image processor returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class BatchFeature(dict):
    """A dict of tensors, or of lists of tensors: `model(**batch)`. Its entries are also attributes:
    `batch.pixel_values`.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the batch has no entry {name!r}; it has {list(self)}") from None

    def to(
        self,
        *targets: torch.device | torch.dtype | str | int,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> BatchFeature:
        """Moves every tensor to a device and casts floating-point ones to a dtype; in place.

        Either may be left out; both may be given by position or by name.
        """
        for target in targets:
            if isinstance(target, torch.dtype):
                dtype = target
            else:
                device = target

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else None)

        return self._converted(moved)

    def numpy(self) -> BatchFeature:
        """Replaces every tensor by a numpy array; in place."""
        return self._converted(lambda tensor: tensor.cpu().numpy())

    def _converted(self, convert: Callable[[Tensor], Any]) -> BatchFeature:
        for name, value in self.items():
            self[name] = [convert(v) for v in value] if isinstance(value, list) else convert(value)
        return self
