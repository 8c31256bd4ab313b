"""What a measurement was made on."""

import importlib
import importlib.metadata
import os
import platform
from pathlib import Path

import torch

import mask2former_ops
from benchmarks.contestants import PEER
from mask2former_ops import _extension


def describe() -> dict[str, str | int | None]:
    """Processor, threads and versions, None where one is not known; no path, no host's name."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mask2former_ops": mask2former_ops.__version__,
        "instruction set": instruction_set(),
        "compiler": _extension.build_info().get("compiler"),
        PEER: peer_version(),
    }


def processor() -> str:
    """The model's name as Linux knows it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def instruction_set() -> str:
    """What our kernels run with, or why there are none."""
    if _extension.MISSING is not None:
        return f"no kernels: {_extension.MISSING}"
    return importlib.import_module("mask2former_ops._C").instruction_set()


def peer_version() -> str | None:
    """None where the peer is not installed."""
    try:
        return importlib.metadata.version(PEER)
    except importlib.metadata.PackageNotFoundError:
        return None
