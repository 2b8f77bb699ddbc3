"""A table that is read at all of its places is the table.

Discrete values are enumerated side by side, so the places at which a program reads its tables are
numbers that are known while it is traced: ``a[z]``, for all z, is ``a``. Where the places run
evenly along an axis, what is read is a slice, and its derivative no sum over places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from .. import _jax
from ..numeric.run import equation
from ..numeric.tables import ELEMENTWISE

MOST = 2**16
"""Most numbers of an array that is computed, and not the same along all but few axes."""
VIEWS = frozenset({"broadcast_in_dim", "reshape", "slice", "squeeze", "transpose", "iota"})


def read_at_once(closed: _jax.ClosedJaxpr, args: Sequence[Any]) -> _jax.ClosedJaxpr:
    """The program, as it is for these arguments: integers among them are known."""
    names: dict[Any, Any] = {}
    jaxpr = closed.jaxpr
    values = {v: np.asarray(x) for v, x in zip(jaxpr.invars, args, strict=True) if _is_known(x)}
    eqns = list(_equations(closed, values, names))
    outvars = [names.get(v, v) if isinstance(v, _jax.Var) else v for v in jaxpr.outvars]
    return _jax.with_outputs(_jax.with_equations(closed, eqns), outvars)


def _equations(
    closed: _jax.ClosedJaxpr, known: dict[Any, Any], names: dict[Any, Any]
) -> Iterator[_jax.JaxprEqn]:
    """The equations, of variables by their new ``names``; what is known of others is added."""
    read = lambda v: known.get(v) if isinstance(v, _jax.Var) else np.asarray(v.val)
    for eqn in closed.jaxpr.eqns:
        ins = list(map(read, eqn.invars))
        new = lambda v: names.get(v, v) if isinstance(v, _jax.Var) else v
        operands = list(map(new, eqn.invars))
        renamed = eqn if operands == eqn.invars else eqn.replace(invars=operands)
        if eqn.primitive is _jax.jit_p and any(x is not None for x in ins):
            inner: _jax.ClosedJaxpr = eqn.params["jaxpr"]
            found = dict(zip(inner.jaxpr.invars, ins, strict=True))
            found = {v: x for v, x in found.items() if x is not None}
            body = list(_equations(inner, found, fresh := {}))
            get = lambda v, found=found: (
                found.get(v) if isinstance(v, _jax.Var) else np.asarray(v.val)
            )
            outs = list(map(get, inner.jaxpr.outvars))
            known.update((v, x) for v, x in zip(eqn.outvars, outs, strict=True) if x is not None)
            own = [fresh.get(v, v) if isinstance(v, _jax.Var) else v for v in inner.jaxpr.outvars]
            if body != inner.jaxpr.eqns or own != inner.jaxpr.outvars:
                inner = _jax.with_outputs(_jax.with_equations(inner, body), own)
                renamed = renamed.replace(params={**eqn.params, "jaxpr": inner})
            yield renamed
            continue
        if all(x is not None for x in ins) and _is_small(eqn):
            known.update(zip(eqn.outvars, equation(eqn, ins), strict=True))
        elif eqn.primitive.name == "gather" and ins[1] is not None:
            plan = _plan(eqn, ins[1])
            if plan is not None:
                yield from _inlined(plan, renamed, names)
                continue
        yield renamed


def _is_known(x: Any) -> bool:
    return not isinstance(x, _jax.Tracer) and _is_integer(x) and x.size <= MOST


def _is_integer(x: Any) -> bool:
    return x.dtype == bool or jax.numpy.issubdtype(x.dtype, np.integer)


def _is_small(eqn: _jax.JaxprEqn) -> bool:
    """Whether the numbers of an equation are integers, and few or views of few."""
    name = eqn.primitive.name
    if not eqn.outvars or (name not in ELEMENTWISE and name not in (*VIEWS, *_SMALL)):
        return False
    avals: list[Any] = [v.aval for v in (*eqn.invars, *eqn.outvars)]
    if not all(map(_is_integer, avals)):
        return False
    return name in VIEWS or max(a.size for a in avals) <= MOST


_SMALL = frozenset({"gather", "concatenate", "convert_element_type", "expand_dims", "rev"})


# --- what is read -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Read:
    """An array that is sliced, whose axes are then those of the result (None: of size 1, and
    left out)."""

    slices: tuple[tuple[int, int, int], ...]
    """Of each axis of the array: start, limit, stride."""
    to: tuple[int | None, ...]
    shape: tuple[int, ...]

    def __call__(self, x: jax.Array) -> jax.Array:
        start, limit, stride = zip(*self.slices, strict=True)
        if any(s != (0, n, 1) for s, n in zip(self.slices, x.shape, strict=True)):
            x = lax.slice(x, start, limit, stride)
        x = lax.squeeze(x, [i for i, a in enumerate(self.to) if a is None])
        to = [a for a in self.to if a is not None]
        order = sorted(range(len(to)), key=to.__getitem__)
        x = x if order == sorted(order) else lax.transpose(x, order)
        return x if x.shape == self.shape else lax.broadcast_in_dim(x, self.shape, sorted(to))


def _plan(eqn: _jax.JaxprEqn, places: np.ndarray) -> _Read | None:
    """What a gather at these places reads, if it is a slice of each axis."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    array, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape  # type: ignore[attr-defined]
    batch = [d for d in range(len(out)) if d not in numbers.offset_dims]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    windows = [a for a in range(len(array)) if a not in gone]
    offsets = dict(zip(windows, numbers.offset_dims, strict=True))
    slices: list[Any] = [(0, n, 1) for n in sizes]
    to: list[int | None] = [offsets.get(a) for a in range(len(array))]
    pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    for a, b in pairs:
        slices[a], to[a] = (0, array[a], 1), batch[b]
    mode = eqn.params["mode"]
    for j, a in enumerate(numbers.start_index_map):
        steps = _steps(places[..., j], array[a] - sizes[a], mode)
        if steps is None:
            return None
        axis, start, stride, n = steps
        if axis is None:
            slices[a] = (start, start + sizes[a], 1)
        elif sizes[a] == 1:
            slices[a] = (start, start + (n - 1) * stride + 1, stride)
            to[a] = batch[axis]
        else:
            return None
    used = [a for a in to if a is not None]
    if len(set(used)) < len(used):  # a diagonal
        return None
    return _Read(tuple(slices), tuple(to), out)


def _steps(x: np.ndarray, last: int, mode: Any) -> tuple[int | None, int, int, int] | None:
    """The axis along which places run (None: all are the same), the first, their distance, and
    how many there are; None if they run along several axes, backwards, or unevenly."""
    if not x.size:
        return None
    several = [i for i in range(x.ndim) if x.shape[i] > 1 and x.strides[i]]
    line = x[tuple(slice(None) if i in several else 0 for i in range(x.ndim))]
    low, high = line.min(), line.max()
    if low < 0 or high > last:
        if mode != lax.GatherScatterMode.CLIP:
            return None
        line = np.clip(line, 0, last)
    moving = [i for i, a in enumerate(several) if (np.diff(line, axis=i) != 0).any()]
    if not moving:
        return None, int(line.flat[0]), 1, 1
    if len(moving) > 1:
        return None
    (i,) = moving
    row = np.moveaxis(line, i, 0).reshape(line.shape[i], -1)[:, 0]
    stride = int(row[1] - row[0])
    if stride < 1 or (np.diff(row) != stride).any():
        return None
    return several[i], int(row[0]), stride, len(row)


def _inlined(read: _Read, eqn: _jax.JaxprEqn, names: dict[Any, Any]) -> Iterator[_jax.JaxprEqn]:
    """The equations that read, in place of one."""
    operand, result = eqn.invars[0], eqn.outvars[0]
    aval: Any = operand.aval
    jaxpr = _jax.traced(read, jax.ShapeDtypeStruct(aval.shape, aval.dtype)).jaxpr
    inside: dict[Any, Any] = {jaxpr.invars[0]: operand}
    if jaxpr.outvars[0] is jaxpr.invars[0]:
        names[result] = operand
        return
    inside[jaxpr.outvars[0]] = result
    get = lambda v: inside.get(v, v) if isinstance(v, _jax.Var) else v
    for e in jaxpr.eqns:
        yield e.replace(invars=list(map(get, e.invars)), outvars=list(map(get, e.outvars)))


__all__ = ["read_at_once"]
