"""`python -m benchmarks ops`: our operators beside what detectors use today; `training`: a step of
training beside transformers'."""

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks import machine, ops, report, training
from benchmarks.cpu import Cpu
from benchmarks.gpu import Gpu
from mask2former.io.errors import DataError
from mask2former.io.files import write_text

ROUNDS = {"ops": 15, "training": 5}


def main(argv: list[str] | None = None) -> int:
    """Prints tables as they are measured; returns 1 if a target is missed, else 0."""
    parser = argument_parser()
    options = parser.parse_args(argv)
    if options.rounds is None:
        options.rounds = ROUNDS[options.subject]
    if options.rounds < 2:
        parser.error("--rounds must be at least 2, or there is no spread")
    if options.threads is not None:
        if options.threads < 1:
            parser.error("--threads must be at least 1")
        torch.set_num_threads(options.threads)
    if options.out is not None:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--out: cannot make the folder {options.out}: {error.strerror}")

    if options.subject == "training":
        if options.device != "cpu" or options.quick or options.compile:
            parser.error("--device, --quick and --compile are for ops only")
        return run_training(options, parser)
    return run_ops(options, parser)


def run_training(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Times a step of training, see `training`."""
    described = machine.describe()
    heading = report.heading(described, training.LEGEND)
    print(f"{heading}\n", flush=True)
    try:
        measured = training.measure(training.WORKLOAD, options.rounds)
    except DataError as error:
        parser.exit(2, f"{error}\n")
    text = training.text(measured)
    print(text)
    if options.out is not None:
        write_text(options.out / f"{training.STEM}.txt", f"{heading}\n\n{text}\n")
        document = json.dumps({"machine": described, **measured}, indent=1)
        write_text(options.out / f"{training.STEM}.json", f"{document}\n")
        print(f"\nwrote {training.STEM}.txt, {training.STEM}.json into {options.out}")
    return int(any(target["met"] is False for target in measured["targets"]))


def run_ops(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Times the operators, see `ops`."""
    try:
        bench = make_bench(options)
    except RuntimeError as error:
        parser.exit(2, f"--device {options.device}: {error}\n")
    machine = bench.describe()
    parts = [report.heading(machine, bench.legend)]
    print(parts[0], flush=True)
    rows = []
    for row in ops.rows(bench.shapes, bench.directions, quick=options.quick):
        rows.append(ops.measure(row, bench, quick=options.quick, compiled=options.compile))
        parts.append(report.row_text(rows[-1]))
        print(f"\n{parts[-1]}", flush=True)
    parts.append(report.verdicts_text(rows))
    print(f"\n{parts[-1]}")
    if options.out is not None:
        stem = f"{bench.stem}-quick" if options.quick else bench.stem
        document = {"machine": machine, "rows": rows}
        text = "\n\n".join(parts)
        print("\n" + report.write(document, text, options.out, stem))
    return int(any(target["met"] is False for row in rows for target in row["targets"]))


def make_bench(options: argparse.Namespace) -> ops.Bench:
    """The device to measure on.

    Raises:
        RuntimeError: it is not there.
    """
    if options.device == "cuda":
        return Gpu.find(options.rounds)
    return Cpu(options.rounds, memory=not options.quick)


def argument_parser() -> argparse.ArgumentParser:
    """What can be asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Times our operators, or a step of training, beside what is used today.",
        epilog="The exit status is 1 if a target is missed.",
    )
    parser.add_argument("subject", choices=list(ROUNDS))
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="what to run on (default: cpu)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only what has a target, and no memory on the CPU: about 2 minutes on 2 cores",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also run the grid_sample path under torch.compile, which needs a C++ compiler",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        help="rounds of each race, at least 2; short races get more (default: 15, of training 5)",
    )
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's own)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="also write NAME-ops.txt, .json and .png there, NAME-ops-quick with --quick; NAME is "
        "cpu or the GPU's; of training cpu-training.txt and .json (default: only print)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
