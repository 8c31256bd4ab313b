"""README's training section, followed to the letter."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def readme_commands() -> dict[str, list[str]]:
    """The commands of the training section, without pip's, by their name: "mask2former train"."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Train and evaluate")[1]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1]
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    commands = {}
    for words in lines:
        if words[0] == "pip":
            continue
        program = ["-m", "mask2former"] if words[0] == "mask2former" else words[1:3]
        rest = words[1:] if words[0] == "mask2former" else words[3:]
        name = words[1] if words[0] == "mask2former" else "render"
        commands[name] = [sys.executable, *program, *rest]
    return commands


def run(command: list[str], folder: Path) -> str:
    """What a command prints; it runs in `folder` and must succeed."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def measured(evaluate: list[str], folder: Path) -> dict[str, float]:
    """The figures of the command `evaluate`."""
    run(evaluate, folder)
    report = folder / "mask2former-evaluation/evaluation.json"
    return json.loads(report.read_text(encoding="utf-8"))["figures"]


@pytest.mark.slow
def test_the_bundled_model_learns_other_classes_by_readme_s_commands(tmp_path):
    commands = readme_commands()
    assert list(commands) == ["render", "inspect", "train", "evaluate"]
    run(commands["render"], tmp_path)
    assert (tmp_path / "demo/annotations/panoptic_train.json").exists()
    assert "spiky" in run(commands["inspect"], tmp_path)

    # A model that has the classes and has learnt nothing.
    at_first = [*commands["train"], "--max-steps", "1", "--learning-rate", "0", "--out", "start"]
    said = run(at_first, tmp_path)
    assert "Class head: kept: sky, no object; new: round, angular, spiky, surface." in said
    start = measured([*commands["evaluate"], "--model", "start/model"], tmp_path)
    run(commands["train"], tmp_path)
    tuned = measured(commands["evaluate"], tmp_path)
    assert start["pq"] < 0.35 and start["pq_things"] < 0.05  # measured: 0.198 and 0
    assert tuned["pq"] > 0.85 and tuned["pq_things"] > 0.75  # measured: 0.910 and 0.859
    assert tuned["miou"] > 0.9  # measured: 0.945
