"""Trains the bundled model: `python -m mask2former.training.synthetic --out DIR`.

The model is a small Mask2Former with a ResNet of basic blocks, trained from scratch on scenes of
`mask2former.scenes`, each of which it sees once: first the backbone by itself, then the whole by
`mask2former.training.run`. `mask2former.evaluation.synthetic` measures it on scenes that training
never sees.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mask2former import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
)
from mask2former.data.augmentation import few_images
from mask2former.data.batches import make_loader
from mask2former.data.scene_dataset import SceneDataset
from mask2former.images.processor import Mask2FormerImageProcessor
from mask2former.losses.annotations import Annotation
from mask2former.model.backbones import Backbone
from mask2former.scenes.scene import HELD_OUT_SEEDS, ID2LABEL, THING_LABEL_IDS
from mask2former.training.optimizer import make_schedule, parameter_groups
from mask2former.training.progress import Progress
from mask2former.training.recipe import Recipe
from mask2former.training.run import Outcome, train_on_batches

SCENE_SIZE = 192  # pixels, height and width

# Pretraining: the backbone names pixels, in larger batches at a higher rate.
PRETRAIN_BATCH = 16
PRETRAIN_RATE = 3e-3
PRETRAIN_CLIP = 1.0
WEIGHT_DECAY = 0.05
THING_WEIGHT = 4.0  # weight of a pixel of a thing; a fifth of the pixels are such

RECIPE = Recipe(
    learning_rate=1e-3,
    backbone_multiplier=1.0,
    max_grad_norm=1.0,
    global_batch_size=8,
    max_steps=6000,
    schedule="one-cycle",
    warmup_steps=600,
    ema=0.998,
    dataloader_num_workers=1,
)


def bundled_config() -> Mask2FormerConfig:
    """The bundled model's architecture: under 3 million parameters, 6 MB in float16."""
    return Mask2FormerConfig(
        backbone_config=ResNetConfig(
            embedding_size=32,
            hidden_sizes=[32, 64, 128, 160],
            depths=[2, 2, 2, 2],
            layer_type="basic",
        ),
        id2label=ID2LABEL,
        feature_size=96,
        mask_feature_size=96,
        hidden_dim=96,
        num_attention_heads=6,
        encoder_layers=3,
        encoder_feedforward_dim=256,
        decoder_layers=7,
        dim_feedforward=256,
        num_queries=32,
        train_num_points=1024,
    )


def bundled_processor() -> Mask2FormerImageProcessor:
    """Resizes any picture to the scale that the model was trained at."""
    return Mask2FormerImageProcessor(
        size={"shortest_edge": SCENE_SIZE, "longest_edge": 2 * SCENE_SIZE},
        thing_label_ids=list(THING_LABEL_IDS),
    )


def scene_batches(batch_size: int, steps: int, seed: int, workers: int, first_step: int = 0):
    """Batches of scenes that are not held out, mirrored or not."""
    processor = bundled_processor()
    return make_loader(
        SceneDataset(range(HELD_OUT_SEEDS.start), SCENE_SIZE),
        processor,
        few_images(processor),
        batch_size=batch_size,
        steps=steps,
        seed=seed,
        first_step=first_step,
        workers=workers,
    )


def pretrain(backbone: Backbone, batches: Iterable[dict], steps: int) -> None:
    """Teach a backbone the class at every position of its three coarser feature maps.

    From scratch, a Mask2Former learns masks early and classes very late, because gradients of
    classes reach the features only through matched queries. This takes the place of the ImageNet
    pretraining of the paper's backbones.
    """
    heads = nn.ModuleList([nn.Conv2d(c, len(ID2LABEL), 1) for c in backbone.channels[1:]])
    both = nn.ModuleList([backbone, heads]).train()
    groups = parameter_groups(both, WEIGHT_DECAY)
    for group in groups:
        del group["backbone"]  # all learn at one rate
    optimizer = torch.optim.AdamW(groups, lr=PRETRAIN_RATE, fused=True)
    schedule = make_schedule(optimizer, RECIPE.replace(max_steps=steps, warmup_steps=steps // 10))
    weight = torch.ones(len(ID2LABEL))
    weight[list(THING_LABEL_IDS)] = THING_WEIGHT
    progress = tqdm(batches, desc="pretraining", unit="step", mininterval=10)
    for batch in progress:
        truth = class_maps(batch["annotations"])
        features = backbone(batch["pixel_values"])[1:]
        loss: Any = sum(
            F.cross_entropy(head(feature), resized_classes(truth, feature), weight)
            for head, feature in zip(heads, features, strict=True)
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), PRETRAIN_CLIP, error_if_nonfinite=True)
        optimizer.step()
        schedule.step()
        progress.set_postfix({"loss": f"{loss.item():.3f}"}, refresh=False)


def class_maps(annotations: list[Annotation]) -> Tensor:
    """The class of every pixel, int64 (N, H, W), from index maps without void."""
    return torch.stack([image.labels[image.masks.long()] for image in annotations])


def resized_classes(truth: Tensor, feature: Tensor) -> Tensor:
    """Class maps (N, H, W) at the resolution of a feature map (N, C, h, w)."""
    resized = F.interpolate(truth[:, None].float(), feature.shape[-2:], mode="nearest-exact")
    return resized[:, 0].long()


def train_whole(
    model: Mask2FormerForUniversalSegmentation, recipe: Recipe, out: Path, resume: bool
) -> Outcome:
    """The run of the whole model, in `out`."""

    def batches(first_step: int, steps: int, rank: int, world_size: int) -> Iterable[dict]:
        if world_size > 1:
            raise ValueError("The bundled model is trained by one process.")
        workers = recipe.dataloader_num_workers
        return scene_batches(recipe.global_batch_size, steps, recipe.seed, workers, first_step)

    callbacks = [Progress(recipe.max_steps)]
    return train_on_batches(
        model, bundled_processor(), batches, recipe, out, callbacks=callbacks, resume=resume
    )


def halve(source: Path, out: Path) -> None:
    """Write a model folder again with weights in float16."""
    model = Mask2FormerForUniversalSegmentation.from_pretrained(source)
    model.half().save_pretrained(out)
    bundled_processor().save_pretrained(out)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m mask2former.training.synthetic",
        description="Train the bundled model from scratch on rendered scenes. Go on where an "
        "earlier call with the same arguments ended.",
    )
    add = parser.add_argument
    workers = RECIPE.dataloader_num_workers
    add("--out", type=Path, required=True, help="gets the folders pretrained, run and model")
    add("--pretrain-steps", type=int, default=4000, help="steps of the backbone alone")
    add("--max-steps", type=int, default=RECIPE.max_steps, help="steps of the whole model")
    add("--dataloader-num-workers", type=int, default=workers, help="processes that render")
    add("--seed", type=int, default=0)
    args = parser.parse_args()
    recipe = RECIPE.replace(
        max_steps=args.max_steps,
        warmup_steps=args.max_steps // 10,
        dataloader_num_workers=args.dataloader_num_workers,
        seed=args.seed,
    )
    pretrained = args.out / "pretrained"
    if pretrained.exists():
        model = Mask2FormerForUniversalSegmentation.from_pretrained(pretrained).train()
    else:
        torch.manual_seed(args.seed)
        model = Mask2FormerForUniversalSegmentation(bundled_config()).train()
        # Another seed than the run's, so that the scenes differ.
        workers = recipe.dataloader_num_workers
        batches = scene_batches(PRETRAIN_BATCH, args.pretrain_steps, args.seed + 1, workers)
        pretrain(model.model.backbone, batches, args.pretrain_steps)
        model.save_pretrained(pretrained)
    outcome = train_whole(model, recipe, args.out / "run", resume=True)
    if outcome.finished:
        halve(outcome.model, args.out / "model")


if __name__ == "__main__":
    main()
