"""The law of neighbours in a chain.

The probability of each variable of a chain, given those that it depends on, makes the law of all
that have been drawn up to a step; what is drawn later, or beside what is asked for, adds up to 1
and is left out. So a step asks for the law of the step before alone, by the same recursion as a sum
(``recursion.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp

from .classes import Class, Digit, Plan
from .contraction import LAW, contract, multiplied
from .recursion import Forward
from .tables import Table


class Laws(Forward):
    """Of the variables of a chain; ``masses`` are their probabilities, tables with an owner, and
    ``wanted`` the digits whose laws are asked for."""

    def __init__(
        self,
        plan: Plan,
        masses: Sequence[Table],
        orders: Mapping[int, int],
        chain: Class,
        wanted: Sequence[tuple[Digit, ...]],
    ):
        self._wanted = list(dict.fromkeys(wanted))
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

    def step(
        self, alpha: Sequence[Table], new: Sequence[Table], at: int
    ) -> tuple[list[Table], list[jax.Array]]:
        return self.advance(alpha, new, at), self._asked(alpha, new)

    def _asked(self, alpha: Sequence[Table], new: Sequence[Table]) -> list[jax.Array]:
        """The laws that are asked for.

        Before the first step stands the first value: nothing depends on it there.
        """
        out = []
        for digits in self._wanted:
            found = self._law([*self.later(alpha), *new], digits)
            x = multiplied(found, digits, self._plates(digits), LAW)
            have = frozenset[Digit]().union(*(t.digits for t in found))
            pad = [(0, 0 if d in have else self.plan.values(d[0]) - 1) for d in digits]
            pad += [(0, 0)] * (x.ndim - len(digits))
            out.append(jnp.pad(x, pad) if any(n for _, n in pad) else x)
        return out

    def _plates(self, digits: Sequence[Digit]) -> list[Class]:
        classes = frozenset[Class]().union(*(self.plan.of(i) for i, _ in digits))
        return sorted(classes - {self.chain})

    def of(self, digits: tuple[Digit, ...]) -> Table:
        """The law of digits at all steps: axes of those, of the steps, and of their plates."""
        at = self._wanted.index(digits)
        steps = jnp.stack([early[at] for early in self.early])
        if self.late:
            steps = jnp.concatenate([steps, self.late[at]])
        classes = (self.chain, *self._plates(digits))
        return Table(digits, classes, jnp.moveaxis(steps, 0, len(digits)))


__all__ = ["Laws"]
