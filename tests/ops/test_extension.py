"""Loading the library and saying why there is none."""

import importlib
import json
import os
import shutil
import subprocess
import sys

import pytest

from mask2former_ops import FallbackWarning, _extension
from mask2former_ops.__main__ import OPERATORS


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder in which the package believes to lie."""
    monkeypatch.setattr(_extension, "__file__", str(tmp_path / "_extension.py"))
    return tmp_path


def fail_with(monkeypatch, error):
    def import_module(name):
        assert name == "mask2former_ops._C"
        raise error

    monkeypatch.setattr(importlib, "import_module", import_module)


ABSENT = ModuleNotFoundError("No module named 'mask2former_ops._C'", name="mask2former_ops._C")


def test_the_reason_noted_by_the_build_is_given(package, monkeypatch):
    (package / "_build_info.json").write_text(json.dumps({"missing": "no compiler"}))
    fail_with(monkeypatch, ABSENT)
    assert _extension.load() == "no compiler"


def test_a_tree_that_was_never_built_says_how_to_build_it(package, monkeypatch):
    fail_with(monkeypatch, ABSENT)
    assert "pip install" in _extension.load()


def test_a_library_that_does_not_load_gives_the_linkers_words(package, monkeypatch):
    fail_with(monkeypatch, ImportError("_C.abi3.so: undefined symbol: torch_parallel_for"))
    assert _extension.load().endswith("undefined symbol: torch_parallel_for")


def test_another_missing_module_is_an_error(package, monkeypatch):
    fail_with(monkeypatch, ModuleNotFoundError("No module named 'other'", name="other"))
    with pytest.raises(ModuleNotFoundError, match="other"):
        _extension.load()


def test_a_broken_library_file_is_reported_not_raised(package, monkeypatch):
    (package / "_C.abi3.so").write_bytes(b"not a library")
    monkeypatch.setattr(sys.modules["mask2former_ops"], "__path__", [str(package)])
    monkeypatch.delitem(sys.modules, "mask2former_ops._C", raising=False)
    monkeypatch.delattr(sys.modules["mask2former_ops"], "_C", raising=False)
    assert _extension.load().startswith("the library could not be loaded: ")


def test_a_fallback_warns_once_for_each_device(monkeypatch):
    monkeypatch.setattr(_extension, "_warned", set())
    monkeypatch.setattr(_extension, "why_no_kernel", lambda op, device: f"{op} has no {device}")
    with pytest.warns(FallbackWarning, match="cuda tensors .* point_sample has no cuda") as caught:
        for _ in range(3):
            _extension.warn_of_fallback("point_sample", "cuda")
            _extension.warn_of_fallback("ms_deform_attn", "mps")
    assert len(caught) == 1


def test_the_reason_is_that_of_the_missing_library(monkeypatch):
    monkeypatch.setattr(_extension, "MISSING", "no compiler")
    monkeypatch.setattr(
        _extension.torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda op, key: False
    )
    assert _extension.why_no_kernel("point_sample", "cpu") == "no compiler"
    assert _extension.why_no_kernel("point_sample", "cuda") == "no compiler"
    assert _extension.why_no_kernel("point_sample", "mps") == "this version has no kernels for mps"


def test_a_library_without_cuda_kernels_says_why_it_has_none(monkeypatch):
    monkeypatch.setattr(_extension, "MISSING", None)
    monkeypatch.setattr(_extension, "build_info", lambda: {"no_cuda": "no nvcc was found"})
    monkeypatch.setattr(
        _extension.torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda op, key: False
    )
    assert (
        _extension.why_no_kernel("point_sample", "cuda")
        == "the library was built without CUDA kernels: no nvcc was found"
    )


@pytest.mark.skipif(_extension.MISSING is not None, reason=str(_extension.MISSING))
def test_with_the_library_every_op_has_a_cpu_kernel():
    for op in OPERATORS:
        assert _extension.why_no_kernel(op, "cpu") is None
        if op != "uncertain_points":  # points have no gradient
            backward = f"{op}backward_" if op.endswith("_") else f"{op}_backward"
            assert _extension.why_no_kernel(backward, "cpu") is None


@pytest.mark.skipif(
    "cuda" not in _extension.build_info().get("backends", []) or not shutil.which("readelf"),
    reason="needs a library with CUDA kernels, and readelf",
)
def test_a_library_with_cuda_kernels_asks_for_torchs_cuda_part():
    """Through libtorch.so: it calls one function there that a torch without CUDA lacks."""
    path = importlib.import_module("mask2former_ops._C").__file__
    said = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True)
    assert "Shared library: [libtorch.so]" in said.stdout


@pytest.mark.skipif(_extension.MISSING is not None, reason=str(_extension.MISSING))
def test_an_environment_variable_chooses_the_instruction_set(instruction_set):
    done = import_with(instruction_set)
    assert done.stdout.strip() == instruction_set


@pytest.mark.skipif(_extension.MISSING is not None, reason=str(_extension.MISSING))
def test_an_instruction_set_without_kernels_is_refused():
    done = import_with("sse9")
    assert done.returncode != 0
    assert "MASK2FORMER_CPU=sse9: this machine can run the kernels for" in done.stderr


def import_with(instruction_set):
    """Prints, in a fresh interpreter, which instruction set the environment has chosen."""
    code = "import mask2former_ops._C as library; print(library.instruction_set())"
    environment = os.environ | {"MASK2FORMER_CPU": instruction_set}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
