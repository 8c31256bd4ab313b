"""Renaming, joining and splitting parameters by a declarative table, and strict loading through it.

A table is a list of rules (ours, theirs). Each side is a pattern, or a tuple of patterns whose
tensors, concatenated along the first dimension, equal the other side's. `*` stands for one dotted
part or a piece of one, `**` for any number of parts, and both are the same on both sides. For
example

    ("block.*.qkv.*", ("blocks.*.query.*", "blocks.*.key.*", "blocks.*.value.*"))

joins a foreign query, key and value when loading, and splits ours when saving.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from mask2former.io.errors import DataError

Side = str | tuple[str, ...]
Rule = tuple[Side, Side]

COUNTER = ".num_batches_tracked"


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
        for match in [match for match in map(first.fullmatch, remaining) if match]:
            fills = match.groups()
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


def load_state(
    weights: dict[str, Tensor],
    rules: list[Rule],
    expected: dict[str, Tensor],
    path: Path,
    remedies: tuple[str, str],
    ignore_mismatched_sizes: bool = False,
) -> dict[str, Tensor]:
    """A state dict of ours from the tensors of a file that holds exactly what is expected.

    Args:
        weights: tensors by foreign name.
        rules: the table of (ours, theirs).
        expected: the state dict that is wanted, for names, shapes and dtypes.
        path: the file, for messages.
        remedies: what to do about a file with other names, and with other shapes, for messages.
        ignore_mismatched_sizes: leave out what has another shape, and name it in a warning.

    Raises:
        DataError: keys are missing or foreign, or a shape differs.
    """
    shells = {name: torch.empty_like(tensor, device="meta") for name, tensor in expected.items()}
    wanted, rest = translate(shells, rules)
    if rest:
        raise RuntimeError(f"The key table does not cover {rest}.")
    # Frozen batch norms do not count batches, and nothing depends on the count.
    weights = {n: t for n, t in weights.items() if n in wanted or not n.endswith(COUNTER)}
    weights = {n: torch.tensor(0) for n in wanted if n.endswith(COUNTER)} | weights
    missing, foreign = wanted.keys() - weights.keys(), weights.keys() - wanted.keys()
    for problem, names in (("misses", missing), ("has foreign", foreign)):
        if names:
            raise DataError(
                f"{path} {problem} {len(names)} key(s), such as {min(names)!r}; {remedies[0]}."
            )
    misfits = {
        name: f"{name} has shape {tuple(weights[name].shape)} instead of {tuple(shell.shape)}"
        for name, shell in wanted.items()
        if weights[name].shape != shell.shape
    }
    if misfits:
        if not ignore_mismatched_sizes:
            raise DataError(
                f"{path} does not fit the configuration: {_listed(misfits)}; {remedies[1]}."
            )
        warnings.warn(
            f"{len(misfits)} parameter(s) of {path} do not fit the configuration and were left as "
            "they are initialised:" + "".join(f"\n  {text}" for text in misfits.values()),
            stacklevel=4,  # who called from_pretrained
        )
    fitting = {name: tensor for name, tensor in weights.items() if name not in misfits}
    translated, _ = translate(fitting, reverse(rules))
    return {name: tensor.to(expected[name].dtype) for name, tensor in translated.items()}


def _listed(misfits: dict[str, str], most: int = 8) -> str:
    rest = f", and {len(misfits) - most} more" if len(misfits) > most else ""
    return ", ".join(list(misfits.values())[:most]) + rest


def _patterns(side: Side) -> tuple[str, ...]:
    return (side,) if isinstance(side, str) else side


def _regex(pattern: str) -> re.Pattern[str]:
    wild = {"*": "([^.]+)", "**": "(.+)"}
    pieces = re.split(r"(\*+)", pattern)
    return re.compile("".join(wild.get(piece) or re.escape(piece) for piece in pieces))


def _fill(pattern: str, fills: tuple[str, ...]) -> str:
    pieces = re.split(r"\*+", pattern)
    return pieces[0] + "".join(f + p for f, p in zip(fills, pieces[1:], strict=True))
