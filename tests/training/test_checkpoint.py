import os
import signal
import subprocess
import sys

import pytest
import torch

from mask2former.io.errors import DataError
from mask2former.training.checkpoint import (
    Checkpoint,
    has_checkpoint,
    load_checkpoint,
    load_newest,
    remove_unfinished,
    save_checkpoint,
)
from tests.training.full_disk import no_file_over


def checkpoint(step: int, average: bool = True) -> Checkpoint:
    torch.manual_seed(step)
    return Checkpoint(
        step=step,
        weights={"a": torch.randn(3, 4), "count": torch.tensor(step)},
        average={"a": torch.randn(3, 4), "count": torch.tensor(step)} if average else None,
        optimizer={"state": {"a": {"step": torch.tensor(1.0)}}, "lr": [0.1, None]},
        progress={"best": {"step": 1, "metrics": {"pq": 0.5}}},
    )


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def reports(folder) -> tuple[Checkpoint | None, list[str]]:
    said: list[str] = []
    return load_newest(folder, said.append), said


@pytest.mark.parametrize("average", [True, False])
def test_a_checkpoint_reads_as_it_was_written(average, tmp_path):
    written = checkpoint(12, average)
    read = load_checkpoint(save_checkpoint(tmp_path / "new", written, keep=1))
    assert (read.step, read.progress) == (12, written.progress)
    assert (read.average is None) is not average
    for name, tensor in written.weights.items():
        assert torch.equal(read.weights[name], tensor)
        assert not average or torch.equal(read.average[name], written.average[name])
    assert read.optimizer == written.optimizer


def test_the_newest_are_kept(tmp_path):
    for step in (1, 5, 1_000_000, 999_999):
        save_checkpoint(tmp_path, checkpoint(step), keep=2)
    assert names(tmp_path) == ["step-1000000", "step-999999"]
    assert reports(tmp_path)[0].step == 1_000_000


def test_without_checkpoints_there_is_none(tmp_path):
    assert reports(tmp_path / "nowhere") == reports(tmp_path) == (None, [])
    assert not has_checkpoint(tmp_path)
    (tmp_path / ".step-000001.77.tmp").mkdir()
    (tmp_path / "notes").touch()
    assert not has_checkpoint(tmp_path)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


FILES = ["model.safetensors", "average.safetensors", "optimizer.pt", "checkpoint.json"]


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, os.unlink])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(file, damage, tmp_path):
    for step in (1, 2):
        path = save_checkpoint(tmp_path, checkpoint(step), keep=2)
    assert names(path) == sorted(FILES)
    damage(path / file)
    found, said = reports(tmp_path)
    assert found.step == 1
    assert len(said) == 1
    assert f"{path} is damaged" in said[0] and said[0].endswith(
        "The run continues from step-000001."
    )
    # A new checkpoint may have its name.
    save_checkpoint(tmp_path, checkpoint(2), keep=2)
    assert reports(tmp_path)[0].step == 2


def test_when_all_are_damaged_that_is_an_error(tmp_path):
    truncate(save_checkpoint(tmp_path, checkpoint(1), keep=1) / "model.safetensors")
    with pytest.raises(DataError, match="step-000001 is damaged.*begin another run"):
        reports(tmp_path)


def test_what_was_left_unfinished_is_removed(tmp_path):
    save_checkpoint(tmp_path, checkpoint(1), keep=1)
    (tmp_path / ".step-000002.77.tmp").mkdir()
    (tmp_path / ".step-000002.77.tmp/model.safetensors").touch()
    (tmp_path / ".model.safetensors.77.tmp").touch()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["step-000001"]
    remove_unfinished(tmp_path / "nowhere")


def test_a_file_that_cannot_be_written_leaves_the_older_ones(tmp_path):
    save_checkpoint(tmp_path, checkpoint(1), keep=1)
    size = max(path.stat().st_size for path in (tmp_path / "step-000001").iterdir())
    with no_file_over(size - 1), pytest.raises(OSError, match="File too large"):
        save_checkpoint(tmp_path, checkpoint(2), keep=1)
    assert names(tmp_path) == ["step-000001"]
    assert reports(tmp_path)[0].step == 1


# Forks from a process without other threads, as pytest's need not be.
KILLED = """
import os, signal, sys
from pathlib import Path
from mask2former.training.checkpoint import save_checkpoint
from tests.training.killing import kill_at_call
from tests.training.test_checkpoint import checkpoint

def saves(folder, left):
    kill_at_call(left)
    for step in range(1, 4):
        save_checkpoint(folder, checkpoint(step), keep=1)

for calls in range(1, 100):
    folder = Path(sys.argv[1], str(calls))
    folder.mkdir()
    child = os.fork()
    if child == 0:
        saves(folder, calls)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status)
    if status != -signal.SIGKILL:
        break
"""


@pytest.mark.slow
def test_a_kill_at_any_call_of_the_system_leaves_a_whole_checkpoint(tmp_path):
    command = [sys.executable, "-c", KILLED, tmp_path]
    ends = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert len(ends) > 30 and set(ends[:-1]) == {str(-signal.SIGKILL)} and ends[-1] == "0"
    steps = []
    for calls in range(1, len(ends) + 1):
        folder = tmp_path / str(calls)
        found, said = reports(folder)
        assert said == []
        steps.append(0 if found is None else found.step)
        remove_unfinished(folder)
        assert len(names(folder)) <= 2  # while the older one waits for its removal
    assert steps == sorted(steps) and set(steps) == {0, 1, 2, 3}
