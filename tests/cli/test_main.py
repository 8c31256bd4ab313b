"""The `mask2former` command itself: help, version, exit status."""

import subprocess
import sys

import pytest
import torch

from mask2former import __version__
from mask2former.cli import main


def test_help_names_every_command_and_does_not_load_torch():
    program = (
        "import sys\n"
        "from mask2former.cli import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert all(command in result.stdout for command in ("predict", "demo", "convert"))


@pytest.mark.parametrize("command", ["predict", "demo", "convert"])
def test_help_of_a_command_shows_examples(capsys, command):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"mask2former {command} " in capsys.readouterr().out.split("examples:")[1]


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"mask2former {__version__}, torch {torch.__version__}\n"


@pytest.mark.parametrize("argv", [[], ["segment"], ["predict"]])
def test_a_wrong_command_line_is_one_line_and_status_2(capsys, argv):
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    assert capsys.readouterr().err.count("\n") == 1


def test_an_interrupt_ends_with_status_130(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mask2former.cli.demo.load_predictor", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "mask2former: interrupted\n"
