import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mask2former import Mask2FormerImageProcessor, SwinConfig
from mask2former.data.rendering import render_dataset
from mask2former.training.history import read_history
from tests.reference import relative_error
from tests.training.scenes import scene_model

pytest.importorskip("accelerate")

SEVERAL = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
SEVERAL += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]  # a port that is free
SETTINGS = (
    "--max-steps 6 --global-batch-size 4 --gradient-accumulation-steps 2 --learning-rate 1e-3"
)
SETTINGS += " --warmup-steps 0 --dataloader-num-workers 0 --eval-steps 3 --save-steps 6 --ema 0.5"

# Parameters whose weights say nothing: shifts that a softmax over keys or a group norm takes away,
# whose gradients are rounding, from which Adam makes steps of full length in any direction; and
# those that transformers' format has and the model has not.
NOT_LEARNT = (
    r"(key|k_proj|hidden_states_norms\.stage.|input_projections\.\d\.0)\.bias$"
    r"|swin\.layernorm\.|empty_weight$"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny model and a rendered data set."""
    folder = tmp_path_factory.mktemp("launch")
    render_dataset(folder / "data", "coco-panoptic", range(6), range(6, 9), size=64)
    # No batch norms: theirs are the statistics of what a process sees.
    swin = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 3}
    model = scene_model(backbone_config=SwinConfig(**swin, drop_path_rate=0.0))
    model.save_pretrained(folder / "model")
    size = {"height": 64, "width": 64}
    Mask2FormerImageProcessor(size=size).save_pretrained(folder / "model")
    return folder / "model", folder / "data"


def train(command: list[str], folders: tuple[Path, Path], out: Path):
    """Run `train` to its end, with what it writes to stderr as text."""
    model, data = folders
    arguments = ["train", "--model", model, "--data", data, "--out", out, *SETTINGS.split()]
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [*command, "-m", "tests.training.launched", *map(str, arguments)],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_two_processes_train_the_same_model_as_one(folders, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for command, out in (([sys.executable], one), (SEVERAL, two)):
        result = train(command, folders, out)
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("step 6/6: loss") == 1  # the first process alone speaks
    histories = [read_history(out / "history.jsonl") for out in (one, two)]
    for alone, together in zip(*histories, strict=True):
        assert alone.keys() == together.keys()
        for name in alone.keys() - {"memory", "seconds", "images_per_second"}:
            # A rounding error may take a pixel of 12288 to another class; measured: 6.4e-6.
            limit = {"abs": 1e-4} if name == "metrics" else {"rel": 1e-5}
            assert together[name] == pytest.approx(alone[name], **limit), name
    start = load_file(folders[0] / "model.safetensors")
    alone, together = (load_file(out / "model/model.safetensors") for out in (one, two))
    assert alone.keys() == together.keys() == start.keys()
    learnt = [name for name in alone if not re.search(NOT_LEARNT, name)]
    assert len(learnt) > 0.9 * len(alone)
    for name in learnt:
        assert (alone[name] != start[name]).any(), name
        assert relative_error(together[name], alone[name]) < 1e-3, name  # measured 3.9e-5
