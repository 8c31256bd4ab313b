import sys

import pytest

from mask2former import BUNDLED_MODEL, Mask2FormerForUniversalSegmentation
from mask2former.data.scene_dataset import SceneDataset
from mask2former.evaluation import synthetic
from mask2former.evaluation.evaluate import evaluate
from mask2former.images.processor import Mask2FormerImageProcessor
from mask2former.scenes.scene import HELD_OUT_SEEDS, ID2LABEL


def test_there_are_200_held_out_scenes():
    assert len(HELD_OUT_SEEDS) == 200


@pytest.mark.slow
def test_the_bundled_model_reaches_its_stated_quality():
    model = Mask2FormerForUniversalSegmentation.from_pretrained(BUNDLED_MODEL)
    processor = Mask2FormerImageProcessor.from_pretrained(BUNDLED_MODEL)
    figures = evaluate(model, processor, SceneDataset(HELD_OUT_SEEDS)).figures
    assert figures["pq"] >= 0.85  # measured: 0.908
    assert figures["pq_things"] > 0.80  # measured: 0.852
    assert figures["pq_stuff"] > 0.80  # measured: 0.983
    assert figures["miou"] >= 0.92  # measured: 0.938


def test_the_command_prints_a_line_per_class_and_the_means(monkeypatch, capsys):
    monkeypatch.setattr(synthetic, "HELD_OUT_SEEDS", HELD_OUT_SEEDS[:2])
    monkeypatch.setattr(sys, "argv", ["synthetic", "--device", "cpu"])
    synthetic.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-2]] == list(ID2LABEL.values())
    assert lines[-2].startswith("PQ 0.")
    assert lines[-1].startswith("mIoU 0.")


def test_the_bundled_weights_are_at_most_six_megabytes():
    assert (BUNDLED_MODEL / "model.safetensors").stat().st_size <= 6_000_000
