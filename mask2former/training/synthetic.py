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
    Mask2FormerForUniversalSegmentationOutput,
    ResNetConfig,
)
from mask2former.evaluation.synthetic import HELD_OUT_SEEDS
from mask2former.image_processing import Mask2FormerImageProcessor
from mask2former.synthetic import ID2LABEL, THING_LABEL_IDS, Scene, render_scene

SCENE_SIZE = 192  # pixels, height and width
EMA_DECAY = 0.998
CLIP_NORM = 1.0
WEIGHT_DECAY = 0.05
SAVE_EVERY = 500  # steps
DENSE_WEIGHT = 5.0


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


class DenseHeads(nn.Module):
    """Class of every pixel, predicted from the features themselves, while training only.

    Queries learn late what a shape is called, because they see it only through attention; this
    teaches the features from the first step, as pretraining would.
    """

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        widths = (config.feature_size, config.mask_feature_size)
        self.heads = nn.ModuleList([nn.Conv2d(w, config.num_labels, 1) for w in widths])

    def loss(self, output: Mask2FormerForUniversalSegmentationOutput, batch: dict) -> Tensor:
        """Mean cross-entropy on the finest attended level and on the mask features."""
        truth = torch.stack(
            [
                labels[masks.int().argmax(0)].float()
                for masks, labels in zip(batch["mask_labels"], batch["class_labels"], strict=True)
            ]
        )
        features = (output.pixel_decoder_hidden_states[-1], output.pixel_decoder_last_hidden_state)
        losses = []
        for head, feature in zip(self.heads, features, strict=True):
            target = F.interpolate(truth[:, None], feature.shape[-2:], mode="nearest-exact")
            losses.append(F.cross_entropy(head(feature), target[:, 0].long().to(feature.device)))
        return sum(losses)


def parameter_groups(model: nn.Module) -> list[dict]:
    """Weight decay on matrices and kernels only, as in the paper's recipe."""
    decayed, free = [], []
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in model.named_parameters():
        plain = parameter.dim() < 2 or id(parameter) in embeddings or "level_embed" in name
        (free if plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": free, "weight_decay": 0.0},
    ]


def train(
    scenes: list[Scene], out: Path, steps: int, batch_size: int, rate: float, device: str, seed: int
) -> None:
    """Train for `steps` steps with a one-cycle schedule and save the averaged weights in `out`."""
    torch.manual_seed(seed)
    processor = bundled_processor()
    model = Mask2FormerForUniversalSegmentation(bundled_config()).to(device).train()
    dense = DenseHeads(model.config).to(device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY), use_buffers=True)
    both = nn.ModuleList([model, dense])
    optimizer = torch.optim.AdamW(parameter_groups(both), lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    source = batches(scenes, batch_size, processor, seed)
    progress = tqdm(range(1, steps + 1), desc="training", unit="step", mininterval=10)
    for step in progress:
        batch = next(source)
        pixel_values = batch.pop("pixel_values").to(device)
        output = model(pixel_values, **batch, output_hidden_states=True)
        dense_loss = dense.loss(output, batch)
        loss = output.loss + DENSE_WEIGHT * dense_loss
        if not torch.isfinite(loss):
            raise RuntimeError(f"The loss is {loss.item()} at step {step}; lower --rate.")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        if step % 20 == 0:
            losses = output.loss_dict | {"dense": dense_loss.detach()}
            parts = {k: f"{v:.3f}" for k, v in losses.items() if k[-1].isalpha()}
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
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained model")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--scenes", type=int, default=6000, help="different scenes to render")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    scenes = render_scenes(arguments.scenes, arguments.workers)
    train(
        scenes,
        arguments.out,
        arguments.steps,
        arguments.batch_size,
        arguments.rate,
        arguments.device,
        arguments.seed,
    )


if __name__ == "__main__":
    main()
