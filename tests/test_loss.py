import pytest
import torch
from torch.nn import functional as F

from mask2former.annotations import IGNORED, VOID, Annotation
from mask2former.loss import average_counts, class_loss, mask_losses, segmentation_losses
from tests.reference import make_labels, randomise, relative_error, tiny_model


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
    assert all(p.grad.isfinite().all() for p in model.parameters())  # none is None, for DDP
    assert all(p.grad.abs().sum() > 0 for p in model.class_predictor.parameters())


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
    loss = class_loss(logits, [torch.tensor([1])], matches, 0.1, torch.tensor(1.2))
    log = F.log_softmax(logits[0], -1)
    expected = -(0.1 * log[0, 4] + 0.1 * log[1, 4] + log[2, 1]) / 1.2
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_half_precision_model_outputs_are_summed_in_float32():
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(*shape, generator=generator, dtype=torch.bfloat16)
        for shape in [(1, 1, 4, 4), (1, 1, 4, 8), (1, 8, 6, 6)]
    ]
    masks, classes = make_labels(0, [2], (24, 24), 3)
    annotations = [Annotation(masks[0], classes[0])]
    losses = segmentation_losses(*parts, annotations, tiny_model().config)
    assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_autocast_changes_nothing_in_the_loss():
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(*shape, generator=generator)
        for shape in [(2, 1, 4, 4), (2, 1, 4, 8), (1, 8, 6, 6)]
    ]
    masks, classes = make_labels(0, [2], (24, 24), 3)
    losses = []
    for autocast in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            annotations = [Annotation(masks[0], classes[0])]
            losses.append(segmentation_losses(*parts, annotations, tiny_model().config))
    assert losses[0] == losses[1]


def test_each_weight_of_the_configuration_scales_its_loss_alone():
    model, (masks, classes) = tiny_model(), make_labels(0, [1], (64, 64), 3)
    losses = []
    for scale in (1, 3):
        model.config.class_weight = 2.0 * scale
        model.config.mask_weight = 5.0 * scale
        model.config.dice_weight = 5.0 * scale
        torch.manual_seed(0)
        losses.append(model(pixels(1), mask_labels=masks, class_labels=classes).loss_dict)
    for name, value in losses[0].items():
        assert float(losses[1][name]) == pytest.approx(3 * float(value), rel=1e-5)


def test_points_are_drawn_as_the_configuration_says(monkeypatch):
    drawn = []
    original = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *s, **k: drawn.append(s[1]) or original(*s, **k))
    model = tiny_model(
        train_num_points=40,
        oversample_ratio=2.5,
        importance_sample_ratio=0.25,
        use_auxiliary_loss=False,
    )
    masks, classes = make_labels(0, [2], (64, 64), 3)
    model(pixels(1), mask_labels=masks, class_labels=classes)
    assert drawn == [40, 100, 30]  # for matching; candidates, and points at random, for the loss


# ---- label maps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [False, True])
def test_a_label_map_and_its_masks_give_the_same_loss_and_gradients(padded):
    model = randomise(tiny_model("swin"), seed=3).double()
    size = (70, 90)
    label_map = torch.randint(-2, 3, (7, 9), generator=torch.Generator().manual_seed(1))
    label_map = label_map.repeat_interleave(10, 0).repeat_interleave(10, 1).int()
    void = torch.full(size, VOID)
    masks = (label_map == torch.arange(3)[:, None, None]).to(torch.uint8)
    masks[:, label_map == IGNORED] = 255
    classes = [torch.tensor([0, 2, 0]), torch.zeros(0).long()]
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).double()
    pixel_mask = torch.ones(2, *size)
    if padded:
        pixel_mask[0, 41:] = pixel_mask[0, :, 53:] = 0
    results = []
    for labels in ([label_map, void], [masks, torch.zeros(0, *size)]):
        model.zero_grad()
        torch.manual_seed(0)
        loss = model(x, mask_labels=labels, class_labels=classes, pixel_mask=pixel_mask).loss
        loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters()]
        results.append((loss, torch.cat(gradients)))
    for of_map, of_masks in zip(*results, strict=True):
        assert relative_error(of_map, of_masks) < 1e-12  # measured: 6.3e-16


# ---- what is ignored ----------------------------------------------------------------------------


def random_prediction(seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(1, 4, 8, generator=generator, dtype=torch.float64)
    features = torch.randn(1, 8, 8, 8, generator=generator, dtype=torch.float64)
    return embeddings, features


def losses_of(features, annotation, config):
    embeddings, _ = random_prediction()
    matches = [(torch.tensor([0, 3]), torch.tensor([1, 0]))]
    torch.manual_seed(2)
    return mask_losses(embeddings, features, [annotation], matches, torch.tensor(2.0), config)


def test_mask_losses_are_those_of_the_points_that_count():
    """The same points, with the loss of those that touch no ignored pixel written out."""
    config = tiny_model(importance_sample_ratio=0.0).config
    (embeddings, features), (masks, classes) = random_prediction(), make_labels(0, [2], (16, 16), 3)
    ignored = torch.zeros(2, 16, 16, dtype=torch.bool)
    ignored[0, :, 8:] = ignored[1, 12:] = True
    bce, dice = losses_of(features, Annotation(masks[0], classes[0], ignored), config)
    torch.manual_seed(2)
    torch.rand(2, 150, 2, dtype=torch.float64)  # candidates, of which none is chosen
    points = torch.rand(2, 50, 2, dtype=torch.float64)

    def at(map_, place):
        grid = (2 * place - 1)[None, None]
        return F.grid_sample(map_[None, None].double(), grid, align_corners=False)[0, 0, 0]

    expected_bce, expected_dice = 0, 0
    for query, target, place in ((0, 1, points[0]), (3, 0, points[1])):
        counts = at(ignored[target], place) == 0
        assert 10 < counts.sum() < 50
        x = at(torch.einsum("c,chw->hw", embeddings[0, query], features[0]), place)[counts]
        t = at(masks[0][target], place)[counts]
        p = x.sigmoid()
        expected_bce += F.binary_cross_entropy_with_logits(x, t)
        expected_dice += 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    assert float(bce) == pytest.approx(float(expected_bce / 2), rel=1e-12)
    assert float(dice) == pytest.approx(float(expected_dice / 2), rel=1e-12)


def test_nothing_ignored_is_the_loss_without_a_mask():
    config = tiny_model().config
    (_, features), (masks, classes) = random_prediction(), make_labels(0, [2], (16, 16), 3)
    none = losses_of(features, Annotation(masks[0], classes[0]), config)
    nothing = torch.zeros(1, 16, 16, dtype=torch.bool)
    assert none == losses_of(features, Annotation(masks[0], classes[0], nothing), config)


def test_predictions_under_ignored_pixels_have_no_loss_and_draw_no_points(monkeypatch):
    """Unsure as they are, they must not take the points away from the image."""
    config = tiny_model(train_num_points=40, importance_sample_ratio=1.0).config
    (_, features), (masks, classes) = random_prediction(), make_labels(0, [2], (16, 16), 3)
    ignored = torch.zeros(1, 16, 16, dtype=torch.bool)
    ignored[..., 8:] = True
    features[..., 4:] = 0  # logits of 0 are as unsure as can be
    features.requires_grad_()
    counted = []
    original = Annotation.weights
    monkeypatch.setattr(
        Annotation, "weights", lambda *a: counted.append(original(*a)) or counted[-1]
    )
    bce, dice = losses_of(features, Annotation(masks[0], classes[0], ignored), config)
    (bce + dice).backward()
    assert features.grad[..., 4:].abs().max() == 0
    # Half of the 120 candidates for each mask lie in the ignored half.
    assert torch.equal(counted[0], torch.ones(2, 40, dtype=torch.float64))


def test_an_annotation_that_is_ignored_altogether_has_no_mask_loss():
    config = tiny_model().config
    (_, features), (masks, classes) = random_prediction(), make_labels(0, [2], (16, 16), 3)
    everything = torch.ones(1, 16, 16, dtype=torch.bool)
    losses = losses_of(features, Annotation(masks[0], classes[0], everything), config)
    assert [float(loss) for loss in losses] == [0, 0]


def test_values_to_ignore_in_the_masks_count_for_nothing():
    """Two masks that differ in ignored pixels only have the same loss; as values they would not."""
    model, (masks, classes) = tiny_model(), make_labels(0, [2], (64, 64), 3)
    losses = []
    for inside in (0, 1):
        labels = masks[0].clone()
        labels[:, 32:] = inside
        labels[:, 30:] = 255
        torch.manual_seed(0)
        losses.append(model(pixels(1), mask_labels=[labels], class_labels=classes).loss)
    assert losses[0] == losses[1]
    torch.manual_seed(0)
    assert model(pixels(1), mask_labels=masks, class_labels=classes).loss != losses[0]


def test_padding_takes_no_part_in_the_loss():
    """What lies in the padding, in pixels or masks, does not change loss or gradients."""
    model = randomise(tiny_model(), seed=3).double()
    masks, classes = make_labels(0, [2, 1], (96, 128), 3)
    pixel_mask = torch.ones(2, 96, 128)
    pixel_mask[0, 64:] = pixel_mask[0, :, 64:] = 0
    results = []
    for garbage in (0.0, 1.0):
        x = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0)).double()
        x[0, :, 64:], masks[0][:, 64:], masks[0][..., 64:] = garbage, garbage, garbage
        model.zero_grad()
        torch.manual_seed(0)
        output = model(x, mask_labels=masks, class_labels=classes, pixel_mask=pixel_mask)
        output.loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters()]
        results.append((output.loss.detach(), torch.cat(gradients)))
    assert relative_error(results[0][0], results[1][0]) < 1e-12
    assert relative_error(results[0][1], results[1][1]) < 1e-9


def test_a_padded_image_can_have_odd_extents():
    model = tiny_model("swin")
    masks, classes = make_labels(0, [2, 1], (70, 90), 3)
    pixel_mask = torch.ones(2, 70, 90)
    pixel_mask[0, 41:] = pixel_mask[0, :, 53:] = 0
    x = torch.randn(2, 3, 70, 90)
    loss = model(x, mask_labels=masks, class_labels=classes, pixel_mask=pixel_mask).loss
    assert loss.isfinite()


@pytest.mark.parametrize("counts", [[0, 0], [0, 2], [1, 0]])
def test_padded_images_may_be_without_annotations(counts):
    model = tiny_model()
    masks, classes = make_labels(0, counts, (64, 64), 3)
    pixel_mask = torch.ones(2, 64, 64)
    pixel_mask[:, 40:] = 0
    output = model(pixels(), mask_labels=masks, class_labels=classes, pixel_mask=pixel_mask)
    output.loss.backward()
    assert output.loss.isfinite()


# ---- several processes ---------------------------------------------------------------------------


def test_counts_are_those_of_the_batch():
    masks, weight = average_counts(LABELS, 2, 0.1, torch.float64)
    assert masks == 4
    # The first image has more annotations than queries, the second leaves a query over.
    assert float(weight) == pytest.approx(3 + 0.1, rel=1e-15)


def test_counts_are_the_mean_over_all_ranks(monkeypatch):
    as_two_ranks(monkeypatch, lambda totals: totals.add_(torch.tensor([3.0, 1.5])))
    masks, weight = average_counts(LABELS, 2, 0.1, torch.float64)
    assert masks == 3.5
    assert float(weight) == pytest.approx(4.6 / 2, rel=1e-15)


def test_fewer_masks_than_ranks_are_divided_by_their_number(monkeypatch):
    """One mask on two ranks: the mean of its gradient and none is half of it, over half a mask."""
    as_two_ranks(monkeypatch, lambda totals: totals)
    assert average_counts([LABELS[1]], 2, 0.1, torch.float32)[0] == 0.5
    assert average_counts([LABELS[1][:0]], 2, 0.1, torch.float32)[0] == 0.5  # no rank has any


def test_without_any_weight_the_class_loss_is_zero():
    model = tiny_model(no_object_weight=0.0)
    masks, classes = make_labels(0, [0, 0], (64, 64), 3)
    assert model(pixels(), mask_labels=masks, class_labels=classes).loss == 0


LABELS = [torch.tensor([0, 1, 1]), torch.tensor([2])]


def as_two_ranks(monkeypatch, all_reduce):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
