import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mask2former import DataError, Mask2FormerForUniversalSegmentation
from mask2former.model import transformer_decoder
from mask2former.modeling import image_sizes
from tests.reference import make_labels, relative_error, tiny_model


def pixels(batch=1, height=64, width=96):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_shapes_are_the_documented_ones():
    output = tiny_model()(
        pixels(2), output_hidden_states=True, output_auxiliary_logits=True, output_attentions=True
    )
    assert output.class_queries_logits.shape == (2, 6, 4)
    assert output.masks_queries_logits.shape == (2, 6, 16, 24)
    assert output.transformer_decoder_last_hidden_state.shape == (2, 6, 32)
    assert [s.shape for s in output.transformer_decoder_hidden_states] == [(2, 6, 32)] * 4
    assert [tuple(s.shape[2:]) for s in output.pixel_decoder_hidden_states] == [
        (2, 3),
        (4, 6),
        (8, 12),
    ]
    assert [s.shape for s in output.attentions] == [(2, 4, 6, 6)] * 3
    assert len(output.auxiliary_logits) == 3


def test_what_is_not_asked_for_is_absent():
    output = tiny_model()(pixels())
    assert list(output) == [
        "class_queries_logits",
        "masks_queries_logits",
        "encoder_last_hidden_state",
        "pixel_decoder_last_hidden_state",
        "transformer_decoder_last_hidden_state",
        "image_sizes",
    ]
    assert output.loss is output.auxiliary_logits is output.attentions is None
    assert output.encoder_hidden_states is output.transformer_decoder_hidden_states is None


def test_configuration_sets_what_is_asked_for_by_default():
    model = tiny_model(output_hidden_states=True, output_attentions=True, return_dict=False)
    assert isinstance(model(pixels()), tuple)
    output = model(pixels(), return_dict=True, output_attentions=False)
    assert output.attentions is None
    assert output.encoder_hidden_states is not None


def test_tuple_starts_with_the_loss():
    masks, classes = make_labels(0, [2], (64, 96), 3)
    model = tiny_model()
    loss, class_logits, mask_logits, *_ = model(
        pixels(), mask_labels=masks, class_labels=classes, return_dict=False
    )
    assert loss.dim() == 0
    assert class_logits.shape == (1, 6, 4)
    assert mask_logits.shape == (1, 6, 16, 24)


def test_a_mask_without_padding_changes_nothing():
    model = tiny_model()
    alone, masked = model(pixels()), model(pixels(), pixel_mask=torch.ones(1, 64, 96))
    assert torch.equal(alone.masks_queries_logits, masked.masks_queries_logits)


def test_image_sizes_come_from_the_mask():
    mask = torch.zeros(2, 64, 96)
    mask[0, :50, :96] = 1
    mask[1, :64, :31] = 1
    assert image_sizes(pixels(2), mask) == [(50, 96, 64, 96), (64, 31, 64, 96)]
    assert image_sizes(pixels(2), None) == [(64, 96, 64, 96)] * 2


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_every_parameter_learns(backbone):
    model = tiny_model(backbone).train()
    masks, classes = make_labels(0, [2, 3], (64, 96), 3)
    model(pixels(2), mask_labels=masks, class_labels=classes).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_a_few_steps_overfit_one_image():
    model = tiny_model().train()
    masks, classes = make_labels(1, [2], (64, 64), 3)
    x = torch.randn(1, 3, 64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(60):
        loss = model(x, mask_labels=masks, class_labels=classes).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_configuration_that_no_model_can_have_is_a_data_error(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"feature_size": 16}))
    with pytest.raises(DataError, match=r"config\.json of .* describes no model that can be built"):
        Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"pixel_values": torch.zeros(3, 64, 64)},
            r"pixel_values must be \(batch, 3, height, width\)",
        ),
        ({"pixel_values": torch.zeros(1, 1, 64, 64)}, r"has shape \(1, 1, 64, 64\)"),
        (
            {"pixel_values": torch.zeros(1, 3, 64, 64), "pixel_mask": torch.zeros(1, 32, 64)},
            r"pixel_mask must be .* \(1, 64, 64\)",
        ),
        (
            {"pixel_values": torch.zeros(1, 3, 64, 64), "mask_labels": []},
            "must be given together",
        ),
    ],
)
def test_wrong_inputs_are_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(**inputs)


# ---- asking for nothing costs nothing -----------------------------------------------------------


def flops(model, **asked):
    with FlopCounterMode(display=False) as counter:
        model(pixels(), **asked)
    return counter.get_total_flops()


def test_each_output_costs_its_own_work_and_only_when_asked_for():
    """Floating-point operations, counted by hand. Queries 6, width 32, masks 16x24, 3 layers."""
    model = tiny_model().requires_grad_(False)
    nothing = flops(model)
    prediction = 2 * 6 * 32 * (16 * 24) + 2 * 6 * 32 * 4  # one mask product, one class head
    assert flops(model, output_auxiliary_logits=True) == nothing + 3 * prediction
    weights = 2 * 2 * 6 * 32 * 32 + 2 * 6 * 6 * 32  # two projections, one product of them
    assert flops(model, output_attentions=True) == nothing + 3 * weights
    assert flops(model, output_hidden_states=True) == nothing


def test_hidden_states_that_are_not_asked_for_are_not_saved():
    model, saved = tiny_model(), []
    for asked in (False, True):
        with torch.no_grad():
            _, pixels_ = model.model.encode(pixels(), None)
            decoded = model.model.transformer_decoder(pixels_, asked, asked)
        saved.append((len(decoded.hidden_states), len(decoded.attentions)))
    assert saved == [(0, 0), (4, 3)]


def test_bare_model_has_the_documented_fields_and_shapes():
    model = tiny_model().model
    output = model(pixels(2), output_hidden_states=True, output_attentions=True)
    assert list(output) == [
        "encoder_last_hidden_state",
        "pixel_decoder_last_hidden_state",
        "transformer_decoder_last_hidden_state",
        "encoder_hidden_states",
        "pixel_decoder_hidden_states",
        "transformer_decoder_hidden_states",
        "transformer_decoder_intermediate_states",
        "masks_queries_logits",
        "attentions",
    ]
    assert output.encoder_last_hidden_state.shape == (2, 16, 2, 3)
    assert output.pixel_decoder_last_hidden_state.shape == (2, 32, 16, 24)
    assert [s.shape[1] for s in output.encoder_hidden_states] == [8, 8, 16, 16]
    assert [s.shape for s in output.transformer_decoder_intermediate_states] == [(6, 2, 32)] * 4
    assert [m.shape for m in output.masks_queries_logits] == [(2, 6, 16, 24)] * 4
    assert [a.shape for a in output.attentions] == [(2, 4, 6, 6)] * 3
    assert list(model(pixels())) == [*list(output)[:3], "masks_queries_logits"]


def test_last_auxiliary_prediction_precedes_the_answer():
    model = tiny_model(output_auxiliary_logits=True)
    output = model(pixels())
    bare = model.model(pixels()).masks_queries_logits
    masks = [part["masks_queries_logits"] for part in output.auxiliary_logits]
    for a, b in zip([*masks, output.masks_queries_logits], bare, strict=True):
        assert torch.equal(a, b)
    assert model(pixels(), output_auxiliary_logits=False).auxiliary_logits is None


# ---- what the configuration says ----------------------------------------------------------------


def test_class_head_starts_from_a_truncated_normal_of_init_std():
    weights = [
        tiny_model(init_std=std, num_labels=300).class_predictor.weight for std in (0.02, 0.5)
    ]
    assert torch.allclose(weights[1], weights[0] * 25)
    assert weights[1].abs().max() <= 2 * 0.5
    # The standard deviation of a normal that is cut at two of its own.
    assert weights[1].std().item() == pytest.approx(0.88 * 0.5, rel=0.02)
    assert tiny_model().class_predictor.bias.abs().sum() == 0


def test_init_std_changes_nothing_else():
    a, b = (tiny_model(init_std=std).state_dict() for std in (0.02, 0.5))
    assert [name for name in a if not torch.equal(a[name], b[name])] == ["class_predictor.weight"]


def test_dropout_acts_in_training_mode_only():
    model = tiny_model("swin", dropout=0.3)
    expected = tiny_model("swin")(pixels()).masks_queries_logits
    assert torch.equal(model(pixels()).masks_queries_logits, expected)
    model.model.pixel_decoder.train()
    assert not torch.equal(
        model(pixels()).pixel_decoder_last_hidden_state,
        model(pixels()).pixel_decoder_last_hidden_state,
    )
    model.eval().model.transformer_decoder.train()
    assert not torch.equal(
        model(pixels()).class_queries_logits, model(pixels()).class_queries_logits
    )


@pytest.mark.parametrize("queries", [1, 37])
def test_num_queries_masks_are_predicted(queries):
    output = tiny_model(num_queries=queries)(pixels())
    assert output.masks_queries_logits.shape[1] == output.class_queries_logits.shape[1] == queries


# ---- precision ----------------------------------------------------------------------------------

# Relative L2 error of logits and loss in a padded batch, against float32. Measured, in half models
# and under autocast: 2.1e-3 in float16, 1.6e-2 in bfloat16.
HALF = [(torch.float16, 6e-3), (torch.bfloat16, 5e-2)]


@pytest.fixture
def all_is_attended(monkeypatch):
    """A mask logit near zero that changes its sign moves what a query sees; here none does."""

    def everywhere(embeddings, features, valid):
        return valid.flatten(1)[:, None, None].expand(-1, -1, embeddings.shape[1], -1)

    monkeypatch.setattr(transformer_decoder, "attention_mask", everywhere)


def padded_batch():
    mask = torch.ones(2, 64, 96)
    mask[0, 40:] = 0
    masks, classes = make_labels(0, [2, 1], (64, 96), 3)
    return {
        "pixel_values": pixels(2),
        "mask_labels": masks,
        "class_labels": classes,
        "pixel_mask": mask,
    }


def answer(model, batch, autocast=None):
    torch.manual_seed(0)
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        return model(**batch)


def assert_follows(output, expected, limit):
    for name in ("class_queries_logits", "masks_queries_logits"):
        assert relative_error(output[name].float(), expected[name]) < limit
    assert output.loss.dtype == torch.float32
    assert relative_error(output.loss, expected.loss) < limit


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
@pytest.mark.parametrize(("dtype", "limit"), HALF)
@pytest.mark.usefixtures("all_is_attended")
def test_half_precision_follows_float32_and_its_loss_is_float32(backbone, dtype, limit):
    model, batch = tiny_model(backbone), padded_batch()
    expected = answer(model, batch)
    half = {**batch, "pixel_values": batch["pixel_values"].to(dtype)}
    output = answer(model.to(dtype), half)
    assert output.class_queries_logits.dtype == output.masks_queries_logits.dtype == dtype
    assert_follows(output, expected, limit)


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
@pytest.mark.parametrize(("dtype", "limit"), HALF)
@pytest.mark.usefixtures("all_is_attended")
def test_autocast_follows_float32_and_keeps_its_islands(backbone, dtype, limit):
    model, batch = tiny_model(backbone), padded_batch()
    output = answer(model, batch, autocast=dtype)
    assert output.class_queries_logits.dtype == dtype
    assert output.pixel_decoder_last_hidden_state.dtype == torch.float32
    assert_follows(output, answer(model, batch), limit)


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_are_finite_and_point_where_those_of_float32_do(backbone, autocast, dtype):
    model, batch = tiny_model(backbone), padded_batch()

    def gradient(model, batch, **options):
        model.zero_grad()
        answer(model, batch, **options).loss.backward()
        return torch.cat([p.grad.float().flatten() for p in model.parameters()])

    expected = gradient(model, batch)
    if autocast:
        actual = gradient(model, batch, autocast=dtype)
    else:
        half = {**batch, "pixel_values": batch["pixel_values"].to(dtype)}
        actual = gradient(model.to(dtype), half)
    assert actual.isfinite().all()
    assert torch.cosine_similarity(actual, expected, dim=0) > 0.9  # measured: 0.969
