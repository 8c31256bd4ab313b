"""Attention inside windows against the plain formula in float64, window by window."""

import math
from typing import NamedTuple

import pytest
import torch

from mask2former_ops import _extension
from mask2former_ops.window_attention import (
    WindowRows,
    window_attention,
    window_attention_backward,
)
from tests.ops.samples import generator, spread
from tests.ops.tolerances import assert_all_equal, assert_close

OPS = torch.ops.mask2former_ops
WHY_NO_KERNEL = _extension.why_no_kernel("window_attention", "cpu")
pytestmark = [
    pytest.mark.usefixtures("instruction_set", "poisoned_memory"),
    pytest.mark.skipif(WHY_NO_KERNEL is not None, reason=str(WHY_NO_KERNEL)),
]
DTYPES = [torch.float64, torch.float32]


class Case(NamedTuple):
    """Maps of that size with whole images in them, unless it has extents."""

    n: int
    size: tuple[int, int]
    window: int
    shift: int
    heads: int
    channels: int
    extents: list | None = None
    penalty: float = -1.5  # so small that what it is added to counts

    def rows(self, first=0, count=None):
        """What rows of windows are, by default all."""
        total = -(-self.size[0] // self.window)
        extents = torch.tensor(self.extents or [self.size] * self.n, dtype=torch.int64)
        return WindowRows(
            extents.view(self.n, 2),
            self.size[0],
            self.window,
            self.shift,
            first,
            total - first if count is None else count,
            self.penalty,
        )

    def arguments(self, dtype=torch.float64, seed=0):
        """The gradient of the output, qkv, blank and bias, of whole maps."""
        width, length = self.heads * self.channels, self.window**2
        shapes = [
            (self.n, *self.size, width),
            (self.n, *self.size, 3 * width),
            (3 * width,),
            (self.heads, length, length),
        ]
        g = generator(seed)
        return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


CASES = [
    Case(2, (13, 17), 7, 0, 3, 32),
    Case(2, (13, 17), 7, 3, 3, 32),
    Case(2, (14, 14), 7, 3, 2, 8),  # nothing to fill up
    Case(1, (28, 9), 7, 6, 1, 4, [[28, 9]]),
    Case(3, (5, 9), 4, 2, 2, 5, [[5, 9], [3, 4], [1, 8]]),
    Case(2, (5, 9), 4, 1, 1, 1, [[4, 5], [0, 0]]),
    Case(2, (16, 16), 12, 6, 1, 40, [[16, 16], [9, 13]]),
    Case(2, (25, 13), 12, 0, 4, 16, [[25, 12], [1, 13]]),
    Case(1, (3, 3), 7, 3, 2, 3),  # smaller than a window, which is seen twice
    Case(1, (1, 6), 7, 5, 1, 17),
    Case(2, (3, 4), 1, 0, 2, 6),
    Case(1, (9, 8), 2, 1, 5, 33),
    Case(1, (12, 11), 8, 4, 2, 65, [[7, 10]], -100.0),
    Case(2, (9, 9), 3, 1, 1, 7, [[6, 5], [9, 2]], 0.0),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[1:6])))


# ---- the plain formula ---------------------------------------------------------------------------


def in_windows(maps, window, shift):
    """(N, H, W, ...) of whole windows -> (N, windows, window^2, ...)."""
    height, width = maps.shape[1:3]
    maps = maps.roll((-shift, -shift), (1, 2))
    maps = maps.unflatten(2, (width // window, window))
    maps = maps.unflatten(1, (height // window, window)).transpose(2, 3)
    return maps.flatten(3, 4).flatten(1, 2)


def out_of_windows(places, height, width, window, shift):
    """The inverse."""
    places = places.unflatten(2, (window, window)).unflatten(1, (height // window, -1))
    return places.transpose(2, 3).flatten(3, 4).flatten(1, 2).roll((shift, shift), (1, 2))


def plain_attention(case, qkv, blank, bias):
    (height, width), window, shift = case.size, case.window, case.shift
    tall, wide = (-(-extent // window) * window for extent in case.size)
    row, column = torch.arange(tall)[:, None], torch.arange(wide)[None]
    present = torch.zeros(case.n, tall, wide, dtype=torch.bool)
    alone = torch.zeros_like(present)  # what a map of the image alone would have
    for i, (rows, columns) in enumerate(case.rows().extents.tolist()):
        present[i, :rows, :columns] = True
        alone[i] = (row < -(-rows // window) * window) & (column < -(-columns // window) * window)
    # What the shift takes from the top to the bottom, and from the left to the right.
    side = (2 * (row < shift) + (column < shift)).expand(case.n, -1, -1)

    filled = torch.nn.functional.pad(qkv, (0, 0, 0, wide - width, 0, tall - height))
    filled = torch.where(present[..., None], filled, blank)
    places = in_windows(filled, window, shift).unflatten(-1, (3, case.heads, case.channels))
    query, key, value = places.permute(3, 0, 1, 4, 2, 5)
    side, alone = (in_windows(x, window, shift) for x in (side, alone))
    together = (side[..., None] == side[..., None, :]) & alone[..., None] & alone[..., None, :]
    scores = query @ key.mT / math.sqrt(case.channels) + bias
    scores = scores + (~together * case.penalty)[:, :, None]
    inside = (scores.softmax(-1) @ value).transpose(2, 3).flatten(3)
    output = out_of_windows(inside, tall, wide, window, shift)
    return (output * present[..., None])[:, :height, :width]


def results(case, grad, qkv, blank, bias, rows=None):
    """The output, that of the backward and the gradients, of these rows of windows."""
    rows = rows or case.rows()
    output = window_attention(rows.take(qkv), blank, bias, rows)
    again = window_attention_backward(rows.take(grad), rows.take(qkv), blank, bias, rows)
    return output, *again


def of_maps(case, parts):
    """The same, of all rows, with maps in their own order."""
    maps = [
        torch.full((case.n, *case.size, part.shape[-1]), math.nan).to(part) for part in parts[:3]
    ]
    for part, map in zip(parts, maps, strict=False):
        case.rows().put(part, map)
    return *maps, *parts[3:]


@cases
@pytest.mark.parametrize("dtype", DTYPES)
def test_output_and_gradients_are_within_the_limits(dtype, case):
    grad, *arguments = case.arguments(dtype)
    leaves = [argument.double().requires_grad_() for argument in arguments]
    expected = plain_attention(case, *leaves)
    gradients = torch.autograd.grad(expected, leaves, grad.double())
    expected = expected.detach()
    found = of_maps(case, results(case, grad, *arguments))
    for result, wanted in zip(found, (expected, expected, *gradients), strict=True):
        assert result.dtype == dtype
        assert_close(result, wanted, dtype)


class Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, *arguments):
        ctx.rows = rows
        ctx.save_for_backward(*arguments)
        return window_attention(*arguments, rows)

    @staticmethod
    def backward(ctx, grad):
        return None, *window_attention_backward(grad, *ctx.saved_tensors, ctx.rows)[1:]


@pytest.mark.parametrize("extents", [[[3, 5]], [[2, 4]]])
def test_gradients_are_the_derivatives(extents):
    case = Case(1, (3, 5), 2, 1, 2, 3, extents)
    rows = case.rows()
    _, qkv, blank, bias = case.arguments()
    leaves = [x.requires_grad_() for x in (rows.take(qkv), blank, bias)]
    assert torch.autograd.gradcheck(lambda *x: Attention.apply(rows, *x), leaves, atol=1e-7)


# ---- bands of rows -------------------------------------------------------------------------------


@cases
@pytest.mark.parametrize("count", [1, 2])
def test_rows_of_windows_may_be_taken_one_after_the_other(case, count):
    grad, *arguments = case.arguments(torch.float32)
    total = case.rows().count
    whole = of_maps(case, results(case, grad, *arguments))
    maps = [torch.full_like(map, math.nan) for map in whole[:3]]
    sums = [torch.zeros_like(x) for x in whole[3:]]
    for first in range(0, total, count):
        rows = case.rows(first, min(count, total - first))
        parts = results(case, grad, *arguments, rows)
        for part, map in zip(parts, maps, strict=False):
            rows.put(part, map)
        for part, sum in zip(parts[3:], sums, strict=True):
            sum += part
    assert_all_equal(maps, whole[:3])
    for sum, wanted in zip(sums, whole[3:], strict=True):
        assert_close(sum, wanted.double(), torch.float32)


@pytest.mark.parametrize("case", [CASES[1], CASES[4], CASES[8]])
def test_every_row_of_windows_has_sums_of_its_own(case):
    """So that bands of any height have the same ones, to the bit."""
    _, *arguments = case.arguments(torch.float32)
    rows = case.rows()

    def sums(rows):
        grad, qkv = (rows.take(x) for x in case.arguments(torch.float32)[:2])
        given = (grad, qkv, *arguments[1:], *rows._arguments())
        *_, of_blank, of_bias = OPS.window_attention_backward(*given)
        return [x.view(case.n, rows.count, *x.shape[1:]) for x in (of_blank, of_bias)]

    bands = [sums(case.rows(first, 1)) for first in range(rows.count)]
    assert_all_equal([torch.cat(parts, 1) for parts in zip(*bands, strict=True)], sums(rows))


@cases
def test_bands_take_every_row_once_and_put_it_back(case):
    map = torch.arange(case.n * case.size[0] * 3).view(case.n, -1, 3)
    total = case.rows().count
    for count in range(1, total + 1):
        back = torch.full_like(map, -1)
        for first in range(0, total, count):
            rows = case.rows(first, min(count, total - first))
            rows.put(rows.take(map), back)
        assert torch.equal(back, map)
    taken = [case.rows(first, 1).take(map) for first in range(total)]
    assert sum(part.shape[1] for part in taken) == case.size[0]
    shifted = map.roll(-case.shift, 1)
    if case.size[0] % case.window == 0:
        assert torch.equal(torch.cat(taken, 1), shifted)


# ---- what else holds -----------------------------------------------------------------------------


def test_results_do_not_depend_on_the_number_of_threads():
    case = Case(3, (20, 19), 4, 2, 3, 5, [[20, 19], [7, 9], [20, 1]])
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(results(case, *case.arguments(torch.float32)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert_all_equal(other, found[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_arguments_need_not_be_contiguous(dtype):
    case = CASES[4]
    rows, arguments = case.rows(), case.arguments(dtype)
    apart = [spread(x) for x in arguments]
    rows_apart = WindowRows(
        spread(rows.extents), *(vars(rows)[key] for key in list(vars(rows))[1:])
    )
    assert not any(x.is_contiguous() for x in (*apart, rows_apart.extents))
    assert_all_equal(results(case, *apart, rows_apart), results(case, *arguments, rows))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_lies_beyond_an_image_may_be_anything(dtype, bad):
    case = CASES[4]
    grad, qkv, *rest = case.arguments(dtype)
    expected = of_maps(case, results(case, grad, qkv, *rest))
    beyond = torch.ones(case.n, *case.size, dtype=torch.bool)
    for i, (rows, columns) in enumerate(case.extents):
        beyond[i, :rows, :columns] = False
    grad[beyond], qkv[beyond] = bad, bad
    found = of_maps(case, results(case, grad, qkv, *rest))
    assert_all_equal(found, expected)
    assert not any(map[beyond].any() for map in found[:3])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_number_reaches_its_own_window_and_head_only(dtype, bad):
    case = Case(2, (8, 12), 4, 2, 2, 3)
    grad, qkv, *rest = case.arguments(dtype)
    expected = of_maps(case, results(case, grad, qkv, *rest))
    qkv[1, 3, 7, 12:15] = bad  # its value, of the first head
    found = of_maps(case, results(case, grad, qkv, *rest))
    for map, wanted in zip(found[:2], expected[:2], strict=True):
        assert not map[1, 2:6, 6:10, :3].isfinite().any()
        map[1, 2:6, 6:10, :3] = wanted[1, 2:6, 6:10, :3]
        assert torch.equal(map, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_may_be_large(dtype):
    case = CASES[1]
    grad, qkv, blank, bias = case.arguments(dtype)
    qkv, blank, bias = qkv * 30, blank * 30, bias * 1000
    leaves = [x.double().requires_grad_() for x in (qkv, blank, bias)]
    found = of_maps(case, results(case, grad, qkv, blank, bias))
    assert all(x.isfinite().all() for x in found)
    assert found[0].abs().max() <= max(qkv.abs().max(), blank.abs().max()) * (1 + 1e-6)
    if dtype == torch.float64:
        assert_close(found[0], plain_attention(case, *leaves).detach(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    [
        Case(0, (5, 6), 4, 2, 2, 3),
        Case(2, (0, 6), 4, 2, 2, 3),
        Case(2, (5, 0), 4, 2, 2, 3),
        Case(2, (5, 6), 4, 2, 2, 0),
        Case(2, (5, 6), 4, 2, 2, 3, [[0, 0]] * 2),
    ],
)
def test_any_size_may_be_zero(dtype, case):
    grad, *arguments = case.arguments(dtype)
    found = of_maps(case, results(case, grad, *arguments))
    for result, like in zip(found, (grad, grad, *arguments), strict=True):
        assert result.shape == like.shape
        assert not result.any()


# ---- wrong arguments -----------------------------------------------------------------------------

CASE = Case(2, (6, 7), 4, 2, 2, 3)
NAMES = ("qkv", "blank", "bias", "extents", "height", "window", "shift", "first", "count")
WRONG = [
    ({"qkv": lambda x: x.half()}, "qkv must be float64 or float32, but is float16"),
    ({"qkv": lambda x: x[0]}, r"qkv must have 4 dimensions \(N, R, W, 3 \* C\), but has shape"),
    (
        {"qkv": lambda x: x[:, :5]},
        "qkv has 5 rows, which are not those of 2 rows of windows from 0",
    ),
    ({"qkv": lambda x: x[:1]}, r"extents must have shape \(N, 2\) = \(1, 2\), but has \(2, 2\)"),
    ({"blank": lambda x: x.float()}, "blank must be float64, but is float32"),
    ({"blank": lambda x: x[1:]}, r"blank must have shape \(3 \* C\) = \(18\), but has \(17\)"),
    ({"bias": lambda x: x.float()}, "bias must be float64, but is float32"),
    ({"bias": lambda x: x[..., 1:]}, r"bias must have shape .* = \(any, 16, 16\), but has"),
    ({"bias": lambda x: x[:0]}, r"qkv must have a multiple of 3 \* 0 channels, but has 18"),
    ({"bias": lambda x: x.repeat(2, 1, 1)}, r"qkv must have a multiple of 3 \* 4 channels, but"),
    ({"extents": lambda x: x.int()}, "extents must be int64, but is int32"),
    ({"extents": lambda x: x[0]}, r"extents must have 2 dimensions \(N, 2\), but has shape"),
    ({"extents": lambda x: x - 7}, "extents must be from 0 to the maps' 6 x 7, but has -1"),
    ({"extents": lambda x: x + 1}, "extents must be from 0 to the maps' 6 x 7, but has 7"),
    ({"extents": lambda x: x.flip(1)}, "extents must be from 0 to the maps' 6 x 7, but has 7"),
    ({"height": lambda x: x - 1}, "qkv has 6 rows, which are not those of 2 rows"),
    ({"height": lambda x: x + 3}, "qkv has 6 rows, which are not those of 2 rows"),
    ({"height": lambda x: -1}, "height must be from 0 to 2\\^31 - 1, but is -1"),
    ({"height": lambda x: 2**63 - 1}, "height must be from 0 to 2\\^31 - 1, but is 9"),
    ({"window": lambda x: 5}, r"bias must have shape .* = \(any, 25, 25\)"),
    ({"window": lambda x: 0, "bias": lambda x: x[:, :0, :0]}, "window must be from 1 to .* is 0"),
    ({"window": lambda x: -4}, "window must be from 1 to 2\\^31 - 1, but is -4"),
    ({"window": lambda x: 2**32, "bias": lambda x: x[:, :0, :0]}, "window must be from 1 to"),
    ({"shift": lambda x: 4}, "shift must be from 0 to window - 1, but is 4 for a window of 4"),
    ({"shift": lambda x: -1}, "shift must be from 0 to window - 1, but is -1 for a window of 4"),
    ({"first": lambda x: 1}, "qkv has 6 rows, which are not those of 2 rows of windows from 1 on"),
    ({"first": lambda x: -1}, "qkv has 6 rows, which are not those of 2 rows of windows from -1"),
    ({"first": lambda x: 2**62}, "qkv has 6 rows, which are not those of 2 rows of windows"),
    ({"count": lambda x: 3}, "qkv has 6 rows, which are not those of 3 rows of windows from 0 on"),
    ({"count": lambda x: -1}, "qkv has 6 rows, which are not those of -1 rows of windows from 0"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_a_wrong_argument_is_named(changes, message):
    grad, qkv, blank, bias = CASE.arguments()
    *cut, penalty = CASE.rows()._arguments()
    named = dict(zip(NAMES, (qkv, blank, bias, *cut), strict=True))
    changed = [changes.get(name, lambda x: x)(given) for name, given in named.items()]
    with pytest.raises(RuntimeError, match="window_attention: " + message):
        OPS.window_attention(*changed, penalty)
    with pytest.raises(RuntimeError, match="window_attention_backward: " + message):
        OPS.window_attention_backward(grad, *changed, penalty)


def test_a_wrong_gradient_is_named():
    grad, *arguments = CASE.arguments()
    with pytest.raises(RuntimeError, match="_backward: grad_output must be float64, but is float3"):
        window_attention_backward(grad.float(), *arguments, CASE.rows())
    with pytest.raises(RuntimeError, match=r"grad_output must have shape .* = \(2, 6, 7, 6\), but"):
        window_attention_backward(grad[..., 1:], *arguments, CASE.rows())
