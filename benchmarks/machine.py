"""What a measurement was made on."""

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

import mask2former_ops
from benchmarks.contestants import DCNV4, PEER
from benchmarks.harness import MEBIBYTE
from mask2former_ops import _extension


def describe() -> dict[str, str | int | None]:
    """CPU, threads and versions, None where one is not known; no path, no host's name."""
    return {
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mask2former_ops": mask2former_ops.__version__,
        "instruction set": instruction_set(),
        "compiler": _extension.build_info().get("compiler"),
        PEER: peer_version(PEER),
    }


def describe_gpu() -> dict[str, str | int | None]:
    """The current GPU and its driver, and all that `describe` knows."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "L2 cache in MiB": properties.L2_cache_size // MEBIBYTE,
        "memory in GiB": properties.total_memory // (1024 * MEBIBYTE),
        "driver": driver(),
        "CUDA": torch.version.cuda,
        **describe(),
        DCNV4: peer_version(DCNV4),
    }


def driver() -> str | None:
    """The version of NVIDIA's driver; None where nothing says it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = said.stdout.split()  # one for each GPU
    return lines[0] if said.returncode == 0 and lines else None


def cpu_name() -> str:
    """The CPU model's name as Linux knows it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def instruction_set() -> str:
    """What our kernels run with, or why there are none."""
    if _extension.MISSING is not None:
        return f"no kernels: {_extension.MISSING}"
    return importlib.import_module("mask2former_ops._C").instruction_set()


def peer_version(name: str) -> str | None:
    """None where the peer is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
