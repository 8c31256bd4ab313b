"""Builds Python modules of emulated CUDA kernels with a C++ compiler alone."""

import hashlib
import importlib.machinery
import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from filelock import FileLock

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[2] / "build" / "emulation"
EMULATOR = [HERE / f"{name}.cpp" for name in ("emulator", "fiber", "runtime", "shared_memory")]
COMPILER = os.environ.get("CXX", "g++")
FLAGS = [
    *("-std=c++20", "-O1", "-g", "-fPIC", "-fvisibility=hidden", "-Wall", "-Werror"),
    "-Wno-unknown-pragmas",  # unroll
    "-fno-strict-aliasing",  # kernels read scalars as vectors
    f"-I{HERE / 'include'}",
    f"-I{HERE}",
]


def is_available() -> bool:
    """Whether a module can be built here."""
    return shutil.which(COMPILER) is not None and importlib.util.find_spec("pybind11") is not None


def build(
    name: str,
    sources: Iterable[Path],
    flags: Sequence[str] = (),
    link_flags: Sequence[str] = (),
    directory: Path = BUILD,
) -> Path:
    """Compiles what is out of date and links it, with the emulator, to the module of that name."""
    flags = [*FLAGS, *_python_flags(), *flags, *_user_flags()]
    command = [COMPILER, *flags, *link_flags]
    directory = Path(directory) / hashlib.sha256(repr(command).encode()).hexdigest()[:12]
    directory.mkdir(parents=True, exist_ok=True)
    module = directory / (name + importlib.machinery.EXTENSION_SUFFIXES[0])
    with FileLock(directory / "lock"):  # tests run in several processes
        objects = [_compile(Path(source).resolve(), flags, directory) for source in sources]
        objects += [_compile(source, flags, directory) for source in EMULATOR]
        if _is_stale(module, objects):
            _run(module, [*_user_flags(), "-shared", *map(str, objects), *link_flags])
    return module


def load(module: Path) -> ModuleType:
    """Imports a module that was built."""
    spec = importlib.util.spec_from_file_location(module.name.partition(".")[0], module)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def _user_flags() -> list[str]:
    return shlex.split(os.environ.get("MASK2FORMER_CXXFLAGS", ""))


def _python_flags() -> list[str]:
    import pybind11

    return [f"-isystem{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]


def _compile(source: Path, flags: Sequence[str], directory: Path) -> Path:
    output = directory / f"{source.stem}-{hashlib.sha256(bytes(source)).hexdigest()[:8]}.o"
    depfile = output.with_suffix(".d")
    if _is_stale(output, [source, *_dependencies(depfile)]):
        _run(output, [*flags, "-c", str(source), "-MMD", "-MF", str(depfile)])
    return output


def _dependencies(depfile: Path) -> list[Path]:
    """The headers that the compiler noted, or a file that is missing, for which it notes none."""
    if not depfile.exists():
        return [depfile]
    names = depfile.read_text().partition(":")[2].replace("\\\n", " ")
    return [Path(name) for name in shlex.split(names)]


def _is_stale(output: Path, inputs: Iterable[Path]) -> bool:
    if not output.exists():
        return True
    built = output.stat().st_mtime_ns
    return any(not path.exists() or path.stat().st_mtime_ns > built for path in inputs)


def _run(output: Path, arguments: Sequence[str]) -> None:
    """Has the compiler write the output, which appears only when it is whole."""
    part = output.with_name(f"{os.getpid()}-{output.name}")
    command = [COMPILER, *arguments, "-o", str(part)]
    # A sanitizer that is loaded into Python would make the compiler much slower.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{COMPILER} could not make {output.name}:\n{done.stderr}")
    part.replace(output)
