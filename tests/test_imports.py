"""Imports point one way: from a layer to the layers below it, and never in a cycle."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import mask2former
import mask2former_ops

# From the top to the bottom. A layer may import the layers below it.
LAYERS = [
    *("__main__", "cli", "training", "evaluation", "predictor", "data", "scenes"),
    *("modeling", "losses", "model", "checkpoints", "images", "configuration", "io"),
]
PACKAGE = Path(mask2former.__file__).parent


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """What a file imports anywhere, in functions and for types too: (module, name in it or "")."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((name.name, "") for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from ((node.module, name.name) for name in node.names)


def module_name(path: Path, package: Path) -> str:
    parts = [package.name, *path.relative_to(package).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def graph(package: Path) -> dict[str, set[str]]:
    """Each module of a package with the modules of the package that it imports."""
    files = {module_name(path, package): path for path in sorted(package.rglob("*.py"))}
    modules = {}
    for module, path in files.items():
        named = ((f"{other}.{name}", other) for other, name in imports(path))
        found = {inner if inner in files else other for inner, other in named}
        modules[module] = found & files.keys() - {module}
    return modules


def layer(module: str) -> str:
    return module.split(".")[1]


def test_a_layer_imports_only_layers_below_it():
    modules = graph(PACKAGE)
    del modules[PACKAGE.name]  # offers names of all layers
    wrong = [
        f"{module} imports {other}"
        for module, others in modules.items()
        for other in others - {PACKAGE.name}
        if LAYERS.index(layer(other)) < LAYERS.index(layer(module))
    ]
    assert not wrong


def test_no_module_imports_itself_through_others():
    for package in (PACKAGE, Path(mask2former_ops.__file__).parent):
        modules = graph(package)
        # The package's own file offers names of the layers at first use. That is no cycle.
        modules[package.name] = set()
        TopologicalSorter(modules).prepare()  # raises CycleError, which names the modules


def test_the_ops_know_nothing_of_the_model():
    package = Path(mask2former_ops.__file__).parent
    for path in package.rglob("*.py"):
        assert not [name for name, _ in imports(path) if name.split(".")[0] == "mask2former"], path
