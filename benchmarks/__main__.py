"""`python -m benchmarks ops [--rounds N] [--threads N]`."""

import argparse

import torch

import mask2former_ops.__main__
from benchmarks import ops


def main() -> None:
    """Prints what was measured on, then the tables of one subject."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("subject", choices=["ops"])
    parser.add_argument("--rounds", type=int, default=15, help="rounds, at least 2 (default: 15)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's own)")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2, or there is no spread")
    if options.threads is not None:
        if options.threads < 1:
            parser.error("--threads must be at least 1")
        torch.set_num_threads(options.threads)
    print(mask2former_ops.__main__.report())
    print(f"threads         {torch.get_num_threads()}\n")
    ops.run(options.rounds)


if __name__ == "__main__":
    main()
