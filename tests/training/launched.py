"""Trains a tiny model on rendered scenes: what test_launch starts in one process or several.

    python -m tests.training.launched OUT

Each mask has the same points whatever other masks a process has, and each process the same weights
to begin with; so the number of processes should not matter.
"""

import functools
import sys
from pathlib import Path
from unittest import mock

import torch

from mask2former import Mask2FormerImageProcessor, SwinConfig
from mask2former.data.augmentation import Augmentation, ColourJitter, Flip
from mask2former.data.batches import make_loader
from mask2former.data.synthetic import SceneDataset
from mask2former.training.history import History
from mask2former.training.progress import Progress
from mask2former.training.recipe import Recipe
from mask2former.training.run import train
from tests.training.scenes import scene_model

RECIPE = Recipe(steps=4, batch_size=4, gradient_accumulation=2, workers=0, evaluate_every=2)


def main(out: Path) -> None:
    """Four steps of two passes of two images."""
    backbone = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=3, drop_path_rate=0.0
    )
    processor = Mask2FormerImageProcessor(size={"height": 64, "width": 64})
    batches = functools.partial(
        make_loader,
        SceneDataset(range(6), 64),
        processor,
        Augmentation((Flip(), ColourJitter())),
        batch_size=RECIPE.images_per_pass,
        seed=RECIPE.seed,
    )
    model = scene_model(backbone_config=backbone)
    watchers = [Progress(RECIPE.steps), History(out, every=1)]
    train(model, processor, batches, RECIPE, out, watchers=watchers)


def same_for_every_mask(*shape, **options) -> torch.Tensor:
    """`torch.rand`, but points (M, P, 2) are the same for each of the M."""
    if len(shape) == 3 and shape[2] == 2:
        generator = torch.Generator().manual_seed(shape[1])
        return original(1, *shape[1:], generator=generator, **options).expand(shape)
    return original(*shape, **options)


original = torch.rand

if __name__ == "__main__":
    with mock.patch.object(torch, "rand", same_for_every_mask):
        main(Path(sys.argv[1]))
