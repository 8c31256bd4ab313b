"""Renaming, joining and splitting parameters by a declarative table.

A table is a list of rules (ours, theirs). Each side is a pattern, or a tuple of patterns whose
tensors, concatenated along the first dimension, equal the other side's. `*` stands for one dotted
part or a piece of one, `**` for any number of parts, and both are the same on both sides. For
example

    ("block.*.qkv.*", ("blocks.*.query.*", "blocks.*.key.*", "blocks.*.value.*"))

joins a foreign query, key and value when loading, and splits ours when saving.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

Side = str | tuple[str, ...]
Rule = tuple[Side, Side]


def translate(
    weights: dict[str, Tensor], rules: Iterable[Rule]
) -> tuple[dict[str, Tensor], list[str]]:
    """Apply (source, target) rules to `weights`.

    Returns:
        The translated weights, and the names that no rule could use, sorted.
    """
    remaining = dict(weights)
    translated = {}
    for source, target in rules:
        sources, targets = _patterns(source), _patterns(target)
        first = _regex(sources[0])
        for name in [name for name in remaining if first.fullmatch(name)]:
            fills = first.fullmatch(name).groups()
            names = [_fill(pattern, fills) for pattern in sources]
            if not all(n in remaining for n in names):
                continue
            parts = [remaining.pop(n) for n in names]
            joined = parts[0] if len(parts) == 1 else torch.cat(parts)
            pieces = [joined] if len(targets) == 1 else joined.chunk(len(targets))
            for pattern, piece in zip(targets, pieces, strict=True):
                translated[_fill(pattern, fills)] = piece
    return translated, sorted(remaining)


def reverse(rules: Iterable[Rule]) -> list[Rule]:
    """The table of the way back."""
    return [(theirs, ours) for ours, theirs in rules]


def _patterns(side: Side) -> tuple[str, ...]:
    return (side,) if isinstance(side, str) else side


def _regex(pattern: str) -> re.Pattern[str]:
    wild = {"*": "([^.]+)", "**": "(.+)"}
    pieces = re.split(r"(\*+)", pattern)
    return re.compile("".join(wild.get(piece) or re.escape(piece) for piece in pieces))


def _fill(pattern: str, fills: tuple[str, ...]) -> str:
    pieces = re.split(r"\*+", pattern)
    return pieces[0] + "".join(f + p for f, p in zip(fills, pieces[1:], strict=True))
