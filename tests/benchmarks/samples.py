"""Small rows, and what is measured of them, as the tests need them."""

from typing import Any

import torch

from benchmarks.contestants import GRID_SAMPLE, OURS, OURS_FLOAT32, PEER
from benchmarks.ops import Row
from benchmarks.shapes import BOTH, FORWARD, Attention, Points, Target

SLOW = 1e-6  # times as fast: a target that every kernel meets
ENCODER = Attention(
    "tiny encoder",
    ((4, 6), (2, 3)),
    heads=2,
    channels=5,
    dtypes=(torch.float32, torch.float16),
    targets=(Target(GRID_SAMPLE, SLOW, SLOW), Target(PEER, SLOW, SLOW)),
    half_targets=(Target(OURS_FLOAT32, SLOW, None),),
)
UNEVEN = Attention("tiny decoder", ((4, 6), (2, 3)), queries=7, images=2, points=(1, 3))
LOGITS = Points("tiny logits", 2, 3, (8, 9), 20, "uncertain")
MASKS = Points("tiny masks", 1, 3, (8, 9), 20, "shared", masks=True, backward=False)

ROWS = (
    Row(ENCODER, torch.float32, BOTH),
    Row(UNEVEN, torch.float32, BOTH),
    Row(LOGITS, torch.float32, BOTH),
    Row(MASKS, torch.float32, FORWARD),
)


def measured(**changes: Any) -> dict[str, Any]:
    """A row as `ops.measure` returns it; ours takes 10 ms, grid_sample 200 ms."""
    entry = {"error": 1e-7, "extra_bytes": 3 * 2**20, "seconds": [0.2, 0.2]}
    baseline = entry | {"median": 0.2, "quartiles": (0.19, 0.21), "speed": 1.0}
    ours = entry | {"median": 0.01, "quartiles": (0.009, 0.011), "speed": 20.0}
    row = {
        "op": "ms_deform_attn",
        "shape": "some encoder",
        "sizes": "Q=1",
        "dtype": "float32",
        "direction": "forward",
        "charted": True,
        "baseline": GRID_SAMPLE,
        "contestants": {GRID_SAMPLE: baseline, OURS: ours},
        "missing": {PEER: "no such thing"},
        "targets": [
            {"against": GRID_SAMPLE, "at_least": 25, "reached": 20.0, "met": False},
            {"against": PEER, "at_least": 4, "reached": None, "met": None},
        ],
    }
    return row | changes


def measured_on_gpu(**changes: Any) -> dict[str, Any]:
    """The same as measured on a GPU, where ours takes 20 us."""
    traffic = {"bytes": 34_000_000, "bytes_per_second": 1.7e12, "of_copy": 0.68, "by": "graph"}
    row = measured(**changes)
    for entry in row["contestants"].values():
        entry |= traffic
    ours = row["contestants"][OURS]
    ours |= {"median": 20e-6, "quartiles": (19.5e-6, 21e-6)}
    return row


class FakeClock:
    """A GPU's clock, moved on by what runs; nothing can be captured unless it is told so."""

    def __init__(self, captures: bool = False):
        self.now = 0.0
        self.captures = captures
        self.waits = 0

    def mark(self) -> float:
        return self.now

    def wait(self) -> None:
        self.waits += 1

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def capture(self, calls):
        return (lambda: self.spend(1e-6 * len(calls))) if self.captures else None

    def spend(self, seconds: float) -> None:
        self.now += seconds
