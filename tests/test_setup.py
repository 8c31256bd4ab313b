"""What setup.py chooses to build, without building it."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from setuptools import Distribution
from torch.utils import cpp_extension

from benchmarks import cuda_report

ROOT = Path(__file__).parent.parent


@pytest.fixture
def setup_script(monkeypatch):
    monkeypatch.chdir(ROOT)  # as pip does
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def unchanged_environment(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())


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
    assert {"csrc/cpu/ms_deform_attn.cpp", "csrc/cpu/isa/avx2.cpp"} < set(extension.sources)
    assert {"csrc/dtypes.h", "csrc/cpu/simd.inl"} < set(extension.depends)
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


def test_a_build_that_there_is_not_is_refused_in_one_sentence(setup_script, monkeypatch):
    monkeypatch.setenv("MASK2FORMER_BUILD", "gpu")
    with pytest.raises(SystemExit, match="gpu is not one of auto") as caught:
        setup_script.choose()
    assert "\n" not in str(caught.value)


# ---- CUDA ----------------------------------------------------------------------------------------

NVCC = """#!/bin/sh
case "$1" in
  --list-gpu-arch) printf 'compute_75\\ncompute_80\\ncompute_90\\n';;
  --dryrun) echo '#$ LIBRARIES=  "-L/there/lib/stubs" "-L/there/lib"' >&2;;
esac
"""


@pytest.fixture
def toolkit(setup_script, monkeypatch, tmp_path):
    """A folder with an nvcc that knows three kinds of GPU, and a torch with CUDA."""
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.write_text(NVCC)
    nvcc.chmod(0o755)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    return tmp_path


@pytest.mark.parametrize("request_", ["auto", "cuda"])
def test_cuda_kernels_are_built_where_nvcc_is(setup_script, toolkit, monkeypatch, request_):
    monkeypatch.setenv("MASK2FORMER_BUILD", request_)
    (extension,) = setup_script.choose()["ext_modules"]
    assert {"csrc/cuda/ms_deform_attn.cu", "csrc/cuda/point_sample.cu"} < set(extension.sources)
    assert "cudart_static" in extension.libraries
    assert extension.extra_link_args == ["-Wl,--no-as-needed", "-ltorch"]
    assert extension.library_dirs[:2] == ["/there/lib/stubs", "/there/lib"]
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "7.5;8.0;9.0+PTX"  # of those that nvcc knows


def test_the_report_of_the_cuda_kernels_is_of_the_same_gpus(setup_script):
    assert cuda_report.GPUS == setup_script.GPUS


def test_the_gpus_can_be_chosen(setup_script, toolkit, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    setup_script.make_extension(cuda=True)
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "9.0"


def test_cpu_builds_no_cuda_kernels(setup_script, toolkit, monkeypatch):
    monkeypatch.setenv("MASK2FORMER_BUILD", "cpu")
    (extension,) = setup_script.choose()["ext_modules"]
    assert not [source for source in extension.sources if source.endswith(".cu")]


@pytest.mark.parametrize(
    ("lacking", "message"), [("nvcc", "no nvcc was found"), ("CUDA", "has no CUDA")]
)
def test_cuda_without_what_it_needs_is_refused(
    setup_script, toolkit, monkeypatch, lacking, message
):
    if lacking == "nvcc":
        (toolkit / "bin" / "nvcc").unlink()
    else:
        monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setenv("MASK2FORMER_BUILD", "cuda")
    with pytest.raises(SystemExit, match=f"MASK2FORMER_BUILD=cuda: .*{message}"):
        setup_script.choose()
    monkeypatch.setenv("MASK2FORMER_BUILD", "auto")
    (extension,) = setup_script.choose()["ext_modules"]
    assert not [source for source in extension.sources if source.endswith(".cu")]


def test_an_nvcc_that_fails_leaves_auto_the_cpu_kernels(setup_script, toolkit, monkeypatch):
    (toolkit / "bin" / "nvcc").write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("MASK2FORMER_BUILD", "auto")
    (extension,) = setup_script.choose()["ext_modules"]
    assert not [source for source in extension.sources if source.endswith(".cu")]
    monkeypatch.setenv("MASK2FORMER_BUILD", "cuda")
    with pytest.raises(SystemExit, match="MASK2FORMER_BUILD=cuda: nvcc does not say"):
        setup_script.choose()


def test_auto_builds_the_cpu_kernels_alone_where_the_others_do_not_compile(
    setup_script, toolkit, monkeypatch, tmp_path, capsys
):
    def build(command):
        (extension,) = command.extensions
        if any(source.endswith(".cu") for source in extension.sources):
            raise RuntimeError("nvcc\nsays no")

    monkeypatch.setattr(cpp_extension.BuildExtension, "run", build)
    command = build_command(setup_script, tmp_path, "auto")
    command.run()
    noted = json.loads((tmp_path / "lib/mask2former_ops/_build_info.json").read_text())
    assert noted["backends"] == ["cpu"]
    reason = "the kernels did not compile when the package was built: nvcc says no"
    assert noted["no_cuda"] == reason
    assert f"mask2former_ops has no CUDA kernels: {reason}\n" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="MASK2FORMER_BUILD=cuda: .* nvcc says no"):
        build_command(setup_script, tmp_path, "cuda").run()


# ---- a failing compiler --------------------------------------------------------------------------


def build_command(setup_script, tmp_path, request_):
    arguments = setup_script.with_library(request_)
    command = arguments["cmdclass"]["build_ext"](
        Distribution({"ext_modules": arguments["ext_modules"]})
    )
    command.build_lib, command.build_temp = str(tmp_path / "lib"), str(tmp_path / "temp")
    command.ensure_finalized()
    return command


def failing_build(setup_script, monkeypatch, tmp_path, request_):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    command = build_command(setup_script, tmp_path, request_)
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
