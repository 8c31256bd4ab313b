"""The subject `training`: one step of training on the CPU, ours beside transformers'.

Forward pass, loss, backward pass and fused AdamW, as transformers' own Trainer has it, of a Swin
model with random weights on random images.
Each trains in a process of its own, and the two take turns: what one of them keeps in the heap
would spare the other to ask the system for its memory in every step, as it does on its own.
glibc's allocator has its own habits there, in which it settles as the steps go by.
Each gets the annotated masks as its own processor makes them: ours bool, transformers' float32.
"""

import functools
import importlib.metadata
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import memory
from benchmarks.harness import MEBIBYTE, race
from benchmarks.processes import OwnProcess
from mask2former.io.optional import require_package

TRANSFORMERS = "transformers"
OURS = "mask2former"
STEM = "cpu-training"
LEGEND = (
    "time     of a step in a process of its own, the median of the rounds and their quartiles",
    "speed    median over the rounds of transformers' time over this one's",
    "memory   the most that a process which does nothing else ever held, libraries included, and",
    "         blocks of 1 MiB that were freed not",
)


@dataclass(frozen=True)
class Workload:
    """What is trained on what; options are those that both libraries' configurations share."""

    images: int = 2
    size: int = 512
    objects: int = 15  # in each image
    num_labels: int = 80
    backbone: dict[str, Any] = field(default_factory=dict)  # Swin-T
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def description(self) -> str:
        return f"{self.images} images of {self.size}x{self.size}, {self.objects} objects each"


# Swin-T, with targets: twice the steps in a second, in half of the memory.
WORKLOAD = Workload()
TARGETS = {"speed": 2.0, "memory": 2.0}


def measure(workload: Workload, rounds: int) -> dict[str, Any]:
    """Times both in turn, and finds their peak memory in processes of their own.

    Returns:
        What the JSON file has for it: times in seconds, memory in bytes, and ratios.

    Raises:
        DataError: transformers is not installed.
    """
    require_package("transformers", "the benchmark of training")
    names = (TRANSFORMERS, OURS)
    peaks = {name: peak(name, workload) for name in names}
    with ExitStack() as stack:
        steps = {n: stack.enter_context(OwnProcess(make_step, n, workload)) for n in names}
        timings = race(steps, rounds)
    contestants = {
        name: {
            "median": timing.median,
            "quartiles": timing.quartiles,
            "speed": timing.speed(timings[TRANSFORMERS]),
            "peak_bytes": peaks[name],
            "seconds": [float(f"{seconds:.6g}") for seconds in timing.seconds],
        }
        for name, timing in timings.items()
    }
    theirs, ours = (contestants[name] for name in names)
    known = ours["peak_bytes"] is not None
    reached = {
        "speed": ours["speed"],
        "memory": theirs["peak_bytes"] / ours["peak_bytes"] if known else None,
    }
    return {
        "workload": workload.description,
        "transformers": importlib.metadata.version("transformers"),
        "contestants": contestants,
        "targets": [verdict(of, TARGETS[of], ratio) for of, ratio in reached.items()],
    }


def verdict(of: str, at_least: float, reached: float | None) -> dict[str, Any]:
    """How many times as good as transformers' ours is, and has to be."""
    met = None if reached is None else reached >= at_least
    return {"of": of, "at_least": at_least, "reached": reached, "met": met}


def peak(name: str, workload: Workload) -> int | None:
    """Bytes of memory at the peak of training, None where the system does not say."""
    if not memory.COUNTED:
        return None
    return memory.peak(make_step, name, workload)


def make_step(name: str, workload: Workload) -> Callable[[], float]:
    """A step of training that returns the loss, after one that made the optimiser's statistics."""
    torch.manual_seed(0)
    model = {TRANSFORMERS: make_theirs, OURS: make_ours}[name](workload).train()
    images, masks, classes = make_batch(workload)
    if name == TRANSFORMERS:
        masks = [image.float() for image in masks]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = model(images, mask_labels=masks, class_labels=classes).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    step()
    return step


def make_ours(workload: Workload) -> nn.Module:
    from mask2former import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    backbone = SwinConfig(**workload.backbone)
    config = Mask2FormerConfig(
        backbone_config=backbone, num_labels=workload.num_labels, **workload.model
    )
    return Mask2FormerForUniversalSegmentation(config)


def make_theirs(workload: Workload) -> nn.Module:
    import transformers

    stages = [f"stage{number}" for number in range(1, 5)]
    backbone = transformers.SwinConfig(out_features=stages, **workload.backbone)
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, num_labels=workload.num_labels, **workload.model
    )
    return transformers.Mask2FormerForUniversalSegmentation(config)


def make_batch(workload: Workload) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Images of noise, and rectangles a third of an image in size as masks, bool (T, H, W)."""
    generator = torch.Generator().manual_seed(0)
    draw = functools.partial(torch.randint, generator=generator)
    size, side = workload.size, workload.size // 3
    images = torch.randn(workload.images, 3, size, size, generator=generator)
    masks = [torch.zeros(workload.objects, size, size, dtype=torch.bool) for _ in images]
    for mask in (mask for image in masks for mask in image):
        top, left = draw(size - side, (2,)).tolist()
        mask[top : top + side, left : left + side] = True
    classes = [draw(workload.num_labels, (workload.objects,)) for _ in images]
    return images, masks, classes


def text(measured: dict[str, Any]) -> str:
    """A line for each contestant, and one for each target."""
    lines = [
        f"one step of training, {measured['workload']}; transformers {measured['transformers']}",
        f"  {'':14} {'time in s':>10}  {'quartiles':^18} {'speed':>7} {'memory':>12}",
    ]
    for name, entry in measured["contestants"].items():
        low, high = (f"{seconds:.2f}" for seconds in entry["quartiles"])
        size = entry["peak_bytes"]
        held = "-" if size is None else f"{size / MEBIBYTE:.0f} MiB"
        lines.append(
            f"  {name:14} {entry['median']:10.2f}  {low:>7} to {high:<7} {entry['speed']:6.2f}x "
            f"{held:>12}"
        )
    lines += ["", "targets: how many times as fast as transformers, in how many times less memory"]
    for target in measured["targets"]:
        met = {True: "met", False: "missed", None: "not measured"}[target["met"]]
        reached = "" if target["reached"] is None else f"{target['reached']:.2f}x"
        lines.append(f"  {met:12} {reached:>7} of {target['at_least']:5.2f}x  {target['of']}")
    return "\n".join(lines)
