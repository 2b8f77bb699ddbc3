"""Values that are the same along an axis are computed once.

Enumerated values are taken in step by all the elements of a plate: what is computed from them alone
is the same for every element, and :func:`compress` computes it for one and broadcasts it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jax
from ..program.choices import Path
from ..program.control import Control, Loop, Whole
from ..program.site import Site
from .forward import Analysis, Place
from .primitives import axes_of, elementwise, of

Axes = frozenset[int]
"""The axes along which a value is the same."""
NO: Axes = frozenset()


class Uniform(Analysis[Axes]):
    """The analysis: along which axes values are the same. ``site(path)`` says so of draws."""

    nothing = NO

    def __init__(self, site: Callable[[Path], Axes] = lambda _: NO):
        super().__init__()
        self._site = site

    def join(self, values: Sequence[Axes]) -> Axes:
        return frozenset.intersection(*values)

    def enters(self, inside: Control) -> bool:
        return isinstance(inside, Whole) and inside.call is None

    def draw(self, site: Site, eqn: _jax.JaxprEqn, ins: list[Axes], at: Place) -> Axes:
        return self._site(at.path)

    def equation(self, eqn: _jax.JaxprEqn, ins: list[Axes], at: Place) -> Sequence[Axes]:
        if not eqn.outvars:
            return []
        shape = eqn.outvars[0].aval.shape  # type: ignore[attr-defined]
        return [frozenset(a for a in _of_result(eqn, ins) if shape[a])] * len(eqn.outvars)


class UniformInLoops(Uniform):
    """The analysis that goes into loops too."""

    def enters(self, inside: Control) -> bool:
        return isinstance(inside, Loop) or super().enters(inside)

    def row(self, x: Axes, at: Place) -> Axes:
        return frozenset(a - 1 for a in x if a)

    def last(self, loop: Loop, first: list[Axes], late: list[Axes], at: Place) -> list[Axes]:
        return [self.join(pair) for pair in zip(first, late, strict=True)]

    def stacked(self, y: Axes, at: Place) -> Axes:
        return frozenset(a + 1 for a in y)


def _of_result(eqn: _jax.JaxprEqn, ins: list[Axes]) -> Axes:
    name = eqn.primitive.name
    shapes = [v.aval.shape for v in eqn.invars]  # type: ignore[attr-defined]
    out = eqn.outvars[0].aval.shape  # type: ignore[attr-defined]
    every = range(len(out))
    if of(eqn).axes is elementwise:
        same = lambda axis: all(
            not s or axis in axes or s[axis] == 1 for s, axes in zip(shapes, ins, strict=True)
        )
        return frozenset(filter(same, every))
    if name == "broadcast_in_dim":
        dims = dict(zip(eqn.params["broadcast_dimensions"], range(len(shapes[0])), strict=True))
        return frozenset(
            b for b in every if b not in dims or dims[b] in ins[0] or shapes[0][dims[b]] == 1
        )
    if name == "iota":
        return frozenset(every) - {eqn.params["dimension"]}
    if name in ("slice", "dynamic_slice"):
        return ins[0]
    if name == "gather" and _is_read_anywhere(eqn, ins[0]):
        return frozenset(every).difference(eqn.params["dimension_numbers"].offset_dims)
    if of(eqn).follows:
        tos = axes_of(eqn)
        return frozenset(
            b
            for b in every
            if (
                at := [
                    (j, a) for j, s in enumerate(shapes) for a in range(len(s)) if tos[j](a) == b
                ]
            )
            and all(a in ins[j] for j, a in at)
        )
    return NO


def _is_read_anywhere(eqn: _jax.JaxprEqn, array: Axes) -> bool:
    """Whether numbers are read that are the same at all places."""
    numbers = eqn.params["dimension_numbers"]
    read = {*numbers.start_index_map, *numbers.operand_batching_dims}
    return array.issuperset(read) and eqn.params["mode"].name != "FILL_OR_DROP"


def compress(
    closed: _jax.ClosedJaxpr, ins: Sequence[Axes], site: Callable[[Path], Axes] = lambda _: NO
) -> _jax.ClosedJaxpr:
    """The program with what is the same along an axis computed once."""
    avals = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in closed.in_avals]

    def run(*args: Any) -> list[Any]:
        outs = _compressed(closed, args, ins, Uniform(site))
        return [jnp.broadcast_to(x, a.shape) for x, a in zip(outs, closed.out_avals, strict=True)]

    return _jax.traced(run, *avals)


def _compressed(
    closed: _jax.ClosedJaxpr,
    args: Sequence[Any],
    ins: Sequence[Axes],
    analysis: Uniform,
    path: Path = (),
) -> list[Any]:
    """The results; as the arguments, they may have size 1 along axes where they are the same."""
    env = analysis.variables(closed, ins, Place(path))
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(v: Any) -> Any:
        return values[v] if isinstance(v, _jax.Var) else jnp.asarray(v.val, v.aval.dtype)

    for i, eqn in enumerate(jaxpr.eqns):
        operands = [read(v) for v in eqn.invars]
        axes = env[eqn.outvars[0]] if eqn.outvars else NO
        name = eqn.primitive.name
        if eqn.primitive is _jax.jit_p:
            inner = [env.get(v, NO) if isinstance(v, _jax.Var) else NO for v in eqn.invars]
            outs = _compressed(eqn.params["jaxpr"], operands, inner, analysis, (*path, i))
        elif name == "gather":
            outs = [_gathered(eqn, operands, axes, env)]
        else:
            outs = _once(eqn, operands, axes if of(eqn).shrinks else NO)
        values.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _once(eqn: _jax.JaxprEqn, operands: list[Any], axes: Axes) -> list[Any]:
    """The results, of size 1 along ``axes``."""
    shapes = [v.aval.shape for v in eqn.invars]  # type: ignore[attr-defined]
    tos: list[Any] = [lambda a: a] * len(operands)
    if axes and of(eqn).axes is not elementwise:
        tos = axes_of(eqn)
    small = [
        _small(x, s, [a for a in range(len(s)) if to(a) in axes])
        for x, s, to in zip(operands, shapes, tos, strict=True)
    ]
    if axes and eqn.primitive.name == "broadcast_in_dim":
        out = eqn.outvars[0].aval.shape  # type: ignore[attr-defined]
        less = [1 if a in axes else n for a, n in enumerate(out)]
        return [lax.broadcast_in_dim(small[0], less, eqn.params["broadcast_dimensions"])]
    return _jax.evaluate_equation(eqn, small)


def _small(x: jax.Array, shape: Sequence[int], axes: Sequence[int]) -> jax.Array:
    """``x`` in this shape, but for size 1 along ``axes``."""
    for a in axes:
        if x.shape[a] > 1:
            x = lax.slice_in_dim(x, 0, 1, axis=a)
    wanted = [1 if a in axes else n for a, n in enumerate(shape)]
    return x if list(jnp.shape(x)) == wanted else jnp.broadcast_to(x, wanted)


_Pairs = list[tuple[int, int]]


def _read_alike(eqn: _jax.JaxprEqn, env: dict[Any, Axes]) -> tuple[_Pairs, _Pairs]:
    """The axes along which one array is read at different places, and those along which arrays that
    differ are read at the same: of array and places."""
    numbers = eqn.params["dimension_numbers"]
    array, places = (env[v] if isinstance(v, _jax.Var) else NO for v in eqn.invars)
    batching = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    pairs = [(int(a), int(b)) for a, b in batching]
    one = [(a, b) for a, b in pairs if a in array]
    return one, [(a, b) for a, b in pairs if b in places and a not in array]


def _gathered(
    eqn: _jax.JaxprEqn, operands: list[Any], axes: Axes, env: dict[Any, Axes]
) -> jax.Array:
    """What is read from arrays, where some of them are one and some places are the same; of size 1
    along ``axes`` that it does not run over in the array."""
    (one, same), tos = _read_alike(eqn, env), axes_of(eqn)
    how, numbers = dict(eqn.params), eqn.params["dimension_numbers"]
    axes = axes.difference(numbers.offset_dims)
    gone = [a for a, _ in one]
    shapes = [v.aval.shape for v in eqn.invars]  # type: ignore[attr-defined]
    less = [[a for a in range(len(s)) if to(a) in axes] for s, to in zip(shapes, tos, strict=True)]
    array = lax.squeeze(_small(operands[0], shapes[0], [*less[0], *gone]), gone)
    places = _small(operands[1], shapes[1], less[1])
    fewer = lambda dims: tuple(d - sum(a < d for a in gone) for d in dims if d not in gone)
    batches = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    how |= {
        "dimension_numbers": numbers._replace(
            collapsed_slice_dims=fewer(numbers.collapsed_slice_dims),
            start_index_map=fewer(numbers.start_index_map),
            operand_batching_dims=fewer(numbers.operand_batching_dims),
            start_indices_batching_dims=tuple(b for a, b in batches if a not in gone),
        ),
        "slice_sizes": [n for a, n in enumerate(how["slice_sizes"]) if a not in gone],
    }
    return _gathered_at_once(array, places, [(*fewer([a]), b) for a, b in same], **how)


def _gathered_at_once(
    array: jax.Array, places: jax.Array, apart: Sequence[tuple[int, int]], **how: Any
) -> jax.Array:
    """Arrays read at the same places, as one array whose rows are read.

    Its derivative adds rows too, not number by number.
    """
    if not apart:
        return lax.gather(array, places, **how)
    (a, b), *rest = apart
    numbers, sizes = how["dimension_numbers"], list(how["slice_sizes"])
    rank = places.ndim - 1 + len(numbers.offset_dims)
    to = [d for d in range(rank) if d not in numbers.offset_dims][b]
    left = lambda dims, gone: tuple(d - (d > gone) for d in dims if d != gone)
    del sizes[a]
    how |= {
        "dimension_numbers": lax.GatherDimensionNumbers(
            offset_dims=left(numbers.offset_dims, to),
            collapsed_slice_dims=left(numbers.collapsed_slice_dims, a),
            start_index_map=left(numbers.start_index_map, a),
            operand_batching_dims=left(numbers.operand_batching_dims, a),
            start_indices_batching_dims=left(numbers.start_indices_batching_dims, b),
        ),
        "slice_sizes": sizes,
    }
    rest = [(x - (x > a), y - (y > b)) for x, y in rest]
    each = lambda array, places: _gathered_at_once(array, places, rest, **how)
    return jax.vmap(each, (a, None), to)(array, lax.index_in_dim(places, 0, b, keepdims=False))


__all__ = ["NO", "Axes", "Uniform", "UniformInLoops", "compress"]
