"""Packages that only some uses need."""

from __future__ import annotations

from importlib.util import find_spec

from mask2former.io.errors import DataError


def require_package(package: str, what: str, install: str | None = None) -> None:
    """Make sure of a package before it is imported.

    Args:
        package: the name that it is imported by, "timm" for example.
        what: what needs it; begins the message.
        install: what pip installs it as; by default the extra of this package that has its name.

    Raises:
        DataError: the package is missing; says the command that installs it.
    """
    if find_spec(package) is None:
        raise DataError(
            f"{what} needs the package {package}, which is not installed; "
            f"pip install {install or f'mask2former[{package}]'}."
        )
