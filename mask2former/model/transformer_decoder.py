"""Transformer decoder with masked attention, and the mask head (Cheng et al. 2022, section 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mask2former.configuration import NUM_LEVELS, Mask2FormerConfig
from mask2former.configuration.activations import ACTIVATIONS
from mask2former.model.gradient_checkpointing import LayerStack
from mask2former.model.padding import resize
from mask2former.model.pixel_decoder import PixelDecoderOutput
from mask2former.model.position import sine_position_embedding


@dataclass
class DecoderOutput:
    """One prediction per entry of `states`: from the learned queries, then after each layer.

    `last` is (N, Q, C); `states` are the same after the final layer norm, ready for the class head;
    `mask_embeddings` are (N, Q, mask_feature_size), to be multiplied with the mask features.
    `hidden_states` and `attentions` are filled when asked for.
    """

    last: Tensor
    states: list[Tensor] = field(default_factory=list)
    mask_embeddings: list[Tensor] = field(default_factory=list)
    hidden_states: list[Tensor] = field(default_factory=list)
    attentions: list[Tensor] = field(default_factory=list)


def mask_logits(mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
    """Masks of queries: (N, Q, C) and (N, C, H, W) -> logits (N, Q, H, W)."""
    return torch.einsum("nqc,nchw->nqhw", mask_embeddings, mask_features)


class Attention(nn.Module):
    """Multi-head attention with separate projections of query, key and value."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None
    ) -> Tensor:
        """(N, Q, C) queries over (N, S, C) keys; `allowed` bool (N, 1, Q, S), True to attend."""
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(
            self._heads(self.query(query)),
            self._heads(self.key(key)),
            self._heads(self.value(value)),
            allowed,
            dropout,
        )
        return self.output(out.transpose(1, 2).flatten(2))

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """The attention probabilities (N, heads, Q, S), for inspection."""
        query, key = self._heads(self.query(query)), self._heads(self.key(key))
        return (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward network; post-norm or pre-norm."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        dim, heads = config.hidden_dim, config.num_attention_heads
        self.pre_norm = config.pre_norm
        self.cross_attn = Attention(dim, heads, config.dropout)
        self.cross_attn_norm = nn.LayerNorm(dim)
        self.self_attn = Attention(dim, heads, config.dropout)
        self.self_attn_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, config.dim_feedforward)
        self.fc2 = nn.Linear(config.dim_feedforward, dim)
        self.final_norm = nn.LayerNorm(dim)
        self.activation = ACTIVATIONS[config.activation_function]
        self.dropout = nn.Dropout(config.dropout)

    def _residual(self, x: Tensor, norm: nn.LayerNorm, branch) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(branch(norm(x)))
        return norm(x + self.dropout(branch(x)))

    def mlp(self, x: Tensor) -> Tensor:
        """Two linear layers with the activation between them, on each query."""
        return self.fc2(self.dropout(self.activation(self.fc1(x))))

    def forward(
        self,
        x: Tensor,
        query_position: Tensor,
        memory: Tensor,
        memory_with_position: Tensor,
        allowed: Tensor,
        output_attentions: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """One step of the queries.

        Args:
            x, query_position: (N, Q, C).
            memory: values of the cross-attention, (N, S, C).
            memory_with_position: its keys, (N, S, C).
            allowed: bool (N, 1, Q, S), True to attend.
            output_attentions: also return the self-attention probabilities.

        Returns:
            the queries (N, Q, C), and the probabilities (N, heads, Q, Q) or None.
        """
        weights = None

        def cross_attention(y: Tensor) -> Tensor:
            return self.cross_attn(y + query_position, memory_with_position, memory, allowed)

        def self_attention(y: Tensor) -> Tensor:
            nonlocal weights
            with_position = y + query_position
            if output_attentions:
                weights = self.self_attn.weights(with_position, with_position)
            return self.self_attn(with_position, with_position, y)

        x = self._residual(x, self.cross_attn_norm, cross_attention)
        x = self._residual(x, self.self_attn_norm, self_attention)
        return self._residual(x, self.final_norm, self.mlp), weights


class TransformerDecoder(LayerStack):
    """Learned queries that look, layer by layer, only where their own last mask is."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.query_features = nn.Embedding(config.num_queries, dim)
        self.query_position = nn.Embedding(config.num_queries, dim)
        self.level_embed = nn.Embedding(NUM_LEVELS, dim)
        projects = config.feature_size != dim or config.enforce_input_projection
        self.input_projections = nn.ModuleList(
            [
                nn.Conv2d(config.feature_size, dim, 1) if projects else nn.Identity()
                for _ in range(NUM_LEVELS)
            ]
        )
        self.layers = nn.ModuleList(
            [DecoderLayer(config) for _ in range(config.decoder_layers - 1)]
        )
        self.norm = nn.LayerNorm(dim)
        widths = [dim, dim, dim, config.mask_feature_size]
        self.mask_embedder = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(widths)])
        self._initialise(config.init_xavier_std)

    @torch.no_grad()
    def _initialise(self, gain: float) -> None:
        """As in the paper's code, times `gain`: embeddings keep their standard normal, and the mask
        head nn.Linear's default."""
        for parameter in self.layers.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter, gain=gain)
        for attention in (m for m in self.layers.modules() if isinstance(m, Attention)):
            for projection in (attention.query, attention.key, attention.value):
                # In nn.MultiheadAttention they are one matrix, whose fan is twice as wide.
                nn.init.xavier_uniform_(projection.weight, gain=gain * math.sqrt(0.5))
                nn.init.zeros_(projection.bias)
            nn.init.zeros_(attention.output.bias)
        for projection in self.input_projections:
            if isinstance(projection, nn.Conv2d):
                nn.init.kaiming_uniform_(projection.weight, a=1)
                projection.weight.mul_(gain)
                if projection.bias is not None:
                    nn.init.zeros_(projection.bias)

    def embed_masks(self, states: Tensor) -> Tensor:
        """Mask embeddings (N, Q, mask_feature_size) of normalised states (N, Q, C)."""
        for linear in self.mask_embedder[:-1]:
            states = F.relu(linear(states))
        return self.mask_embedder[-1](states)

    def forward(
        self,
        pixels: PixelDecoderOutput,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> DecoderOutput:
        dtype = pixels.mask_features.dtype
        memories = [
            (project(level) + embed[:, None, None]).flatten(2).transpose(1, 2)
            for project, level, embed in zip(
                self.input_projections, pixels.levels, self.level_embed.weight, strict=True
            )
        ]
        memories_with_position = [
            x + sine_position_embedding(valid, x.shape[-1], dtype).flatten(2).transpose(1, 2)
            for x, valid in zip(memories, pixels.valid, strict=True)
        ]
        # Resizing is linear, so the mask at a level's size comes from features resized once.
        features = pixels.mask_features.detach()
        resized = [resize(features, x.shape[-2:], pixels.pixel_mask) for x in pixels.levels]
        n = pixels.mask_features.shape[0]
        x = self.query_features.weight.expand(n, -1, -1)
        query_position = self.query_position.weight.expand(n, -1, -1)
        out = DecoderOutput(last=x)
        self._predict(x, out)
        for index, layer in enumerate(self.layers):
            if output_hidden_states:
                out.hidden_states.append(x)
            level = index % NUM_LEVELS
            allowed = attention_mask(out.mask_embeddings[-1], resized[level], pixels.valid[level])
            x, weights = self.run(
                layer,
                x,
                query_position,
                memories[level],
                memories_with_position[level],
                allowed,
                output_attentions,
            )
            if output_attentions:
                out.attentions.append(weights)
            self._predict(x, out)
        if output_hidden_states:
            out.hidden_states.append(x)
        out.last = x
        return out

    def _predict(self, x: Tensor, out: DecoderOutput) -> None:
        out.states.append(self.norm(x))
        out.mask_embeddings.append(self.embed_masks(out.states[-1]))


@torch.no_grad()
def attention_mask(mask_embeddings: Tensor, features: Tensor, valid: Tensor) -> Tensor:
    """Where each query may look: inside its own mask (equation 2 of the paper).

    A query with an empty mask looks everywhere in the image.

    Args:
        mask_embeddings: (N, Q, C).
        features: mask features at the level's size, (N, C, H, W).
        valid: bool (N, H, W), True where there is image.

    Returns:
        bool (N, 1, Q, H * W), True to attend; one mask for all heads.
    """
    valid = valid.flatten(1)[:, None]
    inside = (mask_logits(mask_embeddings, features).flatten(2) >= 0) & valid
    empty = ~inside.any(-1, keepdim=True)
    return (inside | (empty & valid))[:, None]
