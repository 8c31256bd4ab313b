"""What setup.py chooses to build, without building it."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from setuptools import Distribution

ROOT = Path(__file__).parent.parent


@pytest.fixture
def setup_script(monkeypatch):
    monkeypatch.chdir(ROOT)  # as pip does
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("request_", ["auto", "cpu", None])
def test_the_library_is_built_by_default(setup_script, monkeypatch, request_):
    if request_ is None:
        monkeypatch.delenv("MASK2FORMER_BUILD", raising=False)
    else:
        monkeypatch.setenv("MASK2FORMER_BUILD", request_)
    chosen = setup_script.choose()
    (extension,) = chosen["ext_modules"]
    assert extension.name == "mask2former_ops._C"
    assert extension.py_limited_api
    assert "csrc/cpu/ms_deform_attn.cpp" in extension.sources
    assert ("TORCH_TARGET_VERSION", "0x020b000000000000") in extension.define_macros
    assert chosen["options"] == {"bdist_wheel": {"py_limited_api": "cp310"}}


def test_none_builds_nothing_and_notes_it(setup_script, monkeypatch, tmp_path):
    monkeypatch.setenv("MASK2FORMER_BUILD", "none")
    chosen = setup_script.choose()
    assert "ext_modules" not in chosen
    command = chosen["cmdclass"]["build_py"](Distribution({"packages": []}))
    command.ensure_finalized()
    command.build_lib = str(tmp_path)
    stale = tmp_path / "mask2former_ops/_C.abi3.so"
    stale.parent.mkdir()
    stale.touch()
    command.run()
    noted = json.loads((tmp_path / "mask2former_ops/_build_info.json").read_text())
    assert noted == {"missing": "the package was built with MASK2FORMER_BUILD=none"}
    assert not stale.exists()


def test_without_torch_auto_builds_nothing_and_cpu_fails(setup_script, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError
    monkeypatch.setenv("MASK2FORMER_BUILD", "auto")
    assert "ext_modules" not in setup_script.choose()
    monkeypatch.setenv("MASK2FORMER_BUILD", "cpu")
    with pytest.raises(SystemExit, match="MASK2FORMER_BUILD=cpu needs torch"):
        setup_script.choose()


@pytest.mark.parametrize(
    ("request_", "message"),
    [("cuda", "no CUDA kernels yet; use auto, cpu or none"), ("gpu", "gpu is not one of auto")],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(
    setup_script, monkeypatch, request_, message
):
    monkeypatch.setenv("MASK2FORMER_BUILD", request_)
    with pytest.raises(SystemExit, match=message) as caught:
        setup_script.choose()
    assert "\n" not in str(caught.value)


def failing_build(setup_script, monkeypatch, tmp_path, request_):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    arguments = setup_script.with_library(request_)
    command = arguments["cmdclass"]["build_ext"](
        Distribution({"ext_modules": arguments["ext_modules"]})
    )
    command.build_lib, command.build_temp = str(tmp_path / "lib"), str(tmp_path / "temp")
    command.ensure_finalized()
    command.run()
    return command


def test_auto_goes_on_without_a_compiler_and_notes_why(setup_script, monkeypatch, tmp_path, capsys):
    command = failing_build(setup_script, monkeypatch, tmp_path, "auto")
    assert command.extensions == []
    noted = json.loads((tmp_path / "lib/mask2former_ops/_build_info.json").read_text())
    assert noted["missing"].startswith("no C++ compiler was found")
    assert "/nowhere/c++" in noted["missing"]
    said = [line for line in capsys.readouterr().err.splitlines() if "mask2former_ops" in line]
    assert said == [f"mask2former_ops has no compiled kernels: {noted['missing']}"]


def test_cpu_fails_without_a_compiler(setup_script, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="no C\\+\\+ compiler was found .*/nowhere"):
        failing_build(setup_script, monkeypatch, tmp_path, "cpu")
