"""The law of neighbours in a chain.

The probability of each variable of a chain, given those that it depends on, makes the law of all
that have been drawn up to a step; what is drawn later, or beside what is asked for, adds up to 1
and is left out. So a step asks for the law of the step before alone, by the same recursion as a sum
(``recursion.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .classes import Class, Digit, Plan
from .contraction import LAW, contract, multiplied
from .recursion import Forward
from .tables import Table


class Laws(Forward):
    """Of the variables of a chain; ``masses`` are their probabilities, tables with an owner."""

    def __init__(
        self, plan: Plan, masses: Sequence[Table], orders: Mapping[int, int], chain: Class
    ):
        super().__init__(plan, masses, orders, chain, LAW)

    def advance(self, alpha: Sequence[Table], new: Sequence[Table], at: int) -> list[Table]:
        state = [(i, lag) for i, n in self.orders.items() for lag in range(n)]
        return self._law([*self.later(alpha), *new], state)

    def _law(self, tables: Sequence[Table], asked: Iterable[Digit]) -> list[Table]:
        """The law of some digits, as a product."""
        left, asked = list(tables), frozenset(asked)
        while True:
            read = lambda t: any((t.owner, 0) in other.digits for other in left if other is not t)
            kept = [t for t in left if t.owner is None or (t.owner, 0) in asked or read(t)]
            if len(kept) == len(left):
                break
            left = kept
        gone = frozenset[Digit]().union(*(t.digits for t in left)) - asked
        found, _ = contract(self.plan, left, sorted(gone), LAW)
        return [t for t in found if t.digits]

    def of(self, digits: Sequence[Digit]) -> Table:
        """The law of digits at all steps: axes of those, of the steps, and of their plates.

        Before the first step stands the first value: nothing depends on it there.
        """
        plates = frozenset[Class]().union(*(self.plan.of(i) for i, _ in digits)) - {self.chain}
        classes = sorted(plates)

        def law(alpha: Sequence[Table], new: Sequence[Table]) -> jax.Array:
            found = self._law([*self.later(alpha), *new], digits)
            x = multiplied(found, digits, classes, LAW)
            have = frozenset[Digit]().union(*(t.digits for t in found))
            sizes = [1 if d in have else self.plan.values(d[0]) for d in digits]
            pad = [(0, n - 1) for n in sizes] + [(0, 0)] * len(classes)
            return jnp.pad(x, pad) if any(n > 1 for n in sizes) else x

        first = [law(self.before[at], self.first[at]) for at in range(self.start)]
        steps = jnp.stack(first)
        if self.size > self.start:

            def one(alpha: Any, rows: Any) -> jax.Array:
                return law(self.unpack(alpha), self.rows(rows))

            n = self.size - self.start
            later = jax.vmap(one, axis_size=n)(self.alphas, [t.value for t in self.varying])
            steps = jnp.concatenate([steps, jnp.broadcast_to(later, (n, *later.shape[1:]))])
        value = jnp.moveaxis(steps, 0, len(digits))
        return Table(tuple(digits), (self.chain, *classes), value)


__all__ = ["Laws"]
