"""The names of a package whose files are imported when a name is first used (PEP 562).

The package lists its imports under ``if TYPE_CHECKING:``, where readers and type checkers find
them. So ``import ppl`` costs hardly more than ``import numpyro``.
"""

import ast
import importlib
import pathlib
import sys
from collections.abc import Callable
from typing import Any


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package."""
    module: Any = sys.modules[package]
    where = _listed(ast.parse(pathlib.Path(module.__file__).read_text()))

    def get(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if name not in where:
            raise get("_not_in_ppl")(name, module.__all__, module.dist)
        value = _of(*where[name], package)
        setattr(module, name, value)
        return value

    return get, lambda: sorted(module.__all__)


def _listed(package: ast.Module) -> dict[str, tuple[str | None, str, str]]:
    """Of each name the module that it is imported from, its dots, and its name there."""
    (block,) = (node for node in package.body if isinstance(node, ast.If))
    return {
        alias.asname or alias.name: (node.module, "." * node.level, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _of(module: str | None, dots: str, name: str, package: str) -> Any:
    """A name of a module, or a module of a package, as ``from module import name`` has it."""
    if module is None:
        return importlib.import_module(f"{dots}{name}", package)
    held = importlib.import_module(f"{dots}{module}", package)
    if hasattr(held, name):
        return getattr(held, name)
    return importlib.import_module(f"{dots}{module}.{name}", package)
