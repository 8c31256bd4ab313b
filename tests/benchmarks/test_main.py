"""`python -m benchmarks`."""

import json

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import harness, machine
from benchmarks.contestants import GRID_SAMPLE
from benchmarks.cpu import Cpu
from benchmarks.gpu import Gpu
from benchmarks.shapes import Target
from tests.benchmarks.samples import ENCODER, MASKS, SLOW, FakeClock


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(harness, "LEAST_SECONDS", 0)
    monkeypatch.setattr(Cpu, "shapes", (ENCODER, MASKS))


@pytest.mark.parametrize(
    "argv, problem",
    [
        (["ops", "--rounds", "1"], "--rounds must be at least 2"),
        (["ops", "--threads", "0"], "--threads must be at least 1"),
        (["ops", "--device", "tpu"], "invalid choice: 'tpu'"),
        (["trains"], "invalid choice: 'trains'"),
        ([], "required: subject"),
    ],
)
def test_a_wrong_command_line_is_refused(capsys, argv, problem):
    with pytest.raises(SystemExit, match="2"):
        command.main(argv)
    assert problem in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_refused_before_anything_runs(capsys, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        command.main(["ops", "--out", str(tmp_path / "file")])
    assert "--out: cannot make the folder" in capsys.readouterr().err


def test_quick_prints_and_writes_rows_and_verdicts(capsys, tmp_path, tiny):
    folder = tmp_path / "new" / "folder"
    assert command.main(["ops", "--quick", "--rounds", "2", "--out", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "ms_deform_attn, tiny encoder, float32, forward + backward\n" in printed
    assert "\n  met " in printed and "\n  not met " not in printed
    text = (folder / "cpu-ops-quick.txt").read_text()
    assert printed.startswith(text)
    rows = json.loads((folder / "cpu-ops-quick.json").read_text())["rows"]
    assert [row["dtype"] for row in rows] == ["float32", "float32", "float16"]


def test_a_missed_target_is_exit_status_1(capsys, monkeypatch, tiny):
    out_of_reach = Target(GRID_SAMPLE, 1 / SLOW, None)
    shape = type(MASKS)(**{**vars(MASKS), "targets": (out_of_reach,)})
    monkeypatch.setattr(Cpu, "shapes", (shape,))
    assert command.main(["ops", "--quick", "--rounds", "2"]) == 1
    assert "\n  not met " in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence(capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["ops", "--device", "cuda"])
    said = capsys.readouterr().err
    assert said == f"--device cuda: torch {torch.__version__} finds no GPU to measure on\n"


def test_a_gpu_gives_its_name_to_the_files(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(Gpu, "shapes", (ENCODER,))
    gpu = Gpu(2, "NVIDIA H100 80GB HBM3", 1, 1e9, FakeClock(True), lambda call: 5, device="cpu")
    monkeypatch.setattr(Gpu, "find", lambda rounds: gpu)
    monkeypatch.setattr(
        machine, "describe_gpu", lambda: {"gpu": gpu.name, "torch": "9.9"} | NOTHING
    )
    options = ["ops", "--device", "cuda", "--quick", "--out", str(tmp_path)]
    assert command.main(options) == 0
    printed = capsys.readouterr().out
    assert "copy in GB/s           1\n" in printed and " graph\n" in printed
    stem = "nvidia-h100-80gb-hbm3-ops-quick"
    written = {path.name for path in tmp_path.iterdir()}
    assert (
        {f"{stem}.txt", f"{stem}.json"}
        <= written
        <= {f"{stem}.{x}" for x in ("txt", "json", "png")}
    )
    rows = json.loads((tmp_path / f"{stem}.json").read_text())["rows"]
    assert [row["direction"] for row in rows] == ["forward", "forward + backward", "forward"]


NOTHING = dict.fromkeys(("multiprocessors", "driver", "CUDA"))
