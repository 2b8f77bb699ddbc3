"""Who wrote the code behind an equation: a library, we, or the user."""

from __future__ import annotations

import functools
import importlib.util
import pathlib
import sysconfig
from collections.abc import Iterator
from typing import Any, NamedTuple

PACKAGES = tuple(
    str(pathlib.Path(__file__).resolve().parent.parent / name)
    for name in ("ppl", "transforms", "estimators")
)
"""Ours."""


class Called(NamedTuple):
    """A function behind an equation, the library that it comes from (None: the user's), its file.

    Of our own functions the library is ``"ppl"``.
    """

    name: str
    library: str | None
    module: str = ""


def called_function(eqn: Any, sub: Any) -> Called:
    """The function that a ``jit`` (or a relative) stands for."""
    name, _, place = (sub.jaxpr.debug_info.func_src_info or "").partition(" at ")
    return Called(eqn.params.get("name") or name, _library(place.rpartition(":")[0]))


def frames(eqn: Any) -> Iterator[Called]:
    """The functions of libraries that the user's code was in when an equation was traced.

    The innermost ones, up to the first that is the user's.
    """
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        file = frame.file_name
        if is_users(file):
            return
        library = "ppl" if _is_ours(file) else _library(file)
        if library is not None:
            module = pathlib.PurePath(file).stem
            yield Called(frame.function_name.rpartition(".")[2], library, module)


@functools.cache
def _is_ours(file: str) -> bool:
    return file.startswith(PACKAGES)


def is_within(eqn: Any, file: str) -> bool:
    """Whether an equation is of a function in ``file`` of JAX, and of none of the user's in it."""
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        if _library(frame.file_name) == "jax" and frame.file_name.endswith(file):
            return True
        if is_users(frame.file_name):
            return False
    return False


@functools.cache
def is_users(file: str) -> bool:
    """Whether a file is neither ours, nor of a library or of Python itself."""
    installed = sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")
    return not _is_ours(file) and not file.startswith(("<", *installed)) and _library(file) is None


@functools.cache
def _libraries() -> dict[str, str]:
    specs = {name: importlib.util.find_spec(name) for name in ("jax", "numpyro", "optax")}
    return {
        str(pathlib.Path(spec.origin).parent): name
        for name, spec in specs.items()
        if spec is not None and spec.origin is not None
    }


@functools.cache
def _library(file: str) -> str | None:
    return next((name for root, name in _libraries().items() if file.startswith(root)), None)
