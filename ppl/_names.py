"""The names of a package whose files are imported when a name is first used (PEP 562).

The stub beside the package, ``__init__.pyi``, has a line for each: ``from .file import name``.
Type checkers read it as it is. So ``import ppl`` costs no more than ``import numpyro``.
"""

import ast
import importlib
import pathlib
from collections.abc import Callable
from typing import Any


def attach(
    package: str, file: str, unknown: Callable[[str, list[str]], AttributeError]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package.

    Args:
        package, file: its ``__name__`` and ``__file__``.
        unknown: from a name that it does not have and those that it has, the error to raise.
    """
    stub = ast.parse(pathlib.Path(file).with_suffix(".pyi").read_text())
    where = {
        alias.asname or alias.name: (node.module, "." * node.level, alias.name)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    public: list[str] = ast.literal_eval(stub.body[-1].value)  # type: ignore[attr-defined]

    def get(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if name not in where:
            raise unknown(name, public)
        value = _of(*where[name], package)
        setattr(importlib.import_module(package), name, value)
        return value

    return get, lambda: sorted(public), public


def _of(module: str | None, dots: str, name: str, package: str) -> Any:
    """A name of a module, or a module of a package, as ``from module import name`` has it."""
    if module is None:
        return importlib.import_module(f"{dots}{name}", package)
    held = importlib.import_module(f"{dots}{module}", package)
    if hasattr(held, name):
        return getattr(held, name)
    return importlib.import_module(f"{dots}{module}.{name}", package)
