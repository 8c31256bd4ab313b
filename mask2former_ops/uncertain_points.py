"""Random points, most of them where masks are uncertain, the whole contract of the operator.

Schema, public function, checks, reference, fake.
"""

import torch
from torch import Tensor

from mask2former_ops import reference
from mask2former_ops._checks import (
    FLOATING,
    check_before,
    check_dtype,
    check_map_size,
    check_shape,
)

_OP = "mask2former_ops::uncertain_points"
CANDIDATES = 1 << 22  # of the reference at a time, but at least one mask's

# For each mask the `chosen` least certain of `candidates` random points, and random ones up to
# `points`.
torch.library.define(
    _OP,
    "(Tensor logits, int candidates, int chosen, int points, int seed) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.no_grad()
def uncertain_points(
    logits: Tensor,
    num_points: int,
    oversample_ratio: float = 3.0,
    importance_sample_ratio: float = 0.75,
) -> Tensor:
    """Random points of masks, most of them where a mask is uncertain (PointRend, section 3.1).

    Draws `num_points * oversample_ratio` uniform candidates for each mask, keeps the
    `num_points * importance_sample_ratio` whose sampled logits are nearest to 0, in no order, and
    adds uniform points. torch's global CPU generator decides which: after `torch.manual_seed`
    the points are the same in every run with the same kind of kernel, whatever the number of
    threads.

    The CPU kernel draws numbers in [0, 1) by Philox4x32-10 (Salmon et al. 2011), of 24 bits, or 53
    for float64. Other devices run PyTorch operators.

    Args:
        logits: (N, H, W), floating.
        num_points: P, the points of each mask.
        oversample_ratio: candidates for each point, at least 1.
        importance_sample_ratio: the share of chosen points, from 0 to 1.

    Returns:
        (N, P, 2) as (x, y) in [0, 1), without gradient: float64 for float64 logits, else float32.

    Raises:
        RuntimeError: logits have the wrong shape or dtype.
        ValueError: a ratio is out of its range.
    """
    candidates, chosen = reference.uncertain_counts(
        num_points, oversample_ratio, importance_sample_ratio
    )
    seed = int(torch.empty((), dtype=torch.int64).random_())
    return torch.ops.mask2former_ops.uncertain_points(logits, candidates, chosen, num_points, seed)


def _check_arguments(logits: Tensor, candidates: int, chosen: int, points: int) -> None:
    op = "uncertain_points"
    check_dtype(op, "logits", logits, FLOATING)
    check_shape(op, "logits", logits, "(N, H, W)", (None,) * 3)
    torch._check(
        candidates >= 0 and points >= 0,
        lambda: (
            f"{op}: candidates and points must not be negative, but are {candidates} and {points}"
        ),
    )
    torch._check(
        0 <= chosen <= min(candidates, points),
        lambda: (
            f"{op}: chosen must be from 0 to the {candidates} candidates and {points} points, but "
            f"is {chosen}"
        ),
    )


def _check_call(logits: Tensor, candidates: int, chosen: int, points: int, seed: int) -> None:
    _check_arguments(logits, candidates, chosen, points)
    check_map_size("uncertain_points", "logits", logits)


check_before(_OP, _check_call)


@torch.library.impl(_OP, "default")
def _reference(logits, candidates, chosen, points, seed):
    generator = torch.Generator(logits.device).manual_seed(seed)
    some = max(1, CANDIDATES // max(1, candidates))
    return torch.cat(
        [
            reference.uncertain_points(
                part[:, None], _nearness_to_zero, candidates, chosen, points, generator=generator
            )
            for part in logits.split(some)
        ]
    )


def _nearness_to_zero(logits: Tensor) -> Tensor:
    return -logits.abs()


@torch.library.register_fake(_OP)
def _fake(logits, candidates, chosen, points, seed):
    _check_arguments(logits, candidates, chosen, points)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty((len(logits), points, 2), dtype=dtype)
