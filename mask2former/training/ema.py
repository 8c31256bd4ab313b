"""The moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class AveragedWeights:
    """Exponential moving average of a model's parameters and buffers.

    The first updates count more, so that the start is forgotten: the decay of update n is
    min(decay, (1 + n) / (10 + n)), as in TensorFlow's ExponentialMovingAverage. Integer buffers are
    copied. The averages are sharded like the model, which `torch.optim.swa_utils.AveragedModel`, a
    copy of the module, does not allow.

    Attributes:
        updates: updates done.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.updates = model, decay, 0
        self.tensors = [tensor.detach().clone() for tensor in _tensors(model)]

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights that the model has now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        pairs = list(zip(self.tensors, _tensors(self.model), strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        averages, current = (list(side) for side in zip(*floating, strict=True))
        get_ema_multi_avg_fn(decay)(averages, current, None)
        for average, tensor in pairs:
            if not average.is_floating_point():
                average.copy_(tensor)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Swap the averaged weights and the model's own for the time of the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, tensor in zip(self.tensors, _tensors(self.model), strict=True):
            own = tensor.detach().clone()
            tensor.copy_(average)
            average.copy_(own)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
