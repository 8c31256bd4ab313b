"""Measures a model on held-out rendered scenes: `python -m mask2former.evaluation.synthetic`.

Prints panoptic quality and mean intersection over union on the scenes with the seeds
`HELD_OUT_SEEDS`, which training never renders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mask2former import BUNDLED_MODEL
from mask2former.data.scene_dataset import SceneDataset
from mask2former.evaluation.evaluate import evaluate
from mask2former.evaluation.report import class_table
from mask2former.predictor import Predictor
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
    parser.add_argument("--device", help="default: a GPU if there is one")
    arguments = parser.parse_args()
    predictor = Predictor.from_pretrained(arguments.model, device=arguments.device)
    results = evaluate(predictor.model, predictor.processor, SceneDataset(HELD_OUT_SEEDS))
    print(class_table(results))


if __name__ == "__main__":
    main()
