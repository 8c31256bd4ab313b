import pytest
import torch
from torch.nn import functional as F

from mask2former.loss import class_loss, segmentation_losses
from tests.reference import make_labels, tiny_model

ONE = torch.zeros(1, 64, 64)
ONE[:, :8] = 1


def pixels(batch=2, size=64):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_loss_is_the_sum_of_all_parts_of_all_predictions():
    model = tiny_model()
    masks, classes = make_labels(0, [2, 3], (64, 64), 3)
    with torch.no_grad():
        output = model(pixels(), mask_labels=masks, class_labels=classes)
    names = {f"loss_{part}" for part in ("mask", "dice", "cross_entropy")}
    assert set(output.loss_dict) == names | {f"{n}_{i}" for n in names for i in range(3)}
    assert float(output.loss) == pytest.approx(float(sum(output.loss_dict.values())), rel=1e-6)


def test_without_auxiliary_loss_only_the_last_prediction_counts():
    model = tiny_model(use_auxiliary_loss=False)
    masks, classes = make_labels(0, [2, 3], (64, 64), 3)
    output = model(pixels(), mask_labels=masks, class_labels=classes)
    assert set(output.loss_dict) == {"loss_mask", "loss_dice", "loss_cross_entropy"}


def test_bool_uint8_and_float_masks_give_the_same_loss():
    model = tiny_model()
    masks, classes = make_labels(0, [2, 3], (64, 64), 3)
    losses = []
    for dtype in (torch.float32, torch.bool, torch.uint8):
        torch.manual_seed(5)
        labels = [m.to(dtype) for m in masks]
        losses.append(model(pixels(), mask_labels=labels, class_labels=classes).loss.item())
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-6)


@pytest.mark.parametrize("counts", [[0, 0], [0, 2], [1, 0]])
def test_images_without_annotations_have_a_loss_and_gradients(counts):
    model = tiny_model().train()
    masks, classes = make_labels(0, counts, (64, 64), 3)
    model(pixels(), mask_labels=masks, class_labels=classes).loss.backward()
    gradients = [p.grad for p in model.class_predictor.parameters()]
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)


def test_more_annotations_than_queries():
    model = tiny_model(num_queries=2)
    masks, classes = make_labels(0, [5, 4], (64, 64), 3)
    assert model(pixels(), mask_labels=masks, class_labels=classes).loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_labels_of_any_dtype_are_taken(dtype):
    model = tiny_model()
    masks, classes = make_labels(0, [2, 0], (64, 64), 3)
    labels = [labels.to(torch.int32) for labels in classes]
    loss = model(pixels(), mask_labels=[m.to(dtype) for m in masks], class_labels=labels).loss
    assert loss.isfinite()


def test_class_loss_is_weighted_cross_entropy_with_no_object():
    logits = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0))
    matches = [(torch.tensor([2]), torch.tensor([0]))]
    loss = class_loss(logits, [torch.tensor([1])], matches, no_object_weight=0.1)
    log = F.log_softmax(logits[0], -1)
    expected = -(0.1 * log[0, 4] + 0.1 * log[1, 4] + log[2, 1]) / 1.2
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("masks", "classes", "message"),
    [
        ([ONE], [torch.zeros(1).long()], "entries for 2 images"),
        ([ONE[0]] * 2, [torch.zeros(1).long()] * 2, r"\[0\] has shape \(64, 64\)"),
        ([ONE[:, :8]] * 2, [torch.zeros(1).long()] * 2, r"expected \(T, 64, 64\), the size of pix"),
        ([ONE] * 2, [torch.zeros(2).long()] * 2, r"class_labels\[0\] \(2,\)"),
        ([ONE] * 2, [torch.tensor([3])] * 2, "labels from 3 to 3, but the model knows 0 to 2"),
        ([ONE * 255] * 2, [torch.tensor([1])] * 2, r"values from 0 to 255; give 0 and 1"),
        ([(ONE * 255).byte()] * 2, [torch.tensor([1])] * 2, r"values from 0 to 255"),
    ],
)
def test_labels_that_do_not_fit_are_named(masks, classes, message):
    model = tiny_model()
    with pytest.raises(ValueError, match=message):
        model(pixels(), mask_labels=masks, class_labels=classes)


def test_half_precision_model_outputs_are_summed_in_float32():
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(*shape, generator=generator, dtype=torch.bfloat16)
        for shape in [(1, 1, 4, 4), (1, 1, 4, 8), (1, 8, 6, 6)]
    ]
    masks, classes = make_labels(0, [2], (24, 24), 3)
    losses = segmentation_losses(*parts, masks, classes, tiny_model().config)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
