"""Small rows, and what is measured of them, as the tests need them."""

from typing import Any

import torch

from benchmarks.contestants import GRID_SAMPLE, OURS, OURS_FLOAT32, PEER
from benchmarks.ops import Row
from benchmarks.shapes import Attention, Points, Target

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
    Row(ENCODER, torch.float32, True),
    Row(UNEVEN, torch.float32, True),
    Row(LOGITS, torch.float32, True),
    Row(MASKS, torch.float32, False),
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
