"""Programs that passed a test of what they draw or compute: tested again where they change.

What a compiled program returns is a function of its equations, its constants and its arguments,
and so is the verdict of a test on it. Tests that compile for long trace the program first and ask
for its digest here; where it is kept they are done. A change of the library that changes a single
equation of it, or another claim, has another digest: then the program is compiled and tested as
if nothing were kept. ``bash .ci/measure`` keeps nothing, tests all, and writes ``kept.txt`` anew.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import bits
import jax
import labels
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

FILE = pathlib.Path(__file__).parent / "kept.txt"
KEEP = "KEEP_WHAT_PASSES"
PLACES = re.compile(r" at 0x[0-9a-f]+|\S*\.py:\d+(:\d+)?")
"""Where an object is in memory, and where a program was written, which differ between machines."""


def passed(f: Callable[..., Any], args: Any, claim: Any, test: Callable[[], None]) -> None:
    """Run ``test``, unless it passed for this program.

    Args:
        f: a jitted function, whose values on ``args`` the test is about.
        args: its arguments, or their shapes: numbers that matter belong into the claim.
        claim: what the test holds the values to: arrays, numbers, functions of the tests.
        test: raises an error where the values are wrong.
    """
    numbers(f, args, claim, lambda: test() or ())


def numbers(
    f: Callable[..., Any], args: Any, claim: Any, measure: Callable[[], Sequence[float]]
) -> list[float]:
    """What was measured of a program by other means than the library's, to six digits."""
    if isinstance(f, functools.partial):
        f, args, kwargs = f.func, [*f.args, *args], f.keywords
    else:
        kwargs = {}
    name = digest(f.trace(*args, **kwargs).jaxpr, claim)
    if name in _kept():
        return _kept()[name]
    measured = [float(f"{x:.6g}") for x in measure()]
    if os.environ.get(KEEP):
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition("/")[2].removesuffix(" (call)")
        with FILE.open("a") as file:  # lines of several processes do not mix
            file.write(f"{name} {measured} {test}\n")
    return measured


@functools.cache
def _kept() -> dict[str, list[float]]:
    lines = FILE.read_text().splitlines() if FILE.exists() else []
    parts = [re.split("[][]", line, maxsplit=2) for line in lines]
    return {name.strip(): [*map(float, filter(None, ns.split(", ")))] for name, ns, _ in parts}


def digest(program: ClosedJaxpr, claim: Any) -> str:
    """A name for what a program computes, and for what it is held to."""
    return _hash(jax.__version__, _bits(), _program(program), labels.digest(_rounded(claim)))


@functools.cache
def _bits() -> str:
    """What the random bits of the tests are."""
    return pathlib.Path(bits.__file__).read_text()


def _rounded(claim: Any) -> Any:
    """With arrays for floats and keys, of which six digits count."""
    is_key = lambda x: hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    as_array = lambda x: jax.random.key_data(x) if is_key(x) else x
    return jax.tree.map(lambda x: np.asarray(x) if isinstance(x, float) else as_array(x), claim)


def _hash(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


@functools.lru_cache(64)
def _program(program: ClosedJaxpr | Jaxpr) -> str:
    """What the results of a program are: the order of its equations is no part of that."""
    jaxpr = getattr(program, "jaxpr", program)
    inputs = enumerate([*jaxpr.constvars, *jaxpr.invars])
    known: dict[Any, str] = {v: f"{i} {v.aval.str_short()}" for i, v in inputs}
    known |= zip(jaxpr.constvars, map(_array, getattr(program, "consts", ())), strict=False)
    show = lambda v: _array(v.val) if isinstance(v, Literal) else known[v]
    for eqn in jaxpr.eqns:
        made = _hash(eqn.primitive.name, *map(show, eqn.invars), *_parameters(eqn.params))
        known |= {v: f"{made} {i} {v.aval.str_short()}" for i, v in enumerate(eqn.outvars)}
    return _hash(*map(show, jaxpr.outvars))


def _parameters(params: dict[str, Any]) -> Iterator[str]:
    for name, p in sorted(params.items()):
        yield name
        for part in p if isinstance(p, tuple | list) else (p,):
            if isinstance(part, ClosedJaxpr | Jaxpr):
                yield _program(part)
            elif isinstance(part, np.ndarray | jax.Array):
                yield _array(part)
            elif callable(part):  # a rule of a derivative, which was taken
                yield getattr(part, "__qualname__", type(part).__name__)
            else:
                yield PLACES.sub("", repr(part))


def _array(a: Any) -> str:
    """To six digits: the last ones differ between processors."""
    if hasattr(a, "dtype") and jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
        a = jax.random.key_data(a)
    a = np.asarray(a)
    show = str if a.dtype.kind not in "fc" else lambda x: f"{x:.6g}"
    return f"{a.dtype}{list(a.shape)} " + " ".join(map(show, a.ravel().tolist()))
