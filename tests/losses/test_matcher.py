import itertools

import pytest
import torch
from torch.nn import functional as F

from mask2former import Mask2FormerConfig
from mask2former.losses import matcher
from mask2former.losses.annotations import Annotation
from mask2former.losses.matcher import REPELLENT_COST, match, matching_costs
from mask2former_ops import point_sample

CONFIG = Mask2FormerConfig(num_labels=4, train_num_points=60)


def problem(seed, layers=3, batch=2, queries=5, size=(6, 7), counts=(3, 2)):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    annotations = [
        Annotation(normal(count, 24, 28) > 0, torch.randint(4, (count,), generator=generator))
        for count in counts
    ]
    return (
        normal(layers, batch, queries, 5),
        normal(layers, batch, queries, 8),
        normal(batch, 8, *size),
        annotations,
    )


def test_cost_is_the_papers_pair_by_pair():
    generator = torch.Generator().manual_seed(0)
    class_logits = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    embeddings = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    features = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    points = embeddings @ features.T
    truth = (torch.rand(4, 40, generator=generator) > 0.5).double()
    labels = torch.tensor([0, 3, 3, 1])
    weights = torch.ones(1, 40, dtype=torch.float64)
    cost = matching_costs(class_logits, embeddings, features, labels, truth, weights, CONFIG)
    for layer, query, target in itertools.product(range(2), range(3), range(4)):
        x, t = points[layer, query], truth[target]
        probability = class_logits[layer, query].softmax(-1)[labels[target]]
        p = x.sigmoid()
        dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        expected = -2 * probability + 5 * F.binary_cross_entropy_with_logits(x, t) + 5 * dice
        assert float(cost[layer, query, target]) == pytest.approx(float(expected), rel=1e-12)


def test_assignment_is_the_cheapest_of_all():
    torch.manual_seed(1)
    class_logits, embeddings, features, annotations = problem(1, layers=1, batch=1, counts=(3,))
    (((queries, targets),),) = match(class_logits, embeddings, features, annotations, CONFIG)
    torch.manual_seed(1)  # the same points again
    points = torch.rand(1, CONFIG.train_num_points, 2, dtype=torch.float64)
    cost = matching_costs(
        class_logits[:, 0],
        embeddings[:, 0],
        point_sample(features, points)[0].T,
        annotations[0].labels,
        annotations[0].sample(points),
        torch.ones(1, CONFIG.train_num_points, dtype=torch.float64),
        CONFIG,
    )[0]
    best = min(
        sum(float(cost[q, t]) for t, q in enumerate(order))
        for order in itertools.permutations(range(5), 3)
    )
    assert float(cost[queries, targets].sum()) == pytest.approx(best, rel=1e-12)


def test_every_prediction_and_image_gets_a_one_to_one_match():
    matches = match(*problem(2, counts=(3, 0)), CONFIG)
    assert [len(images) for images in matches] == [2, 2, 2]
    for (queries, targets), (none, nothing) in matches:
        assert sorted(targets.tolist()) == [0, 1, 2]
        assert len(set(queries.tolist())) == 3
        assert len(none) == len(nothing) == 0


def test_more_targets_than_queries_leaves_targets_over():
    for images in match(*problem(3, queries=2, counts=(4, 3)), CONFIG):
        assert [len(queries) for queries, _ in images] == [2, 2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_never_attract(bad):
    class_logits, embeddings, features, annotations = problem(4, layers=1)
    embeddings[0, :, 1] = bad
    for queries, _ in match(class_logits, embeddings, features, annotations, CONFIG)[0]:
        assert 1 not in queries.tolist()


def test_non_finite_costs_are_repellent_but_solvable():
    nan, features = torch.full((1, 3, 2), float("nan")), torch.ones(10, 2)
    labels, truth, weights = torch.tensor([0]), torch.zeros(1, 10), torch.ones(1, 10)
    cost = matching_costs(torch.zeros(1, 3, 5), nan, features, labels, truth, weights, CONFIG)
    assert (cost == REPELLENT_COST).all()


@pytest.mark.parametrize("shared", [True, False])
def test_points_without_weight_are_as_if_they_had_not_been_drawn(shared):
    generator = torch.Generator().manual_seed(0)
    class_logits = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    embeddings = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    features = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    truth = torch.rand(4, 40, generator=generator, dtype=torch.float64)
    weights = (torch.rand(1 if shared else 4, 40, generator=generator) > 0.5).double()
    labels = torch.tensor([0, 3, 3, 1])
    cost = matching_costs(class_logits, embeddings, features, labels, truth, weights, CONFIG)
    for target in range(4):
        counts = weights.expand(4, -1)[target] == 1
        left = [embeddings, features[counts], labels[target, None], truth[target, None][:, counts]]
        alone = matching_costs(class_logits, *left, weights.new_ones(1, counts.sum()), CONFIG)
        assert torch.allclose(cost[..., target], alone[..., 0], rtol=1e-12)


def test_an_annotation_of_which_nothing_counts_costs_what_its_class_costs():
    class_logits, labels = torch.randn(1, 3, 5), torch.tensor([2])
    truth, weights = torch.ones(1, 10), torch.zeros(1, 10)
    masks = torch.randn(1, 3, 2), torch.randn(10, 2)
    cost = matching_costs(class_logits, *masks, labels, truth, weights, CONFIG)
    assert torch.allclose(cost, -2 * class_logits.softmax(-1)[..., 2:3])


def test_ignored_pixels_do_not_change_the_match():
    """What a mask says under ignored pixels never matters, nor do predictions there."""
    matches = []
    for seed in (0, 1):
        class_logits, embeddings, features, annotations = problem(5)
        ignored = torch.zeros(1, 24, 28, dtype=torch.bool)
        ignored[:, :, 12:] = True
        garbage = torch.Generator().manual_seed(seed)
        features[..., 4:] = torch.randn(2, 8, 6, 3, generator=garbage, dtype=torch.float64)
        other = torch.rand(24, 28, generator=garbage) > 0.5
        annotations = [
            Annotation(torch.where(ignored, other, image.masks), image.labels, ignored)
            for image in annotations
        ]
        torch.manual_seed(6)
        predictions = match(class_logits, embeddings, features, annotations, CONFIG)
        matches.append([index for images in predictions for pair in images for index in pair])
    assert all(torch.equal(a, b) for a, b in zip(*matches, strict=True))


def test_a_few_points_at_a_time_cost_what_all_at_once_cost(monkeypatch):
    torch.manual_seed(0)
    masks = torch.randn(2, 3, 6).double(), torch.randn(200, 6).double()
    truth, weights = torch.rand(2, 200).double(), (torch.rand(2, 200) > 0.5).double()
    arguments = torch.randn(2, 3, 5).double(), *masks, torch.tensor([0, 3]), truth, weights, CONFIG
    at_once = matching_costs(*arguments)
    monkeypatch.setattr(matcher, "LOGITS", 6 * 70)  # of six masks: 70, 70 and 60 points
    assert torch.allclose(matching_costs(*arguments), at_once, rtol=1e-12)


@pytest.mark.parametrize("size", [(6, 7), (1, 5)])
def test_features_are_sampled_alike_whatever_lies_side_by_side(size):
    torch.manual_seed(0)
    features = torch.randn(1, 8, *size, dtype=torch.float64)
    points = torch.rand(50, 2, dtype=torch.float64)
    expected = point_sample(features, points[None])[0].T
    channels_last = features.contiguous(memory_format=torch.channels_last)
    for layout in (features, channels_last):
        sampled = matcher.sampled_features(layout[0], points)
        assert torch.allclose(sampled, expected, rtol=1e-12)
