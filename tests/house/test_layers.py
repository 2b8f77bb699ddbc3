"""Imports point down: no circle, none inside a function, no private name of another file."""

from __future__ import annotations

import ast
import graphlib
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = "transforms", "estimators", "ppl"
"""A package imports those before it only."""
FLOORS = {
    "transforms": (
        *(
            "errors",
            "authors",
            "_jax",
            "program",
            "numeric",
            "estimation",
            "runs",
            "analyses",
            "exact",
            "plan",
        ),
        *("smoothness", "checker", "gradient"),
    ),
    "estimators": (),
    "ppl": ("_beside", "programs", "guides", "objectives", "fitting", "inference"),
}
"""So does a folder of a package; what is in none stands on top."""


def files(root: pathlib.Path) -> dict[str, ast.Module]:
    """The modules below ``root``, by their names."""
    paths = [p for package in PACKAGES for p in sorted((root / package).rglob("*.py"))]
    name = lambda p: ".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    return {name(p): ast.parse(p.read_text()) for p in paths}


def imports(module: str, tree: ast.Module, known: set[str]) -> Iterator[tuple[ast.AST, str, str]]:
    """The statements of a module that import, with the module and the name that they import."""
    package = (
        module if any(k.startswith(f"{module}.") for k in known) else module.rpartition(".")[0]
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name, "") for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            for alias in node.names:
                inside = f"{start}.{alias.name}"
                yield (node, inside, "") if inside in known else (node, start, alias.name)


def floor(module: str) -> tuple[int, int]:
    """How high a module stands."""
    package, _, rest = module.partition(".")
    inside, floors = rest.partition(".")[0], FLOORS[package]
    height = floors.index(inside) if inside in floors else len(floors)
    return PACKAGES.index(package), height


def problems(root: pathlib.Path) -> list[str]:
    """What is wrong with the imports below ``root``."""
    trees, found = files(root), []
    graph: dict[str, set[str]] = {}
    for module, tree in trees.items():
        graph[module] = set()
        # an optional extra; what a package lists for its first use
        blocks = [t for t in tree.body if isinstance(t, ast.Try | ast.If)]
        top = {*tree.body, *(n for t in blocks for n in t.body)}
        for node, target, name in imports(module, tree, set(trees)):
            where = f"{module}:{node.lineno}"  # type: ignore[attr-defined]
            if node not in top:
                found.append(f"{where} imports inside a function")
            if target in trees and target != module:
                graph[module].add(target)
            if target.split(".")[0] in PACKAGES and name.startswith("_"):
                found.append(f"{where} takes the private {name}")
            if target in trees and floor(target) > floor(module):
                found.append(f"{where} imports {target}, which is above")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f"circle: {' -> '.join(error.args[1])}")
    return found


def test_imports_point_down():
    assert not problems(ROOT)


WRONG = {
    "circle": {"transforms/a.py": "from . import b", "transforms/b.py": "from .a import x"},
    "inside a function": {"ppl/a.py": "def f():\n    import numpy\n"},
    "private": {"ppl/a.py": "from .b import _x", "ppl/b.py": "_x = 1"},
    "above": {"transforms/a.py": "from ppl.b import x", "ppl/b.py": "x = 1"},
    "which is above": {
        "transforms/program/a.py": "from ..exact.b import x",
        "transforms/exact/b.py": "x = 1",
    },
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_found(what, tmp_path):
    for path, text in WRONG[what].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (problem,) = problems(tmp_path)
    assert what in problem
