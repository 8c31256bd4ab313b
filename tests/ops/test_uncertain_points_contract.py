"""The public function, and the operator in the rest of torch: wrong arguments, fake tensors,
compilation. Its numbers are in test_uncertain_points.py."""

import functools
import math

import pytest
import torch

from mask2former_ops import uncertain_points
from tests.ops.contract import without_kernel
from tests.ops.samples import mask_logits, spread

OP = torch.ops.mask2former_ops.uncertain_points.default
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SEED = 0x0123_4567_89AB_CDEF

# ---- the public function -------------------------------------------------------------------------


@pytest.mark.usefixtures("instruction_set")
def test_torchs_seed_says_which_points():
    logits = mask_logits()
    torch.manual_seed(5)
    first, second = uncertain_points(logits, 50), uncertain_points(logits, 50)
    torch.manual_seed(5)
    assert torch.equal(uncertain_points(logits, 50), first)
    assert torch.equal(uncertain_points(logits, 50), second)
    assert not torch.isin(first, second).flatten(1).all(1).any()
    torch.manual_seed(6)
    assert not torch.equal(uncertain_points(logits, 50), first)


@pytest.mark.parametrize(
    ("ratios", "candidates", "chosen"),
    [
        ((), 120, 30),
        ((2.0, 0.5), 80, 20),
        ((1, 1), 40, 40),
        ((1.99, 0), 79, 0),
        ((3, 0.999), 120, 39),
    ],
)
def test_ratios_say_how_many_are_drawn_and_chosen(ratios, candidates, chosen):
    logits = mask_logits()
    torch.manual_seed(2)
    points = uncertain_points(logits, 40, *ratios)
    torch.manual_seed(2)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    assert torch.equal(points, OP(logits, candidates, chosen, 40, seed))


def test_ratios_out_of_range_are_named():
    for ratio in (0.99, -3.0):
        with pytest.raises(ValueError, match=f"ratio must be at least 1, but is {ratio}"):
            uncertain_points(mask_logits(), 5, ratio)
    for ratio in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"ratio must be from 0 to 1, but is {ratio}"):
            uncertain_points(mask_logits(), 5, 3, ratio)


@pytest.mark.parametrize("dtype", DTYPES)
def test_points_have_no_gradient(dtype):
    logits = mask_logits(dtype).requires_grad_()
    assert not uncertain_points(logits, 20).requires_grad
    with torch.enable_grad():
        assert not uncertain_points(logits * 2, 20).requires_grad


# ---- wrong arguments, the rest of torch ----------------------------------------------------------

WRONG = [
    ((lambda x: x[0], 30, 7, 10), r"logits must have 3 dimensions \(N, H, W\), but has shape \(20"),
    ((lambda x: x[None], 30, 7, 10), r"logits must have 3 dimensions \(N, H, W\), but has"),
    ((lambda x: x.int(), 30, 7, 10), "logits must be float64 or float32 or float16 or bfloat16, "),
    ((lambda x: x > 0, 30, 7, 10), "logits must be .*, but is bool"),
    ((lambda x: x, -1, 0, 10), "candidates and points must not be negative, but are -1 and 10"),
    ((lambda x: x, 30, 0, -2), "candidates and points must not be negative, but are 30 and -2"),
    ((lambda x: x, 30, -1, 10), "chosen must be from 0 to the 30 candidates and 10 points, but"),
    ((lambda x: x, 30, 11, 10), "chosen must be from 0 to the .* 10 points, but is 11"),
    ((lambda x: x, 7, 8, 10), "chosen must be from 0 to the 7 candidates and 10 points, but is 8"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_a_wrong_argument_is_named_in_the_same_words_everywhere(arguments, message):
    change, *counts = arguments
    logits = change(mask_logits())
    said = []
    for run, device in ((OP, "cpu"), (functools.partial(without_kernel, OP), "cpu"), (OP, "meta")):
        with pytest.raises(RuntimeError, match="uncertain_points: " + message) as caught:
            run(logits.to(device), *counts, SEED)
        said.append(str(caught.value).splitlines()[0])
    assert len(set(said)) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.clone, spread], ids=["contiguous", "spread"])
def test_the_operator_passes_opcheck(dtype, layout):
    torch.library.opcheck(OP, (layout(mask_logits(dtype)), 30, 7, 10, SEED))


def test_it_compiles_for_any_size():
    compiled = torch.compile(
        lambda logits: OP(logits, 3 * logits.shape[1], 7, 2 * logits.shape[2], SEED),
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for masks, size in ((2, (8, 9)), (5, (12, 7)), (3, (4, 6))):
        logits = mask_logits(masks=masks, size=size)
        assert torch.equal(compiled(logits), OP(logits, 3 * size[0], 7, 2 * size[1], SEED))


def test_the_public_function_draws_the_same_points_when_compiled():
    logits = mask_logits()
    torch.manual_seed(1)
    expected = uncertain_points(logits, 30)
    torch.manual_seed(1)
    compiled = torch.compile(uncertain_points, backend="aot_eager")
    assert torch.equal(compiled(logits, 30), expected)
    assert not torch.equal(compiled(logits, 30), expected)
