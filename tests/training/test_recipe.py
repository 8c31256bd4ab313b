import dataclasses
import inspect

import pytest

from mask2former.io.errors import DataError
from mask2former.training.recipe import RENAMED, Recipe, RecipeError, parse, read_recipe

FIELDS = {field.name: field for field in dataclasses.fields(Recipe)}


def test_the_paper_s_settings_are_the_defaults():
    recipe = Recipe()
    assert (recipe.learning_rate, recipe.weight_decay) == (1e-4, 0.05)
    assert (recipe.backbone_multiplier, recipe.max_grad_norm) == (0.1, 0.01)
    # 327778 and 355092 of 368750 steps on COCO; measured: 6e-7 and 1.6e-6
    assert recipe.milestones == (8 / 9, 26 / 27)
    assert recipe.milestones == pytest.approx((327778 / 368750, 355092 / 368750), abs=2e-6)


def test_every_setting_has_a_meaning():
    assert all(field.metadata["help"] for field in FIELDS.values())


def test_a_saved_recipe_reads_as_it_was(tmp_path):
    recipe = Recipe(
        max_steps=7, milestones=(0.5,), schedule="poly", dropout=0.1, freeze_backbone=True
    )
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe(**read_recipe(tmp_path / "recipe.yaml")) == recipe


def test_a_file_may_leave_settings_out(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("max_steps: 3\nlearning_rate: 1e-3\n")
    assert Recipe(**read_recipe(path)) == Recipe(max_steps=3, learning_rate=1e-3)
    path.write_text("")
    assert Recipe(**read_recipe(path)) == Recipe()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rate: 1", "'rate' is no setting; the settings are learning_rate"),
        ("max_steps: many", "max_steps is 'many'; it must be an integer of at least 1"),
        ("max_steps: 1.5", "max_steps is 1.5; it must be an integer"),
        ("max_steps: true", "max_steps is True; it must be an integer"),
        ("max_steps: 0", "max_steps is 0; it must be an integer of at least 1"),
        ("ema: 1.5", "ema is 1.5; it must be a number from 0 to 1"),
        ("learning_rate: .nan", "learning_rate is nan; it must be a number of at least 0"),
        ("schedule: cosine", "schedule is 'cosine'; it must be one of step, poly, one-cycle"),
        ("freeze_backbone: 1", "freeze_backbone is 1; it must be true or false"),
        ("milestones: 0.5", "milestones is 0.5; it must be a list of numbers"),
        ("milestones: [2]", "milestones is 2; it must be a number from 0 to 1"),
        (
            "global_batch_size: 8\ngradient_accumulation_steps: 3",
            "global_batch_size is 8, which is not a multiple",
        ),
        ("1: 2", "1 is no setting; the settings are learning_rate"),
        ("[1, 2]", "must hold lines such as `max_steps: 2000`"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_wrong_recipe_is_refused_in_a_sentence(text, reason, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_recipe(path)
    assert reason in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_old_names_are_answered_with_the_new_ones(old, new, tmp_path):
    assert new in FIELDS and old not in FIELDS
    sentence = f"{old} is called {new} now"
    with pytest.raises(RecipeError, match=sentence):
        Recipe(**{old: 1})
    with pytest.raises(RecipeError, match=sentence):
        Recipe().replace(**{old: 1})
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{old}: 1\n")
    with pytest.raises(DataError, match=f"recipe.yaml cannot be used: {sentence}"):
        read_recipe(path)


def test_names_equal_transformers_where_it_has_the_same_setting():
    training_arguments = pytest.importorskip("transformers").TrainingArguments
    theirs = {field.name for field in dataclasses.fields(training_arguments)}
    assert set(RENAMED.values()) - theirs == {"global_batch_size"}  # theirs is per device


def test_the_constructor_shows_its_arguments():
    assert list(inspect.signature(Recipe).parameters) == list(FIELDS)


def test_a_recipe_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere.yaml cannot be read"):
        read_recipe(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_steps", "12", 12),
        ("learning_rate", "3e-4", 3e-4),
        ("milestones", "0.5,0.75", (0.5, 0.75)),
        ("dropout", "0.1", 0.1),
        ("schedule", "poly", "poly"),
        ("metric_for_best_model", "pq", "pq"),
    ],
)
def test_settings_of_the_command_line_are_of_their_field_s_type(name, text, value):
    assert parse(FIELDS[name], text) == value
    assert type(parse(FIELDS[name], text)) is type(value)


@pytest.mark.parametrize(
    ("name", "text"), [("max_steps", "1.5"), ("ema", "x"), ("milestones", "a,b")]
)
def test_ill_typed_texts_are_refused(name, text):
    with pytest.raises(ValueError, match=f"{name} is "):
        parse(FIELDS[name], text)


def test_a_changed_recipe_is_checked():
    assert Recipe().replace(max_steps=5).max_steps == 5
    with pytest.raises(ValueError, match="'step' is no setting"):
        Recipe().replace(step=5)
    with pytest.raises(ValueError, match="max_steps is 0"):
        Recipe().replace(max_steps=0)
