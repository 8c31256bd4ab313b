"""The one table of what is timed: shapes, dtypes, and how fast ours must be."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from benchmarks.contestants import FLOOR, GRID_SAMPLE, OURS_FLOAT32, PEER, PEER_FLOAT32

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward + backward"
FLOAT32 = (torch.float32,)
WITH_HALF = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Target:
    """How many times as fast as a contestant ours must be; None where nothing is asked."""

    against: str
    forward: float
    both: float | None  # forward and backward together
    backward: float | None = None

    def at_least(self, direction: str) -> float | None:
        """What is asked of a direction."""
        return {FORWARD: self.forward, BACKWARD: self.backward, BOTH: self.both}[direction]


NOT_SLOWER = (Target(GRID_SAMPLE, 1, 1), Target(PEER, 1, 1))
# Half storage may take 1.5 times as long as float32.
HALF_STORAGE = (Target(OURS_FLOAT32, 1 / 1.5, 1 / 1.5),)


@dataclass(frozen=True)
class Attention:
    """A call of ms_deform_attn; queries=None stands for one query for each pixel of the levels."""

    name: str
    levels: tuple[tuple[int, int], ...]
    queries: int | None = None
    images: int = 1
    heads: int = 8
    channels: int = 32
    points: int | tuple[int, ...] = 4  # of every level, or one number for each
    half_locations: bool = False  # locations and weights in value's dtype, not in float32
    dtypes: tuple[torch.dtype, ...] = FLOAT32
    targets: tuple[Target, ...] = ()  # of float32
    half_targets: tuple[Target, ...] = ()
    charted: bool = True

    op = "ms_deform_attn"
    backward = True

    @property
    def pixels(self) -> int:
        """S, of all levels together."""
        return sum(height * width for height, width in self.levels)

    @property
    def samples_per_level(self) -> tuple[int, ...]:
        """How many points each head samples in each level."""
        if isinstance(self.points, int):
            return (self.points,) * len(self.levels)
        return self.points

    @property
    def output(self) -> tuple[int, ...]:
        """Shape of the result."""
        queries = self.pixels if self.queries is None else self.queries
        return self.images, queries, self.heads * self.channels

    def smallest(self) -> "Attention":
        """The same on maps of a few pixels."""
        return replace(self, levels=((2, 2),) * len(self.levels))

    @property
    def description(self) -> str:
        """The sizes in one line, in the letters of the operator's contract."""
        points = self.points if isinstance(self.points, int) else list(self.points)
        sizes = (
            f"N={self.images} Q={self.output[1]} S={self.pixels} M={self.heads} D={self.channels}"
        )
        return f"{sizes} L={len(self.levels)} P={points}"


@dataclass(frozen=True)
class Points:
    """A call of point_sample.

    Points are "shared" by all images, or each image has its own, "uniform" over the image or mostly
    "uncertain", which is where masks end.
    """

    name: str
    images: int
    planes: int
    size: tuple[int, int]
    points: int
    where: Literal["shared", "uniform", "uncertain"]
    masks: bool = False  # bool
    channels_last: bool = False
    backward: bool = True  # whether models ask for the gradient
    dtypes: tuple[torch.dtype, ...] = FLOAT32
    targets: tuple[Target, ...] = ()
    half_targets: tuple[Target, ...] = ()
    charted: bool = True

    op = "point_sample"

    @property
    def output(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.images, self.planes, self.points

    def smallest(self) -> "Points":
        """The same on maps of a few pixels."""
        return replace(self, size=(2, 2), points=4)

    @property
    def description(self) -> str:
        """The sizes in one line."""
        sizes = f"{self.images}x{self.planes}x{self.size[0]}x{self.size[1]}"
        layout = " channels_last" if self.channels_last else ""
        return f"{sizes}{layout}, {self.points} {self.where} points"


def pyramid(height: int, width: int, *strides: int) -> tuple[tuple[int, int], ...]:
    """Sizes of the feature maps of an image; a last part of a stride counts as whole."""
    return tuple((-(-height // stride), -(-width // stride)) for stride in strides)


THREE = 8, 16, 32
FOUR = 8, 16, 32, 64

LARGE = Attention("Mask2Former encoder, 1024x1024", pyramid(1024, 1024, *THREE))
MODELS = (
    Attention("Mask2Former encoder, 512x512", pyramid(512, 512, *THREE)),
    Attention(
        "Mask2Former encoder, 640x640",
        pyramid(640, 640, *THREE),
        dtypes=WITH_HALF,
        targets=(Target(GRID_SAMPLE, 25, 12), Target(PEER, 4, 3.5)),
        half_targets=HALF_STORAGE,
    ),
    LARGE,
    Attention("Mask2Former encoder, 800x1333", pyramid(800, 1333, *THREE)),
    Attention("Deformable-DETR, Grounding DINO encoder, 800x1333", pyramid(800, 1333, *FOUR)),
    Attention(
        "Deformable-DETR decoder, 800x1333",
        pyramid(800, 1333, *FOUR),
        queries=300,
        dtypes=WITH_HALF,
        targets=NOT_SLOWER,
        half_targets=HALF_STORAGE,
    ),
    Attention(
        "Grounding DINO decoder, 800x1333",
        pyramid(800, 1333, *FOUR),
        queries=900,
        targets=NOT_SLOWER,
    ),
    Attention("RT-DETRv2 decoder, 640x640", pyramid(640, 640, *THREE), 300, targets=NOT_SLOWER),
    Attention(
        "RT-DETRv2 decoder, 3/6/3 points",
        pyramid(640, 640, *THREE),
        queries=300,
        points=(3, 6, 3),
        targets=NOT_SLOWER[:1],  # the peer cannot run it
    ),
)

SMALL = Attention("", pyramid(320, 320, *THREE), targets=NOT_SLOWER, charted=False)
AWKWARD = (
    replace(SMALL, name="100 queries", queries=100),
    replace(SMALL, name="16 channels", heads=16, channels=16),
    replace(SMALL, name="37 channels", heads=7, channels=37),
    replace(SMALL, name="48 channels", heads=5, channels=48),
    replace(SMALL, name="64 channels", heads=4, channels=64),
    replace(SMALL, name="1 point", points=1),
    replace(SMALL, name="8 points", points=8),
    replace(SMALL, name="1 level", levels=pyramid(320, 320, 8)),
    replace(SMALL, name="2 levels", levels=pyramid(320, 320, 8, 16)),
    replace(SMALL, name="5 levels", levels=pyramid(320, 320, *FOUR, 128)),
)

SAMPLING = (
    Points(
        "matcher, float maps",
        images=1,
        planes=100,
        size=(256, 256),
        points=12544,
        where="shared",
        dtypes=WITH_HALF,
        targets=(Target(GRID_SAMPLE, 5, None),),
    ),
    Points(
        "matcher, bool masks",
        images=1,
        planes=20,
        size=(1024, 1024),
        points=12544,
        where="shared",
        masks=True,
        backward=False,
        targets=(Target(GRID_SAMPLE, 10, None),),
    ),
    Points(
        "matcher, mask features",
        images=1,
        planes=256,
        size=(64, 64),
        points=1000,
        where="shared",
        channels_last=True,
        targets=(Target(GRID_SAMPLE, 1, 1),),
    ),
    Points("loss, candidates", 20, 1, (256, 256), 37632, "uniform", backward=False),
    Points("loss, logits", 20, 1, (256, 256), 12544, "uncertain"),
    Points("loss, bool masks", 20, 1, (1024, 1024), 12544, "uncertain", True, backward=False),
)

OPS = (*MODELS, *AWKWARD, *SAMPLING)

# On a GPU ours must never be slower than grid_sample where the CPU has a target.
NEVER_SLOWER = Target(GRID_SAMPLE, 1, 1, 1)
# Forward in half storage: at most three times as long as a copy of as many bytes.
LARGE_IN_HALF = NEVER_SLOWER, Target(PEER_FLOAT32, 6, None, 5), Target(FLOOR, 1 / 3, None)


def on_cuda(shape: Attention | Points) -> Attention | Points:
    """A shape with what is asked of it on a GPU: every model in half storage too."""
    targets = (NEVER_SLOWER,) if shape.targets else ()
    return replace(
        shape,
        dtypes=WITH_HALF if shape in MODELS else shape.dtypes,
        targets=targets,
        half_targets=targets if len(shape.dtypes) > 1 else (),
    )


CUDA_OPS = (
    replace(
        LARGE,
        dtypes=WITH_HALF,
        targets=(NEVER_SLOWER, Target(PEER, 3, None, 4)),
        half_targets=LARGE_IN_HALF,
    ),
    replace(
        LARGE,
        name=f"{LARGE.name}, half locations",
        half_locations=True,
        dtypes=WITH_HALF[1:],
        half_targets=LARGE_IN_HALF,
    ),
    *(on_cuda(shape) for shape in OPS if shape != LARGE),
)
