import torch
from torch.nn import functional as F

from mask2former.transformer_decoder import Attention, attention_mask, mask_logits
from tests.reference import tiny_model


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_mask_from_shrunk_features_equals_the_shrunk_mask():
    embeddings, features = random(2, 5, 8), random(2, 8, 16, 24, seed=1)
    size = (4, 6)
    shrunk = F.interpolate(features, size, mode="bilinear", align_corners=False)
    mask = attention_mask(embeddings, shrunk, torch.ones(2, *size, dtype=torch.bool))
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
