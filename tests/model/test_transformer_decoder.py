import copy

import pytest
import torch
from torch.nn import functional as F

from mask2former.model import transformer_decoder
from mask2former.model.pixel_decoder import PixelDecoderOutput
from mask2former.model.transformer_decoder import Attention, attention_mask, mask_logits
from tests.reference import randomise, relative_error, tiny_model


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_the_mask_of_resized_features_is_the_resized_mask():
    embeddings, features = random(2, 5, 8), random(2, 8, 16, 24, seed=1)
    size = (4, 6)
    resized = F.interpolate(features, size, mode="bilinear", align_corners=False)
    mask = attention_mask(embeddings, resized, torch.ones(2, *size, dtype=torch.bool))
    full = F.interpolate(
        mask_logits(embeddings, features), size, mode="bilinear", align_corners=False
    )
    expected = full.sigmoid().flatten(2) >= 0.5
    expected |= ~expected.any(-1, keepdim=True)
    assert torch.equal(mask[:, 0], expected)


def test_a_query_with_an_empty_mask_looks_everywhere_in_the_image():
    valid = torch.ones(1, 2, 3, dtype=torch.bool)
    valid[:, :, 2] = False
    features = torch.full((1, 1, 2, 3), -1.0)
    features[0, 0, 0, 0] = 1.0
    mask = attention_mask(torch.tensor([[[1.0], [0.0], [-1.0]]]), features, valid)[0, 0]
    assert mask[0].tolist() == [True, False, False, False, False, False]
    assert mask[1].tolist() == [True, True, False, True, True, False]  # a logit of 0 is inside
    assert mask[2].tolist() == [False, True, False, True, True, False]
    empty = attention_mask(torch.tensor([[[1.0]]]), torch.full((1, 1, 2, 3), -1.0), valid)
    assert torch.equal(empty[0, 0, 0], valid.flatten())


def test_attention_weights_are_those_of_the_output():
    torch.manual_seed(0)
    attention = Attention(8, 2, dropout=0.0).double()
    query, key = random(2, 3, 8), random(2, 5, 8, seed=1)
    weights = attention.weights(query, key)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 2, 3, dtype=torch.float64))
    value = attention.value(key).view(2, 5, 2, 4).transpose(1, 2)
    mixed = (weights @ value).transpose(1, 2).reshape(2, 3, 8)
    assert torch.allclose(attention.output(mixed), attention(query, key, key))


def test_predictions_are_one_more_than_layers():
    model = tiny_model(decoder_layers=4)
    assert len(model.model.transformer_decoder.layers) == 3
    output = model.model(torch.randn(1, 3, 64, 64))
    assert len(output.masks_queries_logits) == 4


def test_masks_of_earlier_predictions_steer_without_gradients():
    model = tiny_model()
    output = model(torch.randn(1, 3, 64, 64))
    output.class_queries_logits.sum().backward()
    # The class head sees the mask head only through the attention mask, which has no gradient.
    assert all(p.grad is None for p in model.model.transformer_decoder.mask_embedder.parameters())


def test_queries_and_level_embeddings_start_from_a_standard_normal_whatever_the_options():
    model = tiny_model(init_std=0.001, init_xavier_std=7.0, num_queries=400).model
    decoder = model.transformer_decoder
    for weight in (
        decoder.query_features.weight,
        decoder.query_position.weight,
        decoder.level_embed.weight,
        model.pixel_decoder.level_embed,
    ):
        assert 0.8 < weight.std() < 1.2  # 96 numbers at least


def test_init_xavier_std_is_the_gain_of_layers_and_projections():
    one, two = (
        tiny_model(init_xavier_std=gain, enforce_input_projection=True).model.transformer_decoder
        for gain in (1.0, 2.0)
    )
    scaled = [one.input_projections[0].weight, one.layers[0].fc1.weight]
    scaled += [one.layers[0].self_attn.key.weight, one.layers[0].cross_attn.output.weight]
    other = [two.input_projections[0].weight, two.layers[0].fc1.weight]
    other += [two.layers[0].self_attn.key.weight, two.layers[0].cross_attn.output.weight]
    for a, b in zip(scaled, other, strict=True):
        assert torch.allclose(2 * a, b)
    assert torch.equal(one.mask_embedder[0].weight, two.mask_embedder[0].weight)


def test_layers_start_as_the_multi_head_attention_of_torch_under_xavier():
    """As in the paper's code: every matrix of nn.MultiheadAttention by xavier_uniform_."""
    attention = tiny_model(hidden_dim=64).model.transformer_decoder.layers[0].cross_attn
    theirs = torch.nn.MultiheadAttention(64, 4)
    torch.nn.init.xavier_uniform_(theirs.in_proj_weight)
    bound = theirs.in_proj_weight.abs().max().item()
    for linear in (attention.query, attention.key, attention.value):
        assert 0.97 < linear.weight.abs().max().item() / bound < 1.03
        assert torch.equal(linear.bias, torch.zeros(64))
    assert torch.equal(attention.output.bias, theirs.out_proj.bias)


def test_enforce_input_projection_adds_convolutions_where_widths_are_equal():
    kinds = [
        {type(p) for p in tiny_model(**options).model.transformer_decoder.input_projections}
        for options in (
            {},
            {"enforce_input_projection": True},
            {"feature_size": 64},
        )
    ]
    assert kinds == [{torch.nn.Identity}, {torch.nn.Conv2d}, {torch.nn.Conv2d}]


def test_activation_function_applies_to_the_decoder_layers():
    models = [tiny_model(activation_function=name) for name in ("relu", "tanh")]
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    a, b = (model(x, output_auxiliary_logits=True) for model in models)
    assert torch.equal(a.pixel_decoder_last_hidden_state, b.pixel_decoder_last_hidden_state)
    first = [out.auxiliary_logits[0]["class_queries_logits"] for out in (a, b)]
    assert torch.equal(*first)  # before any layer
    assert not torch.equal(a.class_queries_logits, b.class_queries_logits)


def test_pre_norm_normalises_before_each_block():
    layer = tiny_model(pre_norm=True).model.transformer_decoder.layers[0]
    x, memory = torch.randn(1, 6, 32), torch.randn(1, 10, 32)
    zero, allowed = torch.zeros(1, 6, 32), torch.ones(1, 1, 6, 10, dtype=torch.bool)
    out, _ = layer(x, zero, memory, memory, allowed, False)
    y = x + layer.cross_attn(layer.cross_attn_norm(x), memory, memory)
    z = layer.self_attn_norm(y)
    y = y + layer.self_attn(z, z, z)
    y = y + layer.fc2(layer.fc1(layer.final_norm(y)).relu())
    assert torch.allclose(out, y, atol=1e-6)


@torch.no_grad()
def test_a_layer_drops_probabilities_inner_activations_and_outputs_while_training():
    layer = tiny_model(dropout=0.3).model.transformer_decoder.layers[0].double().train()
    x, query_position, memory = (
        random(1, 6, 32),
        random(1, 6, 32, seed=1),
        random(1, 10, 32, seed=2),
    )
    allowed = random(1, 1, 6, 10, seed=3) > -1

    def attention(module, query, key, value, allowed):
        query, key, value = (
            project(y).view(1, -1, 4, 8).transpose(1, 2)
            for project, y in [(module.query, query), (module.key, key), (module.value, value)]
        )
        scores = (query @ key.mT / 8**0.5).masked_fill(~allowed, -torch.inf)
        out = F.dropout(scores.softmax(-1), 0.3) @ value
        return module.output(out.transpose(1, 2).flatten(2))

    torch.manual_seed(1)
    actual, _ = layer(x, query_position, memory, memory, allowed, False)
    torch.manual_seed(1)
    attended = attention(layer.cross_attn, x + query_position, memory, memory, allowed)
    y = layer.cross_attn_norm(x + F.dropout(attended, 0.3))
    query = y + query_position
    attended = attention(layer.self_attn, query, query, y, torch.ones(6, 6, dtype=torch.bool))
    y = layer.self_attn_norm(y + F.dropout(attended, 0.3))
    inner = F.dropout(layer.fc1(y).relu(), 0.3)
    y = layer.final_norm(y + F.dropout(layer.fc2(inner), 0.3))
    assert relative_error(actual, y) < 1e-12


# Relative L2 error of states and mask embeddings in a decoder of six layers, whose weights and
# inputs are representable. Measured: 9.9e-4 in float16, 8.2e-3 in bfloat16, where of its own masks
# 0.4 % of the entries would flip.
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 3e-3), (torch.bfloat16, 2.5e-2)])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_masked_attention_in_half_precision_follows_float32(dtype, limit, pre_norm, monkeypatch):
    """Both look where float32 does, because a logit near zero falls on either side."""
    model = tiny_model(decoder_layers=7, pre_norm=pre_norm)
    decoder = randomise(model, seed=1).model.transformer_decoder.to(dtype)
    sizes = [(2, 3), (4, 6), (8, 12)]
    generator = torch.Generator().manual_seed(2)
    levels = [torch.randn(2, 32, *size, generator=generator).to(dtype) for size in sizes]
    valid = [torch.ones(2, *size, dtype=torch.bool) for size in sizes]
    features = torch.randn(2, 32, 16, 24, generator=generator).to(dtype)
    masks = []

    def noted(*arguments):
        masks.append(attention_mask(*arguments))
        return masks[-1]

    with torch.no_grad():
        monkeypatch.setattr(transformer_decoder, "attention_mask", noted)
        exact = copy.deepcopy(decoder).float()(
            PixelDecoderOutput([x.float() for x in levels], valid, features.float(), None)
        )
        assert 0.1 < torch.cat([m.flatten() for m in masks]).float().mean() < 0.9
        own = []

        def replayed(*arguments):
            own.append(attention_mask(*arguments))
            return masks[len(own) - 1]

        monkeypatch.setattr(transformer_decoder, "attention_mask", replayed)
        half = decoder(PixelDecoderOutput(levels, valid, features, None))
    assert half.last.dtype == dtype and len(own) == 6
    for a, b in zip(
        half.states + half.mask_embeddings, exact.states + exact.mask_embeddings, strict=True
    ):
        assert relative_error(a.float(), b) < limit
    # Of the masks that it would have chosen itself nearly all entries are the same.
    flipped = [(a != b).float().mean() for a, b in zip(own, masks, strict=True)]
    assert max(flipped) < 0.015
