"""Builds the CUDA kernels, tests and times them on this machine's GPU: `make gpu-check`.

Needs a torch with CUDA, nvcc and a C++ compiler; what else the tests need is installed into
build/gpu-check if it is not there. compute-sanitizer watches a small case where it is installed.
Results of the benchmark, of the rows that have a target, go to benchmarks/results.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "gpu-check"
LIBRARY, PACKAGES = FOLDER / "lib", FOLDER / "packages"
NEEDED = {
    "pytest": "pytest",
    "hypothesis": "hypothesis",
    "setuptools": "setuptools",
    "ninja": "ninja",
    "numpy": "numpy",
    "matplotlib": "matplotlib",
}


def main() -> None:
    """Runs every step, and stops at the first that fails with its exit status."""
    gpu = find_gpu()
    shutil.rmtree(FOLDER, ignore_errors=True)
    LIBRARY.mkdir(parents=True)
    environment = os.environ | {
        "PYTHONPATH": f"{LIBRARY}{os.pathsep}{PACKAGES}",
        "MASK2FORMER_BUILD": "cuda",
        "TORCH_CUDA_ARCH_LIST": gpu,
    }
    for title, command, folder, extra in steps():
        print(f"\n== {title}", flush=True)
        start = time.monotonic()
        done = subprocess.run(command, cwd=folder, env=environment | extra)
        if done.returncode:
            sys.exit(f"gpu-check failed: {title} (exit status {done.returncode})")
        print(f"== {title}: {time.monotonic() - start:.0f} s", flush=True)
        if title == "build":
            copy_tests()
    print("\ngpu-check passed")


def find_gpu() -> str:
    """The GPU's compute capability, such as "9.0"; exits with one sentence if anything is amiss."""
    try:
        import torch
    except ImportError as error:
        sys.exit(f"gpu-check needs a torch with CUDA, and this Python has none: {error}")
    if torch.version.cuda is None:
        sys.exit(f"gpu-check needs a torch with CUDA; torch {torch.__version__} has none.")
    if not torch.cuda.is_available():
        sys.exit("gpu-check needs a GPU, and torch finds none.")
    return ".".join(map(str, torch.cuda.get_device_capability()))


def steps() -> list[tuple[str, list[str], Path, dict[str, str]]]:
    """What is run: a title, the command, where, and what is added to the environment."""
    python = sys.executable
    found = []
    missing = [package for name, package in NEEDED.items() if not importlib.util.find_spec(name)]
    if missing:
        install = [python, "-m", "pip", "install", "--target", str(PACKAGES), *missing]
        found.append(("install what is missing", install, ROOT, {}))
    build = [python, "setup.py", "--quiet", "build", "--build-base", str(FOLDER)]
    found.append(("build", [*build, "--build-lib", str(LIBRARY)], ROOT, {}))
    tests = [python, "-m", "pytest", "-q", "-k", "cuda or gpu", "tests/ops", "tests/benchmarks"]
    found.append(("tests", tests, LIBRARY, {}))
    for tool in ("memcheck", "racecheck") if shutil.which("compute-sanitizer") else ():
        watched = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        small_case = [*watched, python, "-m", "tests.ops.gpu_check", "small case"]
        # Memory that torch keeps for itself would hide accesses beyond the end.
        found.append((tool, small_case, LIBRARY, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}))
    benchmark = [python, "-m", "benchmarks", "ops", "--device", "cuda", "--quick"]
    results = str(ROOT / "benchmarks" / "results")
    found.append(("benchmark", [*benchmark, "--out", results], LIBRARY, {}))
    return found


def copy_tests() -> None:
    """Puts tests and benchmarks beside the library, away from the package in the source tree."""
    for name in ("tests", "benchmarks"):
        shutil.copytree(ROOT / name, LIBRARY / name)
    shutil.copy(ROOT / "pyproject.toml", LIBRARY)


def small_case() -> None:
    """Runs every kernel once: all layouts and dtypes, both kinds of gradients."""
    import torch

    import mask2former_ops  # noqa: F401  (registers the operators)
    from tests.ops.samples import msda_arguments, msda_grad, point_arguments, point_grad

    ops = torch.ops.mask2former_ops

    def on_gpu(arguments):
        return [x.cuda() if torch.is_tensor(x) else x for x in arguments]

    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        for sizes in ({"d": 16}, {"d": 32}, {"d": 64}, {"d": 5, "levels": [(2, 3)] * 20}):
            arguments = msda_arguments(dtype, **sizes)
            grad, arguments = msda_grad(arguments).cuda(), on_gpu(arguments)
            ops.ms_deform_attn(*arguments)
            for mode in (True, False):
                ops.ms_deform_attn_backward(grad, *arguments, [True] * 3, deterministic=mode)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8):
        arguments = point_arguments(dtype, c=40, points=(1, 70))
        grad, (input, points) = point_grad(*arguments).cuda(), on_gpu(arguments)
        ops.point_sample(input, points)
        ops.point_sample(input.contiguous(memory_format=torch.channels_last), points)
        for mode in (True, False):
            mask = [dtype.is_floating_point, True]
            ops.point_sample_backward(grad, input, points, False, mask, deterministic=mode)
    torch.cuda.synchronize()


if __name__ == "__main__":
    small_case() if sys.argv[1:] == ["small case"] else main()
