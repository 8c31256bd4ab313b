"""What the compiler says of the CUDA kernels, as a table."""

import subprocess

import pytest

from benchmarks import cuda_report

SAID = """
ptxas info    : 0 bytes gmem, 44 bytes cmem[4]
ptxas info    : Compiling entry function '_ZN11mask2former4cuda3twoIfEEvPT_' for 'sm_80'
ptxas info    : Function properties for _ZN11mask2former4cuda3twoIfEEvPT_
    24 bytes stack frame, 32 bytes spill stores, 36 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 24 bytes cumulative stack size, 128 bytes smem
ptxas info    : Compile time = 40.1 ms
ptxas info    : Compiling entry function '_ZN11mask2former4cuda3oneEv' for 'sm_80'
ptxas info    : Function properties for _ZN11mask2former4cuda3oneEv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 0 barriers
"""


def test_it_reads_what_each_kernel_takes():
    one, two = cuda_report.usages(SAID)
    assert (one.registers, one.shared, one.stack, one.spills) == (30, 0, 0, 0)
    assert (two.registers, two.shared, two.stack, two.spills) == (64, 128, 24, 68)
    assert one.kernel == "one()" or one.kernel == "one"
    assert two.kernel.startswith("two<float>")


@pytest.mark.parametrize(
    ("said", "status"),
    [(SAID, 1), (SAID.replace("32 bytes spill stores, 36", "0 bytes spill stores, 0"), 0)],
)
def test_a_spill_makes_it_fail(monkeypatch, tmp_path, capsys, said, status):
    for name in ("one.cu", "two.cu"):
        (tmp_path / name).touch()
    monkeypatch.setattr(cuda_report, "SOURCES", tmp_path)
    monkeypatch.setattr(cuda_report, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(cuda_report, "compile_for", lambda gpu, source, nvcc: said)
    assert cuda_report.main(["8.0"]) == status
    printed = capsys.readouterr().out
    assert "GPU 8.0" in printed
    assert f"{2 * status} kernels spill" in printed  # one in each of the two files


def test_a_file_that_does_not_compile_is_named(monkeypatch):
    refused = subprocess.CompletedProcess([], 1, stdout="", stderr="error: no")
    monkeypatch.setattr(cuda_report.subprocess, "run", lambda *args, **options: refused)
    with pytest.raises(RuntimeError, match="a.cu does not compile for GPUs 9.0:\nerror: no"):
        cuda_report.compile_for("9.0", cuda_report.Path("a.cu"), "nvcc")


def test_without_nvcc_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(cuda_report, "find_nvcc", lambda: None)
    with pytest.raises(SystemExit):
        cuda_report.main([])
    assert "no nvcc was found: put it on PATH or set CUDA_HOME" in capsys.readouterr().err
