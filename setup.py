"""Chooses what to build; everything else about the package is in pyproject.toml.

MASK2FORMER_BUILD=auto|cpu|cuda|none: auto (the default) builds the CPU kernels and, where that
fails, leaves the package to its PyTorch reference; cpu and none do what they say or fail.
"""

import json
import os
import platform
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
TORCH_2_11 = "0x020b000000000000"  # the oldest torch whose stable ABI the library needs


def requested_build() -> str:
    """The value of MASK2FORMER_BUILD, or an exit with one sentence."""
    request = os.environ.get("MASK2FORMER_BUILD", "auto")
    if request not in ("auto", "cpu", "cuda", "none"):
        sys.exit(f"MASK2FORMER_BUILD={request} is not one of auto, cpu, cuda and none.")
    if request == "cuda":
        sys.exit(
            "MASK2FORMER_BUILD=cuda: this version has no CUDA kernels yet; use auto, cpu or none."
        )
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


def with_library(request: str) -> dict:
    """Arguments of setup() that build the library; in auto mode a failure is noted, not raised."""
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, get_cxx_compiler

    class BuildLibrary(BuildExtension):
        def run(self) -> None:
            inplace = self.inplace  # build_ext forgets it when it fails
            try:
                compiler = subprocess.check_output([get_cxx_compiler(), "--version"], text=True)
                super().run()
                outcome = {
                    "backends": ["cpu"],
                    "compiler": compiler.splitlines()[0],
                    "machine": platform.machine(),
                    "torch": torch.__version__,
                }
            except Exception as error:
                found = not isinstance(error, FileNotFoundError)
                reason = "the kernels did not compile" if found else "no C++ compiler was found"
                reason = " ".join(f"{reason} when the package was built: {error}".split())
                if request == "cpu":
                    sys.exit(f"MASK2FORMER_BUILD=cpu: {reason}")
                print(f"mask2former_ops has no compiled kernels: {reason}", file=sys.stderr)
                outcome = {"missing": reason}
            self.inplace = inplace
            note_outcome(Path(self.get_ext_fullpath(LIBRARY)).parent, outcome)
            if "missing" in outcome:
                self.extensions = []

    extension = CppExtension(
        LIBRARY,
        sorted(str(path) for path in (Path("csrc/module.cpp"), *Path("csrc/cpu").glob("*.cpp"))),
        depends=[str(path) for path in Path("csrc").rglob("*.h")],
        define_macros=[("TORCH_TARGET_VERSION", TORCH_2_11)],
        # Last, so that they win: the sanitizers need their own optimisation level.
        extra_compile_args=[*FLAGS, *shlex.split(os.environ.get("MASK2FORMER_CXXFLAGS", ""))],
        py_limited_api=True,
    )
    return {
        "ext_modules": [extension],
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
        if request == "cpu":
            sys.exit(f"MASK2FORMER_BUILD=cpu needs torch to build the kernels: {error}")
        return without_library(f"torch could not be imported when the package was built: {error}")
    return with_library(request)


if __name__ == "__main__":
    setup(**choose())
