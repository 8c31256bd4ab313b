"""What the models return."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.export import register_dataclass


@dataclass(eq=False)
class ModelOutput(Mapping):
    """Base of the output dataclasses: fields by name or by position, absent ones left out.

    `output["loss"]`, `output.loss` and `output[0]` are the same when the loss is there. Fields with
    the metadata `in_tuple=False` have a name but no position.

    A mapping of names to values may be given in place of the fields: `type(output)(dict(output))`
    is a copy. Accelerate rebuilds outputs in this way.
    """

    def __post_init__(self) -> None:
        first = getattr(self, dataclasses.fields(self)[0].name)
        if isinstance(first, Mapping):
            self.__init__(**first)

    def to_tuple(self) -> tuple[Any, ...]:
        """All present fields that have a position, in order."""
        return tuple(
            self[field_.name]
            for field_ in dataclasses.fields(self)
            if field_.name in self and field_.metadata.get("in_tuple", True)
        )

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in list(self):
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        for field_ in dataclasses.fields(self):
            if getattr(self, field_.name) is not None:
                yield field_.name

    def __len__(self) -> int:
        return len(list(iter(self)))


@dataclass(eq=False)
class Mask2FormerModelOutput(ModelOutput):
    """Output of `Mask2FormerModel`. N images, Q queries, C hidden_dim.

    Maps of the backbone and the pixel decoder may be channels last in memory, so to change their
    shape takes `reshape` or `flatten`, not `view`.

    Attributes:
        encoder_last_hidden_state: coarsest backbone map, (N, C_4, H/32, W/32).
        pixel_decoder_last_hidden_state: mask features, (N, mask_feature_size, H/4, W/4).
        transformer_decoder_last_hidden_state: (N, Q, C).
        encoder_hidden_states: all backbone maps, finest first; when asked for.
        pixel_decoder_hidden_states: maps of strides 32, 16, 8, (N, feature_size, h, w) each; when
            asked for.
        transformer_decoder_hidden_states: queries before each layer and after the last,
            (N, Q, C) each; when asked for.
        transformer_decoder_intermediate_states: the same after the final layer norm, queries first:
            (Q, N, C) each; when asked for.
        masks_queries_logits: masks predicted from the learned queries and after each layer,
            (N, Q, H/4, W/4) each.
        attentions: self-attention probabilities of each decoder layer, (N, heads, Q, Q); when asked
            for.
    """

    encoder_last_hidden_state: Tensor | None = None
    pixel_decoder_last_hidden_state: Tensor | None = None
    transformer_decoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    pixel_decoder_hidden_states: tuple[Tensor, ...] | None = None
    transformer_decoder_hidden_states: tuple[Tensor, ...] | None = None
    transformer_decoder_intermediate_states: tuple[Tensor, ...] | None = None
    masks_queries_logits: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class Mask2FormerForUniversalSegmentationOutput(ModelOutput):
    """Output of `Mask2FormerForUniversalSegmentation`, which post-processing takes.

    Attributes:
        loss: scalar, the weighted sum of all losses; when labels were given.
        class_queries_logits: (N, Q, num_labels + 1), the last class is "no object".
        masks_queries_logits: (N, Q, H/4, W/4).
        auxiliary_logits: a dict with `class_queries_logits` and `masks_queries_logits` for each
            earlier prediction; when asked for.
        encoder_last_hidden_state ... attentions: as in `Mask2FormerModelOutput`.
        image_sizes: per image (height, width) of the real image and of the padded input, in pixels:
            (valid_height, valid_width, padded_height, padded_width). Has no position.
        loss_dict: the weighted losses by name, detached; when labels were given. Has no position.
    """

    loss: Tensor | None = None
    class_queries_logits: Tensor | None = None
    masks_queries_logits: Tensor | None = None
    auxiliary_logits: list[dict[str, Tensor]] | None = None
    encoder_last_hidden_state: Tensor | None = None
    pixel_decoder_last_hidden_state: Tensor | None = None
    transformer_decoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    pixel_decoder_hidden_states: tuple[Tensor, ...] | None = None
    transformer_decoder_hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_sizes: list[tuple[int, int, int, int]] | None = field(
        default=None, metadata={"in_tuple": False}
    )
    loss_dict: dict[str, Tensor] | None = field(default=None, metadata={"in_tuple": False})


# Without it DistributedDataParallel and torch.export do not find the tensors of an output.
for _output in (Mask2FormerModelOutput, Mask2FormerForUniversalSegmentationOutput):
    register_dataclass(_output)
