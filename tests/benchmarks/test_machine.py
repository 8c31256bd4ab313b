"""What is said of the machine."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import machine
from mask2former_ops import _extension

ROOT = Path(__file__).parents[2]


def test_it_goes_into_json_and_names_no_path():
    text = json.dumps(machine.describe())
    assert str(ROOT) not in text and str(Path.home()) + "/" not in text
    assert json.loads(text)["torch"] == torch.__version__
    assert json.loads(text)["threads"] == torch.get_num_threads()


def test_without_kernels_it_says_why(monkeypatch):
    monkeypatch.setattr(_extension, "MISSING", "no compiler was there")
    assert machine.instruction_set() == "no kernels: no compiler was there"


def test_the_processor_has_a_name():
    assert machine.cpu_name().strip()


def test_a_peer_that_is_not_installed_has_no_version():
    assert machine.peer_version("no-such-distribution") is None


def test_a_gpu_is_described_with_its_driver(monkeypatch, tmp_path):
    properties = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3",
        major=9,
        minor=0,
        multi_processor_count=132,
        L2_cache_size=50 * 2**20,
        total_memory=80 * 2**30,
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    put_tool(monkeypatch, tmp_path, "echo 999.1\necho 999.1")
    described = machine.describe_gpu()
    assert described["gpu"] == properties.name and described["driver"] == "999.1"
    assert (described["multiprocessors"], described["L2 cache in MiB"]) == (132, 50)
    assert described["CUDA"] == torch.version.cuda and described["torch"] == torch.__version__
    json.dumps(described)


@pytest.mark.parametrize("script", [None, "exit 9", "true"])
def test_a_driver_that_nothing_names_is_not_known(monkeypatch, tmp_path, script):
    put_tool(monkeypatch, tmp_path, script)
    assert machine.driver() is None


def put_tool(monkeypatch, folder: Path, script: str | None) -> None:
    """Makes a shell script the only nvidia-smi."""
    tool = folder / "nvidia-smi"
    if script is not None:
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
    monkeypatch.setattr(machine.shutil, "which", lambda name: str(tool) if script else None)
