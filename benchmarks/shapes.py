"""The shapes that are timed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Attention:
    """A call of ms_deform_attn; queries=None stands for one query for each pixel of the levels."""

    name: str
    levels: tuple[tuple[int, int], ...]
    queries: int | None = None
    images: int = 1
    heads: int = 8
    channels: int = 32
    points: int = 4


@dataclass(frozen=True)
class Points:
    """A call of point_sample; shared points serve all images."""

    name: str
    images: int
    planes: int
    size: tuple[int, int]
    points: int
    shared: bool = True
    masks: bool = False


ATTENTION = (
    Attention("Mask2Former encoder, 640x640", ((80, 80), (40, 40), (20, 20))),
    Attention("detector decoder, 640x640", ((80, 80), (40, 40), (20, 20)), queries=300),
)

POINTS = (
    Points("matcher, 100 mask logits", 1, 100, (256, 256), 12544),
    Points("matcher, 20 bool masks", 1, 20, (1024, 1024), 12544, masks=True),
    Points("loss, own points for each of 20 masks", 20, 1, (256, 256), 12544, shared=False),
)
