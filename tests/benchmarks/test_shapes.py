"""The table of shapes."""

import torch

from benchmarks.contestants import FLOOR, GRID_SAMPLE, PEER, PEER_FLOAT32
from benchmarks.ops import Row
from benchmarks.shapes import BACKWARD, BOTH, CUDA_OPS, FORWARD, MODELS, OPS, pyramid


def test_a_last_part_of_a_stride_counts_as_whole():
    levels = pyramid(800, 1333, 8, 16, 32, 64)
    assert levels == ((100, 167), (50, 84), (25, 42), (13, 21))


def test_names_tell_the_shapes_of_an_operator_apart():
    for table in (OPS, CUDA_OPS):
        names = [(shape.op, shape.name) for shape in table]
        assert len(set(names)) == len(names)


def test_an_encoder_has_a_query_for_each_pixel_of_its_levels():
    (shape,) = [shape for shape in MODELS if shape.name == "Mask2Former encoder, 640x640"]
    assert shape.description == "N=1 Q=8400 S=8400 M=8 D=32 L=3 P=4"
    assert shape.output == (1, 8400, 256)


def test_every_target_has_rows_that_it_can_be_read_off():
    for shape in OPS:
        assert torch.float32 in shape.dtypes
        assert bool(shape.half_targets) <= (len(shape.dtypes) > 1)
        assert shape.backward or all(target.both is None for target in shape.targets)


def test_the_smallest_shape_keeps_what_kernels_branch_on():
    for shape in OPS:
        small = shape.smallest()
        assert (small.op, small.dtypes, small.backward) == (shape.op, shape.dtypes, shape.backward)
        if shape.op == "ms_deform_attn":
            assert small.samples_per_level == shape.samples_per_level
            assert (small.pixels, small.channels) == (4 * len(shape.levels), shape.channels)
        else:
            assert (small.where, small.masks, small.size) == (shape.where, shape.masks, (2, 2))


def test_a_gpu_has_all_shapes_and_the_large_one_with_half_locations():
    names = {shape.name for shape in CUDA_OPS}
    assert names == {shape.name for shape in OPS} | {
        "Mask2Former encoder, 1024x1024, half locations"
    }


def test_targets_of_an_h100():
    large = CUDA_OPS[0]
    assert large.description == "N=1 Q=21504 S=21504 M=8 D=32 L=3 P=4"

    def targets(dtype, direction):
        targets = Row(large, dtype, direction).targets()
        assert targets.pop(GRID_SAMPLE) == 1
        return targets

    assert targets(torch.float32, FORWARD) == {PEER: 3}
    assert targets(torch.float32, BACKWARD) == {PEER: 4}
    assert targets(torch.bfloat16, FORWARD) == {PEER_FLOAT32: 6, FLOOR: 1 / 3}
    assert targets(torch.bfloat16, BACKWARD) == {PEER_FLOAT32: 5}
    assert targets(torch.bfloat16, BOTH) == {}
    assert CUDA_OPS[1].half_targets == large.half_targets
