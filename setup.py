"""Chooses what to build; everything else about the package is in pyproject.toml.

MASK2FORMER_BUILD=auto|cpu|cuda|none: auto (the default) builds CPU kernels and, where there is an
nvcc, CUDA kernels. This needs no GPU. If the CUDA kernels fail, it builds the CPU kernels alone; if
those fail too, the package runs its PyTorch reference. The other three do what they say or fail.
TORCH_CUDA_ARCH_LIST names the GPUs that the CUDA kernels are for.
"""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

LIBRARY = "mask2former_ops._C"
FLAGS = [
    "-O3",
    "-std=c++20",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wno-psabi",
    "-g0",
]
HEADERS = ["*.h", "*.inl", "*.cuh"]
TORCH_2_11 = "0x020b000000000000"  # the oldest torch whose stable ABI the library needs
# Turing, Ampere, Ada, Hopper and Blackwell; newer ones compile the last one's PTX for themselves.
GPUS = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]


def requested_build() -> str:
    """The value of MASK2FORMER_BUILD, or an exit with one sentence."""
    request = os.environ.get("MASK2FORMER_BUILD", "auto")
    if request not in ("auto", "cpu", "cuda", "none"):
        sys.exit(f"MASK2FORMER_BUILD={request} is not one of auto, cpu, cuda and none.")
    return request


def note_outcome(folder: Path, outcome: dict) -> None:
    """Leaves what was built, or why nothing was, for `python -m mask2former_ops`."""
    if "missing" in outcome:  # a library of an earlier build must not outlive this one
        for stale in folder.glob("_C.*"):
            stale.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_build_info.json").write_text(json.dumps(outcome, indent=1) + "\n")


def without_library(reason: str) -> dict:
    """Arguments of setup() that build no library and note why."""

    class BuildPython(build_py):
        def run(self) -> None:
            super().run()
            root = Path(".") if self.editable_mode else Path(self.build_lib)
            note_outcome(root / "mask2former_ops", {"missing": reason})

    return {"cmdclass": {"build_py": BuildPython}}


def why_no_cuda() -> str | None:
    """None where CUDA kernels can be built, else one clause that says why they cannot."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if torch.version.cuda is None:  # torch's build helper looks for nvcc only with a CUDA build
        return f"the torch of the build, {torch.__version__}, has no CUDA"
    if CUDA_HOME is None or not (Path(CUDA_HOME) / "bin" / "nvcc").exists():
        return "no nvcc was found"
    return None


def gpus(nvcc: str) -> str:
    """The GPUs that this nvcc can compile for, as torch's build helper takes them."""
    known = subprocess.check_output([nvcc, "--list-gpu-arch"], text=True).split()
    chosen = [gpu for gpu in GPUS if "compute_" + gpu.replace(".", "") in known]
    return ";".join(chosen) + "+PTX"


def cuda_libraries(nvcc: str) -> list[str]:
    """Where nvcc itself looks for libraries, wherever it is installed."""
    command = [nvcc, "--dryrun", "-x", "cu", os.devnull, "-o", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    (line,) = re.findall(r"^#\$ LIBRARIES=(.*)$", said, re.MULTILINE)
    return [flag.removeprefix("-L") for flag in shlex.split(line)]


def make_extension(*, cuda: bool):
    """The library, with CUDA kernels or without."""
    from torch.utils.cpp_extension import CUDA_HOME, CppExtension

    # Last, so that they win: the sanitizers need their own optimisation level.
    compile_args = {"cxx": [*FLAGS, *shlex.split(os.environ.get("MASK2FORMER_CXXFLAGS", ""))]}
    sources = [Path("csrc/module.cpp"), *Path("csrc/cpu").rglob("*.cpp")]
    arguments = {}
    if cuda:
        nvcc = str(Path(CUDA_HOME) / "bin" / "nvcc")
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", gpus(nvcc))
        compile_args["nvcc"] = ["-O3", "-std=c++20", "-DUSE_CUDA", "-Xcompiler=-fvisibility=hidden"]
        sources += Path("csrc/cuda").glob("*.cu")
        # The static runtime, so that the library loads where there is no CUDA.
        arguments["libraries"] = ["cudart_static", "dl", "rt", "pthread"]
        arguments["library_dirs"] = cuda_libraries(nvcc)
        # Links torch's CUDA part, if there is one. The linker would leave it out, because the only
        # function that we call there is a weak symbol (launch.h).
        arguments["extra_link_args"] = ["-Wl,--no-as-needed", "-ltorch"]
    return CppExtension(
        LIBRARY,
        sorted(map(str, sources)),
        depends=[str(path) for end in HEADERS for path in Path("csrc").rglob(end)],
        define_macros=[("TORCH_TARGET_VERSION", TORCH_2_11)],
        extra_compile_args=compile_args,
        py_limited_api=True,
        **arguments,
    )


def with_library(request: str) -> dict:
    """Arguments of setup() that build the library; in auto mode a failure is noted, not raised."""
    import torch
    from torch.utils.cpp_extension import BuildExtension, get_cxx_compiler

    no_cuda = "it was not asked for" if request == "cpu" else why_no_cuda()
    extension = None
    if no_cuda is None:
        try:
            extension = make_extension(cuda=True)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            no_cuda = f"nvcc does not say what it can do: {error}"
    if request == "cuda" and no_cuda:
        sys.exit(f"MASK2FORMER_BUILD=cuda: {no_cuda}")

    class BuildLibrary(BuildExtension):
        def run(self) -> None:
            inplace = self.inplace  # build_ext forgets it when it fails
            self.no_cuda = no_cuda
            outcome = self.build(cuda=no_cuda is None)
            if "missing" in outcome and no_cuda is None and request == "auto":
                self.no_cuda = outcome["missing"]
                self.inplace = inplace
                self.extensions[:] = [make_extension(cuda=False)]
                outcome = self.build(cuda=False)
            if "missing" in outcome:
                if request != "auto":
                    sys.exit(f"MASK2FORMER_BUILD={request}: {outcome['missing']}")
                print(
                    f"mask2former_ops has no compiled kernels: {outcome['missing']}",
                    file=sys.stderr,
                )
            elif self.no_cuda and request == "auto":
                print(f"mask2former_ops has no CUDA kernels: {self.no_cuda}", file=sys.stderr)
            self.inplace = inplace
            note_outcome(Path(self.get_ext_fullpath(LIBRARY)).parent, outcome)
            if "missing" in outcome:
                self.extensions = []

        def build(self, *, cuda: bool) -> dict:
            """What was built and with what, or why nothing was."""
            try:
                compiler = subprocess.check_output([get_cxx_compiler(), "--version"], text=True)
                super().run()
            except Exception as error:
                found = not isinstance(error, FileNotFoundError)
                reason = "the kernels did not compile" if found else "no C++ compiler was found"
                reason = f"{reason} when the package was built: {error}"
                return {"missing": " ".join(reason.split())}
            outcome = {
                "backends": ["cpu", "cuda"] if cuda else ["cpu"],
                "compiler": compiler.splitlines()[0],
                "machine": platform.machine(),
                "torch": torch.__version__,
            }
            if cuda:
                outcome["gpus"] = os.environ["TORCH_CUDA_ARCH_LIST"]
            else:
                outcome["no_cuda"] = self.no_cuda
            return outcome

    return {
        "ext_modules": [extension or make_extension(cuda=False)],
        "cmdclass": {"build_ext": BuildLibrary},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


def choose() -> dict:
    """Arguments of setup() for what MASK2FORMER_BUILD asks and this machine can do."""
    request = requested_build()
    if request == "none":
        return without_library("the package was built with MASK2FORMER_BUILD=none")
    try:
        import torch  # noqa: F401
    except ImportError as error:
        if request != "auto":
            sys.exit(f"MASK2FORMER_BUILD={request} needs torch to build the kernels: {error}")
        return without_library(f"torch could not be imported when the package was built: {error}")
    return with_library(request)


if __name__ == "__main__":
    setup(**choose())
