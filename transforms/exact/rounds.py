"""Elements summed out many at a time.

Tables of one form over the elements of an array lie one above the other, in a :class:`Stack`. In
a *round* elements that share no table are summed out together: those whose tables are of the same
stacks, in the same places, are a few operations whatever their number. Of a tree these are its
leaves, and what has two neighbours, so that it takes about as many rounds as the tree is deep; of a
chain every other element, so that it takes log n.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .classes import Class, Plan, check_size
from .contraction import Algebra, Pick
from .grid import LARGE
from .tables import Table

FEW = 4
"""So many tables of the same variables are added up where they are read."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stack:
    """Tables of one form: ``digits`` has a row for each, with its variables. The value has an axis
    for the tables (of size 1 if they are all the same), one for each of their digits, and one for
    each class."""

    digits: np.ndarray
    classes: tuple[Class, ...]
    value: Any = None

    def table(self, row: int) -> Table:
        digits = tuple((int(k), 0) for k in self.digits[row])
        value = self.value
        if value is not None:
            value = lax.index_in_dim(value, row if len(value) > 1 else 0, 0, keepdims=False)
        return Table(digits, self.classes, value)


def rows_of(x: jax.Array, rows: np.ndarray) -> jax.Array:
    """Some rows, a slice where they have one distance; the one row where all are the same."""
    if len(x) == 1 or (len(rows) == len(x) and np.array_equal(rows, np.arange(len(x)))):
        return x
    step = int(rows[1] - rows[0]) if len(rows) > 1 else 1
    if step > 0 and np.all(np.diff(rows) == step):
        return lax.slice_in_dim(x, int(rows[0]), int(rows[-1]) + 1, step)
    return jnp.take(x, rows, axis=0)


def in_order(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different columns, in the order in which they come first, and which of them each is."""
    found, first, inverse = np.unique(columns, axis=1, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return found[:, order], np.argsort(order)[inverse.ravel()]


@dataclasses.dataclass(frozen=True, eq=False)
class _Group:
    """Elements that are summed out at once, each with as many ``neighbours``.

    ``slots`` are the tables that each of them has: of which stack, in which rows, and for each
    digit whether it is the element (0) or which of the neighbours (from 1). What is left is a
    stack with ``kept`` of the ``classes``, whose rows of the same neighbours are added up (``to``).
    """

    elements: np.ndarray
    neighbours: np.ndarray
    slots: list[tuple[int, np.ndarray, tuple[int, ...]]]
    classes: tuple[Class, ...]
    kept: tuple[Class, ...]
    to: np.ndarray


class Rounds:
    """The rounds in which the variables ``told`` are summed out of stacks, and what is left.

    ``largest`` is how many joint values meet at most.
    """

    def __init__(self, plan: Plan, stacks: Sequence[Stack], told: Callable[[int], bool]) -> None:
        self.plan, self.largest = plan, 1
        self.groups: list[_Group] = []
        self._stacks = list(stacks)
        self._alive = [set(range(len(s.digits))) for s in stacks]
        while chosen := self._choose(told):
            self._sum_out(chosen)

    @property
    def _left(self) -> list[tuple[int, int]]:
        """The stacks and rows that are left."""
        return [(k, row) for k, rows in enumerate(self._alive) for row in sorted(rows)]

    @property
    def dry(self) -> list[Table]:
        """The tables that are left, without numbers."""
        return [self._stacks[k].table(row) for k, row in self._left]

    @property
    def rest(self) -> Plan:
        """The plan of what is left."""
        summed = frozenset(int(v) for g in self.groups for v in g.elements)
        return dataclasses.replace(self.plan, summed=summed)

    # --- which ------------------------------------------------------------------------------------

    def _tables(self) -> dict[int, list[tuple[int, int, int]]]:
        """The stack, the place in it, and the row of the tables of each variable."""
        found: dict[int, list[tuple[int, int, int]]] = {}
        for k, rows in enumerate(self._alive):
            for row in sorted(rows):
                for place, v in enumerate(self._stacks[k].digits[row]):
                    found.setdefault(int(v), []).append((k, place, row))
        return {v: sorted(tables) for v, tables in found.items()}

    def _choose(self, told: Callable[[int], bool]) -> dict[int, list[tuple[int, int, int]]]:
        """Elements that share no table, with their tables: those of one neighbour if these are
        many, or of two, if their tables are small; or else those whose table is smallest, and of
        which fewest neighbours have not met."""
        tables = self._tables()
        near = {v: list(self._near(v, ts)) for v, ts in tables.items()}
        free = [v for v, ts in tables.items() if told(v) and self._is_free(v, ts)]
        cost = {v: self._values([v, *near[v]]) for v in free}
        degree = {v: sum(map(told, near[v])) for v in free}
        few = [v for v in free if degree[v] <= 2 and cost[v] <= LARGE]
        ends = [v for v in few if degree[v] < 2]
        few = ends if 4 * len(ends) > len(few) else [*ends, *(v for v in few if degree[v] == 2)]
        if not few and free:
            least = min(cost.values())
            fill = {v: self._fill(v, near) for v in free if cost[v] == least}
            few = [v for v, n in fill.items() if n == min(fill.values())]
        chosen: dict[int, list[tuple[int, int, int]]] = {}
        for v in few:
            if chosen.keys().isdisjoint(near[v]):
                chosen[v] = tables[v]
                self.largest = max(self.largest, cost[v])
        return chosen

    def _near(self, v: int, tables: Sequence[tuple[int, int, int]]) -> dict[int, None]:
        """The other variables of its tables, in order of their places."""
        rows = [self._stacks[k].digits[row] for k, _, row in tables]
        return dict.fromkeys(int(w) for row in rows for w in row if w != v)

    def _is_free(self, v: int, tables: Sequence[tuple[int, int, int]]) -> bool:
        own = self.plan.of(v)
        return all(own.issuperset(self._stacks[k].classes) for k, _, _ in tables)

    def _values(self, variables: Sequence[int]) -> int:
        return math.prod(self.plan.values(v) for v in variables)

    def _fill(self, v: int, near: dict[int, list[int]]) -> int:
        """How many pairs of its neighbours have not met."""
        return sum(w not in near[u] for u in near[v] for w in near[v] if u < w)

    # --- how --------------------------------------------------------------------------------------

    def _sum_out(self, chosen: dict[int, list[tuple[int, int, int]]]) -> None:
        forms: dict[Any, list[int]] = {}
        for v, tables in chosen.items():
            near = list(self._near(v, tables))
            ranks = {v: 0, **{w: n + 1 for n, w in enumerate(near)}}
            slots = [
                (k, tuple(ranks[int(w)] for w in self._stacks[k].digits[row]))
                for k, _, row in tables
            ]
            alike = [(self.plan.values(w), self.plan.of(w)) for w in (v, *near)]
            name = self.plan.variables[v].name.partition("[")[0]
            forms.setdefault((tuple(slots), tuple(alike), name), []).append(v)
        for (slots, _, _), elements in forms.items():
            self._add(slots, elements, chosen)

    def _add(self, slots: Any, elements: list[int], chosen: Any) -> None:
        near = np.array([list(self._near(v, chosen[v])) for v in elements], int)
        near = near.reshape(len(elements), -1)
        rows = np.array([[row for _, _, row in chosen[v]] for v in elements], int).T
        classes = frozenset[Class]().union(*(self._stacks[k].classes for k, _ in slots))
        inside = frozenset[Class]().union(*(self.plan.of(int(w)) for w in near[0]))
        kept = tuple(sorted(classes & inside))
        digits, to = in_order(near.T)
        if np.bincount(to).max() <= FEW:
            digits, to = near.T, np.arange(len(near))
        found = [(k, r, ranks) for (k, ranks), r in zip(slots, rows, strict=True)]
        self.groups.append(
            _Group(np.array(elements), near, found, tuple(sorted(classes)), kept, to)
        )
        for k, r, _ in found:
            self._alive[k].difference_update(r.tolist())
        self._stacks.append(Stack(digits.T, kept))
        self._alive.append(set(range(digits.shape[1])))

    def run(self, stacks: Sequence[Stack], algebra: Algebra) -> tuple[list[Table], list[Any]]:
        """The tables that are left, and the sums of each group, to draw from."""
        made, sums, before = list(stacks), list[jax.Array](), list[int]()
        for g in self.groups:
            check_size(self.plan, [(int(v), 0) for v in (g.elements[0], *g.neighbours[0])], before)
            before += map(int, g.elements)
            parts = [self._part(g, made[k], rows, ranks) for k, rows, ranks in g.slots]
            x = parts[0]
            for part in parts[1:]:
                x = algebra.times(x, part)
            sums.append(x)
            made.append(self._after(g, algebra.plus(x, 1), algebra))
        return [made[k].table(row) for k, row in self._left], sums

    def _part(self, g: _Group, s: Stack, rows: np.ndarray, ranks: tuple[int, ...]) -> jax.Array:
        """The tables of a slot: axes for the elements, their values, those of their neighbours, and
        the classes."""
        x, n = rows_of(s.value, rows), len(ranks)
        x = x.transpose(0, *(1 + int(a) for a in np.argsort(ranks)), *range(1 + n, x.ndim))
        sizes = iter(x.shape[1 : 1 + n])
        digits = [next(sizes) if r in ranks else 1 for r in range(1 + g.neighbours.shape[1])]
        own = dict(zip(s.classes, x.shape[1 + n :], strict=True))
        return x.reshape(len(x), *digits, *(own.get(c, 1) for c in g.classes))

    def _after(self, g: _Group, x: jax.Array, algebra: Algebra) -> Stack:
        n = 1 + g.neighbours.shape[1]
        gone = [(n + k, c) for k, c in enumerate(g.classes) if c not in g.kept]
        if gone:
            alike = math.prod(self.plan.length(c) for a, c in gone if x.shape[a] == 1)
            x = algebra.product(x, tuple(a for a, _ in gone), alike)
        n = 1 + int(g.to.max())
        if n < len(g.to):
            x = jnp.broadcast_to(x, (len(g.to), *x.shape[1:]))
            x = jnp.zeros((n, *x.shape[1:]), x.dtype).at[g.to].add(x)
        digits = np.zeros((n, g.neighbours.shape[1]), int)
        digits[g.to] = g.neighbours
        return Stack(digits, g.kept, x)

    # --- draws ------------------------------------------------------------------------------------

    def draw(self, sums: Sequence[jax.Array], drawn: dict[int, Any], pick: Pick) -> dict[int, Any]:
        """The number of the value of each variable, from those that were left."""
        drawn = dict(drawn)
        for g, x in reversed(list(zip(self.groups, sums, strict=True))):
            for n in range(g.neighbours.shape[1]):
                at = jnp.stack([self._look(g, drawn, int(w)) for w in g.neighbours[:, n]])
                at = at.reshape(len(at), *[1] * (x.ndim - at.ndim), *at.shape[1:])
                x = jnp.take_along_axis(x, at, axis=2) if x.shape[2] > 1 else x
                x = jnp.squeeze(x, axis=2)
            x = jnp.broadcast_to(x, (len(g.elements), *x.shape[1:]))
            first = int(g.elements[0])
            sizes = dict(zip(g.classes, x.shape[2:], strict=True))
            own = sorted(self.plan.of(first))
            x = x.reshape(*x.shape[:2], *(sizes.get(c, 1) for c in own))
            x = jnp.broadcast_to(x, (*x.shape[:2], *map(self.plan.size, own)))
            found = pick(first, "", jnp.moveaxis(x, 1, -1))
            drawn.update(zip(map(int, g.elements), found, strict=True))
        return drawn

    def _look(self, g: _Group, drawn: dict[int, Any], w: int) -> jax.Array:
        """What was drawn for a neighbour, with an axis for each class of the group."""
        sizes = dict(zip(sorted(self.plan.of(w)), drawn[w].shape, strict=True))
        return drawn[w].reshape([sizes.get(c, 1) for c in g.classes])


__all__ = ["Rounds", "Stack", "in_order", "rows_of"]
