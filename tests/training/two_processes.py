"""What each of two processes does in `test_run_distributed.py`: trains by DDP and by FSDP.

Arguments: the folder of all runs, and "begin", for whole runs and others whose batches end too
early, or "resume", for the rest of the latter.
"""

import contextlib
import sys
from pathlib import Path
from unittest import mock

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mask2former import SwinConfig
from mask2former.training.optimizer import make_optimizer
from mask2former.training.run import Evaluation
from tests.training.scenes import RECIPE, batches, scene_model, train_scenes

SETTINGS = RECIPE.replace(max_steps=4, global_batch_size=8, gradient_accumulation_steps=2, ema=0.9)
SWIN = SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=3)


def shard(accelerator: Accelerator, model, optimizer):
    """What Accelerate does for `fsdp_version: 2` on GPUs; it has no FSDP for CPUs."""
    model.model = fully_shard(model.model, mesh=init_device_mesh("cpu", (2,)))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return model, accelerator.prepare_optimizer(make_optimizer(model, SETTINGS))


class NoMoreBatches(Exception):
    """Ends a run from within."""


def two_each(last_step: int):
    """Four scenes in each pass, two for each process, up to that step."""

    def loader(first_step: int, steps: int, rank: int, world_size: int):
        for number, batch in enumerate(batches(2)(2 * first_step, 2 * steps, 0, 1)):
            if number % world_size == rank:
                if first_step + number // world_size == 2 * last_step:
                    raise NoMoreBatches
                yield batch

    return loader


def evaluate(model) -> Evaluation:
    return Evaluation({"size": sum(float(p.detach().abs().sum()) for p in model.parameters())})


def run(folder: Path, last_step: int = SETTINGS.max_steps) -> None:
    model = scene_model(backbone_config=SWIN)
    loader = two_each(last_step)
    train_scenes(folder, SETTINGS, model=model, loader=loader, evaluate=evaluate, resume=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for kind, prepare in {"ddp": Accelerator.prepare, "fsdp": shard}.items():
        folder = Path(sys.argv[1], kind)
        with mock.patch.object(Accelerator, "prepare", prepare):
            if sys.argv[2] == "begin":
                run(folder / "whole")
                with contextlib.suppress(NoMoreBatches):
                    run(folder / "broken", last_step=3)
            else:
                run(folder / "broken")
