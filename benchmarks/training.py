"""The subject `training`: one step of training on the CPU, ours beside transformers'.

Forward pass, loss, backward pass and fused AdamW, as transformers' own Trainer has it, of a Swin
model with random weights on random images. Ours runs without and with gradient checkpointing.
Each trains in a process of its own, and they take turns: memory that one of them leaves in the heap
would spare the others asking the system for it in every step. glibc's allocator settles as the
steps go by.
Each gets the annotated masks as its own image processor makes them: ours bool, transformers'
float32.
"""

import functools
import importlib.metadata
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import memory
from benchmarks.harness import MEBIBYTE, race
from benchmarks.processes import OwnProcess
from mask2former.io.optional import require_package

TRANSFORMERS = "transformers"
OURS = "mask2former"
CHECKPOINTED = "checkpointed"  # ours, with gradient checkpointing
NAMES = (TRANSFORMERS, OURS, CHECKPOINTED)
STEM = "cpu-training"
LEGEND = (
    "time     of a step in a process of its own, the median of the rounds and their quartiles",
    "speed    median over the rounds of transformers' time over this one's",
    "memory   the most that a process which does nothing else ever held, libraries included, and",
    "         freed blocks of 1 MiB and more not",
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


@dataclass(frozen=True)
class Target:
    """What a contestant has to reach, as a multiple of transformers'."""

    contestant: str
    of: str  # "speed", which must be at least `limit`, or "memory", at most
    limit: float


WORKLOAD = Workload()  # Swin-T
TARGETS = (
    Target(OURS, "speed", 1.5),
    Target(OURS, "memory", 0.8),
    Target(CHECKPOINTED, "memory", 0.5),
)


def measure(workload: Workload, rounds: int) -> dict[str, Any]:
    """Times all in turn, and finds their peak memory in processes of their own.

    Returns:
        What the JSON file has for it: times in seconds, memory in bytes, and ratios.

    Raises:
        DataError: transformers is not installed.
    """
    require_package("transformers", "the benchmark of training")
    peaks = {name: peak(name, workload) for name in NAMES}
    with ExitStack() as stack:
        steps = {n: stack.enter_context(OwnProcess(make_step, n, workload)) for n in NAMES}
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
    for entry in contestants.values():
        theirs, size = peaks[TRANSFORMERS], entry["peak_bytes"]
        entry["memory"] = None if size is None else size / theirs
    return {
        "workload": workload.description,
        "transformers": importlib.metadata.version("transformers"),
        "contestants": contestants,
        "targets": [verdict(target, contestants[target.contestant]) for target in TARGETS],
    }


def verdict(target: Target, measured: dict[str, Any]) -> dict[str, Any]:
    """The target, what its contestant reached, and whether that meets it; None: not measured."""
    reached = measured[target.of]
    met = None
    if reached is not None:
        met = reached >= target.limit if target.of == "speed" else reached <= target.limit
    return asdict(target) | {"reached": reached, "met": met}


def peak(name: str, workload: Workload) -> int | None:
    """Bytes of memory at the peak of training, None where the system does not say."""
    if not memory.COUNTED:
        return None
    return memory.peak(make_step, name, workload)


def make_step(name: str, workload: Workload) -> Callable[[], float]:
    """A step of training that returns the loss, after one that made the optimiser's statistics."""
    torch.manual_seed(0)
    model = (make_theirs if name == TRANSFORMERS else make_ours)(workload).train()
    if name == CHECKPOINTED:
        model.gradient_checkpointing_enable()
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
        f"  {'':14} {'time in s':>10}  {'quartiles':^18} {'speed':>7} {'memory':>18}",
    ]
    for name, entry in measured["contestants"].items():
        low, high = (f"{seconds:.2f}" for seconds in entry["quartiles"])
        size = entry["peak_bytes"]
        held = "-" if size is None else f"{size / MEBIBYTE:.0f} MiB {entry['memory']:5.2f}x"
        lines.append(
            f"  {name:14} {entry['median']:10.2f}  {low:>7} to {high:<7} {entry['speed']:6.2f}x "
            f"{held:>18}"
        )
    lines += ["", "targets, as multiples of transformers': speed at least, memory at most"]
    for target in measured["targets"]:
        met = {True: "met", False: "missed", None: "not measured"}[target["met"]]
        reached = "" if target["reached"] is None else f"{target['reached']:.2f}x"
        lines.append(
            f"  {met:12} {reached:>7} of {target['limit']:5.2f}x  {target['of']}, "
            f"{target['contestant']}"
        )
    return "\n".join(lines)
