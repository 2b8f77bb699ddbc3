"""A chain summed out by the forward recursion.

What is known after a step is a list of tables, over the last values of each variable: as many as
later steps read. A step adds its own tables, and sums out the digits that no later step reads, one
after the other in the best order (``contraction.py``): K^(k + 1) for a chain of order k, K^3 for
two chains that are seen together, K^2 for each where they are not. The first steps, before which
there are fewer values, come before the loop.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .classes import Class, Digit, Plan
from .contraction import Algebra, Look, Pick, Summed, contract, multiplied
from .products import Watch
from .tables import END, Table

States = dict[Digit, jax.Array]


class Forward(abc.ABC):
    """The steps of a chain of ``group``, variables of which ``orders`` says how many of their last
    values later steps read; ``tables`` are those that have them. If ``sparing``, a derivative
    computes each step again, and nothing is kept of it."""

    sparing = False

    def __init__(
        self,
        plan: Plan,
        tables: Sequence[Table],
        orders: Mapping[int, int],
        chain: Class,
        algebra: Algebra,
    ):
        self.plan, self.orders, self.chain, self.algebra = plan, orders, chain, algebra
        self.start, self.size = plan.starts(chain), plan.size(chain)
        self.first = [self._pinned(tables, at) for at in range(self.start)]
        self.fixed, self.varying = self._steps([t for t in tables if chain in t.classes])
        self.before: list[list[Table]] = []
        self.early: list[list[Any]] = []
        self.late: list[Any] = []
        alpha: list[Table] = []
        for at in range(self.start):
            self.before.append(alpha)
            alpha, kept = self.step(alpha, self.first[at], at)
            self.early.append(kept)
        self.alphas: list[jax.Array] = []
        self.final = self._run(alpha) if self.size > self.start else alpha

    @abc.abstractmethod
    def advance(self, alpha: Sequence[Table], new: Sequence[Table], at: int) -> list[Table]:
        """The tables after a step, which is far from the first if ``at`` is large."""

    @abc.abstractmethod
    def step(
        self, alpha: Sequence[Table], new: Sequence[Table], at: int
    ) -> tuple[list[Table], list[Any]]:
        """These tables, and what is kept: ``early`` of the first steps, ``late`` of the others."""

    def _pinned(self, tables: Sequence[Table], at: int) -> list[Table]:
        without = lambda t: {c: at for c, at in t.pins.items() if c != self.chain}
        mine = [t for t in tables if t.pins.get(self.chain) == at]
        return [dataclasses.replace(t, pins=without(t)) for t in mine]

    def later(self, alpha: Sequence[Table]) -> list[Table]:
        """What is known of a step, as it is read one step later."""
        late = lambda t: tuple((i, lag + (i in self.orders)) for i, lag in t.digits)
        return [dataclasses.replace(t, digits=late(t), owner=None) for t in alpha]

    # --- the loop ---------------------------------------------------------------------------------

    def _steps(self, tables: Sequence[Table]) -> tuple[list[Table], list[Table]]:
        """Those that are the same in all later steps, and the others: these with the steps in
        front. Those of the same digits are added up."""
        kinds: dict[Any, list[Table]] = {}
        for t in tables:
            same = t.value.shape[self._axis(t)] == 1
            kinds.setdefault((same, t.digits, t.classes, t.owner), []).append(t)
        fixed, varying = [], []
        for (same, on, classes, _), ts in kinds.items():
            total = dataclasses.replace(ts[0], value=multiplied(ts, on, classes, self.algebra))
            axis, rest = self._axis(total), tuple(c for c in classes if c != self.chain)
            if same and self.plan.length(self.chain) > 1:
                value = jnp.squeeze(total.value, axis)
                fixed.append(dataclasses.replace(total, classes=rest, value=value, same=True))
            else:
                value = jnp.moveaxis(total.value, axis, 0)
                varying.append(dataclasses.replace(total, classes=rest, value=value))
        return fixed, varying

    def _axis(self, t: Table) -> int:
        return len(t.digits) + t.classes.index(self.chain)

    def rows(self, values: Sequence[Any]) -> list[Table]:
        rows = zip(self.varying, values, strict=True)
        return [*self.fixed, *(dataclasses.replace(t, value=x) for t, x in rows)]

    def _run(self, alpha: list[Table]) -> list[Table]:
        self.form = self._form(alpha)

        def step(carry: list[jax.Array], xs: list[jax.Array]) -> tuple[list[jax.Array], Any]:
            alpha, new = self.unpack(carry), self.rows(xs)
            after, kept = self.step(alpha, new, self.size)
            return self._pack(after), (carry, kept)

        xs = [t.value for t in self.varying]
        n = self.size - self.start
        one = jax.checkpoint(step) if self.sparing else step
        final, (self.alphas, self.late) = lax.scan(one, self._pack(alpha), xs, length=n)
        return self.unpack(final)

    def _form(self, alpha: Sequence[Table]) -> list[Table]:
        """The digits of the tables that are known after each step, such that a step leads from them
        to others of the same."""
        dry = lambda ts: [dataclasses.replace(t, value=None) for t in ts]
        form = _largest(dry(alpha))
        while True:
            after = self.advance(form, dry([*self.fixed, *self.varying]), self.size)
            more = _largest([*form, *dry(after)])
            if [t.digits for t in more] == [t.digits for t in form]:
                return [self._whole(t) for t in form]
            form = more

    def _whole(self, t: Table) -> Table:
        """With all classes of its digits."""
        classes = frozenset[Class]().union(*(self.plan.of(i) for i, _ in t.digits))
        return dataclasses.replace(t, classes=tuple(sorted(classes - {self.chain, *t.pins})))

    def _pack(self, tables: Sequence[Table]) -> list[jax.Array]:
        parts: list[list[Table]] = [[] for _ in self.form]
        for t in tables:
            at = (k for k, f in enumerate(self.form) if set(t.digits) <= set(f.digits))
            parts[next(at)].append(t)
        out = []
        for f, ts in zip(self.form, parts, strict=True):
            shape = [self.plan.values(i) for i, _ in f.digits]
            shape += [self.plan.length(c) for c in f.classes]
            x = (
                multiplied(ts, f.digits, f.classes, self.algebra)
                if ts
                else jnp.full((), self.algebra.one)
            )
            out.append(jnp.broadcast_to(x, shape))
        return out

    def unpack(self, carry: Sequence[jax.Array]) -> list[Table]:
        return [dataclasses.replace(f, value=x) for f, x in zip(self.form, carry, strict=True)]


class Recursion(Forward):
    """The sum over all values of a chain of ``group``, variables with the same classes; ``result``
    are the tables that are left, ``watches`` show whether something was lost."""

    def __init__(
        self,
        plan: Plan,
        tables: Sequence[Table],
        group: Sequence[int],
        chain: Class,
        algebra: Algebra,
    ):
        self.classes = sorted(plan.of(group[0]) - {chain})
        orders = dict.fromkeys(group, 1)
        for t in tables:
            for i, lag in t.digits:
                if i in orders:
                    orders[i] = max(orders[i], lag + (t.pins.get(chain) == END))
        super().__init__(plan, tables, orders, chain, algebra)
        ending = [(i, lag) for i, n in orders.items() for lag in range(min(n, self.size))]
        last = [*self.final, *self._pinned(tables, END)]
        self.result, self._ending = contract(plan, last, ending, algebra, "last")
        once = [w for kept in (*self.early, _watched(self._ending)) for w in kept]
        self.watches = [*jax.tree.map(lambda x: x[None], once), *self.late]

    def advance(self, alpha: Sequence[Table], new: Sequence[Table], at: int) -> list[Table]:
        return self._summed(alpha, new, at)[0]

    def step(
        self, alpha: Sequence[Table], new: Sequence[Table], at: int
    ) -> tuple[list[Table], list[Any]]:
        after, how = self._summed(alpha, new, at)
        return after, _watched(how)

    def _summed(
        self, alpha: Sequence[Table], new: Sequence[Table], at: int, name: str = ""
    ) -> tuple[list[Table], list[Summed]]:
        gone = [(i, n) for i, n in self.orders.items() if n <= at]
        return contract(self.plan, [*self.later(alpha), *new], gone, self.algebra, name)

    def draw(self, outer: Callable[[Table], Look], pick: Pick) -> dict[int, jax.Array]:
        """The variables, all steps of them; ``outer`` says what was drawn of others."""
        window = self._drawn(self._ending, {}, outer, pick)
        steps: list[States] = []
        if self.size > self.start:
            xs = self.alphas, [t.value for t in self.varying]

            def one(window: States, x: Any) -> tuple[States, States]:
                alpha, rows = x
                _, how = self._summed(self.unpack(alpha), self.rows(rows), self.size, "step")
                return self._back(self._drawn(how, window, outer, pick))

            window, later = lax.scan(one, window, xs, reverse=True)
        for at in reversed(range(self.start)):
            _, how = self._summed(self.before[at], self.first[at], at, f"{at}")
            window, now = self._back(self._drawn(how, window, outer, pick))
            steps.append(now)
        out: dict[int, jax.Array] = {}
        for i in self.orders:
            x = jnp.stack([s[i, 0] for s in reversed(steps)])
            if self.size > self.start:
                x = jnp.concatenate([x, later[i, 0]])
            out[i] = jnp.moveaxis(x, 0, sorted(self.plan.of(i)).index(self.chain))
        return out

    def _drawn(
        self, how: Sequence[Summed], known: States, outer: Callable[[Table], Look], pick: Pick
    ) -> States:
        states = dict(known)
        for s in reversed(how):

            def look(d: Digit, table: Table = s.table) -> jax.Array:
                if d not in states:
                    return outer(table)(d)
                at = dict(zip(self.classes, states[d].shape, strict=True))
                return states[d].reshape([at.get(c, 1) for c in table.classes])

            states[s.digit] = s.draw(self.plan, self.classes, look, pick)
        return states

    def _back(self, states: States) -> tuple[States, States]:
        """What is known one step before, and what was drawn of this step."""
        before = {(i, lag - 1): x for (i, lag), x in states.items() if lag}
        return before, {(i, 0): x for (i, lag), x in states.items() if not lag}


class Sparing(Recursion):
    sparing = True


def _watched(how: Sequence[Summed]) -> list[Watch]:
    return [s.watch for s in how if s.watch is not None]


def _largest(tables: Sequence[Table]) -> list[Table]:
    """Those whose digits are not among those of others."""
    kept: list[Table] = []
    for t in sorted(tables, key=lambda t: (-len(t.digits), t.digits)):
        if not any(set(t.digits) <= set(k.digits) for k in kept):
            kept.append(t)
    return kept


__all__ = ["Recursion", "Sparing"]
