import pytest

from tests.training.scenes import RECIPE, batches, same_weights, scene_model, train_scenes


class Stop(Exception):
    """Ends a run from within."""


def interrupted(loader, at: int):
    """The batches, until one that fails."""

    def broken(first_step, **rest):
        for number, batch in enumerate(loader(first_step, **rest), first_step):
            if number == at:
                raise Stop
            yield batch

    return broken


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema": 0.9, "schedule": "one-cycle", "warmup_steps": 2},
        {"batch_size": 4, "gradient_accumulation": 2, "schedule": "poly"},
    ],
)
@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_resumed_run_ends_with_the_same_weights(changes, at, tmp_path):
    recipe = RECIPE.replace(**changes)
    passes = recipe.gradient_accumulation
    whole, resumed = scene_model(dropout=0.1), scene_model(dropout=0.1)
    train_scenes(tmp_path / "whole", recipe, model=whole)
    loader = interrupted(batches(recipe.images_per_pass), at * passes)
    with pytest.raises(Stop):
        train_scenes(tmp_path / "broken", recipe, loader=loader, model=scene_model(dropout=0.1))
    outcome = train_scenes(tmp_path / "broken", recipe, model=resumed, resume=True)
    assert outcome.step == recipe.steps and outcome.finished
    assert same_weights(whole, resumed)
    assert not same_weights(whole, scene_model(dropout=0.1))
    one, other = (
        (tmp_path / f / "model/model.safetensors").read_bytes() for f in ("whole", "broken")
    )
    assert one == other
