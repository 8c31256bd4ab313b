"""What the CUDA kernels take of a GPU, as the compiler says: `make cuda-report`, no GPU needed.

Prints registers, shared memory (beyond what a launch asks for), stack and spills of every kernel,
and exits with 1 if a kernel spills registers into memory.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch.utils.cpp_extension import include_paths

SOURCES = Path(__file__).parent.parent / "csrc" / "cuda"
GPUS = ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]  # as setup.py has them
FLAGS = ["-O3", "-std=c++20", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
KERNEL = re.compile(r"Compiling entry function '(\S+)'.*?Used .*?registers[^\n]*", re.DOTALL)
HEADER = f"{'registers':>9} {'shared':>7} {'stack':>6} {'spills':>7}  kernel"


@dataclass(frozen=True)
class Usage:
    """What one kernel takes: registers of a thread, the rest in bytes."""

    kernel: str
    registers: int
    shared: int
    stack: int
    spills: int  # stores and loads

    def __str__(self) -> str:
        return f"{self.registers:9} {self.shared:7} {self.stack:6} {self.spills:7}  {self.kernel}"


def usages(output: str) -> list[Usage]:
    """The kernels that ptxas -v speaks of, in the order of their names."""

    def number(pattern: str, text: str) -> int:
        return sum(map(int, re.findall(pattern, text)))

    blocks = list(KERNEL.finditer(output))
    names = demangled([block[1] for block in blocks])
    return sorted(
        (
            Usage(
                kernel=name,
                registers=number(r"Used (\d+) registers", block[0]),
                shared=number(r"(\d+) bytes smem", block[0]),
                stack=number(r"(\d+) bytes stack frame", block[0]),
                spills=number(r"(\d+) bytes spill", block[0]),
            )
            for name, block in zip(names, blocks, strict=True)
        ),
        key=lambda usage: usage.kernel,
    )


def demangled(names: list[str]) -> list[str]:
    """Names as in the sources, without arguments and namespaces."""
    done = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    short = [
        re.sub(r"\(mask2former.*|^void |mask2former::cuda::", "", x)
        for x in done.stdout.split("\n")
    ]
    return short[: len(names)]


def compile_for(gpu: str, source: Path, nvcc: str) -> str:
    """What ptxas says while the kernels of a file are compiled for a GPU such as "9.0".

    Raises:
        RuntimeError: they do not compile.
    """
    number = gpu.replace(".", "")
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *FLAGS, *(f"-I{path}" for path in include_paths())]
        command += [f"-gencode=arch=compute_{number},code=sm_{number}", "-Xptxas=-v", "-cubin"]
        command += ["-o", str(Path(folder) / "kernels"), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{source.name} does not compile for GPUs {gpu}:\n{done.stderr}")
    return done.stderr


def find_nvcc() -> str | None:
    """Where CUDA's compiler is."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home) / "bin"))


def main(argv: list[str] | None = None) -> int:
    """Prints a table for each GPU; returns 1 if a kernel spills."""
    parser = argparse.ArgumentParser(
        prog="make cuda-report", description=__doc__.split(":")[0] + "."
    )
    parser.add_argument("gpus", nargs="*", default=GPUS, help=f"default: {' '.join(GPUS)}")
    options = parser.parse_args(argv)
    nvcc = find_nvcc()
    if nvcc is None:
        parser.error("no nvcc was found: put it on PATH or set CUDA_HOME")
    sources = sorted(SOURCES.glob("*.cu"))
    spilling = []
    with ThreadPoolExecutor(os.cpu_count()) as compilers:
        outputs = {
            (gpu, source): compilers.submit(compile_for, gpu, source, nvcc)
            for gpu in options.gpus
            for source in sources
        }
        for gpu in options.gpus:
            print(f"GPU {gpu}\n{HEADER}")
            for source in sources:
                for usage in usages(outputs[gpu, source].result()):
                    print(usage, flush=True)
                    if usage.spills:
                        spilling.append(f"{usage.kernel} for GPUs {gpu}")
            print()
    print(f"{len(spilling)} kernels spill" + "".join(f"\n  {kernel}" for kernel in spilling))
    return int(bool(spilling))


if __name__ == "__main__":
    sys.exit(main())
