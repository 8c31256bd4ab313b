"""The `mask2former` command. Every command imports what it needs only when it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mask2former.cli import convert, demo, evaluate, inspect, predict, train
from mask2former.cli.usage import UsageError
from mask2former.io.errors import DataError

EPILOG = """\
examples:
  mask2former demo                        segment a rendered scene with the bundled model
  mask2former predict photo.jpg           segment a photograph
  mask2former convert model.pkl my-model  convert a checkpoint of the paper's code
  mask2former evaluate --model my-model --data my-data
                                          measure a model on annotated images
  mask2former train --model my-model --data my-data --out run
                                          fine-tune a model on annotated images
  mask2former inspect my-data/            count what is in a data set, find what is wrong with it
  mask2former predict --help              all options of one command

exit status: 0 all done, 1 a file or folder was not what it should be, 2 wrong usage
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """Print one line. The whole usage text would hide the sentence that helps."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_) -> None:
        import torch

        from mask2former import __version__

        print(f"mask2former {__version__}, torch {torch.__version__}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit status.

    0: all done. 1: a file, folder or checkpoint was not what it should be (`DataError`). 130:
    interrupted. Wrong usage raises `SystemExit(2)`, as argparse does.
    """
    parser = _build_parser()
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except UsageError as error:
        parser.error(str(error))
    except DataError as error:
        print(f"mask2former: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mask2former: interrupted", file=sys.stderr)
        return 130


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mask2former",
        description="Segment images with Mask2Former.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show versions and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    predict.add_command(commands)
    demo.add_command(commands)
    convert.add_command(commands)
    train.add_command(commands)
    evaluate.add_command(commands)
    inspect.add_command(commands)
    return parser
