"""Digits summed out of logarithmic tables, one by one.

The tables that have a digit are added up, the smallest first, and the digit is summed out of the
sum: K^3 numbers for a digit that meets two others, whatever else there is. A *draw* goes the other
way, through the same sums in reverse, each digit given those that were summed out after it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from ..program import marks
from . import products
from .classes import Class, Digit, Plan, check_size
from .orders import best_order
from .tables import Table

Pick = Callable[[int, str, jax.Array], jax.Array]
"""``pick(i, name, logits)``: a draw of a variable for each element: ``f32[..., K]`` to an index
into the last axis. Several draws of one variable have different names."""
Look = Callable[[Digit], jax.Array]
"""What was drawn for a digit, with an axis for each of the classes of the table that asks."""
LEAST = 2**10
"""Numbers of a large table."""


# --- sums -----------------------------------------------------------------------------------------


def log_sum_exp(x: jax.Array, axis: int) -> jax.Array:
    """The log of the sum of exp, with a derivative of 0 where all of ``x`` is minus infinity."""
    with marks.mark(marks.EXACT):
        return _summed(x, axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _summed(x: jax.Array, axis: int) -> jax.Array:
    return _log_sum_exp(x, axis)[0]


def _log_sum_exp(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """With the exponentials relative to the largest, and their sum, or 1 if all of them are 0: in a
    loop the second derivative is that of this, since JAX keeps no rule there."""
    top = lax.stop_gradient(lax.reduce_max(x, (axis,)))
    finite = lax.select(lax.is_finite(top), top, lax.full_like(top, 0.0))
    e = lax.exp(x - lax.expand_dims(finite, (axis,)))
    total = lax.reduce_sum(e, (axis,))
    total = lax.select(total > 0, total, lax.full_like(total, 1.0))
    return lax.log(total) + top, e, total


@_summed.defjvp
def _(axis: int, primals: Any, tangents: Any) -> Any:
    out, e, total = _log_sum_exp(primals[0], axis)
    return out, lax.div(lax.reduce_sum(e * tangents[0], (axis,)), total)


def log_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """The sum of two tables of logarithms. The derivative of a large one is computed once for both:
    XLA would compute it anew for each, and keep what it is made of until the last."""
    if math.prod(np.broadcast_shapes(x.shape, y.shape)) < LEAST:
        return x + y
    with marks.mark(marks.EXACT):
        return _log_product(x, y)


@jax.custom_jvp
def _log_product(x: jax.Array, y: jax.Array) -> jax.Array:
    return x + y


def _of_both(primals: Any, tangents: Any) -> Any:
    out = _log_product(*primals)
    given = [t for t in tangents if not isinstance(t, SymbolicZero)]
    tangent = functools.reduce(jnp.add, given, jnp.zeros_like(out))
    return out, lax.optimization_barrier(tangent) if len(given) == 2 else tangent


_log_product.defjvp(_of_both, symbolic_zeros=True)


@dataclasses.dataclass(frozen=True)
class Algebra:
    """How tables are multiplied, and what takes the place of a sum."""

    times: Callable[[jax.Array, jax.Array], jax.Array]
    plus: Callable[[jax.Array, int], jax.Array]
    """Of an array along an axis."""
    product: Callable[[jax.Array, tuple[int, ...], int], jax.Array]
    """Over axes, and a number of elements that are alike."""
    one: float
    joint: bool = False
    """Whether sums of products may be products of matrices (``products.py``)."""


LOG = Algebra(log_product, log_sum_exp, lambda x, axes, n: n * jnp.sum(x, axis=axes), 0.0)
PRODUCTS = dataclasses.replace(LOG, joint=True)
BEST = dataclasses.replace(LOG, plus=jnp.max)
LAW = Algebra(
    jnp.multiply,
    jnp.sum,
    lambda x, axes, n: x[tuple(0 if a in axes else slice(None) for a in range(x.ndim))],
    1.0,
)
"""Of probabilities: that of a value does not depend on the element of a plate it is not in."""


def multiplied(
    tables: Sequence[Table], digits: Sequence[Digit], classes: Sequence[Class], algebra: Algebra
) -> jax.Array:
    """The product of tables, with these axes."""
    return _product([t.laid_out(digits, classes) for t in tables], algebra)


def _product(xs: Sequence[jax.Array], algebra: Algebra) -> jax.Array:
    """The smallest first, each time where it grows least."""
    left = list(xs)
    total = left.pop(min(range(len(left)), key=lambda k: left[k].size))
    while left:
        grown = lambda k: math.prod(map(max, zip(total.shape, left[k].shape, strict=True)))
        x = left.pop(min(range(len(left)), key=lambda k: (grown(k), left[k].size)))
        total = algebra.times(total, x)
    return total


def merged(tables: Iterable[Table], without: Iterable[Digit] = ()) -> Table:
    """The axes and pins of a product of tables, when digits are summed out of it."""
    tables = list(tables)
    gone = frozenset(without)
    digits = frozenset[Digit]().union(*(t.digits for t in tables)) - gone
    classes = frozenset[Class]().union(*(t.classes for t in tables))
    pins = {c: at for t in tables for c, at in t.pins.items()}
    return Table(tuple(sorted(digits)), tuple(sorted(classes)), None, pins)


def reduced(plan: Plan, t: Table, algebra: Algebra) -> Table:
    """The product over the plates in which no digit of a table is."""
    inside = frozenset[Class]().union(*(plan.of(i) for i, _ in t.digits))
    kept = tuple(c for c in t.classes if c in inside)
    pins = {c: at for c, at in t.pins.items() if c in inside}
    if t.value is None or kept == t.classes:
        return dataclasses.replace(t, classes=kept, pins=pins)
    axes = [(len(t.digits) + k, c) for k, c in enumerate(t.classes) if c not in inside]
    alike = math.prod(plan.length(c) for a, c in axes if t.value.shape[a] == 1)
    value = algebra.product(t.value, tuple(a for a, _ in axes), alike)
    return dataclasses.replace(t, classes=kept, value=value, pins=pins)


@dataclasses.dataclass(frozen=True)
class Summed:
    """A digit that was summed out of a table, which is kept to draw it; the digit is in front."""

    digit: Digit
    table: Table
    name: str
    watch: products.Watch | None = None
    """Whether something was lost, if that is in question; then there is no table to draw from."""

    def draw(self, plan: Plan, classes: Sequence[Class], look: Look, pick: Pick) -> jax.Array:
        """An index for each element of the classes."""
        x, t = self.table.value, self.table
        for d in t.digits[1:]:
            index = look(d)
            index = index.reshape([1] * (x.ndim - index.ndim) + list(index.shape))
            if x.shape[1] > 1:
                x = jnp.take_along_axis(x, index, axis=1)
            x = jnp.squeeze(x, axis=1)
        sizes = [x.shape[1 + t.classes.index(c)] if c in t.classes else 1 for c in classes]
        x = x.reshape(x.shape[0], *sizes)
        x = jnp.broadcast_to(x, (x.shape[0], *(plan.length(c) for c in classes)))
        return pick(self.digit[0], self.name, jnp.moveaxis(x, 0, -1))


def sum_digit(
    plan: Plan, tables: Sequence[Table], digit: Digit, algebra: Algebra, name: str = ""
) -> tuple[Table, Summed]:
    """A digit summed out of the tables that have it."""
    out = merged(tables, [digit])
    if tables and tables[0].value is None:
        return reduced(plan, out, algebra), Summed(digit, out, name)
    order = (digit, *out.digits)
    if not tables:
        tables = [untouched(plan, digit, sorted(plan.of(digit[0]) - plan.chains), algebra)]
        out = dataclasses.replace(out, classes=tables[0].classes)
    kept, watch = dataclasses.replace(out, digits=order), None
    xs = [t.laid_out(order, out.classes) for t in tables]
    once = [t.same for t in tables]
    if algebra.joint and products.pays([x.shape for x in xs], once):
        value, watch = products.log_sum(xs, once)
    else:
        kept = dataclasses.replace(kept, value=_product(xs, algebra))
        value = algebra.plus(kept.value, 0)
    new = reduced(plan, dataclasses.replace(out, value=value), algebra)
    return new, Summed(digit, kept, name, watch)


def untouched(plan: Plan, digit: Digit, classes: Sequence[Class], algebra: Algebra) -> Table:
    """The table of a digit whose values are all alike."""
    sizes = [plan.values(digit[0]), *map(plan.size, classes)]
    return Table((digit,), tuple(classes), jnp.full(sizes, algebra.one))


def contract(
    plan: Plan, tables: Sequence[Table], gone: Sequence[Digit], algebra: Algebra, name: str = ""
) -> tuple[list[Table], list[Summed]]:
    """Digits summed out of tables that have them, in the best order."""
    left, kept = list(tables), []

    def cost(digit: Digit, mine: Sequence[Table]) -> float:
        return math.prod(plan.values(i) for i, _ in {digit, *merged(mine).digits})

    dry = [dataclasses.replace(t, value=None) for t in tables]
    merge = lambda digit, mine: [merged(mine, [digit])]
    order = best_order(gone, dry, lambda t: t.digits, merge, cost)
    for n, digit in enumerate(order):
        mine = [t for t in left if digit in t.digits]
        left = [t for t in left if digit not in t.digits]
        check_size(plan, merged(mine).digits, [i for i, _ in order[:n]])
        new, how = sum_digit(plan, mine, digit, algebra, name and f"{name} {digit[1]}")
        left.append(new)
        kept.append(how)
    return left, kept


__all__ = [
    "BEST",
    "LAW",
    "LOG",
    "PRODUCTS",
    "Algebra",
    "Look",
    "Pick",
    "Summed",
    "contract",
    "log_sum_exp",
    "merged",
    "multiplied",
    "reduced",
    "sum_digit",
    "untouched",
]
