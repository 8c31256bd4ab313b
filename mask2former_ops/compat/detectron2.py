"""The two functions of detectron2's PointRend that Mask2Former and its descendants import.

`from mask2former_ops.compat.detectron2 import point_sample` takes the place of
`from detectron2.projects.point_rend.point_features import point_sample`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former_ops import point_sample as op
from mask2former_ops import reference

__all__ = ["get_uncertain_point_coords_with_randomness", "point_sample"]


def point_sample(
    input: Tensor,
    point_coords: Tensor,
    *,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = False,
) -> Tensor:
    """`torch.nn.functional.grid_sample` at points in [0, 1] (PointRend, arXiv 1912.08193).

    The defaults run the operator, `mask2former_ops.point_sample`, which also takes bool and uint8
    inputs and samples zero at points that are not finite. Another `mode` or `padding_mode` runs
    `grid_sample` itself. Under autocast a half input is sampled in float32, as by `grid_sample`.

    Args:
        input: (N, C, H, W).
        point_coords: (N or 1, P, 2) or (N or 1, Hg, Wg, 2) as (x, y).
        mode, padding_mode: of `grid_sample`.
        align_corners: whether 0 and 1 are the centres of the border pixels, not their outer edges;
            None counts as False.

    Returns:
        (N, C, P) or (N, C, Hg, Wg).

    Raises:
        RuntimeError: an argument has the wrong shape, dtype or device.
        ValueError: `grid_sample` has no such `mode` or `padding_mode`.
    """
    align_corners = bool(align_corners)
    if (mode, padding_mode) == ("bilinear", "zeros"):
        return op(_as_autocast_samples(input), point_coords, align_corners)
    grid = 2 * point_coords - 1
    if point_coords.dim() == 3:
        grid = grid[:, :, None]
    grid = grid.expand(len(input), -1, -1, -1)
    output = F.grid_sample(input, grid, mode, padding_mode, align_corners)
    return output.squeeze(3) if point_coords.dim() == 3 else output


@torch.no_grad()
def get_uncertain_point_coords_with_randomness(
    coarse_logits: Tensor,
    uncertainty_func: Callable[[Tensor], Tensor],
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
) -> Tensor:
    """Random points, most of them where a mask is uncertain (PointRend, section 3.1).

    Draws `num_points * oversample_ratio` uniform candidates for each mask, keeps the
    `num_points * importance_sample_ratio` most uncertain and adds uniform ones.

    Args:
        coarse_logits: (N, C, H, W) in a floating dtype.
        uncertainty_func: of the logits (N, C, R) at R candidates, to (N, 1, R), the larger the less
            certain. It sees sampled logits, because between a logit of 1 and one of -1 lies a 0.
        num_points: P, the points of each mask.
        oversample_ratio: candidates for each point, at least 1.
        importance_sample_ratio: the part of the points that is chosen, from 0 to 1.

    Returns:
        (N, P, 2) as (x, y) in [0, 1], without gradient: float64 for float64 logits, else float32.

    Raises:
        ValueError: a ratio is out of its range.
    """
    candidates, chosen = reference.uncertain_counts(
        num_points, oversample_ratio, importance_sample_ratio
    )
    return reference.uncertain_points(
        _as_autocast_samples(coarse_logits),
        uncertainty_func,
        candidates,
        chosen,
        num_points,
        ordered=True,
    )


def _as_autocast_samples(input: Tensor) -> Tensor:
    """Under autocast `grid_sample` takes a half input to float32."""
    half = input.dtype in (torch.float16, torch.bfloat16)
    return input.float() if half and _autocasts(input.device.type) else input


def _autocasts(device_type: str) -> bool:
    available = torch.amp.is_autocast_available(device_type)
    return available and torch.is_autocast_enabled(device_type)
