"""What each of two processes does in `test_run_distributed.py`: trains, and stops where it is told.

Arguments: the run's folder, "ddp" or "fsdp", and the step before which the batches fail, or 0.
"""

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

SETTINGS = RECIPE.replace(steps=4, batch_size=8, gradient_accumulation=2, ema=0.9)
SWIN = SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=3)


def shard(accelerator: Accelerator, model, optimizer):
    """What Accelerate does for `fsdp_version: 2` on GPUs; it has no FSDP for CPUs."""
    model.model = fully_shard(model.model, mesh=init_device_mesh("cpu", (2,)))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return model, accelerator.prepare_optimizer(make_optimizer(model, SETTINGS))


def loader(first_step: int, steps: int, rank: int, world_size: int):
    """Four scenes in each pass, two for each process."""
    for number, batch in enumerate(batches(2)(2 * first_step, 2 * steps, 0, 1)):
        if number % world_size == rank:
            step = first_step + number // world_size
            if step == 2 * int(sys.argv[3]) > 0:
                sys.exit(3)
            yield batch


def evaluate(model) -> Evaluation:
    return Evaluation({"size": sum(float(p.detach().abs().sum()) for p in model.parameters())})


if __name__ == "__main__":
    torch.set_num_threads(1)
    prepare = shard if sys.argv[2] == "fsdp" else Accelerator.prepare
    with mock.patch.object(Accelerator, "prepare", prepare):
        train_scenes(
            Path(sys.argv[1]),
            SETTINGS,
            model=scene_model(backbone_config=SWIN),
            loader=loader,
            evaluate=evaluate,
            resume=True,
        )
