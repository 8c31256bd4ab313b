"""`mask2former convert`: a checkpoint of the paper's code in; a Hugging Face folder out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mask2former.io.errors import DataError

DESCRIPTION = """\
Turn a checkpoint of the paper's own code (detectron2: .pkl of its model zoo, .pth of its training;
image models with a Swin or ResNet backbone) into a folder that predict, from_pretrained and
transformers read: model.safetensors, config.json and preprocessor_config.json. The configuration
follows from the tensors' names and shapes; what they do not say is printed with the value assumed.
"""
EPILOG = """\
examples:
  mask2former convert model_final_94dc52.pkl mask2former-r50-coco-panoptic
  mask2former convert output/model_0009999.pth my-model
"""


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `convert` to the command line."""
    parser = commands.add_parser(
        "convert",
        help="make a model folder from a checkpoint of the paper's code",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("source", type=Path, metavar="SRC", help="the .pkl or .pth file")
    parser.add_argument("folder", type=Path, metavar="DST", help="the folder to make")


def run(args: argparse.Namespace) -> int:
    """Convert one file, and print what the model is and what was assumed of it."""
    from mask2former.checkpoints.detectron2 import from_detectron2, infer_config, read_detectron2
    from mask2former.images.processor import Mask2FormerImageProcessor
    from mask2former.modeling import Mask2FormerForUniversalSegmentation

    source, folder = args.source, args.folder
    _check_paths(source, folder)
    weights = read_detectron2(source)
    config, assumed = infer_config(weights, source)
    try:
        model = Mask2FormerForUniversalSegmentation(config)
    except ValueError as error:
        raise DataError(f"The tensors in {source} make no model: {error}") from error
    model.load_state_dict(from_detectron2(weights, model.state_dict(), config, source))
    processor = Mask2FormerImageProcessor(ignore_index=255, num_labels=config.num_labels)
    try:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror}); give another folder."
        ) from error
    print(f"{folder}: {_summary(config)}")
    print(_assumptions(config, processor, assumed), file=sys.stderr)
    return 0


def _check_paths(source: Path, folder: Path) -> None:
    if not source.is_file():
        what = "is a folder" if source.is_dir() else "does not exist"
        raise DataError(f"{source} {what}; give the .pkl or .pth file of a checkpoint.")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not an empty folder; give another name.")


def _summary(config) -> str:
    backbone = config.backbone_config
    kind = {"swin": "Swin", "resnet": "ResNet"}[backbone.model_type]
    if kind == "Swin":
        size = f"embed_dim {backbone.embed_dim}, window_size {backbone.window_size}"
    else:
        size = f"{backbone.layer_type} layers"
    return (
        f"{kind} with depths {backbone.depths}, {size}; "
        f"{config.encoder_layers} encoder layers, {config.decoder_layers - 1} decoder layers, "
        f"{config.num_queries} queries, {config.num_labels} labels"
    )


def _assumptions(config, processor, assumed: list[str]) -> str:
    """One line for each thing that the file does not say."""

    def value(name: str):
        owner = config.backbone_config if name.startswith("backbone_config.") else config
        return getattr(owner, name.removeprefix("backbone_config."))

    lines = [f"{name} {value(name)}" for name in assumed]
    size = processor.size
    return "\n  ".join(
        [
            "mask2former: the file does not say the following, which was assumed; correct "
            "config.json and preprocessor_config.json where yours differs:",
            f"labels are called {config.id2label[0]}, ...",
            *lines,
            f"images: short side {size['shortest_edge']}, long side at most "
            f"{size['longest_edge']}, normalised as for ImageNet, ignore_index 255",
        ]
    )
