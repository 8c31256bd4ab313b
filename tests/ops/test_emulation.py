"""The emulation of CUDA that the kernels are tested on where there is no GPU."""

import numpy as np
import pytest
import torch

from .emulation import build

pytestmark = pytest.mark.skipif(
    not build.is_available(), reason="needs a C++ compiler and pybind11"
)

WARP = 32
SEEDS = range(8)
SHUFFLES = ("shfl", "up", "down", "xor")


@pytest.fixture(scope="module")
def emulator():
    return build.load(build.build("emulation_self_test", [build.HERE / "self_test.cpp"]))


@pytest.fixture(autouse=True)
def first_seed(emulator):
    emulator.seed(0)


# ---- threads and blocks ----


def test_every_thread_has_its_indices(emulator):
    grid, block = (2, 3, 2), (5, 4, 3)
    rows = emulator.all_indices(grid, block).reshape(*grid[::-1], *block[::-1], 2, 3)
    index = np.moveaxis(np.indices(rows.shape[:6]), 0, -1)
    assert (rows[..., 0, :] == index[..., 2::-1]).all()
    assert (rows[..., 1, :] == index[..., :2:-1]).all()


def test_order_follows_from_the_seed(emulator):
    orders = []
    for seed in (1, 2, 1):
        emulator.seed(seed)
        orders.append(emulator.beginning(3, 40))
    assert sorted(orders[0]) == list(range(120))
    assert orders[0] == orders[2]
    assert orders[0] not in (orders[1], sorted(orders[0]))


@pytest.mark.parametrize("threads", [1, 5, 32, 33, 96, 127, 1024])
@pytest.mark.parametrize("blocks", [1, 3])
def test_block_sums(emulator, blocks, threads):
    values = np.arange(2000, dtype=np.int32)
    block = np.arange(len(values)) // threads % blocks
    expected = [values[block == i].sum() for i in range(blocks)]
    for seed in SEEDS:
        emulator.seed(seed)
        assert emulator.block_sums(values, blocks, threads, True) == expected


def test_missing_barrier_changes_the_result(emulator):
    values = np.ones(256, np.int32)
    sums = set()
    for seed in SEEDS:
        emulator.seed(seed)
        sums.update(emulator.block_sums(values, 1, 256, False))
    assert sums - {256}


def test_missing_warp_barrier_changes_the_result(emulator):
    expected = [*range(1, WARP), 0]
    assert emulator.rotated(True) == expected
    assert emulator.rotated(False) != expected


def test_statistics(emulator):
    emulator.reset_statistics()
    emulator.many_shuffles(64, 3)
    assert emulator.statistics() == {"launches": 1, "blocks": 1, "threads": 64, "shuffles": 192}


# ---- shuffles and votes ----


def sources(kind, arguments, width):
    """The lane that each lane reads, as the CUDA guide has it."""
    lane = np.arange(len(arguments))
    first = lane // width * width
    last = first + width - 1
    if kind == "shfl":
        return first + arguments % width
    if kind == "up":
        return np.where(lane - arguments < first, lane, lane - arguments)
    other = lane + arguments if kind == "down" else lane ^ arguments
    return np.where(other > last, lane, other)


@pytest.mark.parametrize("dtype", ["i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("kind", SHUFFLES)
def test_shuffles(emulator, kind, dtype):
    generator = np.random.default_rng(0)
    values = generator.integers(0, 256, WARP * np.dtype(dtype).itemsize, np.uint8).view(dtype)
    for width in (1, 2, 4, 8, 16, 32):
        arguments = generator.integers(0, WARP, WARP)
        result = emulator.shuffled(
            SHUFFLES.index(kind), values, arguments.tolist(), 0xFFFFFFFF, width
        )
        expected = values[sources(kind, arguments, width)]
        assert result.dtype == expected.dtype
        assert result.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", SHUFFLES)
def test_shuffles_of_some_lanes(emulator, kind):
    width, mask = 4, 0x00FF00F0
    values = np.arange(24, dtype=np.float32)
    arguments = np.random.default_rng(1).integers(0, width, len(values))
    inside = np.array([mask >> lane & 1 for lane in range(len(values))], bool)
    expected = np.where(inside, values[sources(kind, arguments, width)], values)
    result = emulator.shuffled(SHUFFLES.index(kind), values, arguments.tolist(), mask, width)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("chance", [0, 0.1, 0.9, 1])
def test_votes(emulator, chance):
    predicates = np.random.default_rng(1).random(3 * WARP) < chance
    for seed in SEEDS:
        emulator.seed(seed)
        rows = emulator.votes(predicates.tolist())
        for half, lanes in enumerate(np.split(predicates, 6)):
            ballot = sum(int(p) << i for i, p in enumerate(lanes)) << 16 * (half % 2)
            expected = [ballot, lanes.any(), lanes.all()]
            expected += [predicates.sum(), predicates.any(), predicates.all()]
            assert (rows[16 * half : 16 * (half + 1)] == expected).all()


# ---- memory ----

# What each leaves in memory, of the old value and the value and rank of the thread.
ATOMICS = {
    "add": lambda old, value, rank: old + value,
    "max": lambda old, value, rank: max(old, value),
    "min": lambda old, value, rank: min(old, value),
    "exchange": lambda old, value, rank: value,
    "compare": lambda old, value, rank: value if old == rank else old,
}
ATOMIC_TYPES = {
    "int": (np.int32, list(ATOMICS)),
    "unsigned": (np.uint32, list(ATOMICS)),
    "long": (np.int64, ["max", "min"]),
    "unsigned_long": (np.uint64, list(ATOMICS)),
    "float": (np.float32, ["add", "exchange"]),
    "double": (np.float64, ["add"]),
}


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, (_, kinds) in ATOMIC_TYPES.items() for kind in kinds]
)
def test_atomics(emulator, name, kind):
    change = ATOMICS[kind]
    values = np.random.default_rng(2).permutation(40).astype(ATOMIC_TYPES[name][0])
    run = getattr(emulator, f"atomics_{name}")
    memory, olds = run(list(ATOMICS).index(kind), 20, values)
    news = [change(old, values[rank], rank) for rank, old in enumerate(olds)]
    # What one thread leaves the next one finds.
    assert sorted([20, *news]) == sorted([*olds, memory])


@pytest.mark.parametrize("width", [2, 4])
def test_atomics_of_vectors(emulator, width):
    values = np.arange(10 * width)
    expected = values.reshape(10, width).sum(0)
    assert emulator.added_vectors(width, values.tolist()) == expected.tolist()


def test_shared_memory_ends_where_the_launch_says(emulator):
    emulator.write_shared(1023, 1024)
    if emulator.has_address_sanitizer:
        pytest.skip("AddressSanitizer would end the process")
    for at, size in [(1024, 1024), (1000, 999), (200000, 0)]:
        sentence = f"block .*: shared memory is written at byte {at}, .* only {size} bytes"
        with pytest.raises(RuntimeError, match=sentence):
            emulator.write_shared(at, size)


# ---- numbers ----

BITS = np.arange(1 << 16, dtype=np.uint16)


def floats() -> np.ndarray:
    """Random ones, and all that lie halfway between two halves or bfloat16s, or next to it."""
    random = np.random.default_rng(3).integers(0, 1 << 32, 300_000, np.uint32)
    with np.errstate(invalid="ignore"):
        halves = np.sort(BITS.view(np.float16).astype(np.float32))
        ties = np.concatenate([(halves[1:] + halves[:-1]) / 2, [65520, -65520]])
    ties = np.concatenate(
        [ties.astype(np.float32).view(np.uint32), BITS.astype(np.uint32) << 16 | 0x8000]
    )
    return np.concatenate([random, ties - 1, ties, ties + 1]).astype(np.uint32).view(np.float32)


def test_half_to_float(emulator):
    with np.errstate(invalid="ignore"):
        expected = BITS.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(emulator.half_to_float(BITS), expected)


def test_float_to_half(emulator):
    values = floats()
    with np.errstate(invalid="ignore", over="ignore"):
        expected = values.astype(np.float16).view(np.uint16)
    expected[np.isnan(values)] = 0x7FFF
    np.testing.assert_array_equal(emulator.float_to_half(values), expected)


def test_bfloat16_to_float(emulator):
    expected = BITS.astype(np.uint32) << 16
    np.testing.assert_array_equal(emulator.bfloat16_to_float(BITS).view(np.uint32), expected)


def test_float_to_bfloat16(emulator):
    values = floats()
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16).copy()
    expected[np.isnan(values)] = 0x7FFF
    np.testing.assert_array_equal(emulator.float_to_bfloat16(values), expected)


def test_float_to_int(emulator):
    values = np.array([1.5, -1.5, -0.0, 3e9, -3e9, np.nan, -(2.0**31)], np.float32)
    expected = [1, -2, 0, 2**31 - 1, -(2**31), 0, -(2**31)]
    assert emulator.float_to_int(values).tolist() == expected


# ---- errors ----

FAULTS = {
    "leave_before_barrier": r"__syncthreads \(.*\) waits for thread \(3, 0, 0\), which has ended",
    "two_barriers": r"__syncthreads \(.*\) while thread .* waits in __syncthreads \(self_test.cpp",
    "lane_not_in_mask": r"thread \(0, 0, 0\) .*__syncwarp \(.*\) with a mask that lacks the lane",
    "lane_has_ended": r"__shfl_xor_sync \(.*\) waits for lane 7 of its mask, which has ended",
    "lane_at_other_call": r"__shfl_sync .* waits for lane \d+ of .*, which waits in __shfl_sync",
    "lane_at_barrier": r"__any_sync .* waits for lane 5 of its mask, which waits in __syncthreads",
    "read_outside_mask": r"__shfl_down_sync .* reads from lane \d+, which is not in the mask",
    "read_missing_lane": r"__shfl_xor_sync .* lane \d+, which the block does not have",
    "masks_differ": r"__ballot_sync .* with another mask than lanes of it",
    "widths_differ": r"__shfl_sync .* with another width than other lanes of its mask",
    "odd_width": r"__shfl_sync with a width of 12",
    "throws": r"thread \(2, 0, 0\) of block \(1, 0, 0\): the kernel threw: odd",
    "misaligned_load": r"thread \(1, 0, 0\) .*__ldg at an address that is no multiple of 16",
    "misaligned_atomic": r"thread \(1, .*atomicAdd at an address that is no multiple of 8",
    "vector_atomic_in_shared_memory": "atomicAdd of a vector in shared memory",
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(emulator, name):
    for seed in SEEDS:
        emulator.seed(seed)
        with pytest.raises(RuntimeError, match=FAULTS[name]) as error:
            emulator.fault(name)
        assert str(error.value).startswith("thread (")
        assert emulator.block_sums(np.ones(64, np.int32), 1, 64, True) == [64]


@pytest.mark.parametrize(
    ("grid", "block", "shared"),
    [
        ((0, 1, 1), (1, 1, 1), 0),
        ((1, 65536, 1), (1, 1, 1), 0),
        ((1, 1, 65536), (1, 1, 1), 0),
        ((1, 1, 1), (1, 0, 1), 0),
        ((1, 1, 1), (1025, 1, 1), 0),
        ((1, 1, 1), (32, 33, 1), 0),
        ((1, 1, 1), (1, 1, 65), 0),
        ((1, 1, 1), (1, 1, 1), 48 * 1024 + 1),
    ],
)
def test_launches_that_cuda_refuses(emulator, grid, block, shared):
    assert emulator.try_launch(grid, block, shared) == "invalid configuration argument"
    assert emulator.last_error() == "invalid configuration argument"
    assert emulator.last_error() == "no error"


def test_launches_at_the_limits(emulator):
    assert emulator.try_launch((1, 1, 1), (32, 32, 1), 48 * 1024) == "no error"
    assert emulator.try_launch((3, 2, 2), (2, 2, 64), 0) == "no error"
    assert emulator.try_much_memory(227 * 1024, 227 * 1024) == "no error"
    assert emulator.try_much_memory(100 * 1024, 227 * 1024) == "invalid configuration argument"
    assert emulator.try_much_memory(227 * 1024 + 1, 0) == "invalid argument"
    emulator.last_error()


def test_the_device(emulator):
    assert emulator.device_attributes() == [2, WARP, 227 * 1024]
