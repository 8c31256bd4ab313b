"""Builds the CUDA kernels, tests and times them on this machine's GPU: `make gpu-check`.

Needs a torch with CUDA, nvcc and a C++ compiler; what else the tests need is installed into
build/gpu-check if it is not there. compute-sanitizer checks a small case where it is installed.
Results of the benchmark, of the rows that have a target, go to benchmarks/results.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "gpu-check"
LIBRARY, PACKAGES = FOLDER / "lib", FOLDER / "packages"
NEEDED = ["pytest", "hypothesis", "ninja", "numpy", "matplotlib"]
SETUPTOOLS = "setuptools>=77,<82"  # of pyproject.toml, and of torch


@dataclass(frozen=True)
class Step:
    """A command, where it runs, what it adds to the environment, what its failure means."""

    title: str
    command: list[str]
    folder: Path = LIBRARY
    environment: dict[str, str] = field(default_factory=dict)
    vital: bool = False  # without it the others mean nothing
    failure: str = "failed"


def main() -> None:
    """Runs every step; exits with 1 if one failed, and says which."""
    environment = os.environ | {
        "PYTHONPATH": f"{LIBRARY}{os.pathsep}{PACKAGES}",
        "PATH": os.pathsep.join(  # of ninja
            [str(PACKAGES / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        ),
        "MASK2FORMER_BUILD": "cuda",
        "TORCH_CUDA_ARCH_LIST": find_gpu(),
    }
    shutil.rmtree(FOLDER, ignore_errors=True)
    LIBRARY.mkdir(parents=True)
    for name in ("tests", "benchmarks"):  # beside the library, away from the source tree
        shutil.copytree(ROOT / name, LIBRARY / name)
    shutil.copy(ROOT / "pyproject.toml", LIBRARY)
    failed = []
    for step in steps():
        print(f"\n== {step.title}", flush=True)
        start = time.monotonic()
        done = subprocess.run(step.command, cwd=step.folder, env=environment | step.environment)
        print(f"== {step.title}: {time.monotonic() - start:.0f} s", flush=True)
        if done.returncode:
            failed.append(f"{step.title}: {step.failure} (exit status {done.returncode})")
            if step.vital:
                break
    if failed:
        sys.exit("gpu-check: " + "; ".join(failed))
    print("\ngpu-check passed")


def find_gpu() -> str:
    """The GPU's compute capability, such as "9.0"; exits with one sentence if there is none."""
    try:
        import torch
    except ImportError as error:
        sys.exit(f"gpu-check needs a torch with CUDA, and this Python has none: {error}")
    if torch.version.cuda is None:
        sys.exit(f"gpu-check needs a torch with CUDA; torch {torch.__version__} has none.")
    if not torch.cuda.is_available():
        sys.exit("gpu-check needs a GPU, and torch finds none.")
    return ".".join(map(str, torch.cuda.get_device_capability()))


def missing() -> list[str]:
    """What must be installed first."""
    installed = {
        (package.metadata["Name"] or "").lower(): package.version
        for package in importlib.metadata.distributions()
    }
    wanted = [name for name in NEEDED if name not in installed]
    if not 77 <= int(installed.get("setuptools", "0").split(".")[0]) < 82:
        wanted.append(SETUPTOOLS)
    return wanted


def steps() -> list[Step]:
    """What is run, in this order."""
    python, found = sys.executable, []
    if missing():
        install = [python, "-m", "pip", "install", "--target", str(PACKAGES), *missing()]
        found.append(Step("install what is missing", install, ROOT, vital=True))
    build = [python, "setup.py", "--quiet", "build", "--build-base", str(FOLDER)]
    found.append(Step("build", [*build, "--build-lib", str(LIBRARY)], ROOT, vital=True))
    loads = [python, "-m", "tests.ops.gpu_check", "loads"]
    found.append(Step("load", loads, vital=True))
    tests = [python, "-m", "pytest", "-q", "-k", "cuda or gpu", "tests/ops", "tests/benchmarks"]
    # The emulation is for machines without a GPU.
    found.append(Step("tests", [*tests, "--ignore", "tests/ops/test_emulation.py"]))
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin")
    )
    if sanitizer is None:
        print("compute-sanitizer was not found: memcheck and racecheck are left out")
    # Calls that torch makes and that fail by design are no errors of ours.
    for tool in [["memcheck", "--report-api-errors", "no"], ["racecheck"]] if sanitizer else []:
        checked = [sanitizer, "--tool", *tool, "--error-exitcode", "9"]
        small_case = [*checked, python, "-m", "tests.ops.gpu_check", "small case"]
        # Memory that torch keeps for itself would hide accesses beyond the end.
        found.append(Step(tool[0], small_case, environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}))
    benchmark = [python, "-m", "benchmarks", "ops", "--device", "cuda", "--quick"]
    benchmark += ["--out", str(ROOT / "benchmarks" / "results")]
    found.append(Step("benchmark", benchmark, failure="missed a target, or failed"))
    return found


def loads() -> None:
    """Exits with a sentence unless every operator has a CUDA kernel."""
    from mask2former_ops import _extension

    for op in ("ms_deform_attn", "point_sample"):
        for name in (op, f"{op}_backward"):
            reason = _extension.why_no_kernel(name, "cuda")
            if reason is not None:
                sys.exit(f"{name} has no CUDA kernel: {reason}")


def small_case() -> None:
    """Runs every kernel once: the layouts, the dtypes, both kinds of gradients."""
    import torch

    import mask2former_ops  # noqa: F401  (registers the operators)
    from tests.ops.samples import msda_arguments, msda_grad, point_arguments, point_grad

    ops = torch.ops.mask2former_ops
    floating = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

    def on_gpu(arguments):
        return [x.cuda() if torch.is_tensor(x) else x for x in arguments]

    many = {"d": 5, "levels": [(2, 3)] * 20, "num_points": [1, 0] * 10}
    for dtype in floating:
        for sizes in ({"d": 16}, {"d": 32}, {"d": 64}, {"d": 5}, many):
            for wide in {dtype, torch.float64 if dtype == torch.float64 else torch.float32}:
                host = msda_arguments(dtype, location_dtype=wide, weight_dtype=wide, **sizes)
                grad, arguments = msda_grad(host).cuda(), on_gpu(host)
                ops.ms_deform_attn(*arguments)
                ops.ms_deform_attn(arguments[0], *host[1:3], *arguments[3:])
                for mode in (True, False):
                    ops.ms_deform_attn_backward(grad, *arguments, [True] * 3, deterministic=mode)
    for dtype in (*floating, torch.uint8, torch.bool):
        arguments = point_arguments(dtype, c=40, points=(1, 70))
        grad, (input, points) = point_grad(*arguments).cuda(), on_gpu(arguments)
        ops.point_sample(input, points)
        ops.point_sample(input.contiguous(memory_format=torch.channels_last), points)
        for mode in (True, False):
            mask = [dtype.is_floating_point, True]
            ops.point_sample_backward(grad, input, points, False, mask, deterministic=mode)
    torch.cuda.synchronize()


if __name__ == "__main__":
    {"loads": loads, "small case": small_case}.get(" ".join(sys.argv[1:]), main)()
