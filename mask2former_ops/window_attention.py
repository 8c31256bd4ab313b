"""Attention inside the windows of a map (Liu et al. 2021, "Swin Transformer", section 3.2), with
CPU kernels only. No autograd: the caller keeps what the backward needs, or computes it again."""

from dataclasses import dataclass

import torch
from torch import Tensor

_ARGUMENTS = (
    "Tensor qkv, Tensor blank, Tensor bias, Tensor extents, int height, int window, int shift, "
    "int first_row, int window_rows, float penalty"
)
torch.library.define("mask2former_ops::window_attention", f"({_ARGUMENTS}) -> Tensor")
torch.library.define(
    "mask2former_ops::window_attention_backward",
    f"(Tensor grad_output, {_ARGUMENTS}) -> (Tensor output, Tensor grad_qkv, Tensor grad_blank, "
    "Tensor grad_bias)",
)


@dataclass(frozen=True)
class WindowRows:
    """Some rows of windows of maps that are shifted cyclically and filled up to whole windows.

    Attributes:
        extents: int64 (N, 2), the rows and columns of the image in each map; beyond them a map is
            blank.
        height: rows of the whole maps.
        window: rows and columns of a window.
        shift: rows and columns that the maps are shifted up and to the left, cyclically, before
            they are cut; from 0 to window - 1.
        first, count: the rows of windows, counted after the shift.
        penalty: added to the scores of places which the shift brought together from opposite sides,
            or of which an image alone would not have one.
    """

    extents: Tensor
    height: int
    window: int
    shift: int
    first: int
    count: int
    penalty: float

    def rows(self) -> tuple[slice, slice]:
        """Rows of the maps that lie in these windows: first those from before the cyclic shift's
        seam, then those from the maps' top."""
        begin = self.first * self.window + self.shift
        end = begin + self.count * self.window
        whole = -(-self.height // self.window) * self.window
        before = slice(min(begin, self.height), min(end, self.height))
        return before, slice(0, min(max(0, end - whole), self.height))

    def take(self, x: Tensor) -> Tensor:
        """These rows of maps (N, H, W, ...) in the order of the shifted maps: (N, R, W, ...)."""
        before, top = self.rows()
        return torch.cat([x[:, before], x[:, top]], 1) if top.stop else x[:, before]

    def put(self, part: Tensor, x: Tensor) -> None:
        """Writes what `take` takes."""
        before, top = self.rows()
        split = before.stop - before.start
        x[:, before] = part[:, :split]
        x[:, top] = part[:, split:]

    def _arguments(self) -> tuple:
        cut = self.height, self.window, self.shift, self.first, self.count
        return self.extents, *cut, self.penalty


def window_attention(qkv: Tensor, blank: Tensor, bias: Tensor, rows: WindowRows) -> Tensor:
    """Multi-head self-attention of the places of each window, scaled by channels^-0.5.

    Args:
        qkv: queries, keys and values, (N, R, W, 3 * heads * channels), of the rows that
            `rows.take` takes; float32 or float64, on the CPU.
        blank: (3 * heads * channels,), those of a place where a map is blank.
        bias: (heads, window^2, window^2), added to the scores.
        rows: what the R rows are.

    Returns:
        (N, R, W, heads * channels); zeros beyond an image's extent.

    Raises:
        RuntimeError: an argument has the wrong shape or dtype.
        NotImplementedError: there is no compiled kernel.
    """
    return torch.ops.mask2former_ops.window_attention(qkv, blank, bias, *rows._arguments())


def window_attention_backward(
    grad_output: Tensor, qkv: Tensor, blank: Tensor, bias: Tensor, rows: WindowRows
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The output again, and the gradients of `qkv`, `blank` and `bias`.

    The output comes nearly for free, and spares the caller to keep it. Sums have one order,
    whatever the number of threads.

    Args:
        grad_output: that of the output, (N, R, W, heads * channels).
        qkv, blank, bias, rows: those of `window_attention`.

    Raises:
        RuntimeError: an argument has the wrong shape or dtype.
        NotImplementedError: there is no compiled kernel.
    """
    output, grad_qkv, of_blank, of_bias = torch.ops.mask2former_ops.window_attention_backward(
        grad_output, qkv, blank, bias, *rows._arguments()
    )
    # The sums of one row of windows each, whose order does not depend on the threads.
    return output, grad_qkv, of_blank.sum(0), of_bias.sum(0)
