import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mask2former.losses import loss
from mask2former.losses.annotations import IGNORED, VOID, Annotation, make_annotations
from mask2former.losses.loss import average_counts, class_loss, mask_losses, segmentation_losses
from mask2former_ops import uncertain_points
from tests.reference import make_labels, randomise, relative_error, same_points, tiny_model


def pixels(batch=2, size=64):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_loss_is_the_sum_of_the_losses_of_all_predictions():
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
    logits = torch.randn(2, 1, 3, 5, generator=torch.Generator().manual_seed(0))
    matches = [(torch.tensor([[2], [0]]), torch.tensor([[0], [0]]))]
    losses = class_loss(logits, [torch.tensor([1])], matches, 0.1)
    first, second = F.log_softmax(logits[:, 0], -1)
    expected = [
        -(0.1 * first[0, 4] + 0.1 * first[1, 4] + first[2, 1]),
        -(second[0, 1] + 0.1 * second[1, 4] + 0.1 * second[2, 4]),
    ]
    assert losses.tolist() == pytest.approx(torch.stack(expected).tolist(), rel=1e-6)


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
    drawn, asked = [], []
    rand, select_points = torch.rand, loss.uncertain_points
    monkeypatch.setattr(torch, "rand", lambda *s, **k: drawn.append(s[1]) or rand(*s, **k))
    monkeypatch.setattr(
        loss, "uncertain_points", lambda x, *a: asked.append((len(x), *a)) or select_points(x, *a)
    )
    model = tiny_model(
        train_num_points=40,
        oversample_ratio=2.5,
        importance_sample_ratio=0.25,
        use_auxiliary_loss=False,
    )
    masks, classes = make_labels(0, [2], (64, 64), 3)
    model(pixels(1), mask_labels=masks, class_labels=classes)
    assert drawn[0] == 40  # for matching
    assert asked == [(2, 40, 2.5, 0.25)]


# ---- against the plain formulation ---------------------------------------------------------------


def at_points(maps, points):
    """(M, H, W) at (M, P, 2), by torch's own sampling."""
    grid = 2 * points[:, :, None] - 1
    return F.grid_sample(maps[:, None], grid, align_corners=False)[:, 0, :, 0]


def plain_dice(x, t):
    p = x.sigmoid()
    return 1 - (2 * (p * t).sum(-1) + 1) / (p.sum(-1) + t.sum(-1) + 1)


def plain_matches(logits, masks, scores, labels, points, config):
    """Of full mask logits (Q, H, W) and one cost for each pair, as the paper writes them."""
    x = at_points(logits, points.expand(len(logits), -1, -1))
    t = at_points(masks, points.expand(len(masks), -1, -1))
    cost = torch.zeros(len(x), len(t))
    for query, target in itertools.product(range(len(x)), range(len(t))):
        bce = F.binary_cross_entropy_with_logits(x[query], t[target])
        dice = plain_dice(x[query], t[target])
        probability = scores[query].softmax(-1)[labels[target]]
        cost[query, target] = (
            config.mask_weight * bce + config.dice_weight * dice - config.class_weight * probability
        )
    return linear_sum_assignment(cost.detach().numpy())


def plain_points(logits, config):
    """The least certain of the candidates, and random ones, for masks (M, H, W)."""
    count, chosen = (
        config.train_num_points,
        int(config.importance_sample_ratio * config.train_num_points),
    )
    candidates = torch.rand(
        len(logits), int(count * config.oversample_ratio), 2, dtype=torch.float64
    )
    order = at_points(logits, candidates).abs().argsort(1)[:, :chosen]
    least = candidates.gather(1, order[..., None].expand(-1, -1, 2))
    others = torch.rand(len(logits), count - chosen, 2, dtype=torch.float64)
    return torch.cat([least, others], 1)


def plain_losses(class_logits, embeddings, features, masks, classes, config):
    """All full masks at once in floating point, one prediction after the other."""
    full = torch.einsum("lnqc,nchw->lnqhw", embeddings, features)
    count = max(sum(map(len, classes)), 1)
    total = 0
    for layer, logits in enumerate(full):
        target = torch.full(class_logits.shape[1:3], class_logits.shape[3] - 1)
        chosen, truth = [], []
        for i, image in enumerate(logits):
            points = torch.rand(1, config.train_num_points, 2, dtype=torch.float64)
            queries, targets = plain_matches(
                image, masks[i], class_logits[layer, i], classes[i], points, config
            )
            chosen.append(image[queries])
            truth.append(masks[i][targets])
            target[i, queries] = classes[i][targets]
        chosen, truth = torch.cat(chosen), torch.cat(truth)
        weight = torch.ones(class_logits.shape[3], dtype=torch.float64)
        weight[-1] = config.no_object_weight
        scores = class_logits[layer].transpose(1, 2)
        total = total + config.class_weight * F.cross_entropy(scores, target, weight)
        if len(chosen):
            points = plain_points(chosen.detach(), config)
            x, t = at_points(chosen, points), at_points(truth, points)
            bce = F.binary_cross_entropy_with_logits(x, t, reduction="none").mean(1).sum()
            total = total + config.mask_weight * bce / count
            total = total + config.dice_weight * plain_dice(x, t).sum() / count
    return total


@pytest.mark.parametrize("counts", [(3, 2), (0, 1), (0, 0), (8, 3), (6, 6)])
@pytest.mark.parametrize("kind", ["bool", "index map"])
def test_loss_and_gradients_equal_the_plain_formulation(counts, kind):
    config = tiny_model().config
    generator = torch.Generator().manual_seed(0)
    predictions = [
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in [(3, 2, 6, 4), (3, 2, 6, 8), (2, 8, 10, 12)]
    ]
    maps = [torch.randint(-1, 10, (40, 48), generator=generator).int() for _ in counts]
    maps = [torch.where(m < count, m, VOID) for m, count in zip(maps, counts, strict=True)]
    ids = [torch.arange(count)[:, None, None] for count in counts]
    masks = [m == own for m, own in zip(maps, ids, strict=True)]
    classes = [torch.randint(3, (count,), generator=generator) for count in counts]
    given = {"bool": masks, "index map": maps}[kind]
    annotations = make_annotations(given, classes, 2, (40, 48), 3, 255)
    with same_points():
        ours = sum(segmentation_losses(*predictions, annotations, config).values())
        plain = plain_losses(*predictions, [m.double() for m in masks], classes, config)
    assert relative_error(ours, plain) < 1e-9  # measured: 2.2e-16
    # Of images without annotations masks have a zero gradient here and none there.
    expected = torch.autograd.grad(plain, predictions, allow_unused=True, materialize_grads=True)
    for a, b in zip(torch.autograd.grad(ours, predictions), expected, strict=True):
        assert (a - b).norm() <= 1e-9 * b.norm()  # measured: 5.8e-16


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes, in elements."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                size = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.elements = max(self.elements, size)
        return output


def test_the_masks_of_all_predictions_never_exist_while_training():
    model = tiny_model(num_queries=60).train()
    masks, classes = make_labels(0, [3, 2], (64, 64), 3)
    all_masks = 4 * 2 * 60 * 16 * 16  # layers, images, queries, height and width
    with Largest() as largest:
        model(pixels(), mask_labels=masks, class_labels=classes).loss.backward()
    assert 2 * 60 * 16 * 16 <= largest.elements < all_masks / 2  # the answer itself, and no more
    with Largest() as largest:
        model(pixels(), output_auxiliary_logits=True)
        embeddings = torch.zeros(4, 2, 60, 32)
        torch.einsum("lnqc,nchw->lnqhw", embeddings, torch.zeros(2, 32, 16, 16))
    assert largest.elements == all_masks


def test_images_of_ignored_pixels_only_have_a_class_loss_and_gradients():
    model = tiny_model("swin").train()
    ignored = torch.full((64, 64), IGNORED)
    classes = [torch.tensor([0, 2]), torch.tensor([1])]
    output = model(pixels(), mask_labels=[ignored] * 2, class_labels=classes)
    output.loss.backward()
    parts = {name: float(loss) for name, loss in output.loss_dict.items()}
    assert all(loss == 0 for name, loss in parts.items() if "cross_entropy" not in name)
    assert all(loss > 0 for name, loss in parts.items() if "cross_entropy" in name)
    assert all(p.grad.isfinite().all() for p in model.parameters())


# ---- index maps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [False, True])
def test_an_index_map_and_its_masks_give_the_same_loss_and_gradients(padded):
    model = randomise(tiny_model("swin"), seed=3).double()
    size = (70, 90)
    index_map = torch.randint(-2, 3, (7, 9), generator=torch.Generator().manual_seed(1))
    index_map = index_map.repeat_interleave(10, 0).repeat_interleave(10, 1).int()
    void = torch.full(size, VOID)
    masks = (index_map == torch.arange(3)[:, None, None]).to(torch.uint8)
    masks[:, index_map == IGNORED] = 255
    classes = [torch.tensor([0, 2, 0]), torch.zeros(0).long()]
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).double()
    pixel_mask = torch.ones(2, *size)
    if padded:
        pixel_mask[0, 41:] = pixel_mask[0, :, 53:] = 0
    results = []
    for labels in ([index_map, void], [masks, torch.zeros(0, *size)]):
        model.zero_grad()
        torch.manual_seed(0)
        loss = model(x, mask_labels=labels, class_labels=classes, pixel_mask=pixel_mask).loss
        loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters()]
        results.append((loss, torch.cat(gradients)))
    for of_map, of_masks in zip(*results, strict=True):
        assert relative_error(of_map, of_masks) < 1e-12  # measured: 6.3e-16


# ---- ignored pixels ------------------------------------------------------------------------------


def random_prediction(seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(1, 4, 8, generator=generator, dtype=torch.float64)
    features = torch.randn(1, 8, 8, 8, generator=generator, dtype=torch.float64)
    return embeddings, features


def losses_of(features, annotation, config):
    embeddings, _ = random_prediction()
    matches = [(torch.tensor([[0, 3]]), torch.tensor([[1, 0]]))]
    torch.manual_seed(2)
    cross_entropy, dice = mask_losses(embeddings[None], features, [annotation], matches, config)
    return cross_entropy[0], dice[0]


def test_mask_losses_are_means_over_the_points_that_count():
    """The loss at the same points, written out for points that touch no ignored pixel."""
    config = tiny_model(importance_sample_ratio=0.0).config
    (embeddings, features), (masks, classes) = random_prediction(), make_labels(0, [2], (16, 16), 3)
    ignored = torch.zeros(2, 16, 16, dtype=torch.bool)
    ignored[0, :, 8:] = ignored[1, 12:] = True
    bce, dice = losses_of(features, Annotation(masks[0], classes[0], ignored), config)
    torch.manual_seed(2)
    # With a ratio of 0 no point depends on the logits.
    points = uncertain_points(torch.zeros(2, 8, 8, dtype=torch.float64), 50, 3.0, 0.0)

    def at(map_, own_points):
        grid = (2 * own_points - 1)[None, None]
        return F.grid_sample(map_[None, None].double(), grid, align_corners=False)[0, 0, 0]

    expected_bce, expected_dice = 0, 0
    for query, target, own_points in ((0, 1, points[0]), (3, 0, points[1])):
        counts = at(ignored[target], own_points) == 0
        assert 10 < counts.sum() < 50
        x = at(torch.einsum("c,chw->hw", embeddings[0, query], features[0]), own_points)[counts]
        t = at(masks[0][target], own_points)[counts]
        p = x.sigmoid()
        expected_bce += F.binary_cross_entropy_with_logits(x, t)
        expected_dice += 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    assert float(bce) == pytest.approx(float(expected_bce), rel=1e-12)
    assert float(dice) == pytest.approx(float(expected_dice), rel=1e-12)


def test_an_empty_map_of_ignored_pixels_changes_no_loss():
    config = tiny_model().config
    (_, features), (masks, classes) = random_prediction(), make_labels(0, [2], (16, 16), 3)
    none = losses_of(features, Annotation(masks[0], classes[0]), config)
    nothing = torch.zeros(1, 16, 16, dtype=torch.bool)
    assert none == losses_of(features, Annotation(masks[0], classes[0], nothing), config)


def test_predictions_under_ignored_pixels_have_no_loss_and_draw_no_points(monkeypatch):
    """Uncertain as they are, they must not take points away from the image."""
    options = {"train_num_points": 40, "importance_sample_ratio": 1.0, "oversample_ratio": 6.0}
    config = tiny_model(**options).config
    (_, features), (masks, classes) = random_prediction(), make_labels(0, [2], (16, 16), 3)
    ignored = torch.zeros(1, 16, 16, dtype=torch.bool)
    ignored[..., 8:] = True
    features[..., 4:] = 0  # the most uncertain logits
    features.requires_grad_()
    counted = []
    original = Annotation.weights
    monkeypatch.setattr(
        Annotation, "weights", lambda *a: counted.append(original(*a)) or counted[-1]
    )
    bce, dice = losses_of(features, Annotation(masks[0], classes[0], ignored), config)
    (bce + dice).backward()
    assert features.grad[..., 4:].abs().max() == 0
    # Half of the 240 candidates for each mask lie in the ignored half.
    assert torch.equal(counted[0], torch.ones(2, 40, dtype=torch.float64))


def test_an_annotation_of_ignored_pixels_only_has_no_mask_loss():
    config = tiny_model().config
    (_, features), (masks, classes) = random_prediction(), make_labels(0, [2], (16, 16), 3)
    everything = torch.ones(1, 16, 16, dtype=torch.bool)
    losses = losses_of(features, Annotation(masks[0], classes[0], everything), config)
    assert [float(loss) for loss in losses] == [0, 0]


def test_the_ignore_value_in_masks_keeps_pixels_out_of_the_loss():
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


def test_a_padded_image_can_have_an_odd_size():
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
