"""In which order to sum out: greedy, by the size of the table that a sum makes.

What to sum out are *nodes* (variables, chains, digits of a step); a table has the nodes that it
depends on. To sum out a node is to replace the tables that have it by one that has all their other
nodes. Two greedy orders are tried, the smallest table first, and the fewest pairs of nodes that
had not met before (minimal fill); the one that costs less is taken. Both are within a small factor
of the best on trees, chains and narrow grids (Koller and Friedman 2009, section 9.4.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from .tables import Table

N = TypeVar("N", bound=Hashable)
Merge = Callable[[N, Sequence[Table]], "list[Table] | None"]
"""The tables in place of those that have a node; None if it cannot be summed out yet."""


class Stuck(Exception):
    """None of the nodes that are left can be summed out of the tables that are."""

    def __init__(self, nodes: Sequence[Any], tables: Sequence[Table]):
        super().__init__(*nodes)
        self.tables = tables


def best_order(
    nodes: Sequence[N],
    tables: Sequence[Table],
    nodes_of: Callable[[Table], Iterable[N]],
    merge: Merge[N],
    cost: Callable[[N, Sequence[Table]], float],
) -> list[N]:
    """All nodes, in the order in which they are summed out.

    Raises:
        Stuck: there is none.
    """
    if len(nodes) < 2:
        return _Greedy(nodes, tables, nodes_of, merge, cost, False).run()[0]
    found = [_Greedy(nodes, tables, nodes_of, merge, cost, fill).run() for fill in (False, True)]
    return min(found, key=lambda f: f[1])[0]


class _Greedy(Generic[N]):
    def __init__(
        self,
        nodes: Sequence[N],
        tables: Sequence[Table],
        nodes_of: Callable[[Table], Iterable[N]],
        merge: Merge[N],
        cost: Callable[[N, Sequence[Table]], float],
        fill: bool,
    ):
        self._nodes_of, self._merge, self._cost, self._fill = nodes_of, merge, cost, fill
        self._tables: dict[int, Table] = {}
        self._has: dict[N, set[int]] = {n: set() for n in nodes}
        self._members: dict[int, set[N]] = {}
        self._next = 0
        for t in tables:
            self._add(t)
        self._scores: dict[N, tuple[tuple[float, float], list[Table]] | None] = {}

    def _add(self, t: Table) -> None:
        at, self._next = self._next, self._next + 1
        self._tables[at] = t
        self._members[at] = {n for n in self._nodes_of(t) if n in self._has}
        for n in self._members[at]:
            self._has[n].add(at)

    def _near(self, n: N) -> set[N]:
        return set[N]().union(*(self._members[at] for at in self._has[n]))

    def _score(self, n: N) -> tuple[tuple[float, float], list[Table]] | None:
        mine = [self._tables[at] for at in sorted(self._has[n])]
        merged = self._merge(n, mine)
        if merged is None:
            return None
        near, cost = self._near(n) - {n}, self._cost(n, mine)
        fill = sum(len(near - self._near(m)) for m in near) / 2 if len(near) > 1 else 0
        return ((fill, cost) if self._fill else (cost, fill)), merged

    def run(self) -> tuple[list[N], float]:
        """The order, and what it costs."""
        order: list[N] = []
        total = 0.0
        while self._has:
            best: N | None = None
            key = (math.inf, math.inf)
            for n in self._has:
                if n not in self._scores:
                    self._scores[n] = self._score(n)
                score = self._scores[n]
                if score is not None and score[0] <= key:
                    best, key = n, score[0]
            found = None if best is None else self._scores[best]
            if best is None or found is None:
                raise Stuck(list(self._has), list(self._tables.values()))
            total += key[self._fill]
            self._remove(best, found[1])
            order.append(best)
        return order, total

    def _remove(self, n: N, merged: list[Table]) -> None:
        near = self._near(n)
        stale = near.union(*map(self._near, near))
        for at in self._has.pop(n):
            for m in self._members.pop(at) - {n}:
                self._has[m].remove(at)
            del self._tables[at]
        for t in merged:
            self._add(t)
        for m in stale:
            self._scores.pop(m, None)


__all__ = ["Stuck", "best_order"]
