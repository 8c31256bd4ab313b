"""Agreement with the transformers implementation in float64, on identical random weights."""

import pytest
import torch

from mask2former import Mask2FormerForUniversalSegmentation, Mask2FormerModel
from tests.reference import (
    make_labels,
    randomise,
    relative_error,
    same_points,
    transformers_model,
)

LIMIT = 1e-9  # relative L2 error in float64


@pytest.fixture(autouse=True, scope="module")
def float64():
    """transformers draws its points in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module", params=["swin", "resnet"])
def models(request, float64, tmp_path_factory):
    """A transformers model with random weights, and ours loaded from the folder it wrote."""
    theirs = randomise(transformers_model(request.param), seed=1).double().eval()
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return Mask2FormerForUniversalSegmentation.from_pretrained(folder), theirs


@pytest.fixture(scope="module")
def pixels():
    """Two images whose size is no multiple of 32, nor of a window."""
    return torch.randn(2, 3, 92, 124, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def outputs(models, pixels):
    ours, theirs = models
    asked = {
        "output_hidden_states": True,
        "output_auxiliary_logits": True,
        "output_attentions": True,
    }
    with torch.no_grad():
        return ours(pixels, **asked), theirs(pixels, **asked)


@pytest.mark.parametrize(
    "field",
    [
        "class_queries_logits",
        "masks_queries_logits",
        "encoder_last_hidden_state",
        "pixel_decoder_last_hidden_state",
        "transformer_decoder_last_hidden_state",
    ],
)
def test_tensor_output_agrees(outputs, field):
    ours, theirs = (getattr(output, field) for output in outputs)
    assert relative_error(ours, theirs) < LIMIT


@pytest.mark.parametrize(
    "field", ["encoder_hidden_states", "pixel_decoder_hidden_states", "attentions"]
)
def test_tuple_output_agrees(outputs, field):
    ours, theirs = (getattr(output, field) for output in outputs)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert relative_error(a, b) < LIMIT


def test_decoder_hidden_states_agree_batch_first_as_documented(outputs):
    ours, theirs = (output.transformer_decoder_hidden_states for output in outputs)
    assert len(ours) == len(theirs) == 10
    for a, b in zip(ours, theirs, strict=True):
        assert relative_error(a, b.transpose(0, 1)) < LIMIT


def test_auxiliary_logits_agree(outputs):
    ours, theirs = (output.auxiliary_logits for output in outputs)
    assert len(ours) == len(theirs) == 9
    for a, b in zip(ours, theirs, strict=True):
        for name in ("class_queries_logits", "masks_queries_logits"):
            assert relative_error(a[name], b[name]) < LIMIT


def test_base_model_agrees(models, pixels):
    ours, theirs = models
    with torch.no_grad():
        a = ours.model(pixels, output_hidden_states=True)
        b = theirs.model(pixels, output_hidden_states=True)
    for name in ("masks_queries_logits", "transformer_decoder_intermediate_states"):
        assert len(a[name]) == len(b[name]) == 10
        for x, y in zip(a[name], b[name], strict=True):
            assert relative_error(x, y) < LIMIT


def test_loss_and_gradients_agree_on_the_same_points(models, pixels):
    ours, theirs = models
    masks, classes = make_labels(3, [4, 7], (92, 124), num_labels=5)
    losses = []
    for model in models:
        model.zero_grad()
        with same_points():
            losses.append(model(pixels, mask_labels=masks, class_labels=classes).loss)
        losses[-1].backward()
    assert relative_error(losses[0], losses[1].squeeze()) < LIMIT
    pairs = [
        (ours.class_predictor.weight, theirs.class_predictor.weight),
        (
            ours.model.transformer_decoder.query_features.weight,
            theirs.model.transformer_module.queries_features.weight,
        ),
        (
            ours.model.pixel_decoder.level_embed,
            theirs.model.pixel_level_module.decoder.level_embed,
        ),
        (
            ours.model.pixel_decoder.layers[0].self_attn.sampling_offsets.weight,
            theirs.model.pixel_level_module.decoder.encoder.layers[
                0
            ].self_attn.sampling_offsets.weight,
        ),
    ]
    for a, b in pairs:
        assert relative_error(a.grad, b.grad) < LIMIT


def test_folder_that_we_write_loads_in_transformers(models, pixels, outputs, tmp_path):
    ours, theirs = models
    ours.save_pretrained(tmp_path)
    again, report = type(theirs).from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float64
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        logits = again.eval()(pixels).masks_queries_logits
    assert relative_error(logits, outputs[1].masks_queries_logits) < LIMIT


def test_bare_model_loads_the_folder_of_a_bare_transformers_model(models, tmp_path):
    ours, theirs = models
    theirs.model.save_pretrained(tmp_path)
    again = Mask2FormerModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in ours.model.state_dict().items())


def test_pre_norm_and_input_projection_agree(tmp_path):
    options = {"pre_norm": True, "enforce_input_projection": True, "decoder_layers": 4}
    theirs = randomise(transformers_model("resnet", encoder_layers=1, **options), seed=4)
    theirs.double().eval().save_pretrained(tmp_path)
    ours = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        a, b = ours(pixels), theirs(pixels)
    assert relative_error(a.class_queries_logits, b.class_queries_logits) < LIMIT
    assert relative_error(a.masks_queries_logits, b.masks_queries_logits) < LIMIT
