"""`mask2former predict`: what it writes, and what it says about bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.cli import main
from mask2former.cli.options import TASKS
from mask2former.predictor import Predictor

EVERYTHING = ["--threshold", "0", "--overlap-threshold", "0"]  # scores of random weights are low


@pytest.fixture
def predict(tiny_model, tmp_path):
    """Run `predict` with the tiny model into `tmp_path / "out"`; returns the exit status."""

    def run(*arguments) -> int:
        out = ["--out", str(tmp_path / "out"), "--device", "cpu", *EVERYTHING]
        return main(["predict", "--model", str(tiny_model), *out, *map(str, arguments)])

    return run


def id_map(path) -> np.ndarray:
    red, green, blue = np.moveaxis(np.asarray(Image.open(path).convert("RGB")).astype(int), 2, 0)
    return red + 256 * green + 65536 * blue


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("task", TASKS)
def test_overlay_id_map_and_json_describe_the_same_segments(
    predict, tiny_model, picture, tmp_path, capsys, task
):
    picture.save(tmp_path / "view.png")
    assert predict(tmp_path / "view.png", "--task", task) == 0

    out = tmp_path / "out"
    assert names(out) == ["view.ids.png", "view.json", "view.overlay.png"]
    about = json.loads((out / "view.json").read_text())
    assert (about["image"], about["model"]) == (str(tmp_path / "view.png"), str(tiny_model))
    assert (about["height"], about["width"], about["task"]) == (64, 96, task)

    ids = id_map(out / "view.ids.png")
    assert ids.shape == (64, 96)
    assert about["segments"]
    assert {segment["id"] for segment in about["segments"]} == set(np.unique(ids)) - {0}
    for segment in about["segments"]:
        rows, columns = np.nonzero(ids == segment["id"])
        x, y, width, height = segment["bbox"]
        assert segment["area"] == len(rows)
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        assert segment["label"] == ["cat", "dog", "sky"][segment["label_id"]]
        assert ("score" in segment) == (task != "semantic")

    overlay = Image.open(out / "view.overlay.png")
    factor = overlay.width // picture.width  # small images are shown enlarged
    assert overlay.size == (factor * picture.width, factor * picture.height)
    plain = np.asarray(picture.resize(overlay.size, Image.Resampling.BICUBIC)).astype(int)
    changed = (np.abs(np.asarray(overlay) - plain) > 8).any(axis=2)
    assert changed[(ids > 0).repeat(factor, 0).repeat(factor, 1)].mean() > 0.5
    assert capsys.readouterr().out == f"1 image segmented, 0 failed; the results are in {out}\n"


def test_class_logits_equal_transformers_on_the_same_pixels(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    data = pytest.importorskip("skimage.data")
    backbone = transformers.SwinConfig(
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    torch.manual_seed(5)
    reference = transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(backbone_config=backbone, num_labels=7)
    ).eval()
    reference.save_pretrained(tmp_path / "model")
    transformers.Mask2FormerImageProcessorPil(
        size={"shortest_edge": 128, "longest_edge": 256}
    ).save_pretrained(tmp_path / "model")
    Image.fromarray(data.coffee()).save(tmp_path / "coffee.png")

    seen = []
    forward = Predictor.forward

    def spy(predictor, inputs, size):
        logits = forward(predictor, inputs, size)
        seen.extend([inputs.pixel_values, logits.class_queries_logits])
        return logits

    monkeypatch.setattr(Predictor, "forward", spy)
    arguments = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert main(["predict", str(tmp_path / "coffee.png"), *arguments, "--device", "cpu"]) == 0

    pixels, logits = seen
    assert pixels.shape == (1, 3, 128, 192)
    with torch.no_grad():
        expected = reference(pixel_values=pixels).class_queries_logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.01


def test_a_folder_means_all_images_in_it(predict, picture, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture.save(folder / "b.JPG", "JPEG")
    picture.convert("L").save(folder / "a.png")
    (folder / "notes.txt").write_text("not an image")
    assert predict(folder, folder / "a.png") == 0  # given twice, done once
    expected = [f"{stem}.{kind}" for stem in "ab" for kind in ("ids.png", "json", "overlay.png")]
    assert names(tmp_path / "out") == expected
    printed = capsys.readouterr()
    assert printed.out.startswith("2 images segmented, 0 failed")
    assert "2/2" in printed.err  # the progress bar


def missing(path, picture):
    pass


def text(path, picture):
    path.write_text("These are words.")


def truncated(path, picture):
    picture.save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-200])


def truncated_png(path, picture):
    picture.save(path, "PNG")
    path.write_bytes(path.read_bytes()[:400])


def empty_file(path, picture):
    path.touch()


def empty_folder(path, picture):
    path.mkdir()


def float_pixels(path, picture):
    picture.convert("F").save(path, "TIFF")


@pytest.mark.parametrize(
    "spoil",
    [missing, text, truncated, truncated_png, empty_file, empty_folder, float_pixels],
    ids=lambda function: function.__name__,
)
def test_a_bad_input_is_named_and_the_others_are_done(predict, picture, tmp_path, capsys, spoil):
    bad, good = tmp_path / "bad.jpg", tmp_path / "good.png"
    spoil(bad, picture)
    picture.save(good)
    assert predict(bad, good) == 1
    assert names(tmp_path / "out") == ["good.ids.png", "good.json", "good.overlay.png"]
    printed = capsys.readouterr()
    assert printed.out.startswith("1 image segmented, 1 failed")
    complaints = [line for line in printed.err.splitlines() if line.startswith("mask2former: ")]
    assert len(complaints) == 1
    assert str(bad) in complaints[0]


def test_images_too_large_to_decode_are_refused(predict, picture, tmp_path, capsys, monkeypatch):
    picture.save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 64 // 2 - 1)
    assert predict(tmp_path / "large.png") == 1
    assert "large.png is too large" in capsys.readouterr().err


def test_two_images_of_one_name_are_refused_before_any_work(predict, picture, tmp_path, capsys):
    picture.save(tmp_path / "view.png")
    picture.save(tmp_path / "View.jpg")
    with pytest.raises(SystemExit, match="2"):
        predict(tmp_path / "view.png", tmp_path / "View.jpg")
    complaint = capsys.readouterr().err
    assert "view.png" in complaint and "View.jpg" in complaint and "--out" in complaint
    assert not (tmp_path / "out").exists()


def test_an_input_is_never_replaced(predict, picture, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    picture.save(out / "view.png")
    picture.save(out / "view.ids.png")
    with pytest.raises(SystemExit, match="2"):
        predict(out)
    assert "view.ids.png would replace an input" in capsys.readouterr().err
    assert names(out) == ["view.ids.png", "view.png"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--device", "quantum"], "quantum"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--device", "meta"], "meta"),
        (["--task", "caption"], "caption"),
        (["--threshold", "1.5"], "1.5"),
        (["--mask-threshold", "half"], "half"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(predict, picture, tmp_path, capsys, arguments, word):
    picture.save(tmp_path / "view.png")
    with pytest.raises(SystemExit, match="2"):
        predict(tmp_path / "view.png", *arguments)
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert word in complaint


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without_config(folder):
    (folder / "config.json").unlink()


def unknown_backbone(folder):
    change_config(folder, backbone_config={"model_type": "hourglass"})


def missing_keys(folder):
    change_config(folder, encoder_layers=2)


def foreign_keys(folder):
    change_config(folder, decoder_layers=1)


def truncated_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (without_config, "config.json"),
        (unknown_backbone, "hourglass"),
        (missing_keys, "model.safetensors"),
        (foreign_keys, "model.safetensors"),
        (truncated_weights, "model.safetensors"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_bad_model_folder_is_named(predict, tiny_model, picture, tmp_path, capsys, spoil, named):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    spoil(folder)
    picture.save(tmp_path / "view.png")
    assert predict(tmp_path / "view.png", "--model", folder) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert str(folder) in complaint
    assert named in complaint
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize("out", ["view.png/out", "/proc/self"])  # below a file; not writable
def test_a_bad_output_folder_is_named_before_any_work(
    predict, picture, tmp_path, capsys, monkeypatch, out
):
    picture.save(tmp_path / "view.png")
    if out == "/proc/self" and not Path(out).is_dir():
        pytest.skip("this system has no folder that nobody can write to")
    monkeypatch.setattr("mask2former.cli.predict.load_predictor", None)
    assert predict(tmp_path / "view.png", "--out", tmp_path / out) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert str(tmp_path / out) in complaint and "--out" in complaint


def test_a_result_that_cannot_be_written_fails_that_image_only(predict, picture, tmp_path, capsys):
    for name in ("first.png", "second.png"):
        picture.save(tmp_path / name)
    (tmp_path / "out" / "first.overlay.png").mkdir(parents=True)  # in the way
    assert predict(tmp_path / "first.png", tmp_path / "second.png") == 1
    printed = capsys.readouterr()
    assert "first.png cannot be written" in printed.err
    assert printed.out.startswith("1 image segmented, 1 failed")
    expected = ["first.overlay.png", "second.ids.png", "second.json", "second.overlay.png"]
    assert names(tmp_path / "out") == expected  # nothing temporary is left


def test_the_task_is_read_from_the_models_configuration(predict, tiny_model, picture, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    change_config(folder, task="semantic")
    picture.save(tmp_path / "view.png")
    assert predict(tmp_path / "view.png", "--model", folder) == 0
    assert json.loads((tmp_path / "out" / "view.json").read_text())["task"] == "semantic"


def test_an_unexpected_error_keeps_its_traceback(predict, picture, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Predictor, "__call__", broken)
    picture.save(tmp_path / "view.png")
    with pytest.raises(RuntimeError, match="a bug"):
        predict(tmp_path / "view.png")


def test_the_process_ends_with_the_status_and_without_a_traceback(tiny_model, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("These are words.")
    options = ["--model", str(tiny_model), "--out", str(tmp_path / "out"), "--device", "cpu"]
    command = [sys.executable, "-m", "mask2former", "predict", str(bad), *options]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"mask2former: {bad} is not an image that Pillow can read; convert it."
    ]
    assert result.stdout == "0 images segmented, 1 failed\n"


def test_the_bundled_model_says_what_it_knows(picture, tmp_path, capsys):
    picture.save(tmp_path / "view.png")
    out = ["--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["predict", str(tmp_path / "view.png"), *out]) == 0
    assert "knows only rendered shapes" in capsys.readouterr().err
