"""Random points where masks are uncertain: the kernel's are bit-identical to an oracle's, and some
things hold for the reference too. Wrong arguments and compilation are in
test_uncertain_points_contract.py."""

import functools
import math

import numpy as np
import pytest
import torch

from mask2former_ops import _extension, point_sample, reference
from tests.ops.contract import without_kernel
from tests.ops.samples import generator, mask_logits, spread

OP = torch.ops.mask2former_ops.uncertain_points.default
WHY_NO_KERNEL = _extension.why_no_kernel("uncertain_points", "cpu")
kernel_only = pytest.mark.skipif(WHY_NO_KERNEL is not None, reason=str(WHY_NO_KERNEL))
every_set = pytest.mark.usefixtures("instruction_set", "poisoned_memory")
# The operator runs the kernel where there is one.
implementations = pytest.mark.parametrize(
    "run", [OP, functools.partial(without_kernel, OP)], ids=["operator", "reference"]
)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SEED = 0x0123_4567_89AB_CDEF


def point_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


# ---- the kernel's points again, in numpy ---------------------------------------------------------


def philox(counter, key):
    """Philox4x32-10 (Salmon et al. 2011) of counters (4, n) and a key of two words."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a, b, c, d = (np.asarray(word, dtype=np.uint64) for word in counter)
    k, m = (int(word) for word in key)
    for _ in range(10):
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b = (second >> half) ^ b ^ np.uint64(k), second & low
        c, d = (first >> half) ^ d ^ np.uint64(m), first & low
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return np.stack([a, b, c, d])


def uniform_points(mask, seed, blocks, dtype):
    """The numbers of some blocks of 16 points, each from 8 counters, or twice 8 for float64."""
    counters = np.arange(blocks * (16 if dtype == torch.float64 else 8))
    zeros = np.zeros_like(counters)
    words = philox((counters, zeros, zeros + mask, zeros), (seed % 2**32, seed % 2**64 >> 32))
    words = words.reshape(4, -1, 8).transpose(1, 0, 2)  # of eight counters first all first words
    if dtype == torch.float64:
        high, low = words[:, 0::2] >> np.uint64(5), words[:, 1::2] >> np.uint64(6)
        numbers = (high * 2.0**26 + low) * 2.0**-53
    else:
        numbers = (words >> np.uint64(8)) * 2.0**-24
    return torch.from_numpy(numbers.reshape(-1, 2)).to(point_dtype(dtype))


def expected_points(logits, candidates, chosen, points, seed):
    """The chosen candidates in the order in which they were drawn, and then uniform points."""
    found = []
    for mask, own in enumerate(logits):
        drawn_blocks, other_blocks = -(-candidates // 16), -(-(points - chosen) // 16)
        drawn = uniform_points(mask, seed, drawn_blocks + other_blocks, logits.dtype)
        sampled = point_sample(own[None, None], drawn[None, :candidates])[0, 0]
        size = sampled.abs().double().numpy()
        size[np.isnan(size)] = -1
        nearest = np.sort(np.argsort(size, kind="stable")[:chosen])
        others = drawn[16 * drawn_blocks :][: points - chosen]
        found.append(torch.cat([drawn[nearest], others]))
    return torch.stack(found)


def check_kernel(logits, candidates, chosen, points, seed=SEED):
    result = OP(logits, candidates, chosen, points, seed)
    assert torch.equal(result, expected_points(logits, candidates, chosen, points, seed))


def test_the_oracles_numbers_are_the_published_ones():
    zeros, ones = np.zeros((4, 1), dtype=np.uint64), np.full((4, 1), 0xFFFFFFFF)
    assert philox(zeros, (0, 0)).ravel().tolist() == [
        *(0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ]
    assert philox(ones, (0xFFFFFFFF, 0xFFFFFFFF)).ravel().tolist() == [
        *(0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    ]


@kernel_only
@every_set
def test_the_kernel_draws_the_published_numbers():
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    numbers = OP(mask_logits(masks=1), 0, 0, 16, 0).flatten()
    assert numbers[::8].tolist() == [(word >> 8) * 2.0**-24 for word in words]
    numbers = OP(mask_logits(torch.float64, masks=1), 0, 0, 8, 0).flatten()
    pairs = zip(words[::2], words[1::2], strict=True)
    assert numbers[::8].tolist() == [((a >> 5) * 2**26 + (b >> 6)) * 2.0**-53 for a, b in pairs]


@kernel_only
@every_set
@pytest.mark.parametrize("seed", [SEED, 0, -1, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_points_equal_the_oracles(dtype, seed):
    check_kernel(mask_logits(dtype), 300, 75, 100, seed)


@kernel_only
@every_set
@pytest.mark.parametrize(
    ("candidates", "chosen", "points"),
    [
        *((1, 1, 1), (1, 0, 1), (16, 16, 17), (17, 1, 33), (15, 15, 15), (8, 7, 9)),
        *((0, 0, 5), (5, 0, 0), (40, 0, 40), (40, 40, 40), (1024, 700, 900), (1025, 1024, 1024)),
        *((5000, 1, 1), (5000, 3000, 3001), (3, 2, 2000)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_any_number_of_points_is_drawn_and_chosen(dtype, candidates, chosen, points):
    check_kernel(mask_logits(dtype, masks=2), candidates, chosen, points)


@kernel_only
@every_set
@pytest.mark.parametrize("size", [(1, 1), (1, 30), (20, 1), (2, 2), (0, 7), (7, 0), (0, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_maps_may_have_any_size(dtype, size):
    check_kernel(mask_logits(dtype, size=size), 200, 50, 70)


@kernel_only
@every_set
@pytest.mark.parametrize("value", [0.0, -0.0, 3.0, -3.0, math.inf, math.nan])
@pytest.mark.parametrize("dtype", DTYPES)
def test_of_equally_certain_candidates_the_first_are_taken(dtype, value):
    logits = torch.full((2, 9, 9), value, dtype=dtype)
    # Along the border a sample is less than the constant.
    logits = torch.nn.functional.pad(logits, (50,) * 4, value=value)
    check_kernel(logits, 400, 90, 100)
    many = OP(logits, 400, 400, 400, SEED)
    inside = OP(torch.zeros_like(logits), 400, 90, 90, SEED)
    assert torch.equal(inside, many[:, :90])


@kernel_only
@every_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_tied_logits_of_either_sign_and_all_sizes_are_ordered_by_their_drawing(dtype):
    steps = torch.randint(-3, 4, (3, 12, 12), generator=generator(1))
    logits = steps.repeat_interleave(8, 1).repeat_interleave(8, 2).to(dtype)
    for chosen in (1, 50, 200, 500, 599):
        check_kernel(logits, 600, chosen, 600)


@kernel_only
@every_set
@pytest.mark.parametrize("scale", [1e-40, 1e-4, 1e4, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_numbers_of_any_size_are_ordered(dtype, scale):
    logits = mask_logits(torch.float64) * scale
    check_kernel(logits.to(dtype), 500, 123, 200)


@implementations
@every_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_that_are_nan_are_the_least_certain(run, dtype):
    """So that a loss at the chosen points is NaN too."""
    logits = torch.zeros(2, 8, 8, dtype=dtype)
    logits[:, :, 4:] = math.inf
    logits[0, 2:6, 2:4] = math.nan
    points = run(logits, 400, 30, 30, SEED)
    sampled = point_sample(logits[:, None], points)[:, 0]
    assert sampled[0].isnan().all()
    assert not sampled[1].any()  # no infinity, as long as there is anything else
    if run is OP and WHY_NO_KERNEL is None:
        for chosen in (1, 30, 200, 399):
            check_kernel(logits, 400, chosen, 400)


@kernel_only
@every_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_need_not_be_contiguous(dtype):
    logits = mask_logits(dtype)
    expected = OP(logits, 300, 75, 100, SEED)
    for view in (spread(logits), logits.mT.contiguous().mT, logits.permute(2, 0, 1)):
        plain = view.contiguous()
        assert not view.is_contiguous()
        assert torch.equal(OP(view, 300, 75, 100, SEED), OP(plain, 300, 75, 100, SEED))
    assert torch.equal(OP(spread(logits), 300, 75, 100, SEED), expected)
    same = logits[:1].expand_as(logits)
    assert torch.equal(OP(same, 60, 9, 10, 1), OP(same.contiguous(), 60, 9, 10, 1))


@kernel_only
@every_set
def test_points_do_not_depend_on_the_number_of_threads():
    logits = mask_logits(masks=23)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(OP(logits, 300, 75, 100, SEED))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(points, found[0]) for points in found[1:])


# ---- what holds for the reference too ------------------------------------------------------------


@implementations
@every_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_chosen_are_the_candidates_nearest_to_zero(run, dtype):
    logits = mask_logits(dtype)
    everything = run(logits, 300, 300, 300, SEED)
    points = run(logits, 300, 75, 100, SEED)
    assert points.dtype == point_dtype(dtype)
    assert points.shape == (3, 100, 2)
    for own, drawn, map in zip(points, everything, logits, strict=True):
        size = point_sample(map[None, None], drawn[None])[0, 0].abs().double()
        index_of = {tuple(point): i for i, point in enumerate(drawn.tolist())}
        assert len(index_of) == 300
        index = [index_of[tuple(point)] for point in own[:75].tolist()]
        assert len(set(index)) == 75
        assert size[index].max() <= size.sort().values[74]
        assert not index_of.keys() & {tuple(point) for point in own[75:].tolist()}


@implementations
@every_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_most_points_lie_at_the_edge_of_a_mask(run, dtype):
    logits = torch.linspace(-20, 20, 41).expand(2, 41, 41).to(dtype)
    x = run(logits, 3000, 750, 1000, SEED)[..., 0]
    near = ((x - 0.5).abs() < 0.15).double()
    assert near[:, :750].mean() > 0.9
    assert near[:, 750:].mean() < 0.4


@implementations
@every_set
@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_points_have_the_moments_of_uniform_numbers(run, dtype):
    """Each within 5 of its standard deviations, so that the limits hold for nearly all seeds."""
    points = run(mask_logits(dtype, masks=4, size=(2, 2)), 0, 0, 50_000, SEED).double()
    assert 0 <= points.min() < 1e-3
    assert 1 - 1e-3 < points.max() < 1
    numbers = points.flatten(1)
    error = 5 * numbers.shape[1] ** -0.5
    centred = (numbers - 0.5) * 12**0.5
    assert (centred.mean(1).abs() < error).all()
    assert (((centred**2).mean(1) - 1).abs() < error * 0.8**0.5).all()
    assert ((centred**3).mean(1).abs() < error * (27 / 7) ** 0.5).all()
    for lag in (1, 2, 8, 16, 32, 64):  # with neighbours, lanes and whole packs
        product = centred[:, lag:] * centred[:, :-lag]
        assert (product.mean(1).abs() < 1.01 * error).all()
    between = centred @ centred.T / numbers.shape[1]
    assert (between - between.diag().diag()).abs().max() < error
    counts = torch.histc(numbers, 64, 0, 1)
    expected = numbers.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * 126**0.5  # chi-squared


@implementations
@every_set
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_masks_and_seeds_have_points_of_their_own(run, dtype):
    logits = mask_logits(dtype, masks=1).repeat(5, 1, 1)
    points = [run(logits, 90, 20, 40, seed) for seed in (0, 1, 2, SEED)]
    numbers = torch.cat(points).flatten(1)
    # Two of 24 bits are the same at times, but no two lists have many in common.
    for i, own in enumerate(numbers):
        for other in numbers[:i]:
            assert torch.isin(own, other).sum() <= 1
    assert torch.equal(run(logits, 90, 20, 40, 2), points[2])


@implementations
@every_set
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("masks", "size", "counts"),
    [
        (0, (5, 5), (30, 7, 10)),
        (2, (5, 5), (0, 0, 0)),
        (2, (5, 5), (30, 0, 0)),
        (2, (5, 5), (0, 0, 10)),
        (2, (5, 5), (10, 10, 10)),
        (2, (0, 5), (30, 7, 10)),
        (2, (5, 0), (30, 7, 10)),
    ],
)
def test_any_size_and_any_count_may_be_zero(run, masks, size, counts, dtype):
    points = run(mask_logits(dtype, masks, size), *counts, SEED)
    assert points.shape == (masks, counts[-1], 2)
    assert points.dtype == point_dtype(dtype)
    assert ((points >= 0) & (points < 1)).all()


def nearness(sampled):
    return -sampled.abs()


def test_the_reference_draws_from_the_generator_that_it_is_given():
    logits = mask_logits()[:, None]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    given = [
        reference.uncertain_points(logits, nearness, 300, 75, 100, generator=generator(3))
        for _ in range(2)
    ]
    assert torch.equal(*given)
    assert torch.equal(torch.get_rng_state(), before)
    by_default = reference.uncertain_points(logits, nearness, 300, 75, 100)
    assert torch.equal(by_default, given[0])
    assert not torch.equal(torch.get_rng_state(), before)


def test_the_reference_orders_the_same_chosen_points_if_asked():
    logits = mask_logits()[:, None]
    ordered, anyhow = (
        reference.uncertain_points(
            logits, nearness, 300, 75, 100, ordered=ordered, generator=generator(0)
        )
        for ordered in (True, False)
    )
    sizes = point_sample(logits, ordered[:, :75])[:, 0].abs()
    assert torch.equal(sizes, sizes.sort(1).values)
    assert torch.equal(ordered[:, 75:], anyhow[:, 75:])
    for own, other in zip(ordered[:, :75].tolist(), anyhow[:, :75].tolist(), strict=True):
        assert sorted(own) == sorted(other)
