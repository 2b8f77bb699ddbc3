"""Objects compared by what they are made of.

``optax.adam(1e-2)`` makes new functions at every call; a second fit with an equal optimizer must
not compile again.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from .operands import written


@final
class ByContent:
    """An object as a static argument: closures are equal by code and what they close over."""

    def __init__(self, value: Any):
        self.value = value
        self._content = _content(value)

    def __hash__(self) -> int:
        return hash(self._content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByContent) and self._content == other._content


def closed_over(f: types.FunctionType) -> dict[str, Any]:
    """What a function closes over, by name; a variable that was never set is left out."""
    cells: dict[str, Any] = {}
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        try:
            cells[name] = cell.cell_contents
        except ValueError:  # an empty cell: the name is assigned in another branch
            continue
    return cells


def reachable(f: Any) -> list[types.FunctionType]:
    """The functions that a function may call because it closes over them, itself first."""
    found: list[types.FunctionType] = []
    seen: set[int] = set()
    left = [f]
    while left:
        x = left.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        if isinstance(x, types.FunctionType):
            found.append(x)
            left += closed_over(x).values()
        elif isinstance(x, types.MethodType):
            left += [x.__func__, *getattr(x.__self__, "__dict__", {}).values()]
        elif isinstance(x, functools.partial):
            left += [x.func, *x.args, *x.keywords.values()]
        elif isinstance(x, tuple | list):
            left += x
        elif isinstance(x, dict):
            left += x.values()
    return found


def arguments_of(f: types.FunctionType) -> tuple[str, ...]:
    """The names of the arguments of a function, but for ``*args`` and ``**kwargs``."""
    code = f.__code__
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _constants(f: types.FunctionType) -> dict[str, Any]:
    """Numbers and the like that a function reads from its module."""
    found: dict[str, Any] = {}
    codes = [f.__code__]
    for code in codes:
        codes.extend(c for c in code.co_consts if isinstance(c, types.CodeType))
        found.update((n, f.__globals__[n]) for n in code.co_names if n in f.__globals__)
    plain = str | bytes | bool | int | float | complex | np.ndarray | np.generic | jax.Array
    return {n: v for n, v in found.items() if isinstance(v, plain)}


def _content(x: Any, around: tuple[int, ...] = ()) -> Any:
    if id(x) in around:  # a function that closes over itself
        return around.index(id(x))
    inside = (*around, id(x))
    if isinstance(x, types.FunctionType):
        parts = (closed_over(x), _constants(x), x.__defaults__ or (), x.__kwdefaults__ or {})
        return x.__code__, id(x.__globals__), tuple(_content(p, inside) for p in parts)
    if isinstance(x, types.MethodType):
        return types.MethodType, _content(x.__func__, inside), _content(x.__self__, inside)
    if isinstance(x, functools.partial):
        return functools.partial, tuple(_content(p, inside) for p in (x.func, x.args, x.keywords))
    if isinstance(x, tuple | list):
        return type(x), tuple(_content(p, inside) for p in x)
    if isinstance(x, dict):
        return type(x), tuple((_content(k, inside), _content(v, inside)) for k, v in x.items())
    if isinstance(x, _jax.Tracer):
        return _Same(x)
    if isinstance(x, np.ndarray | np.generic | jax.Array) and not jnp.issubdtype(
        x.dtype, jax.dtypes.prng_key
    ):
        return str(x.dtype), x.shape, np.asarray(x).tobytes()
    if isinstance(x, str | bytes | bool | int | float | complex | type | None):
        return type(x), repr(x) if isinstance(x, float | complex) else x
    return _Same(x)


@dataclasses.dataclass(frozen=True, eq=False)
class _Same:
    """Anything else is equal to itself alone."""

    x: Any

    def __hash__(self) -> int:
        return id(self.x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.x is other.x


# --- programs -------------------------------------------------------------------------------------


_ONLY_RUN = {
    "custom_jvp_call": ["call_jaxpr"],
    "custom_vjp_call": ["call_jaxpr"],
    "custom_vmap_call": ["call"],
}
"""What counts of the parameters of an equation that is run and no more; of others all do."""


def program_content(closed: _jax.ClosedJaxpr) -> Any:
    """What a program computes; derivative and batching rules, which nothing asks for, left out."""
    return _equations(closed.jaxpr), tuple(map(_content, closed.consts))


def _equations(jaxpr: _jax.Jaxpr) -> Any:
    numbers: dict[Any, int] = {}

    def read(v: Any) -> Any:
        if isinstance(v, _jax.Literal):
            return written(v)
        return numbers.setdefault(v, len(numbers))

    inputs = [*jaxpr.constvars, *jaxpr.invars]
    named = [(read(v), v.aval) for v in inputs]

    def what(e: _jax.JaxprEqn) -> Any:
        f = _jax.function_of(e)
        if f is not None:
            return program_content(_jax.traced(f, *(v.aval for v in e.invars)))
        return tuple(
            (name, parameter(e.params[name]))
            for name in _ONLY_RUN.get(e.primitive.name, sorted(e.params))
        )

    eqns = [
        (
            e.primitive,
            what(e),
            tuple(map(read, e.invars)),
            tuple((read(v), v.aval) for v in e.outvars),
            str(e.ctx),
        )
        for e in jaxpr.eqns
    ]
    return tuple(named), tuple(eqns), tuple(map(read, jaxpr.outvars))


def parameter(x: Any) -> Any:
    """The content of a parameter of an equation."""
    if isinstance(x, _jax.ClosedJaxpr):
        return program_content(x)
    if isinstance(x, _jax.Jaxpr):
        return _equations(x)
    if isinstance(x, tuple | list):
        return type(x), tuple(map(parameter, x))
    if isinstance(x, np.ndarray | float | complex):
        return _content(x)
    try:
        hash(x)
    except TypeError:
        return _Same(x)
    return type(x), x  # a function is equal to itself alone: it may write somewhere
