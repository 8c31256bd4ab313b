"""`python -m tests.training.launched ARGUMENTS` is `mask2former ARGUMENTS` with repeatable points.

The points that the loss samples are random for each mask in turn, so they depend on which masks a
process has. Here every mask has the same, so that several processes can be compared with one.
"""

import sys
from unittest import mock

import torch

from mask2former.cli import main


def same_for_every_mask(*shape, **options) -> torch.Tensor:
    """`torch.rand`, but points (M, P, 2) are the same for each of the M."""
    if len(shape) == 3 and shape[2] == 2:
        generator = torch.Generator().manual_seed(shape[1])
        return rand(1, *shape[1:], generator=generator, **options).expand(shape)
    return rand(*shape, **options)


rand = torch.rand

if __name__ == "__main__":
    with mock.patch.object(torch, "rand", same_for_every_mask):
        sys.exit(main(sys.argv[1:]))
