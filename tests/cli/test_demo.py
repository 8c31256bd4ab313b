"""`mask2former demo`, with the bundled model."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.cli import main
from mask2former.predictor import Predictor
from mask2former.scenes.scene import HELD_OUT_SEEDS, render_scene


def demo(out, *arguments) -> int:
    return main(["demo", "--device", "cpu", "--out", str(out), *arguments])


def panoptic_quality_by_hand(found, scene) -> float:
    """PQ as the paper's formula says it, averaged over the classes of truth and prediction."""
    label_of = {segment["id"]: segment["label_id"] for segment in scene.segments_info}
    iou_sum, unmatched = {}, {}
    for segment in found.segments:
        unmatched[segment["label_id"]] = unmatched.get(segment["label_id"], 0) + 1
    for label in label_of.values():
        unmatched[label] = unmatched.get(label, 0) + 1
    matches = dict.fromkeys(unmatched, 0)
    for segment in found.segments:
        mask = found.ids == segment["id"]
        for true_id, label in label_of.items():
            truth = scene.segmentation == true_id
            iou = (mask & truth).sum() / (mask | truth).sum()
            if label == segment["label_id"] and iou > 0.5:
                iou_sum[label] = iou_sum.get(label, 0) + iou
                matches[label] += 1
                unmatched[label] -= 2
    qualities = [iou_sum.get(k, 0) / (matches[k] + unmatched[k] / 2) for k in unmatched]
    return float(np.mean(qualities))


def test_the_scene_is_shown_and_its_panoptic_quality_printed(tmp_path, capsys, monkeypatch):
    results = []
    call = Predictor.__call__

    def spy(*arguments):
        results.append(call(*arguments))
        return results[-1]

    monkeypatch.setattr(Predictor, "__call__", spy)
    assert demo(tmp_path / "new" / "demo.png", "--seed", "11") == 0

    printed = re.fullmatch(r"seed 11: PQ ([01]\.\d{3}); .* in (.*)\n", capsys.readouterr().out)
    assert printed[2] == str(tmp_path / "new" / "demo.png")
    expected = panoptic_quality_by_hand(results[0], render_scene(11))
    assert float(printed[1]) == pytest.approx(expected, abs=6e-4)

    with Image.open(printed[2]) as picture:
        assert picture.width > 2.5 * picture.height  # three square panels in a row
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["demo.png"]


def test_a_seed_repeats_its_picture_and_another_differs(tmp_path):
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert demo(tmp_path / name, "--seed", seed) == 0
    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again
    assert first != other


def test_without_a_seed_the_scene_is_new_and_none_of_the_training(tmp_path, capsys):
    assert demo(tmp_path / "demo.png") == 0
    assert demo(tmp_path / "demo.png") == 0
    seeds = {int(seed) for seed in re.findall(r"seed (\d+): ", capsys.readouterr().out)}
    assert len(seeds) == 2
    assert min(seeds) >= HELD_OUT_SEEDS.start


def test_a_picture_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    assert demo(tmp_path) == 1  # a folder
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert str(tmp_path) in complaint and "--out" in complaint


def test_a_negative_seed_is_wrong_usage(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        demo(tmp_path / "demo.png", "--seed", "-1")
    assert "-1" in capsys.readouterr().err


def test_the_picture_in_the_readme_is_the_one_the_command_makes(tmp_path):
    """But for what another CPU or PyTorch rounds differently along a contour."""
    root = Path(__file__).parents[2]
    seed = re.search(r"mask2former demo --seed (\d+)", (root / "README.md").read_text())[1]
    assert demo(tmp_path / "demo.png", "--seed", seed) == 0
    shown, made = (
        np.asarray(Image.open(path)).astype(int)
        for path in (root / "benchmarks" / "results" / "demo.png", tmp_path / "demo.png")
    )
    assert shown.shape == made.shape
    assert (np.abs(shown - made).max(axis=2) > 8).mean() < 0.01
