import itertools

import pytest
import torch
from torch.nn import functional as F

from mask2former import Mask2FormerConfig
from mask2former.losses.annotations import Annotation
from mask2former.losses.matcher import REPELLENT_COST, match, matching_cost
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
    class_logits = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    mask_logits = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    masks = (torch.rand(4, 40, generator=generator) > 0.5).double()
    labels = torch.tensor([0, 3, 3, 1])
    weights = torch.ones(1, 40, dtype=torch.float64)
    cost = matching_cost(class_logits, mask_logits, labels, masks, weights, CONFIG)
    for query, target in itertools.product(range(3), range(4)):
        x, t = mask_logits[query], masks[target]
        probability = class_logits[query].softmax(-1)[labels[target]]
        p = x.sigmoid()
        dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        expected = -2 * probability + 5 * F.binary_cross_entropy_with_logits(x, t) + 5 * dice
        assert float(cost[query, target]) == pytest.approx(float(expected), rel=1e-12)


def test_assignment_is_the_cheapest_of_all():
    torch.manual_seed(1)
    class_logits, embeddings, features, annotations = problem(1, layers=1, batch=1, counts=(3,))
    ((queries, targets),) = match(class_logits, embeddings, features, annotations, CONFIG)
    torch.manual_seed(1)  # the same points again
    points = torch.rand(1, CONFIG.train_num_points, 2, dtype=torch.float64)
    cost = matching_cost(
        class_logits[0, 0],
        embeddings[0, 0] @ point_sample(features, points)[0],
        annotations[0].labels,
        annotations[0].sample(points),
        torch.ones(1, CONFIG.train_num_points, dtype=torch.float64),
        CONFIG,
    )
    best = min(
        sum(float(cost[q, t]) for t, q in enumerate(order))
        for order in itertools.permutations(range(5), 3)
    )
    assert float(cost[queries[0], targets[0]].sum()) == pytest.approx(best, rel=1e-12)


def test_every_prediction_and_image_gets_a_one_to_one_match():
    (queries, targets), nothing = match(*problem(2, counts=(3, 0)), CONFIG)
    assert targets.sort(1).values.tolist() == [[0, 1, 2]] * 3
    assert all(len(set(chosen)) == 3 for chosen in queries.tolist())
    assert [index.shape for index in nothing] == [(3, 0)] * 2


def test_more_targets_than_queries_leaves_targets_over():
    for queries, targets in match(*problem(3, queries=2, counts=(4, 3)), CONFIG):
        assert queries.sort(1).values.tolist() == [[0, 1]] * 3
        assert targets.shape == (3, 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_never_attract(bad):
    class_logits, embeddings, features, annotations = problem(4, layers=1)
    embeddings[0, :, 1] = bad
    for queries, _ in match(class_logits, embeddings, features, annotations, CONFIG):
        assert 1 not in queries.tolist()[0]


def test_non_finite_costs_are_repellent_but_solvable():
    nan, masks, weights = torch.full((3, 10), float("nan")), torch.zeros(1, 10), torch.ones(1, 10)
    cost = matching_cost(torch.zeros(3, 5), nan, torch.tensor([0]), masks, weights, CONFIG)
    assert (cost == REPELLENT_COST).all()


@pytest.mark.parametrize("shared", [True, False])
def test_points_without_weight_are_as_if_they_had_not_been_drawn(shared):
    generator = torch.Generator().manual_seed(0)
    class_logits = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    mask_logits = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    masks = torch.rand(4, 40, generator=generator, dtype=torch.float64)
    weights = (torch.rand(1 if shared else 4, 40, generator=generator) > 0.5).double()
    labels = torch.tensor([0, 3, 3, 1])
    cost = matching_cost(class_logits, mask_logits, labels, masks, weights, CONFIG)
    for target in range(4):
        counts = weights.expand(4, -1)[target] == 1
        left = mask_logits[:, counts], labels[target, None], masks[target, None][:, counts]
        alone = matching_cost(class_logits, *left, weights.new_ones(1, counts.sum()), CONFIG)
        assert torch.allclose(cost[:, target], alone[:, 0], rtol=1e-12)


def test_an_annotation_of_ignored_pixels_only_costs_what_its_class_costs():
    class_logits, mask_logits, labels = torch.randn(3, 5), torch.randn(3, 10), torch.tensor([2])
    masks, weights = torch.ones(1, 10), torch.zeros(1, 10)
    cost = matching_cost(class_logits, mask_logits, labels, masks, weights, CONFIG)
    assert torch.allclose(cost, -2 * class_logits.softmax(-1)[:, 2:3])


def test_ignored_pixels_do_not_change_the_match():
    """Neither what a mask holds in ignored pixels nor what is predicted there matters."""
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
        matches.append([index for pair in predictions for index in pair])
    assert all(torch.equal(a, b) for a, b in zip(*matches, strict=True))
