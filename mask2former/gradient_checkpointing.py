"""Gradient checkpointing: less memory in training for about a third more time.

A checkpointed layer keeps its inputs only; the backward pass runs it again for what is inside (Chen
et al. 2016, "Training Deep Nets with Sublinear Memory Cost"). Gradients are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable, *inputs: Any) -> Any:
    """`function(*inputs)`, whose insides are never kept: the backward pass computes them again.

    For what is wide inside and cheap to compute, whether or not the layer around is checkpointed.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False)


class LayerStack(nn.Module):
    """A part of the model that calls its layers by `run`; the flag says how that is done."""

    gradient_checkpointing: bool = False

    def run(self, layer: nn.Module, *inputs: Any) -> Any:
        """`layer(*inputs)`, checkpointed if the flag is set and gradients are recorded."""
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return layer(*inputs)

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            return nullcontext(), _frozen_statistics(layer)

        return checkpoint(layer, *inputs, use_reentrant=False, context_fn=contexts)


class GradientCheckpointing:
    """The switch of both models, for all of their parts that have the flag."""

    supports_gradient_checkpointing = True

    def gradient_checkpointing_enable(self) -> None:
        """From now on backbone, pixel decoder and transformer decoder checkpoint their layers."""
        self._set_gradient_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        """From now on all activations are kept for the backward pass."""
        self._set_gradient_checkpointing(False)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any part checkpoints its layers."""
        return any(part.gradient_checkpointing for part in self._parts())

    def _set_gradient_checkpointing(self, value: bool) -> None:
        for part in self._parts():
            part.gradient_checkpointing = value

    def _parts(self) -> list[nn.Module]:
        model = getattr(self, "model", self)  # the bare model in the one with a class head
        return [model.backbone, model.pixel_decoder, model.transformer_decoder]


@contextmanager
def _frozen_statistics(layer: nn.Module) -> Iterator[None]:
    """Within it batch norms of `layer` see their batch, but do not count it a second time."""
    kinds = nn.BatchNorm2d | nn.SyncBatchNorm
    norms = [m for m in layer.modules() if isinstance(m, kinds) and m.track_running_stats]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
