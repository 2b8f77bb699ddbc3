"""Compiled code, shared by functions that compute the same.

A notebook makes its model, its guide and its objective anew when their cells run again, and
``ppl.infer`` makes new functions at every call: ``jax.jit``, which knows a function by its
identity, compiles each of them. Here a function is traced, and known by its equations; what it
closes over is an input. So the same model with other data costs the tracing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from .content import program_content
from .operands import written

KEPT = 64
"""Programs whose code is kept, those that were used last."""


@final
class _Program:
    """A program that is only ever run: equal where the equations are."""

    def __init__(self, closed: _jax.ClosedJaxpr):
        self.closed = closed
        self._content = program_content(closed)
        self._hash = hash(self._content)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Program) and self._content == other._content


@functools.lru_cache(maxsize=KEPT)
def _code(program: _Program) -> Callable[..., list[Any]]:
    return jax.jit(functools.partial(_jax.evaluate, program.closed))


def compiled(f: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """``f``, traced once, for arguments of the shapes and types of these."""
    if _jax.is_bare():
        return f
    closed, consts, out = _jax.trace(f, *args)
    code, tree = _code(_Program(closed)), jax.tree.structure(out)
    return lambda *args: jax.tree.unflatten(tree, code(*consts, *jax.tree.leaves(args)))


def computed(f: Callable[..., Any], *args: Any) -> Any:
    """``f(*args)``, by compiled code."""
    return compiled(f, *args)(*args)


def at_once(f: Callable[..., Any], *args: Any) -> Any:
    """``f(*args)``, by compiled code where no transformation of JAX (``jit``, ``vmap``, ``grad``,
    ...) runs it: JAX would compile each of its operations there, which takes seconds. The same
    code does for other numbers in its place, as in a loop over parameters."""
    if isinstance(jnp.zeros(()), _jax.Tracer) or _jax.is_bare():
        return f(*args)
    closed, consts, out = _jax.trace(f, *args)
    closed, numbers = with_numbers(closed)
    found = _code(_Program(closed))(*numbers, *consts, *jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(out), found)


def shape_of(x: Any) -> tuple[Any, ...]:
    """What compiled code depends on of an argument."""
    aval = jax.typeof(x)
    return aval.shape, aval.dtype, aval.weak_type


def with_numbers(closed: _jax.ClosedJaxpr) -> tuple[_jax.ClosedJaxpr, list[np.ndarray]]:
    """The program with the floating-point numbers written in it as inputs in front; and these.

    0 and 1 stay, since XLA drops what they do.
    """
    jaxpr = closed.jaxpr
    found = {written(v): v for e in jaxpr.eqns for v in e.invars if _is_number(v)}
    avals = [v.aval for v in found.values()]
    new = jax.make_jaxpr(lambda *xs: xs)(*avals).jaxpr.invars  # variables of these types
    inputs = dict(zip(found, new, strict=True))
    read = lambda v: inputs[written(v)] if _is_number(v) else v
    eqns = [e.replace(invars=[*map(read, e.invars)]) for e in jaxpr.eqns]
    opened = _jax.open_jaxpr(jaxpr, [*new, *jaxpr.invars], jaxpr.outvars, eqns)
    numbers = [np.asarray(v.val, np.result_type(v.val)) for v in found.values()]
    return _jax.ClosedJaxpr(opened.jaxpr, closed.consts), numbers


def _is_number(v: Any) -> bool:
    return isinstance(v, _jax.Literal) and _is_real(v.aval) and float(v.val) not in (0.0, 1.0)


def _is_real(aval: Any) -> bool:
    return aval.shape == () and jnp.issubdtype(aval.dtype, np.floating)
