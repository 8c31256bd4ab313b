"""How the operators behave on a GPU. Their numbers there are tested by test_ms_deform_attn.py,
test_point_sample.py and test_fuzz.py, which run on CUDA as well where there is a GPU."""

import re

import pytest
import torch

from mask2former_ops import _extension, ms_deform_attn, point_sample
from tests.ops.samples import msda_arguments, msda_grad, point_arguments, point_grad
from tests.ops.tolerances import assert_all_equal, assert_close

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(
        _extension.why_no_kernel("ms_deform_attn", "cuda") is not None,
        reason=str(_extension.why_no_kernel("ms_deform_attn", "cuda")),
    ),
]
ATTENTION = torch.ops.mask2former_ops.ms_deform_attn.default
ATTENTION_BACKWARD = torch.ops.mask2former_ops.ms_deform_attn_backward.default
POINTS = torch.ops.mask2former_ops.point_sample.default
POINTS_BACKWARD = torch.ops.mask2former_ops.point_sample_backward.default
ALL, BOTH = [True, True, True], [True, True]


def on_gpu(arguments, device="cuda"):
    return [x.to(device) if torch.is_tensor(x) else x for x in arguments]


def run_all(attention, points):
    """Both operators and their gradients, as a flat list."""
    return [
        ATTENTION(*attention),
        *ATTENTION_BACKWARD(torch.ones_like(ATTENTION(*attention)), *attention, ALL),
        POINTS(*points),
        *POINTS_BACKWARD(torch.ones_like(POINTS(*points)), *points, False, BOTH),
    ]


def assert_all_close(results, expected):
    for result, wanted in zip(results, expected, strict=True):
        assert_close(result.cpu(), wanted.double(), torch.float32)


@pytest.fixture(params=[3, 20])
def attention(request):
    """With few levels and with more than travel with a launch."""
    levels = [(6, 5), (1, 1), (3, 8)] * (request.param // 3) + [(2, 2)] * (request.param % 3)
    return msda_arguments(torch.float32, levels=levels, d=32)


@pytest.fixture
def points():
    return point_arguments(torch.float32)


# ---- device and stream ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_no_call_waits_for_the_device(attention, points):
    """Levels may lie there or, read without waiting, on the host."""
    device = on_gpu(attention)
    host = [device[0], *attention[1:3], *device[3:]]
    on_device = on_gpu(points)
    run_all(device, on_device)  # loads the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = run_all(device, on_device)
        again = run_all(host, on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = run_all(attention, points)
    assert_all_close(found, expected)
    assert_all_close(again, expected)


def test_work_goes_to_the_current_stream(attention, points):
    """There the arguments come after a long wait that another stream does not know of."""
    stream = torch.cuda.Stream()
    ready = on_gpu(attention), on_gpu(points)
    device, on_device = ([torch.zeros_like(x) for x in xs if x is not None] for xs in ready)
    device[1:3] = ready[0][1:3]
    run_all([*device, None], on_device)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for into, numbers in zip([*device, *on_device], [*ready[0][:5], *ready[1]], strict=True):
            into.copy_(numbers)
        found = run_all([*device, None], on_device)
        event = stream.record_event()
    assert not event.query()
    stream.synchronize()
    assert_all_close(found, run_all(attention, points))


def test_a_cuda_graph_captures_all_kernels(attention, points):
    device, on_device = on_gpu(attention), on_gpu(points)
    run_all(device, on_device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run_all(device, on_device)
    levels = [tuple(size) for size in attention[1].tolist()]
    others = (
        msda_arguments(torch.float32, levels=levels, d=32, seed=5),
        point_arguments(torch.float32, seed=5),
    )
    for into, new in ((device, others[0]), (on_device, others[1])):
        for tensor, numbers in zip(into, new, strict=True):
            if torch.is_tensor(tensor):
                tensor.copy_(numbers)
    graph.replay()
    torch.cuda.synchronize()
    assert_all_close(found, run_all(*others))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_second_gpu_does_its_own_work(attention, points):
    found = run_all(on_gpu(attention, "cuda:1"), on_gpu(points, "cuda:1"))
    assert {x.device for x in found} == {torch.device("cuda:1")}
    assert_all_close(found, run_all(attention, points))


# ---- wrong arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(("i", "name"), [(3, "sampling_locations"), (4, "attention_weights")])
def test_attention_arguments_on_another_device_are_refused(attention, i, name):
    device = on_gpu(attention)
    device[i] = attention[i]
    message = f"ms_deform_attn: {name} must be on cuda:0 like value, but is on cpu"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        ATTENTION(*device)


def test_levels_on_the_gpu_beside_a_value_on_the_cpu_are_refused(attention):
    shapes = attention[1].cuda()
    with pytest.raises(RuntimeError, match="spatial_shapes must be on cpu like value"):
        ATTENTION(attention[0], shapes, *attention[2:])


def test_points_on_another_device_are_refused(points):
    with pytest.raises(RuntimeError, match="points must be on cuda:0 like input, but is on cpu"):
        POINTS(points[0].cuda(), points[1])


def test_gradients_on_another_device_are_refused(attention, points):
    with pytest.raises(RuntimeError, match="grad_output must be on cuda:0 like value"):
        ATTENTION_BACKWARD(msda_grad(attention), *on_gpu(attention), ALL)
    with pytest.raises(RuntimeError, match="grad_output must be on cuda:0 like input"):
        POINTS_BACKWARD(point_grad(*points), *on_gpu(points), False, BOTH)


def test_an_integer_value_is_refused(attention):
    device = on_gpu(attention)
    device[0] = device[0].int()
    with pytest.raises(RuntimeError, match="value must be float64 or float32 or .*, but is int32"):
        ATTENTION(*device)


def test_levels_that_lie_outside_are_not_sampled(attention):
    """Found out on the device, where the host cannot look without waiting."""
    device = on_gpu(attention)
    device[1] = attention[1].clone()
    device[1][-1] *= 100
    device[1] = device[1].cuda()
    output = ATTENTION(*device)
    device[4][:, :, :, -1] = 0
    device[1] = attention[1].cuda()
    assert torch.equal(output, ATTENTION(*device))


# ---- the rest of torch ---------------------------------------------------------------------------


def test_deterministic_gradients_are_the_same_bits_in_every_run():
    arguments = on_gpu(msda_arguments(torch.float32, levels=[(9, 9)], q=5000, d=32))
    where = on_gpu(point_arguments(torch.float32, size=(9, 9), points=(1, 5000)))
    torch.use_deterministic_algorithms(True)
    try:
        found = []
        for _ in range(3):
            leaves = [x.clone().requires_grad_() for x in (arguments[0], *arguments[3:5], *where)]
            value, locations, weights, input, points = leaves
            total = ms_deform_attn(value, *arguments[1:3], locations, weights).square().sum()
            (total + point_sample(input, points).square().sum()).backward()
            found.append([x.grad for x in leaves])
    finally:
        torch.use_deterministic_algorithms(False)
    for others in found[1:]:
        assert_all_equal(others, found[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_takes_half_values_and_float32_locations(attention, dtype):
    value, shapes, starts, locations, weights, _ = on_gpu(attention)
    with torch.autocast("cuda", dtype=dtype):
        output = ms_deform_attn(value, shapes, starts, locations, weights)
    assert output.dtype == dtype
    assert torch.equal(output, ms_deform_attn(value.to(dtype), shapes, starts, locations, weights))


# opcheck itself reads .grad of tensors that are no leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_both_operators_pass_opcheck_on_the_gpu():
    arguments = on_gpu(msda_arguments(torch.float32))
    torch.library.opcheck(ATTENTION, tuple(arguments))
    torch.library.opcheck(POINTS, tuple(on_gpu(point_arguments(torch.float32))))


@pytest.mark.filterwarnings("ignore")  # of Triton and of the compiler, not ours
def test_a_compiled_function_runs_the_kernels(attention, points):
    def both(attention, points):
        return ms_deform_attn(*attention).sum() + point_sample(*points).sum()

    device = on_gpu(attention), on_gpu(points)
    compiled = torch.compile(both, fullgraph=True)
    torch.testing.assert_close(compiled(*device), both(*device))


def test_half_a_million_rows_are_more_than_one_wave_of_blocks():
    arguments = msda_arguments(torch.bfloat16, levels=[(40, 60)], n=1, q=60000, m=8, d=32)
    exact = [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in arguments]
    output = ATTENTION(*on_gpu(arguments))
    assert_close(output.cpu(), ATTENTION(*exact), torch.bfloat16)
