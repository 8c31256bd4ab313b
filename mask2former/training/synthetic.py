"""Trains the bundled model: `python -m mask2former.training.synthetic --out DIR`.

The model is a small Mask2Former with a ResNet of basic blocks, trained from scratch with the
package's own loss on scenes of `mask2former.synthetic`; `mask2former.evaluation.synthetic` measures
it on scenes that training never sees.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from mask2former import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
)
from mask2former.evaluation.synthetic import HELD_OUT_SEEDS
from mask2former.image_processing import Mask2FormerImageProcessor
from mask2former.synthetic import ID2LABEL, THING_LABEL_IDS, Scene, render_scene
from mask2former.training.optimizer import parameter_groups

SCENE_SIZE = 192  # pixels, height and width
EMA_DECAY = 0.998
CLIP_NORM = 1.0
WEIGHT_DECAY = 0.05
SAVE_EVERY = 500  # steps

# Pretraining: the backbone names pixels, in larger batches at a higher rate.
PRETRAIN_BATCH = 16
PRETRAIN_RATE = 3e-3
THING_WEIGHT = 4.0  # of a pixel of a thing, which are a fifth of all


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


def scene_targets(scene: Scene) -> tuple[Tensor, Tensor]:
    """Masks bool (T, H, W) and labels int64 (T,) of a scene."""
    ids = torch.tensor([segment["id"] for segment in scene.segments_info])
    labels = torch.tensor([segment["label_id"] for segment in scene.segments_info])
    return torch.from_numpy(scene.segmentation)[None] == ids[:, None, None], labels


def _render(seed: int) -> Scene:
    return render_scene(seed, SCENE_SIZE, SCENE_SIZE)


def render_scenes(count: int, workers: int) -> list[Scene]:
    """The scenes with seeds 0 to count - 1, none of them held out."""
    if count > HELD_OUT_SEEDS.start:
        raise ValueError(f"--scenes is {count}; seeds from {HELD_OUT_SEEDS.start} are held out.")
    # Two processes whose matrix library also starts threads wait for each other: 7 times slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        rendered = pool.map(_render, range(count), chunksize=16)
        return list(tqdm(rendered, total=count, desc="rendering", unit="scene"))


def batches(
    scenes: list[Scene], batch_size: int, processor: Mask2FormerImageProcessor, seed: int
) -> Iterator[dict]:
    """Endless shuffled batches, half of them mirrored, with random colour balance."""
    generator = np.random.default_rng(seed)
    mean = torch.tensor(processor.image_mean)[:, None, None]
    std = torch.tensor(processor.image_std)[:, None, None]
    while True:
        order = generator.permutation(len(scenes))
        for first in range(0, len(order) - batch_size + 1, batch_size):
            images, masks, classes = [], [], []
            for index in order[first : first + batch_size]:
                image = torch.from_numpy(scenes[index].image).permute(2, 0, 1) / 255
                mask, labels = scene_targets(scenes[index])
                if generator.random() < 0.5:
                    image, mask = image.flip(-1), mask.flip(-1)
                gain = torch.from_numpy(generator.uniform(0.9, 1.1, (3, 1, 1))).float()
                images.append(((image * gain).clamp(0, 1) - mean) / std)
                masks.append(mask)
                classes.append(labels)
            yield {
                "pixel_values": torch.stack(images),
                "mask_labels": masks,
                "class_labels": classes,
            }


def pretrain(
    backbone: nn.Module, scenes: list[Scene], steps: int, batch_size: int, seed: int
) -> None:
    """Teach a backbone to name the class under every cell of its three coarser feature maps.

    From scratch, a Mask2Former learns early where things are and very late what they are called,
    because names reach the features only through queries that match. This stands for the ImageNet
    pretraining of the paper's backbones.
    """
    device = next(backbone.parameters()).device
    heads = nn.ModuleList([nn.Conv2d(c, len(ID2LABEL), 1) for c in backbone.channels[1:]])
    both = nn.ModuleList([backbone, heads.to(device)])
    optimizer = torch.optim.AdamW(
        parameter_groups(both, WEIGHT_DECAY), lr=PRETRAIN_RATE, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PRETRAIN_RATE, steps, pct_start=0.1)
    weight = torch.ones(len(ID2LABEL), device=device)
    weight[list(THING_LABEL_IDS)] = THING_WEIGHT
    source = batches(scenes, batch_size, bundled_processor(), seed)
    progress = tqdm(range(steps), desc="pretraining", unit="step", mininterval=10)
    for _ in progress:
        batch = next(source)
        truth = class_maps(batch["mask_labels"], batch["class_labels"]).to(device)
        features = backbone(batch["pixel_values"].to(device))[1:]
        loss = sum(
            F.cross_entropy(head(feature), resized_classes(truth, feature), weight)
            for head, feature in zip(heads, features, strict=True)
        )
        step_optimizer(loss, both, optimizer, schedule)
        progress.set_postfix({"loss": f"{loss.item():.3f}"}, refresh=False)


def class_maps(mask_labels: list[Tensor], class_labels: list[Tensor]) -> Tensor:
    """The class of every pixel, int64 (N, H, W), from masks that cover the picture."""
    pairs = zip(mask_labels, class_labels, strict=True)
    return torch.stack([labels[masks.int().argmax(0)] for masks, labels in pairs])


def resized_classes(truth: Tensor, feature: Tensor) -> Tensor:
    """Class maps (N, H, W) at the resolution of a feature map (N, C, h, w)."""
    resized = F.interpolate(truth[:, None].float(), feature.shape[-2:], mode="nearest-exact")
    return resized[:, 0].long()


def step_optimizer(
    loss: Tensor,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """One update of the parameters of `module`, with the gradient of all of them clipped.

    Raises:
        RuntimeError: the loss is not finite.
    """
    if not torch.isfinite(loss):
        step = schedule.last_epoch
        raise RuntimeError(f"The loss is {loss.item()} at step {step}; train with a lower rate.")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), CLIP_NORM)
    optimizer.step()
    schedule.step()


def train(
    model: Mask2FormerForUniversalSegmentation,
    scenes: list[Scene],
    out: Path,
    steps: int,
    batch_size: int,
    rate: float,
    seed: int,
) -> None:
    """Train with the package's loss, at one-cycle rates; save the averaged weights in `out`."""
    processor = bundled_processor()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY), use_buffers=True)
    optimizer = torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    source = batches(scenes, batch_size, processor, seed)
    progress = tqdm(range(1, steps + 1), desc="training", unit="step", mininterval=10)
    for step in progress:
        batch = next(source)
        output = model(batch.pop("pixel_values").to(model.device), **batch)
        step_optimizer(output.loss, model, optimizer, schedule)
        average.update_parameters(model)
        parts = {k: f"{v:.3f}" for k, v in output.loss_dict.items() if k[-1].isalpha()}
        progress.set_postfix(parts, refresh=False)
        if step % SAVE_EVERY == 0 or step == steps:
            save(average.module, processor, out)


def save(
    model: Mask2FormerForUniversalSegmentation, processor: Mask2FormerImageProcessor, out: Path
) -> None:
    """Write the model folder, weights in float16."""
    half = Mask2FormerForUniversalSegmentation(model.config).half()
    half.load_state_dict(model.state_dict())
    half.save_pretrained(out)
    processor.save_pretrained(out)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m mask2former.training.synthetic",
        description="Train the bundled model from scratch on rendered scenes.",
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the trained model")
    add("--scenes", type=int, default=8000, help="different scenes to render")
    add("--pretrain-steps", type=int, default=1000, help="steps of the backbone alone")
    add("--steps", type=int, default=3500, help="steps of the whole model")
    add("--batch-size", type=int, default=8)
    add("--rate", type=float, default=1e-3, help="peak learning rate of the whole model")
    add("--workers", type=int, default=2, help="processes that render")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=0)
    args = parser.parse_args()
    scenes = render_scenes(args.scenes, args.workers)
    torch.manual_seed(args.seed)
    model = Mask2FormerForUniversalSegmentation(bundled_config()).to(args.device).train()
    pretrain(model.model.backbone, scenes, args.pretrain_steps, PRETRAIN_BATCH, args.seed)
    train(model, scenes, args.out, args.steps, args.batch_size, args.rate, args.seed)


if __name__ == "__main__":
    main()
