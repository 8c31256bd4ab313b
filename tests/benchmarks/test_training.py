"""The benchmark of training."""

import json

import pytest

pytest.importorskip("transformers")

from benchmarks import __main__ as command
from benchmarks import harness, memory, training
from benchmarks.training import OURS, TRANSFORMERS, Workload, make_batch, make_step, text, verdict
from tests.reference import SMALL

TINY = Workload(
    images=1,
    size=64,
    objects=3,
    num_labels=4,
    backbone={"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    model=SMALL | {"decoder_layers": 2},
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(harness, "LEAST_SECONDS", 0)
    monkeypatch.setattr(training, "WORKLOAD", TINY)


@pytest.mark.parametrize("name", [TRANSFORMERS, OURS])
def test_a_step_trains(name):
    step = make_step(name, TINY)
    losses = [step() for _ in range(12)]
    assert min(losses[-3:]) < losses[0]


def test_both_train_models_of_the_same_size():
    sizes = [
        sum(p.numel() for n, p in make(TINY).named_parameters() if "swin.layernorm" not in n)
        for make in (training.make_ours, training.make_theirs)
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)  # unused parameters of theirs


def test_a_batch_has_the_objects_that_are_asked_for():
    images, masks, classes = make_batch(TINY)
    assert images.shape == (1, 3, 64, 64)
    assert [image.shape for image in masks] == [(3, 64, 64)]
    assert masks[0].sum((1, 2)).tolist() == [21 * 21] * 3
    assert classes[0].shape == (3,) and classes[0].max() < 4


def test_it_prints_and_writes_ratios_and_verdicts(capsys, tmp_path, monkeypatch, tiny):
    monkeypatch.setattr(memory, "COUNTED", False)  # which takes two processes
    monkeypatch.setattr(training, "TARGETS", {"speed": 1e-6, "memory": 2.0})
    options = ["training", "--rounds", "2", "--out", str(tmp_path)]
    assert command.main(options) == 0
    printed = capsys.readouterr().out
    assert "one step of training, 1 images of 64x64, 3 objects each" in printed
    assert "\n  met " in printed and "\n  not measured " in printed
    assert printed.startswith((tmp_path / "cpu-training.txt").read_text().rstrip())
    document = json.loads((tmp_path / "cpu-training.json").read_text())
    assert list(document["contestants"]) == [TRANSFORMERS, OURS]
    assert len(document["contestants"][OURS]["seconds"]) == 2
    monkeypatch.setattr(training, "TARGETS", {"speed": 1e6, "memory": 2.0})
    assert command.main(["training", "--rounds", "2"]) == 1
    assert "\n  missed " in capsys.readouterr().out


def test_a_table_has_ratios_of_memory():
    entry = {"median": 2.0, "quartiles": (1.9, 2.1), "speed": 1.0, "peak_bytes": 3 * 2**30}
    ours = entry | {"median": 1.0, "speed": 2.0, "peak_bytes": 2 * 2**30}
    measured = {
        "workload": "some images",
        "transformers": "9.9",
        "contestants": {TRANSFORMERS: entry, OURS: ours},
        "targets": [verdict("speed", 2.0, 2.0), verdict("memory", 2.0, 1.5)],
    }
    lines = [" ".join(line.split()) for line in text(measured).splitlines()]
    assert lines[2] == "transformers 2.00 1.90 to 2.10 1.00x 3072 MiB"
    assert lines[3] == "mask2former 1.00 1.90 to 2.10 2.00x 2048 MiB"
    assert lines[-2:] == ["met 2.00x of 2.00x speed", "missed 1.50x of 2.00x memory"]


def test_options_of_ops_are_refused(capsys):
    for option in (["--quick"], ["--compile"], ["--device", "cuda"]):
        with pytest.raises(SystemExit, match="2"):
            command.main(["training", *option])
        assert "are for ops only" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not memory.COUNTED, reason="this system does not say")
def test_memory_is_that_of_a_process_with_its_libraries():
    peaks = [training.peak(name, TINY) for name in (TRANSFORMERS, OURS)]
    assert all(2**27 < size < 2**32 for size in peaks)
