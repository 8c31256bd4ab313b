"""The package's public names."""

import ast
import subprocess
import sys
from pathlib import Path

import mask2former


def test_every_public_name_can_be_imported_and_is_visible_to_type_checkers():
    source = ast.parse(Path(mask2former.__file__).read_text())
    (typed,) = (node for node in source.body if isinstance(node, ast.If))
    names = {name.name for node in typed.body for name in node.names}
    assert names == set(mask2former.__all__) - {"BUNDLED_MODEL"}
    for name in mask2former.__all__:
        assert getattr(mask2former, name) is not None
    assert (Path(mask2former.__file__).parent / "py.typed").exists()


def test_importing_the_package_does_not_import_torch():
    code = "import mask2former, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
