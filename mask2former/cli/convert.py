"""`mask2former convert`: a checkpoint of the paper's code in; a Hugging Face folder out."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mask2former.checkpoints.published_classes import published_classes
from mask2former.io.errors import DataError

if TYPE_CHECKING:
    from mask2former.configuration import Mask2FormerConfig
    from mask2former.images.processor import Mask2FormerImageProcessor

DESCRIPTION = """\
Turn a checkpoint of the paper's own code (detectron2: .pkl of its model zoo, .pth of its training;
image models with a Swin or ResNet backbone) into a folder that predict, from_pretrained and
transformers read: model.safetensors, config.json and preprocessor_config.json. The configuration
follows from the tensors' names and shapes; what they do not say is printed with the value assumed.
Models with the 133 classes of COCO, 19 of Cityscapes, 150 of ADE20K or 65 of Mapillary Vistas, or
with the things of one of these, get the names and things of that data set.
"""
EPILOG = """\
examples:
  mask2former convert model_final_94dc52.pkl mask2former-r50-coco-panoptic
  mask2former convert output/model_0009999.pth my-model --labels classes.txt --things 0-4,7
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
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="text file with the names of the classes, one per line",
    )
    parser.add_argument(
        "--things",
        type=_label_ids,
        metavar="IDS",
        help="which classes are countable, such as 0-79 or 0-4,7, counted from 0; none for none",
    )


def _label_ids(text: str) -> list[int]:
    """`0-4,7` -> [0, 1, 2, 3, 4, 7]."""
    if text == "none":
        return []
    ids: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a list of numbers and ranges such as 0-4,7"
            )
        ids.update(range(int(first), int(last or first) + 1))
    return sorted(ids)


def run(args: argparse.Namespace) -> int:
    """Convert one file, and print what the model is and what was assumed of it."""
    from mask2former.checkpoints.detectron2 import from_detectron2, infer_config, read_detectron2
    from mask2former.images.processor import Mask2FormerImageProcessor
    from mask2former.modeling import Mask2FormerForUniversalSegmentation

    source, folder = args.source, args.folder
    _check_paths(source, folder)
    weights = read_detectron2(source)
    config, assumed = infer_config(weights, source)
    config, assumed_classes = _with_classes(config, args.labels, args.things, source)
    try:
        model = Mask2FormerForUniversalSegmentation(config)
    except ValueError as error:
        raise DataError(f"The tensors in {source} make no model: {error}") from error
    model.load_state_dict(from_detectron2(weights, model.state_dict(), config, source))
    processor = Mask2FormerImageProcessor(
        ignore_index=255, num_labels=config.num_labels, thing_label_ids=config.thing_label_ids
    )
    try:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror}); give another folder."
        ) from error
    print(f"{folder}: {_summary(config)}")
    values = [f"{name} {_value(config, name)}" for name in assumed]
    print(_assumptions(processor, [*assumed_classes, *values]), file=sys.stderr)
    return 0


def _with_classes(
    config: Mask2FormerConfig, labels: Path | None, things: list[int] | None, source: Path
) -> tuple[Mask2FormerConfig, list[str]]:
    """The configuration with its classes and things, and a line for each assumption."""
    count = config.num_labels
    known = published_classes(count) if labels is None else None
    names, lines = list(config.id2label.values()), []
    if labels is not None:
        names = _read_labels(labels, count, source)
    elif known is not None:
        names = known.names
        lines.append(f"classes of {known.dataset}: {known.names[0]}, ... (--labels FILE)")
    else:
        lines.append(f"classes called {names[0]}, ... (--labels FILE)")
    if things is None:
        things = known and known.things
        what = "not known" if things is None else f"{len(things)} of the {count} classes"
        lines.append(f"things: {what} (--things IDS)")
    elif things and things[-1] >= count:
        raise DataError(
            f"--things names class {things[-1]}, but the classes of {source} are 0 to {count - 1}."
        )
    id2label = dict(enumerate(names))
    return replace(config, id2label=id2label, thing_label_ids=things), lines


def _read_labels(path: Path, count: int, source: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read ({reason}); give a text file.") from error
    names = [line.strip() for line in lines]
    if len(names) != count or "" in names:
        raise DataError(
            f"{path} must have the names of the {count} classes of {source}, one per line, "
            f"but has {len(names)} lines" + (", some of them empty." if "" in names else ".")
        )
    return names


def _check_paths(source: Path, folder: Path) -> None:
    if not source.is_file():
        what = "is a folder" if source.is_dir() else "does not exist"
        raise DataError(f"{source} {what}; give the .pkl or .pth file of a checkpoint.")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not an empty folder; give another name.")


def _summary(config: Mask2FormerConfig) -> str:
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


def _value(config: Mask2FormerConfig, name: str) -> Any:
    """A field of the configuration, or of its backbone's as `backbone_config.NAME`."""
    owner = config.backbone_config if name.startswith("backbone_config.") else config
    return getattr(owner, name.removeprefix("backbone_config."))


def _assumptions(processor: Mask2FormerImageProcessor, assumed: list[str]) -> str:
    """One line for each thing that the file does not say."""
    size = processor.size
    return "\n  ".join(
        [
            "mask2former: the file does not say the following, which was assumed; correct "
            "config.json and preprocessor_config.json where yours differs:",
            *assumed,
            f"images: short side {size['shortest_edge']}, long side at most "
            f"{size['longest_edge']}, normalised as for ImageNet, ignore_index 255",
        ]
    )
