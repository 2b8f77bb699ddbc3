"""Packages that a user may or may not have: found when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from transforms import _jax


def optional(module: str, extra: str) -> ModuleType:
    """A module of a package that one of our extras brings.

    Raises:
        ImportError: it is not installed; says what to type.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != missing:
            raise
        package = missing.replace("_", "-")
        raise ImportError(
            f"what is asked for at {_jax.user_line()} needs {package}: pip install {package}, or "
            f"pip install 'programmable-vi[{extra}]'."
        ) from None
