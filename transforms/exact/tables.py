"""Terms over discrete variables, as tables.

A program is evaluated for all values of its discrete variables that each of its outputs depends
on. Axes of variables that run along each other in the outputs are one *class*. Along a class the
elements take their values in step, since no two of them meet in an output:

- a *plate*, where an output depends on its own element only;
- a *chain*, where it depends on its own element and the one before it, as through the carry of a
  ``scan``, whose steps are evaluated side by side, for all pairs of values.

Along any other axis elements are treated jointly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from ..analyses.alike import NO, compress
from ..analyses.dependence import Dependence
from ..errors import UnsupportedError
from ..estimation.chosen import MAX_JOINT
from .grid import over_axes
from .side_by_side import Stacked, Worlds

Digit = tuple[int, int]
"""A variable, by its number, here (0) or one step before in its chain (1)."""
Class = int
"""Axes of variables that run along each other, by the number of one of them."""


@dataclasses.dataclass(frozen=True)
class Variable:
    """An array of discrete variables with ``n`` values each; ``name`` is for messages."""

    shape: tuple[int, ...]
    n: int
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """An array (or steps) with an axis for each digit, and then for each class."""

    digits: tuple[Digit, ...]
    classes: tuple[Class, ...]
    value: Any = None

    def laid_out(self, digits: Sequence[Digit], classes: Sequence[Class]) -> Any:
        """The value with these axes, of size 1 where it has none."""
        have = [("digit", d) for d in self.digits] + [("class", c) for c in self.classes]
        want = [("digit", d) for d in digits] + [("class", c) for c in classes]
        order = [have.index(a) for a in want if a in have]

        def lay_out(x: jax.Array) -> jax.Array:
            sizes = iter(x.shape[a] for a in order)
            return x.transpose(order).reshape([next(sizes) if a in have else 1 for a in want])

        return jax.tree.map(lay_out, self.value)


# --- the plan: which axes are plates, which are chains --------------------------------------------


@dataclasses.dataclass
class Plan:
    variables: Sequence[Variable]
    classes: list[list[Class | None]]
    """For each axis of each variable; None where elements are joint."""
    chains: set[Class]

    def of(self, i: int) -> frozenset[Class]:
        return frozenset(c for c in self.classes[i] if c is not None)

    def in_chain(self, i: int) -> bool:
        return bool(self.of(i) & self.chains)

    def values(self, i: int) -> int:
        """How many joint values a variable takes."""
        v = self.variables[i]
        met = (m for m, c in zip(v.shape, self.classes[i], strict=True) if c is None)
        return v.n ** math.prod(met)

    def signature(self, d: Dependence) -> tuple[frozenset[Digit], frozenset[Class]]:
        """The digits and classes of the table of a term."""
        digits = set()
        classes = set()
        for i, along in d.items():
            digits.add((i, 0))
            for a, c in zip(along, self.classes[i], strict=True):
                if a is not None and c is not None:
                    classes.add(c)
                    if a.lag:
                        digits.add((i, 1))
        return frozenset(digits), frozenset(classes)


def _many(n: int) -> str:
    return f"{n:,}" if n < 10**15 else f"about 10^{math.log10(n):.0f}"


def plan_of(
    variables: Sequence[Variable],
    terms: Sequence[Dependence],
    clashes: Callable[[Plan], set[tuple[int, int]]] = lambda _: set(),
    *,
    who: str,
    instead: str,
) -> Plan:
    """The classes of the axes. ``clashes`` says which axes must be joint for what comes next.

    Raises:
        UnsupportedError: a term depends on too many joint values; the message begins with ``who``
            enumerates, and ends with what to use ``instead``.
    """
    joint = {
        (i, e)
        for d in terms
        for i, along in d.items()
        for e, a in enumerate(along)
        if a is None or a.lag > 1
    }
    while True:
        plan, clash = _classes(variables, terms, joint)
        clash = clash or clashes(plan)
        if not clash:
            break
        joint |= clash
    for d in terms:
        digits, _ = plan.signature(d)
        total = math.prod(plan.values(i) for i, _ in digits)
        if total > MAX_JOINT:
            raise UnsupportedError(
                f"{who} needs too many joint values ({_many(total)}; at most {MAX_JOINT:,}), since "
                f"these meet: {', '.join(_sizes(plan, digits))}. Let each element touch only "
                "itself (a plate, jax.vmap) or the one before it (a chain, jax.lax.scan whose "
                f"carry is the last choice), or {instead}."
            )
    return plan


def _sizes(plan: Plan, digits: frozenset[Digit]) -> list[str]:
    parts = []
    for i, late in sorted(digits):
        v = plan.variables[i]
        met = [n for n, c in zip(v.shape, plan.classes[i], strict=True) if c is None]
        count = f"{v.n}**{math.prod(met)}" if met else str(v.n)
        parts.append(f"{v.name} ({count} values{', of the step before' if late else ''})")
    return parts


def _classes(
    variables: Sequence[Variable], terms: Sequence[Dependence], joint: set[tuple[int, int]]
) -> tuple[Plan, set[tuple[int, int]]]:
    """The classes of axes that run along each other; axes that run along in two ways."""
    axes = [(i, e) for i, v in enumerate(variables) for e in range(len(v.shape))]
    parent = {a: a for a in axes if a not in joint}

    def root(a: tuple[int, int]) -> tuple[int, int]:
        while parent[a] != a:
            a = parent[a]
        return a

    for d in terms:
        first: dict[int, tuple[int, int]] = {}
        for i, along in d.items():
            for e, a in enumerate(along):
                if a is not None and (i, e) in parent:
                    at = first.setdefault(a.axis, (i, e))
                    parent[root((i, e))] = root(at)
    clash: set[tuple[int, int]] = set()
    chains = set()
    for d in terms:
        at_axis: dict[tuple[int, int], int] = {}
        for i, along in d.items():
            mine: set[tuple[int, int]] = set()
            for e, a in enumerate(along):
                if a is None or (i, e) not in parent:
                    continue
                if root((i, e)) in mine:  # a diagonal
                    clash.add((i, e))
                mine.add(root((i, e)))
                if at_axis.setdefault(root((i, e)), a.axis) != a.axis:
                    clash |= {x for x in parent if root(x) == root((i, e))}
                if a.lag:
                    chains.add(root((i, e)))
    number = {r: n for n, r in enumerate(sorted({root(a) for a in parent}))}
    classes: list[list[Class | None]] = [
        [number[root((i, e))] if (i, e) in parent else None for e in range(len(v.shape))]
        for i, v in enumerate(variables)
    ]
    return Plan(variables, classes, {number[r] for r in chains}), clash


# --- the tables ----------------------------------------------------------------------------------


def table(plan: Plan, d: Dependence, value: jax.Array | Stacked) -> Table:
    """A term as a table: the digits are in front already, other axes are classes or add up."""
    digits = tuple(sorted(plan.signature(d)[0]))
    n = len(digits)
    axis_of: dict[Class, int] = {}
    for i, along in d.items():
        for a, c in zip(along, plan.classes[i], strict=True):
            if a is not None and c is not None:
                axis_of[c] = a.axis
    kept = sorted(axis_of.items(), key=lambda item: item[1])
    if isinstance(value, Stacked) and 0 not in axis_of.values():
        value = value.whole(n)

    def summed(x: jax.Array) -> jax.Array:
        others = set(range(x.ndim - n)).difference(axis_of.values())
        return jnp.sum(x, axis=tuple(n + a for a in others))

    return Table(digits, tuple(c for c, _ in kept), jax.tree.map(summed, value))


def evaluate(
    program: _jax.ClosedJaxpr, consts: Sequence[Any], plan: Plan, outs: Sequence[Dependence]
) -> list[jax.Array | Stacked]:
    """The outputs for all values of the digits that they depend on, which are axes in front.

    ``outs`` is what they depend on; the variables are the last inputs, after ``consts``. What
    depends on no variable (choices among it) is evaluated once.
    """
    m = len(plan.variables)
    chained = [i for i in range(m) if plan.in_chain(i)]
    every: list[Digit] = sorted([*((i, 0) for i in range(m)), *((i, 1) for i in chained)])
    in_step = [frozenset(e for e, c in enumerate(cs) if c is not None) for cs in plan.classes]
    same = [*[NO] * len(consts), *in_step]
    program = compress(program, same)
    worlds = Worlds(program, consts, [i in chained for i in range(m)], same)

    def point(*indices: jax.Array) -> list[Any]:
        at = dict(zip(every, indices, strict=True))
        here = [digits(plan, i, at[i, 0]) for i in range(m)]
        before = [digits(plan, i, at.get((i, 1), at[i, 0])) for i in range(m)]
        return worlds.run(here, before)

    on = [frozenset(map(every.index, plan.signature(d)[0])) for d in outs]
    return over_axes(point, [plan.values(i) for i, _ in every], on)


def digits(plan: Plan, i: int, number: jax.Array) -> jax.Array:
    """The digits of each element, from the number of a joint value: one for each element of the
    classes, which are axes in order, or the same for all."""
    v, classes = plan.variables[i], plan.classes[i]
    if number.ndim:
        order = sorted(plan.of(i))
        number = jnp.transpose(number, [order.index(c) for c in classes if c is not None])
        shape = [1 if c is None else n for n, c in zip(v.shape, classes, strict=True)]
        number = number.reshape(shape)
    joint = [1 if c is not None else n for n, c in zip(v.shape, classes, strict=True)]
    places = np.array([v.n**k for k in range(math.prod(joint))][::-1], dtype=np.int32)
    return jnp.broadcast_to(number // jnp.asarray(places.reshape(joint)) % v.n, v.shape)


def class_size(plan: Plan, i: int, c: Class) -> int:
    return plan.variables[i].shape[plan.classes[i].index(c)]
