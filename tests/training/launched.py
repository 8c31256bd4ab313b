"""`python -m tests.training.launched ARGUMENTS` is `mask2former ARGUMENTS` with repeatable points.

The points that the loss samples are random for each mask in turn, so they depend on which masks a
process has. Here every mask has the same, so that several processes can be compared with one.
"""

import sys

from mask2former.cli import main
from tests.reference import same_points

if __name__ == "__main__":
    with same_points():
        sys.exit(main(sys.argv[1:]))
