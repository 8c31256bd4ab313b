import pytest
import torch

from mask2former_ops import ms_deform_attn
from mask2former_ops.modules import MSDeformAttn

SHAPES = torch.tensor([[4, 6], [2, 3]])
STARTS = torch.tensor([0, 24])


def layer():
    torch.manual_seed(0)
    layer = MSDeformAttn(d_model=16, n_levels=2, n_heads=4, n_points=3).double()
    torch.nn.init.normal_(layer.sampling_offsets.weight, std=0.1)
    torch.nn.init.normal_(layer.attention_weights.weight, std=0.1)
    return layer


def inputs(seed=0, queries=5):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, queries, 16, generator=generator, dtype=torch.float64)
    values = torch.randn(2, 30, 16, generator=generator, dtype=torch.float64)
    points = torch.rand(2, queries, 2, 2, generator=generator, dtype=torch.float64)
    return query, points, values


def test_state_dict_keys_are_upstreams():
    parts = ["sampling_offsets", "attention_weights", "value_proj", "output_proj"]
    names = [f"{part}.{kind}" for part in parts for kind in ("weight", "bias")]
    assert list(MSDeformAttn().state_dict()) == names
    assert MSDeformAttn().sampling_offsets.weight.shape == (8 * 4 * 4 * 2, 256)


def test_offsets_start_as_rings_around_the_reference_point():
    bias = MSDeformAttn(8, n_levels=1, n_heads=4, n_points=2).sampling_offsets.bias
    expected = [[1, 0], [2, 0], [0, 1], [0, 2], [-1, 0], [-2, 0], [0, -1], [0, -2]]
    assert torch.allclose(bias.view(8, 2), torch.tensor(expected).float(), atol=1e-6)


def test_a_seed_gives_the_weights_that_it_gives_upstream():
    torch.manual_seed(3)
    layer = MSDeformAttn(8, n_levels=2, n_heads=2, n_points=3)
    torch.manual_seed(3)
    for size in (2 * 2 * 3 * 2, 2 * 2 * 3, 8, 8):
        torch.nn.Linear(8, size)  # upstream makes all four before it sets any
    for projection in (layer.value_proj, layer.output_proj):
        expected = torch.nn.init.xavier_uniform_(torch.empty(8, 8))
        assert torch.equal(projection.weight, expected)
        assert not projection.bias.any()
    for start in (layer.sampling_offsets.weight, *layer.attention_weights.parameters()):
        assert not start.any()


def test_a_layer_may_be_re_initialised():
    layer = MSDeformAttn(8, n_levels=1, n_heads=4, n_points=2)
    before = layer.sampling_offsets.bias.detach().clone()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    layer._reset_parameters()
    assert torch.equal(layer.sampling_offsets.bias, before)
    assert not layer.attention_weights.bias.any()


def test_upstreams_im2col_step_has_no_effect():
    module = layer()
    assert module.im2col_step == 64
    query, points, values = inputs()
    expected = module(query, points, values, SHAPES, STARTS)
    module.im2col_step = 128
    assert torch.equal(module(query, points, values, SHAPES, STARTS), expected)


@pytest.mark.parametrize("empty", ["batch", "queries"])
def test_a_batch_or_a_list_of_queries_may_be_empty(empty):
    query, points, values = inputs()
    if empty == "batch":
        query, points, values = query[:0], points[:0], values[:0]
    else:
        query, points = query[:, :0], points[:, :0]
    assert layer()(query, points, values, SHAPES, STARTS).shape == query.shape


@pytest.mark.parametrize("coordinates", [2, 4])
def test_output_is_the_op_at_the_formulas_locations(coordinates):
    module = layer()
    query, points, values = inputs()
    boxes = torch.full_like(points, 0.3)
    reference = points if coordinates == 2 else torch.cat([points, boxes], -1)
    offsets = module.sampling_offsets(query).view(2, 5, 4, 2, 3, 2)
    if coordinates == 2:
        scale = torch.tensor([[6, 4], [3, 2]]).double()[None, None, None, :, None]
        locations = points[:, :, None, :, None] + offsets / scale
    else:
        locations = points[:, :, None, :, None] + offsets / 3 * 0.3 * 0.5
    weights = module.attention_weights(query).view(2, 5, 4, 6).softmax(-1).view(2, 5, 4, 2, 3)
    value = module.value_proj(values).view(2, 30, 4, 4)
    expected = module.output_proj(ms_deform_attn(value, SHAPES, STARTS, locations, weights))
    assert torch.allclose(module(query, reference, values, SHAPES, STARTS), expected, atol=1e-12)


def test_padding_positions_count_as_zero():
    module = layer()
    query, points, values = inputs()
    padding = torch.zeros(2, 30, dtype=torch.bool)
    padding[:, 10:20] = True
    first = module(query, points, values, SHAPES, STARTS, padding)
    values[:, 10:20] += 100
    assert torch.equal(first, module(query, points, values, SHAPES, STARTS, padding))
    assert not torch.allclose(first, module(query, points, values, SHAPES, STARTS))


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="d_model 10 must be a multiple of n_heads 4"):
        MSDeformAttn(10, n_heads=4)
    query, points, values = inputs()
    with pytest.raises(ValueError, match="2 or 4 coordinates, but has 3"):
        layer()(query, points.repeat(1, 1, 1, 2)[..., :3], values, SHAPES, STARTS)
