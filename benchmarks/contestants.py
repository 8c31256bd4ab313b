"""Who takes part: ours, the paths that detectors use today, and peers where they are installed.

A contestant has the arguments of our operator of the same name. One that knows no half precision
goes through float32, as detectors do around it.
"""

import importlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import mask2former_ops
from mask2former_ops import reference

GRID_SAMPLE = "grid_sample"
COMPILED = "grid_sample, torch.compile"
PEER = "torch-ms-deform-attn"
REFERENCE = "mask2former_ops.reference"
OURS = "mask2former_ops"
# The same numbers, stored in float32.
OURS_FLOAT32 = f"{OURS}, float32"
PEER_FLOAT32 = f"{PEER}, float32"
DETERMINISTIC = f"{OURS}, deterministic"  # with a backward that is bit-identical in every run
DCNV4 = "DCNv4"
FLOOR = "a copy of as many bytes"  # no contestant: what no kernel can be faster than

PEERS = {  # and the modules that they are
    PEER: "torch_ms_deform_attn",
    PEER_FLOAT32: "torch_ms_deform_attn",
    DCNV4: "DCNv4.functions",
}
# Not of our making: one that fails is left out, and the others are measured without it.
FOREIGN = {COMPILED, *PEERS}


def contestant(op: str, name: str):
    """The function that runs `op`, "ms_deform_attn" or "point_sample", for the contestant `name`.

    Raises:
        ImportError: it is a peer that is not installed.
    """
    if name in (OURS, OURS_FLOAT32, DETERMINISTIC):
        return getattr(mask2former_ops, op)
    if name == COMPILED:
        torch.compiler.reset()  # or it would compile for any shape once it has seen two
        return torch.compile(CONTESTANTS[op, GRID_SAMPLE], dynamic=False)
    if name in PEERS:
        import_peer(name)
    return CONTESTANTS[op, name]


def import_peer(name: str):
    """The module of a peer.

    Raises:
        ImportError: it is not installed, or fails to load.
    """
    module = PEERS[name]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ImportError(f"{name.partition(',')[0]} is not installed") from None


def own_backward(
    op: str, grad: Tensor, arguments: Sequence, *, deterministic: bool
) -> tuple[Tensor, ...]:
    """Gradients by our operator itself, without autograd around it."""
    if op == "point_sample":
        gradients = torch.ops.mask2former_ops.point_sample_backward(
            grad, *arguments, False, [True, False], deterministic=deterministic
        )
        return gradients[:1]
    *tensors, num_points = arguments if len(arguments) > 5 else (*arguments, None)
    return torch.ops.mask2former_ops.ms_deform_attn_backward(
        grad, *tensors, num_points, [True] * 3, deterministic=deterministic
    )


def attention_by_grid_sample(
    value, spatial_shapes, level_start_index, locations, weights, num_points=None
) -> Tensor:
    """The pure PyTorch path of the detectors: grid_sample level by level, then a weighted sum."""
    n, _, m, d = value.shape
    q = locations.shape[1]
    levels = spatial_shapes.tolist()
    points = num_points or [locations.shape[4]] * len(levels)
    maps = value.to(locations.dtype).split([height * width for height, width in levels], 1)
    grids = (2 * locations - 1).flatten(3, -2).transpose(1, 2).flatten(0, 1).split(points, 2)
    samples = [
        F.grid_sample(part.permute(0, 2, 3, 1).reshape(n * m, d, *size), grid, align_corners=False)
        for part, size, grid in zip(maps, levels, grids, strict=True)
    ]
    weights = weights.flatten(3).transpose(1, 2).reshape(n * m, 1, q, sum(points))
    output = (torch.cat(samples, -1) * weights).sum(-1)
    return output.view(n, m * d, q).transpose(1, 2).to(value.dtype)


def attention_by_peer(
    value, spatial_shapes, level_start_index, locations, weights, num_points=None
) -> Tensor:
    """torch-ms-deform-attn of PyPI, which asks for one dtype and computes half in float32."""
    if num_points is not None:
        raise NotImplementedError(f"{PEER} takes the same number of points in every level")
    peer = import_peer(PEER)
    rows = value.to(locations.dtype)
    output = peer.ms_deform_attn(rows, spatial_shapes, level_start_index, locations, weights)
    return output.to(value.dtype)


def dcnv4_arguments(
    value, spatial_shapes, level_start_index, locations, weights, num_points=None
) -> list:
    """What DCNv4 takes: locations and logits in one tensor, (N, Q, M, L * P * 3) in value's dtype.

    It applies softmax itself and differentiates logits, so it takes part forward only.
    """
    points = locations.shape[4]
    if num_points is not None or points not in (4, 8) or value.shape[3] % 8:
        raise NotImplementedError(
            f"{DCNV4} takes 4 or 8 points in every level and channels in multiples of 8"
        )
    packed = torch.cat((locations.flatten(3), weights.log().flatten(3)), -1).to(value.dtype)
    return [value, spatial_shapes, level_start_index, packed, points]


def attention_by_dcnv4(value, spatial_shapes, level_start_index, packed, points) -> Tensor:
    """DCNv4's FlashDeformAttn, see `dcnv4_arguments`."""
    function = import_peer(DCNV4).FlashDeformAttnFunction
    images_at_once = 64
    return function.apply(value, spatial_shapes, level_start_index, packed, images_at_once, points)


def points_by_grid_sample(input: Tensor, points: Tensor) -> Tensor:
    """detectron2's point_sample; shared points are repeated for every image."""
    grid = 2 * points[:, :, None].expand(len(input), -1, -1, -1) - 1
    sampled = F.grid_sample(input.to(points.dtype), grid, align_corners=False)[..., 0]
    return sampled.to(input.dtype) if input.is_floating_point() else sampled


class ReferenceAttention(torch.autograd.Function):
    """Our fallback with its own backward, as it runs where no kernel is compiled."""

    @staticmethod
    def forward(ctx, *arguments):
        ctx.save_for_backward(*arguments[:5])
        ctx.num_points = arguments[5] if len(arguments) > 5 else None
        ctx.arguments = len(arguments)
        return reference.ms_deform_attn(*arguments)

    @staticmethod
    def backward(ctx, grad):
        grads = reference.ms_deform_attn_backward(
            grad, *ctx.saved_tensors, ctx.num_points, (True, True, True)
        )
        return (grads[0], None, None, *grads[1:], None)[: ctx.arguments]


class ReferencePoints(torch.autograd.Function):
    """Our fallback with its own backward, the gradient of the points left out."""

    @staticmethod
    def forward(ctx, input, points):
        ctx.save_for_backward(input, points)
        return reference.point_sample(input, points)

    @staticmethod
    def backward(ctx, grad):
        grads = reference.point_sample_backward(grad, *ctx.saved_tensors, False, (True, False))
        return grads[0], None


CONTESTANTS = {
    ("ms_deform_attn", GRID_SAMPLE): attention_by_grid_sample,
    ("ms_deform_attn", PEER): attention_by_peer,
    ("ms_deform_attn", PEER_FLOAT32): attention_by_peer,
    ("ms_deform_attn", DCNV4): attention_by_dcnv4,
    ("ms_deform_attn", REFERENCE): ReferenceAttention.apply,
    ("point_sample", GRID_SAMPLE): points_by_grid_sample,
    ("point_sample", REFERENCE): ReferencePoints.apply,
}
