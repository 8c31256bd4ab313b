"""Measures a model on held-out rendered scenes: `python -m mask2former.evaluation.synthetic`.

Prints panoptic quality and mean intersection over union on the scenes with the seeds
`HELD_OUT_SEEDS`, which training never renders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from mask2former import BUNDLED_MODEL, Mask2FormerForUniversalSegmentation
from mask2former.data.scene_dataset import SceneDataset
from mask2former.evaluation.evaluate import evaluate
from mask2former.evaluation.report import class_table
from mask2former.images.processor import Mask2FormerImageProcessor
from mask2former.scenes.scene import HELD_OUT_SEEDS


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m mask2former.evaluation.synthetic",
        description="Panoptic quality and mean IoU on 200 held-out rendered scenes.",
    )
    parser.add_argument(
        "--model", type=Path, default=BUNDLED_MODEL, help="default: the bundled one"
    )
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    model = Mask2FormerForUniversalSegmentation.from_pretrained(arguments.model)
    processor = Mask2FormerImageProcessor.from_pretrained(arguments.model)
    results = evaluate(
        model.to(arguments.device),
        processor,
        SceneDataset(HELD_OUT_SEEDS),
        threshold=arguments.threshold,
    )
    print(class_table(results))


if __name__ == "__main__":
    main()
