"""`python -m mask2former` is the `mask2former` command."""

from mask2former.cli import main

raise SystemExit(main())
