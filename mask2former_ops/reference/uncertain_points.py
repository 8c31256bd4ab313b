"""Random points, most of them where masks are uncertain (PointRend, section 3.1), in PyTorch."""

from collections.abc import Callable

import torch
from torch import Tensor


def uncertain_counts(
    num_points: int, oversample_ratio: float, importance_sample_ratio: float
) -> tuple[int, int]:
    """How many candidates are drawn for each mask, and how many of them are chosen.

    Raises:
        ValueError: a ratio is out of its range.
    """
    if oversample_ratio < 1:
        raise ValueError(f"oversample_ratio must be at least 1, but is {oversample_ratio}.")
    if not 0 <= importance_sample_ratio <= 1:
        raise ValueError(
            f"importance_sample_ratio must be from 0 to 1, but is {importance_sample_ratio}."
        )
    return int(num_points * oversample_ratio), int(importance_sample_ratio * num_points)


def uncertain_points(
    logits: Tensor,
    uncertainty: Callable[[Tensor], Tensor],
    candidates: int,
    chosen: int,
    points: int,
    *,
    ordered: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The `chosen` most uncertain of so many random candidates of each mask, and uniform points.

    Args:
        logits: (N, C, H, W), floating.
        uncertainty: of the logits (N, C, R) at R candidates, to (N, 1, R), the larger the less
            certain. It sees sampled logits, because between a logit of 1 and one of -1 lies a 0.
        candidates, chosen: for each mask.
        points: P, chosen ones and uniform ones.
        ordered: whether the chosen points come with the most uncertain first. This takes longer.
        generator: of the random numbers; default: torch's global one.

    Returns:
        (N, P, 2) as (x, y) in [0, 1): float64 for float64 logits, else float32.
    """
    # Half coordinates would be coarse.
    options = {
        "dtype": torch.promote_types(logits.dtype, torch.float32),
        "device": logits.device,
        "generator": generator,
    }
    masks = len(logits)
    drawn = torch.rand(masks, candidates, 2, **options)
    sampled = torch.ops.mask2former_ops.point_sample(logits, drawn)
    index = uncertainty(sampled)[:, 0].topk(chosen, dim=1, sorted=ordered).indices
    found = drawn.gather(1, index[..., None].expand(-1, -1, 2))
    if chosen == points:
        return found
    uniform = torch.rand(masks, points - chosen, 2, **options)
    return torch.cat([found, uniform], dim=1)
