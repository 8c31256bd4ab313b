"""Gradient checkpointing: less memory in training for about a third more time.

A checkpointed layer saves its inputs only; the backward pass runs it again for its activations
(Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"). Gradients are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm

# What `checkpoint` is told here, by the names of its options.
CHECKPOINT_OPTIONS: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": True}


class LayerStack(nn.Module):
    """A part of the model that calls its layers by `run`; the flag turns checkpointing on."""

    gradient_checkpointing: bool = False

    def run(self, layer: Callable, *inputs: Any) -> Any:
        """`layer(*inputs)`, checkpointed if the flag is set and gradients are recorded."""
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return layer(*inputs)

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            return nullcontext(), _frozen_statistics(self)

        return checkpoint(layer, *inputs, context_fn=contexts, **CHECKPOINT_OPTIONS)


class GradientCheckpointing:
    """The switch of both models, for all of their parts that have the flag.

    Nothing is checkpointed unless it is on.
    """

    supports_gradient_checkpointing = True

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """From now on backbone, pixel decoder and transformer decoder checkpoint their layers.

        Args:
            gradient_checkpointing_kwargs: what transformers' Trainer passes on; None or any of
                {"use_reentrant": False, "preserve_rng_state": True}, which always apply.

        Raises:
            ValueError: another option or value.
        """
        for name, value in (gradient_checkpointing_kwargs or {}).items():
            if name not in CHECKPOINT_OPTIONS or value is not CHECKPOINT_OPTIONS[name]:
                raise ValueError(
                    f"Gradient checkpointing with {name}={value!r} is not supported; leave it out, "
                    f"the options are always {CHECKPOINT_OPTIONS}."
                )
        self._set_gradient_checkpointing(True)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """`gradient_checkpointing_enable` by the name that newer versions of transformers call.

        Raises:
            ValueError: an argument differs from what `gradient_checkpointing_enable` does.
        """
        if every_n_layers != 1 or offload:
            raise ValueError(
                f"Gradient checkpointing with every_n_layers={every_n_layers!r} and "
                f"offload={offload!r} is not supported; leave both out."
            )
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """From now on all activations are saved for the backward pass."""
        self._set_gradient_checkpointing(False)

    activation_checkpointing_disable = gradient_checkpointing_disable

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any part checkpoints its layers."""
        return any(part.gradient_checkpointing for part in self._parts())

    def _set_gradient_checkpointing(self, value: bool) -> None:
        for part in self._parts():
            part.gradient_checkpointing = value

    def _parts(self) -> list[Any]:
        model: Any = getattr(self, "model", self)  # the bare model in the one with a class head
        return [model.backbone, model.pixel_decoder, model.transformer_decoder]


def count_batches_once(network: nn.Module) -> list[RemovableHandle]:
    """Hooks for a network with another library's checkpointing: batch norms count a batch once.

    Without them a batch enters the running statistics twice: in the forward pass, and when a
    checkpointed layer runs again in the backward pass.
    """
    handles = []
    for norm in _batch_norms(network):
        once = _CountingOnce()
        handles.append(norm.register_forward_pre_hook(once.before))
        # The second run ends by an exception, as soon as all activations are there.
        handles.append(norm.register_forward_hook(once.after, always_call=True))
    return handles


class _CountingOnce:
    """Before and after a batch norm runs; methods, because copies of a model copy them too."""

    def __init__(self) -> None:
        self.frozen = ExitStack()

    def before(self, norm: nn.Module, _: Any) -> None:
        # The private name is the only way to tell the second run from the first: torch has no
        # public one, and the other library calls `checkpoint` without our contexts.
        if torch._C._current_graph_task_id() != -1:  # within a backward pass
            self.frozen.enter_context(_frozen_statistics(norm))

    def after(self, *_: Any) -> None:
        self.frozen.close()


def _batch_norms(network: nn.Module) -> list[BatchNorm]:
    return [m for m in network.modules() if isinstance(m, BatchNorm) and m.track_running_stats]


@contextmanager
def _frozen_statistics(layer: nn.Module) -> Iterator[None]:
    """Within it batch norms of `layer` normalise by their batch, but do not count it again."""
    norms = _batch_norms(layer)
    saved = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, saved, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
