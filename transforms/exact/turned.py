"""Transposes are put off.

Enumerated values are the first axis of what depends on them, and the last one of the tables that
are read: such a table stays as it is, and what is computed from it, number by number, is turned
with it. What it meets, if made of smaller arrays number by number, is made in that order at once
(:class:`_Late`), else turned the other way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jax
from ..analyses.primitives import elementwise, of
from ..program.shared import shared

LEAST = 2**10
"""Smaller arrays are turned at once."""
_TURN = lax.transpose_p, lax.gather_p


class _Turned(NamedTuple):
    """An array of a program, which ``stored`` is with its axes in another ``order``."""

    stored: jax.Array
    order: tuple[int, ...]

    @property
    def whole(self) -> jax.Array:
        return _in_order(self, range(len(self.order)))


class _Late:
    """The result of an equation, which is computed when it is first asked for, in the order of axes
    in which it is."""

    def __init__(self, eqn: _jax.JaxprEqn, ins: list[Any]):
        self.eqn, self.ins = eqn, ins
        self.found: Any = None

    def in_order(self, order: Sequence[int]) -> jax.Array:
        if self.found is None:
            make = _broadcast_in if self.eqn.primitive is lax.broadcast_in_dim_p else _elementwise
            self.found, self.ins = make(self.eqn, self.ins, order), []
        return _in_order(self.found, order)

    @property
    def whole(self) -> jax.Array:
        return self.in_order(range(self.eqn.outvars[0].aval.ndim))  # type: ignore[attr-defined]


def evaluate(closed: _jax.ClosedJaxpr, *args: Any) -> list[Any]:
    """The results of the program."""
    jaxpr = closed.jaxpr
    if not any(e.primitive in _TURN and _is_large(e) for e in jaxpr.eqns):
        return _jax.evaluate(*shared([closed]), *args)
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        ins = [env[v] if isinstance(v, _jax.Var) else v.val for v in eqn.invars]
        outs = _turned(eqn, ins)
        if outs is None:
            outs = _jax.evaluate_equation(eqn, list(map(_whole, ins)))
        env.update(zip(eqn.outvars, outs, strict=True))
    read = lambda v: _whole(env[v]) if isinstance(v, _jax.Var) else v.val
    return list(map(read, jaxpr.outvars))


def _is_large(eqn: _jax.JaxprEqn) -> bool:
    return math.prod(eqn.outvars[0].aval.shape) >= LEAST  # type: ignore[attr-defined]


def _whole(x: Any) -> Any:
    return x.whole if isinstance(x, _Turned | _Late) else x


def _in_order(x: Any, order: Sequence[int]) -> jax.Array:
    """The numbers with their axes in this order."""
    if isinstance(x, _Late):
        return x.in_order(order)
    if not isinstance(x, _Turned):
        x = _Turned(x, tuple(range(x.ndim)))
    to = [x.order.index(a) for a in order]
    return x.stored if to == sorted(to) else lax.transpose(x.stored, to)


def _turned(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any] | None:
    """The results, if they need not be turned."""
    name = eqn.primitive.name
    if name == "transpose" and (isinstance(ins[0], _Turned) or _is_large(eqn)):
        x, p = ins[0], list(eqn.params["permutation"])
        if isinstance(x, _Late):
            return [x.in_order(p)]
        x = x if isinstance(x, _Turned) else _Turned(x, tuple(range(x.ndim)))
        return [_as_is(x.stored, [p.index(a) for a in x.order])]
    if name == "gather" and _is_large(eqn):
        return _gathered(eqn, list(map(_whole, ins)))
    turned = next((x for x in ins if isinstance(x, _Turned)), None)
    if len(eqn.outvars) != 1:
        return None
    if turned is not None and name in _RULES:
        return [_RULES[name](turned, eqn.params)]
    if name == "broadcast_in_dim" and _is_large(eqn) and eqn.params["sharding"] is None:
        return [_Late(eqn, list(map(_whole, ins)))]
    arrays = [x for v, x in zip(eqn.invars, ins, strict=True) if v.aval.ndim]  # type: ignore[attr-defined]
    rank = eqn.outvars[0].aval.ndim  # type: ignore[attr-defined]
    ranks = {v.aval.ndim for v in eqn.invars}  # type: ignore[attr-defined]
    if of(eqn).axes is not elementwise or not ranks <= {0, rank} or name in _SHAPED:
        return None
    if turned is not None:
        return [_elementwise(eqn, ins, turned.order)]
    size = math.prod(eqn.outvars[0].aval.shape)  # type: ignore[attr-defined]
    free = lambda x: x.found is None if isinstance(x, _Late) else x.size < size
    late = _is_large(eqn) and bool(arrays) and all(map(free, arrays))
    return [_Late(eqn, ins)] if late else None


def _elementwise(eqn: _jax.JaxprEqn, ins: Sequence[Any], order: Sequence[int]) -> Any:
    operands = [
        _in_order(x, order) if v.aval.ndim else x  # type: ignore[attr-defined]
        for v, x in zip(eqn.invars, ins, strict=True)
    ]
    return _as_is(_jax.evaluate_equation(eqn, operands)[0], order)


def _broadcast_in(eqn: _jax.JaxprEqn, ins: Sequence[Any], order: Sequence[int]) -> Any:
    """The small array is turned."""
    x, dims, shape = ins[0], eqn.params["broadcast_dimensions"], eqn.params["shape"]
    at = sorted((order.index(a), k) for k, a in enumerate(dims))
    small = lax.transpose(jnp.asarray(x), [k for _, k in at]) if at else x
    return _as_is(
        lax.broadcast_in_dim(small, [shape[a] for a in order], [to for to, _ in at]), order
    )


_SHAPED = frozenset({"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "rev", "sharding"})


def _as_is(stored: jax.Array, order: Sequence[int]) -> Any:
    return stored if list(order) == sorted(order) else _Turned(stored, tuple(order))


def _broadcast(x: _Turned, p: Any) -> Any:
    dims, shape = p["broadcast_dimensions"], p["shape"]
    own = [int(dims[a]) for a in x.order]
    order = [*own, *(a for a in range(len(shape)) if a not in own)]
    return _as_is(lax.broadcast_in_dim(x.stored, [shape[a] for a in order], range(len(own))), order)


def _without(x: _Turned, axes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Where these axes are, and the order of the others without them."""
    at = [k for k, a in enumerate(x.order) if a in axes]
    return at, [a - sum(b < a for b in axes) for a in x.order if a not in axes]


def _gathered(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any]:
    """Rows, whose numbers are the last axes.

    They are read in the form in which XLA adds them up for the derivative, one axis of places and
    all axes of the array behind it: of any other it makes a copy of all numbers.
    """
    numbers, (array, places) = eqn.params["dimension_numbers"], ins
    shape, rows = eqn.outvars[0].aval.shape, numbers.offset_dims  # type: ignore[attr-defined]
    order = [*(a for a in range(len(shape)) if a not in rows), *map(int, rows)]
    last = tuple(range(len(shape) - len(rows), len(shape)))
    numbers = numbers._replace(offset_dims=last)
    if not numbers.operand_batching_dims:
        places = places.reshape(-1, places.shape[-1])
        all_axes = tuple(range(1, 1 + array.ndim))
        numbers = numbers._replace(offset_dims=all_axes, collapsed_slice_dims=())
    params = {**eqn.params, "dimension_numbers": numbers}
    read = lax.gather_p.bind(array, places, **params)
    return [_as_is(read.reshape([shape[a] for a in order]), order)]


def _squeeze(x: _Turned, p: Any) -> Any:
    at, order = _without(x, p["dimensions"])
    return _as_is(lax.squeeze(x.stored, at), order)


def _sum(x: _Turned, p: Any) -> Any:
    at, order = _without(x, p["axes"])
    return _as_is(lax.reduce_sum(x.stored, at), order)


_RULES: dict[str, Any] = {
    "broadcast_in_dim": _broadcast,
    "squeeze": _squeeze,
    "reduce_sum": _sum,
}

__all__ = ["evaluate"]
