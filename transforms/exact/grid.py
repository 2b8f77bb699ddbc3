"""A function at all points of a grid.

One ``vmap`` for each axis, so that what does not depend on an axis is not repeated for it. Of large
grids only a part is computed side by side, and the parts one after the other: in 32 bits the sum of
a million numbers one by one, as derivatives of indexing are, would lose some per cent. Where the
parts would keep more for the derivative than a budget, each is computed again for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _jax
from ..program.computed_once import computed_once
from ..program.control import control
from .parted import parted
from .read_at_once import read_at_once
from .spared import spared
from .turned import evaluate

AT_ONCE = 2**7
"""About how many points of a large grid are computed side by side."""
STEPS = 2**7
"""Most steps of a loop over such parts, and over loops."""
LARGE = 2**9
"""Larger grids are computed in parts, if they are not light."""
MOST = 2**16
"""Most points of a light grid; what is computed on the way has no more numbers, or than the results
have."""
BUDGET = 2**26
"""Most bytes that the parts of a grid keep for the derivative."""
READS = frozenset({"gather", "dynamic_slice"})
"""The derivative adds to one number after the other."""


def over_axes(f: Callable[..., Any], sizes: Sequence[int], spec: Any) -> Any:
    """``f(*indices)`` for all indices below ``sizes``.

    ``spec`` says on which axes the parts of the result depend, a frozenset of their numbers for
    each: those they have in front, in order, and no others.
    """
    if not sizes:
        return f()
    indices = [np.arange(n, dtype=jnp.result_type(int)) for n in sizes]
    large = _large(sizes, spec)
    few = max((math.prod(sizes[i] for i in g) for g in large), default=0) <= MOST
    for chunks in [*([sizes] if few else []), *([_chunks(sizes, large)] if large else [])]:
        each = f
        for i, chunk in reversed(list(enumerate(chunks))):
            each = _over_axis(each, i, sizes, spec, chunk)
        closed, consts, shapes = _jax.trace(each, *indices)
        read = read_at_once(closed, [*consts, *indices])
        program = _jax.live(spared(computed_once(parted(read))))
        if not large or _is_light(program):
            break
    outs = evaluate(program, *consts, *indices)
    return jax.tree.unflatten(jax.tree.structure(shapes), outs)


def _large(sizes: Sequence[int], spec: Any) -> list[frozenset[int]]:
    """The grids that have many points."""
    grids = set(jax.tree.leaves(spec, is_leaf=_is_grid))
    return [g for g in grids if math.prod(sizes[i] for i in g) > LARGE]


def _is_light(program: _jax.ClosedJaxpr) -> bool:
    """Whether many points may be computed at once: no sum over them is one by one, and nothing is
    much larger than what is asked for."""
    jaxpr = program.jaxpr
    most = max(MOST, *(v.aval.size for v in jaxpr.outvars))  # type: ignore[attr-defined]
    sizes = [(e, v.aval.size) for e in jaxpr.eqns for v in e.outvars]  # type: ignore[attr-defined]
    return all(
        n <= most and e.primitive.name not in READS and control(e) is None
        for e, n in sizes
        if n > LARGE
    )


def _chunks(sizes: Sequence[int], large: Sequence[frozenset[int]]) -> list[int]:
    """How many indices of each axis are taken side by side."""
    chunks = list(sizes)
    for i in reversed(range(len(sizes))):
        inner = (math.prod(chunks[j] for j in g if j > i) for g in large if i in g)
        chunks[i] = min(sizes[i], max(AT_ONCE // max(inner, default=1), 1))
    return chunks


def _is_grid(x: Any) -> bool:
    return isinstance(x, frozenset)


def _over_axis(
    f: Callable[..., Any], i: int, sizes: Sequence[int], spec: Any, chunk: int
) -> Callable[..., Any]:
    """``f`` for all indices of one axis."""
    if chunk < sizes[i]:
        return lambda *indices: _one_by_one(f, i, indices, spec, chunk)
    in_axes = tuple(0 if j == i else None for j in range(len(sizes)))
    out_axes = jax.tree.map(lambda on: 0 if i in on else None, spec, is_leaf=_is_grid)
    return jax.vmap(f, in_axes=in_axes, out_axes=out_axes, axis_size=sizes[i])


def _one_by_one(
    f: Callable[..., Any], i: int, indices: Sequence[jax.Array], spec: Any, chunk: int
) -> Any:
    """As :func:`_over_axis`, in chunks; what does not depend on the index is computed once."""

    def one(index: jax.Array) -> Any:
        return f(*(index if j == i else other for j, other in enumerate(indices)))

    index = jax.ShapeDtypeStruct((), indices[i].dtype)
    closed, consts, shapes = _jax.trace(one, index)
    env: dict[Any, Any] = dict(zip(closed.jaxpr.invars, consts, strict=False))
    inside, own = [], {closed.jaxpr.invars[-1]}
    for eqn in closed.jaxpr.eqns:
        if own.intersection(v for v in eqn.invars if _is_var(v)):
            inside.append(eqn)
            own.update(eqn.outvars)
        else:
            outs = _jax.evaluate_equation(eqn, [_read(env, v) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
    outvars = closed.jaxpr.outvars
    depend = [v for v in outvars if _is_var(v) and v in own]
    needed = list({v: None for e in inside for v in e.invars if _is_var(v) and v not in own})
    invars = [*needed, closed.jaxpr.invars[-1]]
    body = _jax.open_jaxpr(closed.jaxpr, invars, depend, inside)
    step = jax.vmap(lambda values, index: _jax.evaluate(body, *values, index), in_axes=(None, 0))
    if len(indices[i]) * _kept(body) > BUDGET:
        step = jax.checkpoint(step, prevent_cse=False)
    results = iter(_in_chunks(step, [env[v] for v in needed], indices[i], chunk))

    def result(v: Any, on: frozenset[int]) -> jax.Array:
        if _is_var(v) and v in own:
            found = next(results)
            return found if i in on else found[0]
        once = _read(env, v)
        return jnp.broadcast_to(once, (len(indices[i]), *once.shape)) if i in on else once

    each = jax.tree.map(lambda on, x: jax.tree.map(lambda _: on, x), spec, shapes, is_leaf=_is_grid)
    grids = jax.tree.leaves(each, is_leaf=_is_grid)
    flat = [result(v, on) for v, on in zip(outvars, grids, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(shapes), flat)


def _kept(program: _jax.ClosedJaxpr) -> int:
    """How many bytes a program keeps for its derivative, at most."""
    total = 0
    for eqn in program.jaxpr.eqns:
        total += sum(v.aval.size * v.aval.dtype.itemsize for v in eqn.outvars)  # type: ignore[attr-defined]
        if eqn.primitive is not _jax.remat_p:
            inside = sum(map(_kept, _jax.sub_jaxprs(eqn)))
            total += eqn.params.get("length", 1) * inside
    return total


def _in_chunks(
    step: Callable[..., list[jax.Array]], values: list[Any], indices: jax.Array, chunk: int
) -> list[jax.Array]:
    """``step(values, indices)`` for all indices, ``chunk`` of them at once, in loops of few steps:
    the derivative in ``values`` is summed up in each by itself, which the barrier keeps the
    compiler from undoing."""
    n = len(indices)
    if n <= chunk:
        return step(values, indices)
    size = chunk
    while size * STEPS < n:
        size *= STEPS
    padded = jnp.pad(indices, (0, -n % size), mode="edge").reshape(-1, size)

    def part(indices: jax.Array) -> list[jax.Array]:
        return _in_chunks(step, list(map(_apart, values)), indices, chunk)

    return [x.reshape(-1, *x.shape[2:])[:n] for x in lax.map(part, padded)]


def _apart(x: jax.Array) -> jax.Array:
    """Integers have no derivative: behind a barrier they would seem to, to a ``cond``."""
    return lax.optimization_barrier(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x


def _is_var(v: Any) -> bool:
    return isinstance(v, _jax.Var)


def _read(env: dict[Any, Any], v: Any) -> Any:
    return env[v] if _is_var(v) else jnp.asarray(v.val, v.aval.dtype)


__all__ = ["over_axes"]
