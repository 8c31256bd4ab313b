import itertools

import pytest
import torch
from torch.nn import functional as F

from mask2former import Mask2FormerConfig
from mask2former.matcher import REPELLENT_COST, match, matching_costs, sample_masks

CONFIG = Mask2FormerConfig(num_labels=4, train_num_points=60)


def problem(seed, layers=3, batch=2, queries=5, size=(6, 7), counts=(3, 2)):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    masks = [(normal(count, 24, 28) > 0) for count in counts]
    classes = [torch.randint(4, (count,), generator=generator) for count in counts]
    return (
        normal(layers, batch, queries, 5),
        normal(layers, batch, queries, 8),
        normal(batch, 8, *size),
        masks,
        classes,
    )


def test_cost_is_the_papers_pair_by_pair():
    generator = torch.Generator().manual_seed(0)
    class_logits = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    points = torch.randn(2, 3, 40, generator=generator, dtype=torch.float64)
    truth = (torch.rand(4, 40, generator=generator) > 0.5).double()
    labels = torch.tensor([0, 3, 3, 1])
    cost = matching_costs(class_logits, points, labels, truth, CONFIG)
    for layer, query, target in itertools.product(range(2), range(3), range(4)):
        x, t = points[layer, query], truth[target]
        probability = class_logits[layer, query].softmax(-1)[labels[target]]
        p = x.sigmoid()
        dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        expected = -2 * probability + 5 * F.binary_cross_entropy_with_logits(x, t) + 5 * dice
        assert float(cost[layer, query, target]) == pytest.approx(float(expected), rel=1e-12)


def test_assignment_is_the_cheapest_of_all():
    torch.manual_seed(1)
    class_logits, embeddings, features, masks, classes = problem(1, layers=1, batch=1, counts=(3,))
    (((queries, targets),),) = match(class_logits, embeddings, features, masks, classes, CONFIG)
    torch.manual_seed(1)  # the same points again
    points = torch.rand(1, CONFIG.train_num_points, 2, dtype=torch.float64)
    logits = torch.einsum("qc,chw->qhw", embeddings[0, 0], features[0])
    cost = matching_costs(
        class_logits[:, 0],
        sample_masks(logits[None], points),
        classes[0],
        sample_masks(masks[0][None], points)[0],
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
    class_logits, embeddings, features, masks, classes = problem(4, layers=1)
    embeddings[0, :, 1] = bad
    for queries, _ in match(class_logits, embeddings, features, masks, classes, CONFIG)[0]:
        assert 1 not in queries.tolist()


def test_non_finite_costs_are_repellent_but_solvable():
    nan = torch.full((1, 3, 10), float("nan"))
    cost = matching_costs(torch.zeros(1, 3, 5), nan, torch.tensor([0]), torch.zeros(1, 10), CONFIG)
    assert (cost == REPELLENT_COST).all()
