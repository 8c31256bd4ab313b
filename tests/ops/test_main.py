"""The build report."""

import importlib
import subprocess
import sys

import pytest
import torch

import mask2former_ops
from mask2former_ops import _extension
from mask2former_ops.__main__ import OPERATORS, report


def test_it_names_versions_and_what_runs_on_each_device():
    lines = report().splitlines()
    assert lines[0] == f"mask2former_ops {mask2former_ops.__version__}"
    assert any(line.split() == ["torch", torch.__version__] for line in lines)
    for op, devices in OPERATORS.items():
        own = [line for line in lines if line.split()[0] == op]
        assert tuple(line.split()[1] for line in own) == devices
        for line in own:
            assert line.endswith("  compiled kernel") or "  PyTorch reference: " in line
            assert line.index(" cpu " if " cpu " in line else " cuda ") == 16


def test_it_names_every_operator_of_the_package():
    names = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("mask2former_ops::")
    }
    backwards = {name for name in names if name.endswith("_backward")}
    assert names - backwards == OPERATORS.keys()
    assert {name.removesuffix("_backward") for name in backwards} < OPERATORS.keys()


def test_without_a_library_it_says_why(monkeypatch):
    monkeypatch.setattr(_extension, "MISSING", "no compiler was there")
    assert "library         none: no compiler was there" in report()


@pytest.mark.skipif(_extension.MISSING is not None, reason=str(_extension.MISSING))
def test_with_a_library_it_names_file_and_compiler(monkeypatch):
    info = {"backends": ["cpu"], "compiler": "g++ 99", "machine": "riscv64", "torch": "2.11.0"}
    monkeypatch.setattr(_extension, "build_info", lambda: info)
    text = report()
    assert "_C.abi3.so" in text
    assert "gpus" not in text
    assert "by g++ 99 for riscv64 against torch 2.11.0" in text
    for op in OPERATORS:
        assert f"{op:16} cpu   compiled kernel" in text
    monkeypatch.setattr(_extension, "build_info", dict)
    assert "unknown compiler" in report()


@pytest.mark.skipif(_extension.MISSING is not None, reason=str(_extension.MISSING))
def test_with_cuda_kernels_it_names_the_gpus_that_they_are_for(monkeypatch):
    info = _extension.build_info() | {"backends": ["cpu", "cuda"], "gpus": "8.0;9.0+PTX"}
    monkeypatch.setattr(_extension, "build_info", lambda: info)
    lines = [line.split() for line in report().splitlines()]
    assert ["backends", "cpu,", "cuda"] in lines
    assert ["gpus", "8.0;9.0+PTX"] in lines


@pytest.mark.skipif(_extension.MISSING is not None, reason=str(_extension.MISSING))
def test_it_names_the_instruction_set_in_use_and_the_others(instruction_set):
    (line,) = [line for line in report().splitlines() if line.startswith("instructions")]
    names = importlib.import_module("mask2former_ops._C").instruction_sets()
    assert line.split()[1] == instruction_set
    assert [name for name in names if name in line] == list(names)
    assert ("MASK2FORMER_CPU can choose" in line) == (len(names) > 1)


def test_it_runs_as_a_command():
    command = [sys.executable, "-m", "mask2former_ops"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == report()
