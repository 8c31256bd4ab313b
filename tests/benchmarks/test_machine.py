"""What is said of the machine."""

import json
from pathlib import Path

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
    assert machine.processor().strip()


def test_a_peer_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(machine, "PEER", "no-such-distribution")
    assert machine.peer_version() is None
