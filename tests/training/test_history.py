import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mask2former.io.errors import DataError
from mask2former.training import history
from mask2former.training.history import History, read_history


def run(callback, steps, eval_steps: int = 0) -> None:
    """Tell a callback of steps whose figures are known from their numbers."""
    for step in steps:
        callback.on_step(step, {"loss": step, "loss_mask": float(step)}, 1 / step, 8, 2.0)
        if eval_steps and step % eval_steps == 0:
            callback.on_evaluation(step, {"pq": step / 100})


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes its time."""
    curves = pytest.importorskip("mask2former.training.curves")
    monkeypatch.setattr(curves, "draw_curves", lambda records, path: None)


def contents(out: Path) -> list[dict]:
    """The lines, without what depends on the machine."""
    records = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return [{name: record[name] for name in record if name != "memory"} for record in records]


@pytest.mark.usefixtures("undrawn")
def test_lines_are_means_of_steps_and_evaluations(tmp_path):
    callback = History(tmp_path, every=2)
    run(callback, range(1, 6), eval_steps=4)
    callback.close()
    speed = {"images_per_second": 4.0, "seconds": 2.0}
    assert contents(tmp_path) == [
        {"step": 2, "loss": 1.5, "loss_mask": 1.5, "lr": 1 / 2, **speed},
        {"step": 4, "loss": 3.5, "loss_mask": 3.5, "lr": 1 / 4, **speed},
        {"step": 4, "metrics": {"pq": 0.04}},
        {"step": 5, "loss": 5.0, "loss_mask": 5.0, "lr": 1 / 5, **speed},  # the rest
    ]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("resumed", [0, 4, 7, 10])
def test_a_resumed_run_drops_what_came_after_and_goes_on(tmp_path, resumed):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for out in (killed, whole):
        out.mkdir()
    run(History(killed, every=1), range(1, 11), eval_steps=5)  # never closed
    for out, steps in ((killed, range(resumed + 1, 14)), (whole, range(1, 14))):
        callback = History(out, every=1)
        run(callback, steps, eval_steps=5)
        callback.close()
    assert contents(killed) == contents(whole)


@pytest.mark.usefixtures("undrawn")
def test_a_new_run_does_not_keep_the_history_of_an_old_one(tmp_path):
    run(History(tmp_path, every=1), range(1, 4))
    callback = History(tmp_path, every=1)
    run(callback, [1])
    callback.close()
    assert [record["step"] for record in contents(tmp_path)] == [1]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("cut", [b'{"step": 4, "lo', b'{"step": 4}', b"\0\0\0\0", b"\xff"])
def test_a_run_that_was_killed_within_a_line_is_resumed(tmp_path, cut):
    run(History(tmp_path, every=1), range(1, 4))
    with (tmp_path / "history.jsonl").open("ab") as file:
        file.write(cut)
    assert [record["step"] for record in read_history(tmp_path / "history.jsonl")] == [1, 2, 3]
    callback = History(tmp_path, every=1)
    run(callback, range(4, 6))
    callback.close()
    assert [record["step"] for record in contents(tmp_path)] == [1, 2, 3, 4, 5]


KILLED = """
import itertools, sys
from pathlib import Path
from mask2former.training.history import History
callback = History(Path(sys.argv[1]), every=1)
print("ready", flush=True)
for step in itertools.count(1):
    callback.on_step(step, {f"loss_mask_{i}": 1 / 3 for i in range(9)}, 1e-4, 8, 1.0)
"""


@pytest.mark.usefixtures("undrawn")
def test_lines_are_on_disk_when_a_run_is_killed(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "ready\n"
        path = tmp_path / "history.jsonl"
        while not path.exists() or path.stat().st_size < 10_000:
            assert process.poll() is None
        process.kill()
    assert process.returncode == -signal.SIGKILL
    steps = [record["step"] for record in read_history(path)]
    assert len(steps) > 20 and steps == list(range(1, len(steps) + 1))
    callback = History(tmp_path, every=1)
    run(callback, range(11, 13))
    callback.close()
    assert [record["step"] for record in contents(tmp_path)] == list(range(1, 13))


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}', '{"step": "x"}', "null"])
def test_another_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "history.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(DataError, match=r"^Line 2 of .*history.jsonl is damaged.*delete the line"):
        run(History(tmp_path), [3])


@pytest.mark.usefixtures("undrawn")
def test_what_is_not_finite_is_null(tmp_path):
    callback = History(tmp_path)
    callback.on_evaluation(3, {"ap": float("nan"), "pq": 0.5})
    callback.close()
    assert contents(tmp_path) == [{"step": 3, "metrics": {"ap": None, "pq": 0.5}}]


def test_curves_are_drawn_at_evaluations_and_at_the_end(tmp_path):
    pytest.importorskip("matplotlib")
    callback = History(tmp_path, every=1)
    picture = tmp_path / "curves.png"
    run(callback, range(1, 3))
    assert not picture.exists()
    callback.on_evaluation(2, {"pq": 0.5})
    first = picture.read_bytes()
    run(callback, range(3, 6))
    assert picture.read_bytes() == first
    callback.close()
    assert picture.read_bytes() != first


def test_without_matplotlib_the_run_goes_on_with_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "find_spec", lambda name: None)
    said = []
    callback = History(tmp_path, every=1, report=said.append)
    assert said == []  # processes other than the first are told nothing
    run(callback, range(1, 5), eval_steps=2)
    callback.close()
    assert len(said) == 1 and "pip install mask2former[train]" in said[0]
    assert not (tmp_path / "curves.png").exists()
    assert len(contents(tmp_path)) == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_named(tmp_path):
    callback = History(tmp_path, every=1)
    run(callback, range(1, 3))

    path = tmp_path / "history.jsonl"
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"history.jsonl cannot be written \(No space left"):
        run(callback, [3])


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    with pytest.raises(DataError, match=r"history.jsonl cannot be written \(No such file"):
        run(History(tmp_path / "missing"), [1])


def test_a_callback_that_is_told_nothing_writes_nothing(tmp_path):
    History(tmp_path).close()
    assert list(tmp_path.iterdir()) == []
