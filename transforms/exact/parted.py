"""Matrix products of arrays a part of which is the same for all enumerated values.

``concatenate([x, one_hot(y)]) @ w``, for all values of y side by side, has data x as often as there
are values. It is ``x @ w[:n] + one_hot(y) @ w[n:]``, where the first product is computed once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jax

Makers = Mapping[Any, _jax.JaxprEqn]


def parted(closed: _jax.ClosedJaxpr) -> _jax.ClosedJaxpr:
    """The program with such products in parts; what it does not need any more is still there."""
    makers: dict[Any, _jax.JaxprEqn] = {}
    eqns: list[_jax.JaxprEqn] = []
    for eqn in closed.jaxpr.eqns:
        eqns += _parted(eqn, makers) if eqn.primitive is lax.dot_general_p else [eqn]
        if eqn.primitive in (lax.concatenate_p, lax.broadcast_in_dim_p):
            makers[eqn.outvars[0]] = eqn
    return _jax.with_equations(closed, eqns)


@dataclasses.dataclass(frozen=True)
class _Part:
    """A part of an array: ``variable`` as it is, or repeated to have ``shape``, but for those of
    its axes along which it is the same, where that has size 1."""

    variable: Any
    length: int
    shape: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()

    def __call__(self, x: jax.Array) -> jax.Array:
        return lax.broadcast_in_dim(x, self.shape, self.axes) if self.shape else x


def _parted(eqn: _jax.JaxprEqn, makers: Makers) -> Sequence[_jax.JaxprEqn]:
    """In parts, if at least half of the numbers that are multiplied are the same."""
    contracted, batch = eqn.params["dimension_numbers"]
    if eqn.params["out_sharding"] is not None:
        return [eqn]
    for side, v in enumerate(eqn.invars):
        joined = makers.get(v) if isinstance(v, _jax.Var) else None
        if joined is None or joined.primitive is not lax.concatenate_p:
            continue
        axis = joined.params["dimension"]
        if axis in contracted[side]:
            used = {*contracted[side], *batch[side]}
            parts = [_part(u, axis, used, makers.get(u)) for u in joined.invars]
            once = sum(p.length for p in parts if p.shape)
            if 2 * once >= sum(p.length for p in parts):
                return list(_in_parts(eqn, side, axis, parts))
    return [eqn]


def _part(v: Any, axis: int, used: set[int], maker: _jax.JaxprEqn | None) -> _Part:
    shape = v.aval.shape
    if maker is None or maker.primitive is not lax.broadcast_in_dim_p or len(maker.invars) > 1:
        return _Part(v, shape[axis])
    (x,), axes = maker.invars, maker.params["broadcast_dimensions"]
    own = dict(zip(axes, x.aval.shape, strict=True))  # type: ignore[attr-defined]
    small = tuple(n if a in used else own.get(a, 1) for a, n in enumerate(shape))
    if small == shape or not isinstance(x, _jax.Var):
        return _Part(v, shape[axis])
    return _Part(x, shape[axis], small, tuple(axes))


def _in_parts(
    eqn: _jax.JaxprEqn, side: int, axis: int, parts: Sequence[_Part]
) -> Iterator[_jax.JaxprEqn]:
    other, out = eqn.invars[1 - side], eqn.outvars[0]
    contracted, _ = eqn.params["dimension_numbers"]
    along = contracted[1 - side][contracted[side].index(axis)]

    def product(array: jax.Array, *xs: jax.Array) -> jax.Array:
        total: Any = None
        start = 0
        for part, x in zip(parts, xs, strict=True):
            piece = lax.slice_in_dim(array, start, start := start + part.length, axis=along)
            pair = (piece, part(x)) if side else (part(x), piece)
            y = eqn.primitive.bind(*pair, **eqn.params)
            total = y if total is None else total + y
        return jnp.broadcast_to(total, out.aval.shape)  # type: ignore[attr-defined]

    invars = [other, *(p.variable for p in parts)]
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in invars]
    jaxpr = _jax.traced(product, *avals).jaxpr
    names = {**dict(zip(jaxpr.invars, invars, strict=True)), jaxpr.outvars[0]: out}
    new = lambda v: names.get(v, v) if isinstance(v, _jax.Var) else v
    for e in jaxpr.eqns:
        named = e.replace(invars=list(map(new, e.invars)), outvars=list(map(new, e.outvars)))
        yield named.replace(source_info=eqn.source_info)


__all__ = ["parted"]
