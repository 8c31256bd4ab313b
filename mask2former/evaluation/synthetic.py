"""Measures a model on held-out rendered scenes: `python -m mask2former.evaluation.synthetic`.

Prints panoptic quality and mean intersection over union on the scenes with the seeds
`HELD_OUT_SEEDS`, which training never renders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from mask2former import BUNDLED_MODEL, Mask2FormerForUniversalSegmentation
from mask2former.evaluation.mean_iou import MeanIoU
from mask2former.evaluation.panoptic_quality import PanopticQuality
from mask2former.image_processing import Mask2FormerImageProcessor
from mask2former.synthetic import ID2LABEL, THING_LABEL_IDS, render_scene

HELD_OUT_SEEDS = range(1_000_000, 1_000_200)

# The paper's evaluation keeps queries that are at least this sure.
OBJECT_THRESHOLD = 0.8


@torch.inference_mode()
def evaluate(
    model: Mask2FormerForUniversalSegmentation,
    processor: Mask2FormerImageProcessor,
    seeds: range = HELD_OUT_SEEDS,
    threshold: float = OBJECT_THRESHOLD,
) -> dict:
    """Panoptic quality and mean IoU over the scenes with these seeds.

    Returns:
        {"panoptic": ..., "semantic": ...}: results of `PanopticQuality` and `MeanIoU`.
    """
    panoptic = PanopticQuality(len(ID2LABEL), THING_LABEL_IDS)
    semantic = MeanIoU(len(ID2LABEL))
    for seed in tqdm(seeds, desc="evaluating", unit="scene"):
        scene = render_scene(seed)
        batch = processor(scene.image, return_tensors="pt").to(model.device)
        outputs = model(**batch)
        sizes = [scene.segmentation.shape]
        predicted = processor.post_process_panoptic_segmentation(
            outputs, threshold=threshold, target_sizes=sizes
        )[0]
        panoptic.update(
            predicted["segmentation"],
            predicted["segments_info"],
            scene.segmentation,
            scene.segments_info,
        )
        labels = torch.zeros(len(scene.segments_info) + 1, dtype=torch.long)
        for segment in scene.segments_info:
            labels[segment["id"]] = segment["label_id"]
        semantic.update(
            processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)[0],
            labels[torch.from_numpy(scene.segmentation).long()],
        )
    return {"panoptic": panoptic.compute(), "semantic": semantic.compute()}


def table(result: dict) -> str:
    """What `evaluate` returns as text: a line per class, then the means."""
    panoptic, semantic = result["panoptic"], result["semantic"]
    lines = [f"{'class':<10}{'PQ':>8}{'SQ':>8}{'RQ':>8}{'IoU':>8}"]
    for label, name in ID2LABEL.items():
        figures = panoptic["per_class"][label]
        cells = [figures["pq"], figures["sq"], figures["rq"], semantic["per_class"][label]]
        lines.append(f"{name:<10}" + "".join(f"{cell:8.3f}" for cell in cells))
    lines.append(
        f"PQ {panoptic['pq']:.3f}  things {panoptic['pq_things']:.3f}  "
        f"stuff {panoptic['pq_stuff']:.3f}  mIoU {semantic['miou']:.3f}"
    )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m mask2former.evaluation.synthetic",
        description="Panoptic quality and mean IoU on 200 held-out rendered scenes.",
    )
    parser.add_argument(
        "--model", type=Path, default=BUNDLED_MODEL, help="default: the bundled one"
    )
    parser.add_argument("--threshold", type=float, default=OBJECT_THRESHOLD)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    model = Mask2FormerForUniversalSegmentation.from_pretrained(arguments.model)
    processor = Mask2FormerImageProcessor.from_pretrained(arguments.model)
    result = evaluate(model.to(arguments.device), processor, threshold=arguments.threshold)
    print(table(result))


if __name__ == "__main__":
    main()
