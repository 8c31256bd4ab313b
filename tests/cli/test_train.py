import json
import shutil

import pytest
import torch

from mask2former import (
    BUNDLED_MODEL,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
)
from mask2former.cli import main
from mask2former.data.rendering import render_dataset
from mask2former.training.recipe import Recipe, read_recipe
from tests.reference import tiny_model

FAST = ["--global-batch-size", "2", "--dataloader-num-workers", "0", "--short-side", "64"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four scenes to train on and two to evaluate on, as COCO panoptic files."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    render_dataset(folder, "coco-panoptic", range(4), range(4, 6), size=64)
    return folder


@pytest.fixture(scope="module")
def trained(tiny_model, data, tmp_path_factory):
    """A run of four steps, which the tests only look at."""
    out = tmp_path_factory.mktemp("run") / "run"
    settings = ["--max-steps", "4", "--save-steps", "2", "--eval-steps", "2", "--ema", "0.9"]
    command = ["train", "--model", str(tiny_model), "--data", str(data), "--out", str(out)]
    assert main([*command, *FAST, *settings]) == 0
    return out


def test_a_run_writes_what_it_says(trained):
    assert {path.name for path in trained.iterdir()} == {
        *("checkpoints", "curves.png", "evaluated.json", "history.jsonl", "model", "recipe.yaml"),
        "tensorboard",
    }
    recipe = Recipe(**read_recipe(trained / "recipe.yaml"))
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    assert recipe.precision == ("bf16" if has_bf16 else "no")
    assert (recipe.max_steps, recipe.ema) == (4, 0.9)
    assert recipe.learning_rate == Recipe().learning_rate
    lines = [json.loads(line) for line in (trained / "history.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines if "metrics" in line} == {2, 4}


def test_the_model_knows_the_data_set_s_classes_and_predicts(trained, data, tmp_path, capsys):
    model = Mask2FormerForUniversalSegmentation.from_pretrained(trained / "model")
    assert list(model.config.id2label.values())[:2] == ["disc", "box"]
    processor = Mask2FormerImageProcessor.from_pretrained(trained / "model")
    assert processor.thing_label_ids == [0, 1, 2, 3]
    assert processor.size == {"shortest_edge": 64, "longest_edge": 128}
    image = min((data / "val").iterdir())
    command = ["predict", str(image), "--model", str(trained / "model"), "--out", str(tmp_path)]
    assert main(command) == 0
    assert "1 image segmented" in capsys.readouterr().out


def test_a_run_says_what_it_does(tiny_model, data, tmp_path, capsys):
    command = ["train", "--model", str(tiny_model), "--data", str(data), "--out"]
    assert main([*command, str(tmp_path / "run"), *FAST, "--max-steps", "1"]) == 0
    said = capsys.readouterr().err
    assert "4 images (panoptic), 7 classes (disc, box, " in said
    assert "2 to evaluate on." in said
    assert "1 steps of 2 images (0.5 epochs), 1 process;" in said
    assert "Class head: kept: sky, no object; new: disc, box, " in said
    assert f"The model is in {tmp_path / 'run/model'}, the best one, of step 1 with pq " in said


def test_a_resumed_run_ends_like_one_that_was_not_interrupted(
    trained, tiny_model, data, tmp_path, capsys
):
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    shutil.rmtree(out / "checkpoints/step-000004")
    command = ["train", "--model", str(tiny_model), "--data", str(data), "--out", str(out)]
    assert main(command) == 1
    assert "has a run already; resume it (--resume)" in capsys.readouterr().err
    # Before the data is looked at, which can take minutes.
    assert main([*command[:4], str(tmp_path / "none"), *command[5:]]) == 1
    assert "has a run already; resume it (--resume)" in capsys.readouterr().err
    assert main([*command, "--resume", "--dataloader-num-workers", "1"]) == 0
    for file in ("model.safetensors", "average.safetensors"):
        one, other = (run / "checkpoints/step-000004" / file for run in (trained, out))
        assert one.read_bytes() == other.read_bytes()
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--resume", "--seed", "5"])
    assert "was begun with seed 0, not 5" in capsys.readouterr().err


def test_a_run_whose_recipe_has_an_old_name_is_told_the_new_one(data, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("steps: 4\n")
    assert main(["train", "--data", str(data), "--out", str(tmp_path), "--resume"]) == 1
    said = capsys.readouterr().err
    assert "recipe.yaml cannot be used: steps is called max_steps now; rename it." in said


def test_a_file_of_settings_yields_to_the_command_line(tiny_model, data, tmp_path):
    config = tmp_path / "recipe.yaml"
    config.write_text("max_steps: 3\nlearning_rate: 5e-4\nfreeze_backbone: true\n")
    out = tmp_path / "run"
    command = ["train", "--model", str(tiny_model), "--data", str(data), "--out", str(out)]
    settings = ["--config", str(config), "--max-steps", "1", "--no-freeze-backbone", "--task"]
    assert main([*command, *FAST, *settings, "semantic"]) == 0
    recipe = Recipe(**read_recipe(out / "recipe.yaml"))
    assert (recipe.max_steps, recipe.learning_rate, recipe.freeze_backbone) == (1, 5e-4, False)
    model = Mask2FormerImageProcessor.from_pretrained(out / "model")
    assert model.thing_label_ids == []


def test_the_bundled_model_is_tuned_where_none_is_named(data, tmp_path, capsys):
    command = ["train", "--data", str(data), "--out", str(tmp_path / "run"), *FAST]
    assert main([*command, "--max-steps", "1", "--eval-steps", "9"]) == 0
    assert "Class head" not in capsys.readouterr().err  # the scenes have the classes it knows
    tuned = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "run/model").config
    bundled = Mask2FormerForUniversalSegmentation.from_pretrained(BUNDLED_MODEL).config
    assert (tuned.id2label, tuned.hidden_dim) == (bundled.id2label, bundled.hidden_dim)


@pytest.mark.parametrize("augmentation", ["lsj", "crop"])
def test_the_paper_s_augmentations_train(augmentation, tiny_model, data, tmp_path):
    out = tmp_path / "run"
    command = ["train", "--model", str(tiny_model), "--data", str(data), "--out", str(out)]
    settings = ["--augmentation", augmentation, "--crop-size", "64", "--max-steps", "1"]
    assert main([*command, *FAST, *settings, "--void", "ignore", "--eval-steps", "9"]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--max-steps", "many"],
            "argument --max-steps: max_steps is 'many'; it must be an integer of at",
        ),
        (["--steps", "5"], "--steps is called --max-steps now"),
        (["--best-metric=pq"], "--best-metric is called --metric-for-best-model now"),
        (["--rate", "1"], "unrecognized arguments: --rate 1"),
        (["--schedule", "cosine"], "schedule is 'cosine'; it must be one of step, poly"),
        (
            ["--global-batch-size", "3", "--gradient-accumulation-steps", "2"],
            "global_batch_size is 3, which is not",
        ),
        (["--drop-path", "0.1"], "drop_path is given, but the model's backbone (resnet)"),
        (["--reduce-labels"], "reduce_labels (--reduce-labels) is for semantic label maps"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments, sentence, tiny_model, data, tmp_path, capsys):
    command = ["train", "--model", str(tiny_model), "--data", str(data), "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="2"):
        main([*command, *arguments])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence in said


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({0: "ball"}, "Class 0 is 'disc' (thing) in the training data, but 'ball' (thing) in the"),
        ({0: "box", 1: "disc"}, "Class 0 is 'disc' (thing) in the training data, but 'box'"),
        ({6: None}, "Class 6 is 'water' (stuff) in the training data, but missing in the"),
    ],
)
def test_validation_data_of_other_classes_is_refused_before_the_run(
    changed, sentence, tiny_model, data, tmp_path, capsys
):
    copied = tmp_path / "data"
    shutil.copytree(data, copied)
    file = copied / "annotations/panoptic_val.json"
    content = json.loads(file.read_text())
    for label, name in changed.items():
        content["categories"][label]["name"] = name
    content["categories"] = [c for c in content["categories"] if c["name"]]
    if None in changed.values():
        known = {category["id"] for category in content["categories"]}
        for record in content["annotations"]:
            segments = record["segments_info"]
            record["segments_info"] = [s for s in segments if s["category_id"] in known]
    file.write_text(json.dumps(content))
    command = ["train", "--model", str(tiny_model), "--data", str(copied), "--out"]
    assert main([*command, str(tmp_path / "run"), *FAST, "--max-steps", "1"]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_missing_data_set_is_one_sentence(tiny_model, tmp_path, capsys):
    command = ["train", "--model", str(tiny_model), "--data", str(tmp_path / "none"), "--out"]
    assert main([*command, str(tmp_path / "run")]) == 1
    assert f"mask2former: {tmp_path / 'none'} does not exist" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_data_file_that_vanishes_is_one_sentence(tiny_model, data, tmp_path, capsys):
    copied = tmp_path / "data"
    shutil.copytree(data, copied)
    victim = min((copied / "train").iterdir())
    victim.unlink()
    command = ["train", "--model", str(tiny_model), "--data", str(copied), "--out"]
    assert main([*command, str(tmp_path / "run"), *FAST, "--max-steps", "4"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("mask2former: ") and victim.name in said


def test_a_loss_that_is_not_finite_is_one_sentence(data, tmp_path, capsys):
    model = tiny_model()
    with torch.no_grad():
        model.model.transformer_decoder.query_features.weight.fill_(torch.inf)
    model.save_pretrained(tmp_path / "model")
    command = ["train", "--model", str(tmp_path / "model"), "--data", str(data), "--out"]
    assert main([*command, str(tmp_path / "run"), *FAST, "--max-steps", "2"]) == 1
    *before, said = capsys.readouterr().err.strip().splitlines()
    assert any("has no preprocessor_config.json; images are resized" in line for line in before)
    assert said.startswith("mask2former: The loss is not finite in step 1, whose images are ")
