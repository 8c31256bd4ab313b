import math

import pytest
import torch
from torch import nn

from mask2former import SwinConfig
from mask2former.training.optimizer import make_optimizer, make_schedule, parameter_groups
from mask2former.training.recipe import Recipe
from tests.reference import tiny_model


def decayed_names(model: nn.Module) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.05)
    assert sum(len(group["params"]) for group in groups) == len(names)
    return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_norms_embeddings_and_position_biases_do_not_decay(backbone):
    model = tiny_model(backbone)
    decayed = decayed_names(model)
    free = set(dict(model.named_parameters())) - decayed
    norms = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d)
        for part in ("weight", "bias")
    }
    decoder = "model.transformer_decoder."
    embeddings = {
        f"{decoder}{n}.weight" for n in ("query_features", "query_position", "level_embed")
    }
    biases = {name for name in free if name.endswith("position_bias")}
    assert free == norms | embeddings | biases
    assert len(biases) == (5 if backbone == "swin" else 0)  # one for each block
    # As in the paper's code, where only modules are told apart.
    assert {"class_predictor.bias", "model.pixel_decoder.level_embed"} <= decayed


def test_the_absolute_positions_of_a_backbone_do_not_decay():
    config = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], use_absolute_embeddings=True
    )
    assert "model.backbone.position" not in decayed_names(tiny_model(backbone_config=config))


def test_a_shared_parameter_counts_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    assert sum(len(group["params"]) for group in parameter_groups(model, 0.1)) == 3


def test_the_backbone_has_a_lower_rate():
    model = tiny_model("swin")
    rates = {
        id(p): g["lr"] for g in make_optimizer(model, Recipe()).param_groups for p in g["params"]
    }
    for name, parameter in model.named_parameters():
        expected = 1e-5 if name.startswith("model.backbone.") else 1e-4
        assert rates[id(parameter)] == pytest.approx(expected)


def test_frozen_parameters_are_left_out():
    model = tiny_model()
    model.model.backbone.requires_grad_(False)
    ids = {id(p) for g in make_optimizer(model, Recipe()).param_groups for p in g["params"]}
    assert ids == {id(p) for p in model.parameters() if p.requires_grad}
    with pytest.raises(ValueError, match="nothing can train"):
        make_optimizer(model.requires_grad_(False), Recipe())


def rates(**settings) -> list[list[float]]:
    """Of both groups, in every step."""
    recipe = Recipe(max_steps=10, learning_rate=1.0, **{"warmup_steps": 0, **settings})
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1.0, 0.1)]
    optimizer = torch.optim.AdamW(groups)
    schedule = make_schedule(optimizer, recipe)
    seen = []
    for _ in range(recipe.max_steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant"}, [1.0] * 10),
        (
            {"schedule": "step", "milestones": (0.5, 0.8)},
            [1.0] * 5 + [0.1] * 3 + [0.01] * 2,
        ),
        ({"schedule": "poly"}, [(1 - n / 10) ** 0.9 for n in range(10)]),
        (
            {"schedule": "constant", "warmup_steps": 3},
            [0.25, 0.5, 0.75, *[1.0] * 7],
        ),
        (
            # Cosines from 1/25 up to 1 and down to 0.
            {"schedule": "one-cycle", "warmup_steps": 4},
            [1 - 0.96 * (1 + math.cos(math.pi * n / 4)) / 2 for n in range(4)]
            + [(1 + math.cos(math.pi * n / 6)) / 2 for n in range(6)],
        ),
    ],
)
def test_schedules_scale_the_rates_of_all_groups(settings, expected):
    seen = rates(**settings)
    assert [first for first, _ in seen] == pytest.approx(expected)
    assert [second for _, second in seen] == pytest.approx([0.1 * rate for rate in expected])


@pytest.mark.parametrize("warmup", [0, 1, 10, 20])
def test_any_warm_up_fits_one_cycle(warmup):
    seen = rates(schedule="one-cycle", warmup_steps=warmup)
    assert all(0 < first <= 1 for first, _ in seen)


@pytest.mark.parametrize("schedule", ["step", "poly", "one-cycle", "constant"])
def test_a_resumed_schedule_goes_on_where_it_was(schedule):
    recipe = Recipe(max_steps=8, schedule=schedule, warmup_steps=2)
    model = nn.Linear(2, 2)

    def fresh():
        optimizer = make_optimizer(model, recipe)
        return optimizer, make_schedule(optimizer, recipe)

    optimizer, steps = fresh()
    for _ in range(3):
        optimizer.step()
        steps.step()
    other, resumed = fresh()
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(steps.state_dict())
    for _ in range(4):
        for one, its_steps in ((optimizer, steps), (other, resumed)):
            one.step()
            its_steps.step()
        assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in other.param_groups]
