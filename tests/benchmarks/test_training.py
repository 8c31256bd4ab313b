"""The benchmark of training."""

import json

import pytest

pytest.importorskip("transformers")

from benchmarks import __main__ as command
from benchmarks import harness, memory, training
from benchmarks.training import (
    CHECKPOINTED,
    NAMES,
    OURS,
    TRANSFORMERS,
    Target,
    Workload,
    make_batch,
    make_step,
    text,
    verdict,
)
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


@pytest.mark.parametrize("name", NAMES)
def test_a_step_trains(name):
    step = make_step(name, TINY)
    losses = [step() for _ in range(12)]
    assert min(losses[-3:]) < losses[0]


def test_checkpointing_changes_no_loss():
    losses = []
    for name in (OURS, CHECKPOINTED):
        step = make_step(name, TINY)
        losses.append([step(), step()])
    assert losses[0] == losses[1]


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
    monkeypatch.setattr(memory, "COUNTED", False)  # which takes three processes
    memory_target = Target(CHECKPOINTED, "memory", 0.5)
    monkeypatch.setattr(training, "TARGETS", [Target(OURS, "speed", 1e-6), memory_target])
    options = ["training", "--rounds", "2", "--out", str(tmp_path)]
    assert command.main(options) == 0
    printed = capsys.readouterr().out
    assert "one step of training, 1 images of 64x64, 3 objects each" in printed
    assert "\n  met " in printed and "\n  not measured " in printed
    assert printed.startswith((tmp_path / "cpu-training.txt").read_text().rstrip())
    document = json.loads((tmp_path / "cpu-training.json").read_text())
    assert list(document["contestants"]) == list(NAMES)
    assert len(document["contestants"][OURS]["seconds"]) == 2
    monkeypatch.setattr(training, "TARGETS", [Target(OURS, "speed", 1e6)])
    assert command.main(["training", "--rounds", "2"]) == 1
    assert "\n  missed " in capsys.readouterr().out


def test_a_table_has_ratios_of_memory():
    entry = {"median": 2.0, "quartiles": (1.9, 2.1), "speed": 1.0}
    theirs = entry | {"peak_bytes": 4 * 2**30, "memory": 1.0}
    ours = entry | {"median": 1.0, "speed": 2.0, "peak_bytes": 3 * 2**30, "memory": 0.75}
    unknown = entry | {"peak_bytes": None, "memory": None}
    targets = [
        (Target(OURS, "speed", 1.5), ours),
        (Target(OURS, "memory", 0.7), ours),
        (Target(CHECKPOINTED, "memory", 0.5), unknown),
    ]
    measured = {
        "workload": "some images",
        "transformers": "9.9",
        "contestants": {TRANSFORMERS: theirs, OURS: ours, CHECKPOINTED: unknown},
        "targets": [verdict(*pair) for pair in targets],
    }
    lines = [" ".join(line.split()) for line in text(measured).splitlines()]
    assert lines[2] == "transformers 2.00 1.90 to 2.10 1.00x 4096 MiB 1.00x"
    assert lines[3] == "mask2former 1.00 1.90 to 2.10 2.00x 3072 MiB 0.75x"
    assert lines[4] == "checkpointed 2.00 1.90 to 2.10 1.00x -"
    assert lines[-3:] == [
        "met 2.00x of 1.50x speed, mask2former",
        "missed 0.75x of 0.70x memory, mask2former",
        "not measured of 0.50x memory, checkpointed",
    ]


@pytest.mark.parametrize(
    ("of", "met"), [("speed", [False, True, True]), ("memory", [True, True, False])]
)
def test_speed_has_to_be_at_least_and_memory_at_most_the_limit(of, met):
    target = Target(OURS, of, 0.5)
    assert [verdict(target, {of: reached})["met"] for reached in (0.4, 0.5, 0.6)] == met


def test_options_of_ops_are_refused(capsys):
    for option in (["--quick"], ["--compile"], ["--device", "cuda"]):
        with pytest.raises(SystemExit, match="2"):
            command.main(["training", *option])
        assert "are for ops only" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not memory.COUNTED, reason="this system does not say")
def test_memory_is_that_of_a_process_with_its_libraries():
    peaks = [training.peak(name, TINY) for name in NAMES]
    assert all(2**27 < size < 2**32 for size in peaks)
