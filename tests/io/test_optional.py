"""Packages that only some uses need."""

import pytest

from mask2former.io.errors import DataError
from mask2former.io.optional import require_package


def test_a_missing_package_is_named_with_its_remedy():
    message = (
        "A backbone needs the package no_such_package, which is not installed; "
        r"pip install mask2former\[no_such_package\]\."
    )
    with pytest.raises(DataError, match=f"^{message}$"):
        require_package("no_such_package", "A backbone")


def test_the_name_that_pip_knows_a_package_by_may_be_another():
    with pytest.raises(DataError, match=r"pip install mask2former\[eval\]\.$"):
        require_package("no_such_package", "AP", install="mask2former[eval]")


def test_a_package_that_is_there_passes():
    require_package("torch", "Everything")
