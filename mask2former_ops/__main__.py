"""The build report: `python -m mask2former_ops` says what runs where, and why."""

import importlib
import platform
from types import ModuleType

import torch

import mask2former_ops
from mask2former_ops import _extension

# Every operator, and the types of devices that kernels are written for.
OPERATORS = {
    "ms_deform_attn": ("cpu", "cuda"),
    "point_sample": ("cpu", "cuda"),
    "uncertain_points": ("cpu",),
}


def report() -> str:
    """Versions, the library and its build, and what each operator runs on each type of device."""
    lines = [
        f"mask2former_ops {mask2former_ops.__version__}",
        f"python          {platform.python_version()} on {platform.machine()}",
        f"torch           {torch.__version__}",
    ]
    if _extension.MISSING is None:
        info = _extension.build_info()
        library = importlib.import_module("mask2former_ops._C")
        lines.append(f"library         {library.__file__}")
        lines.append(f"backends        {', '.join(info.get('backends', ['unknown']))}")
        if "gpus" in info:
            lines.append(f"gpus            {info['gpus']}")
        lines.append(f"built           {built(info)}")
        lines.append(f"instructions    {library.instruction_set()}{others(library)}")
    else:
        lines.append(f"library         none: {_extension.MISSING}")
    for op, devices in OPERATORS.items():
        for device in devices:
            reason = _extension.why_no_kernel(op, device)
            runs = f"PyTorch reference: {reason}" if reason else "compiled kernel"
            lines.append(f"{op:16} {device:4}  {runs}")
    return "\n".join(lines)


def others(library: ModuleType) -> str:
    """The instruction sets that MASK2FORMER_CPU could choose instead."""
    names = [name for name in library.instruction_sets() if name != library.instruction_set()]
    return f" (MASK2FORMER_CPU can choose {' or '.join(names)})" if names else ""


def built(info: dict[str, str]) -> str:
    """Compiler, machine and torch of the build."""
    if not info:
        return "by an unknown compiler: _build_info.json is missing"
    return f"by {info['compiler']} for {info['machine']} against torch {info['torch']}"


if __name__ == "__main__":
    print(report())
