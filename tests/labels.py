"""How large the bias of a program was measured to be, kept until the program changes.

A program is known by a digest of what it does: the byte code of its functions and of those of the
tests that they call, and the values in their closures. On another version of Python the digests
are others, and everything is measured again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
import re
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

FILE = pathlib.Path(__file__).parent / "labels.json"
NUMBERS = "off", "error", "scale"
Measured = tuple[np.ndarray, np.ndarray, np.ndarray]


def digest(*parts: Any) -> str:
    """A name for what functions do, and for values."""
    return hashlib.sha256("\n".join(_words(parts, {})).encode()).hexdigest()[:16]


def measured(name: str, parts: Any, measure: Callable[[], Measured]) -> Measured:
    """What is kept of a program, if it has not changed since."""
    entry = kept().get(name)
    if entry is None or entry["digest"] != digest(parts):
        return measure()
    off, error, scale = (np.array(entry[k]) for k in NUMBERS)
    return off, error, scale


@functools.cache
def kept() -> Mapping[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def write(programs: Mapping[str, tuple[Any, Measured]]) -> None:
    """Keep what was measured."""
    rounded = lambda a: [float(f"{x:.4g}") for x in np.ravel(a)]
    entries = {
        name: {"digest": digest(parts), **dict(zip(NUMBERS, map(rounded, m), strict=True))}
        for name, (parts, m) in programs.items()
    }
    lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _words(x: Any, seen: dict[int, Any]) -> list[str]:
    if x is None or isinstance(x, str | bytes | int | float | complex):
        return [repr(x)]
    if isinstance(x, dict):
        return [w for k, v in x.items() for w in [repr(k), *_words(v, seen)]]
    if isinstance(x, set | frozenset):
        return sorted(w for v in x for w in _words(v, seen))
    if isinstance(x, list | tuple):
        return [w for v in x for w in _words(v, seen)]
    if id(x) in seen:
        return []
    seen[id(x)] = x
    if isinstance(x, types.CodeType):
        return [x.co_code.hex(), *map(repr, x.co_names), *_words(x.co_consts, seen)]
    if isinstance(x, types.FunctionType):
        return _of_function(x, seen)
    if isinstance(x, types.ModuleType | type | types.BuiltinFunctionType):
        return [x.__name__]
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return [str(np.shape(x)), *(f"{v:.6g}" for v in np.ravel(x))]  # in 32 or 64 bits
    if isinstance(x, functools.partial):
        return _words([x.func, x.args, x.keywords], seen)
    if hasattr(x, "__wrapped__"):
        return _words(x.__wrapped__, seen)
    inside = {k: v for k, v in getattr(x, "__dict__", {}).items() if not k.startswith("__")}
    return [type(x).__qualname__, *_words(inside, seen)] if inside else [_without_address(x)]


def _without_address(x: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(x))


def _of_function(f: types.FunctionType, seen: dict[int, Any]) -> list[str]:
    """A function of the tests with all that it uses; of others the name."""
    if FILE.parent not in pathlib.Path(f.__code__.co_filename).parents:
        return [f"{f.__module__}.{f.__qualname__}"]
    cells = [c.cell_contents for c in f.__closure__ or ()]
    used = {n: f.__globals__[n] for n in _names(f.__code__) if n in f.__globals__}
    parts = [f.__code__, f.__defaults__, f.__kwdefaults__, cells, dict(sorted(used.items()))]
    return _words(parts, seen)


def _names(code: types.CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))
