"""`mask2former demo`: render a scene, segment it, show picture, truth and prediction."""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path

from mask2former.cli.options import add_device, choose_device, load_predictor, write_file
from mask2former.cli.usage import UsageError

DESCRIPTION = """\
Render a scene of shapes, segment it with the bundled model, and write picture, truth and prediction
side by side into one PNG, with the panoptic quality (PQ) that was reached. The model has not seen
the scenes of seeds from 1000000, of which a new one is taken each time.
"""
EPILOG = """\
examples:
  mask2former demo                       a new scene each time
  mask2former demo --seed 1000303 --out scene.png
"""


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `demo` to the command line."""
    parser = commands.add_parser(
        "demo",
        help="segment a freshly rendered scene with the bundled model",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--seed", type=int, metavar="N", help="which scene, from 0 (default: a new one, printed)")
    add(
        "--out",
        type=Path,
        default=Path("mask2former-demo.png"),
        help="the picture to write (default: ./mask2former-demo.png)",
    )
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Segment one scene, write the comparison, and print seed, PQ and where the picture is."""
    from mask2former.images.visualization import draw_segments, save_png, side_by_side
    from mask2former.scenes.scene import HELD_OUT_SEEDS, ID2LABEL, render_scene

    seed = args.seed
    if seed is None:
        seed = HELD_OUT_SEEDS.start + secrets.randbelow(9 * HELD_OUT_SEEDS.start)
    if seed < 0:
        raise UsageError(f"--seed is {seed}, but seeds start at 0")
    predictor = load_predictor(None, choose_device(args.device))
    scene = render_scene(seed)
    found = predictor(scene.image)
    quality = _panoptic_quality(found, scene)

    truth = draw_segments(scene.image, scene.segmentation, scene.segments_info, ID2LABEL)
    prediction = draw_segments(scene.image, found.ids, found.segments)
    comparison = side_by_side(
        [
            (f"scene {seed}", scene.image),
            ("truth", truth),
            (f"prediction, PQ {quality:.2f}", prediction),
        ]
    )
    write_file(args.out, "--out", lambda path: save_png(comparison, path))
    print(f"seed {seed}: PQ {quality:.3f}; picture, truth and prediction are in {args.out}")
    return 0


def _panoptic_quality(found, scene) -> float:
    from mask2former.evaluation import PanopticQuality
    from mask2former.scenes.scene import ID2LABEL, THING_LABEL_IDS

    quality = PanopticQuality(len(ID2LABEL), THING_LABEL_IDS)
    quality.update(found.ids, found.segments, scene.segmentation, scene.segments_info)
    return quality.compute()["pq"]
