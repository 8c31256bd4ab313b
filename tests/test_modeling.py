import json

import pytest
import torch

from mask2former import DataError, Mask2FormerForUniversalSegmentation
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


# Relative L2 error of the class logits in a padded batch; measured: 1.2e-3, 3.6e-2. A mask
# logit near zero that changes its sign moves what a query attends to, so processors differ.
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 5e-3), (torch.bfloat16, 1e-1)])
def test_half_precision_follows_float32_and_its_loss_is_float32(dtype, limit):
    model, x = tiny_model("swin"), pixels(2)
    mask = torch.ones(2, 64, 96)
    mask[0, 40:] = 0
    masks, classes = make_labels(0, [2, 1], (64, 96), 3)
    expected = model(x, pixel_mask=mask).class_queries_logits
    output = model.to(dtype)(x.to(dtype), masks, classes, mask)
    assert output.class_queries_logits.dtype == dtype
    assert relative_error(output.class_queries_logits.float(), expected) < limit
    assert output.loss.dtype == torch.float32
    assert output.loss.isfinite()


def test_training_step_runs_under_autocast():
    model = tiny_model().train()
    masks, classes = make_labels(0, [2], (64, 96), 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(pixels(), mask_labels=masks, class_labels=classes).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters())


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
