"""A chain summed out by the forward recursion.

What is known after a step is a list of tables, over the last values of each variable: as many as
later steps read. A step adds its own tables, and sums out the digits that no later step reads, one
after the other in the best order (``contraction.py``): K^(k + 1) for a chain of order k, K^3 for
two chains that are seen together, K^2 for each where they are not. The first steps, before which
there are fewer values, come before the loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .contraction import Look, Pick, Reduce, Summed, added, contract
from .tables import END, Class, Digit, Plan, Table

States = dict[Digit, jax.Array]
Scope = tuple[tuple[Digit, ...], tuple[Class, ...]]


class Recursion:
    """Of a chain of ``group``, variables with the same classes; ``tables`` are those that have
    them. ``result`` are the tables that are left of them."""

    def __init__(
        self, plan: Plan, tables: Sequence[Table], group: Sequence[int], chain: Class, reduce: Reduce
    ):
        self.plan, self.group, self.chain, self.reduce = plan, group, chain, reduce
        self.classes = sorted(plan.of(group[0]) - {chain})
        self.start, self.size = plan.starts(chain), plan.size(chain)
        self.orders = dict.fromkeys(group, 1)
        for t in tables:
            for i, lag in t.digits:
                if i in self.orders:
                    ends = t.pins.get(chain) == END
                    self.orders[i] = max(self.orders[i], lag + ends)
        pinned = lambda at: [self._unpinned(t) for t in tables if t.pins.get(chain) == at]
        self.first, self.last = [pinned(at) for at in range(self.start)], pinned(END)
        self.fixed, self.varying = self._steps([t for t in tables if chain in t.classes])
        alpha: list[Table] = []
        self.before: list[list[Table]] = []
        for at in range(self.start):
            self.before.append(alpha)
            alpha, _ = self._advance(alpha, self.first[at], at)
        if self.size > self.start:
            alpha = self._run(alpha)
        ending = [(i, lag) for i in group for lag in range(min(self.orders[i], self.size))]
        self.result, self._ending = contract(plan, [*alpha, *self.last], ending, reduce, "last")

    def _unpinned(self, t: Table) -> Table:
        return dataclasses.replace(t, pins={c: at for c, at in t.pins.items() if c != self.chain})

    def _advance(
        self, alpha: Sequence[Table], new: Sequence[Table], at: int, name: str = ""
    ) -> tuple[list[Table], list[Summed]]:
        """The tables after a step, which is far from the first if ``at`` is large."""
        known = [
            dataclasses.replace(
                t, digits=tuple((i, lag + (i in self.orders)) for i, lag in t.digits)
            )
            for t in alpha
        ]
        gone = [(i, n) for i, n in self.orders.items() if n <= at]
        return contract(self.plan, [*known, *new], gone, self.reduce, name)

    # --- the loop ---------------------------------------------------------------------------------

    def _steps(self, tables: Sequence[Table]) -> tuple[list[Table], list[Table]]:
        """Those that are the same in all later steps, and the others: these with the steps in
        front. Those of the same digits are added up."""
        kinds: dict[Any, list[Table]] = {}
        for t in tables:
            kinds.setdefault((t.value.shape[self._axis(t)] == 1, t.digits, t.classes), []).append(t)
        fixed, varying = [], []
        for (same, on, classes), ts in kinds.items():
            total = dataclasses.replace(ts[0], value=added(ts, on, classes))
            axis, rest = self._axis(total), tuple(c for c in classes if c != self.chain)
            if same and self.plan.length(self.chain) > 1:
                value = jnp.squeeze(total.value, axis)
                fixed.append(dataclasses.replace(total, classes=rest, value=value))
            else:
                value = jnp.moveaxis(total.value, axis, 0)
                varying.append(dataclasses.replace(total, classes=rest, value=value))
        return fixed, varying

    def _axis(self, t: Table) -> int:
        return len(t.digits) + t.classes.index(self.chain)

    def _new(self, values: Sequence[Any]) -> list[Table]:
        rows = zip(self.varying, values, strict=True)
        return [*self.fixed, *(dataclasses.replace(t, value=x) for t, x in rows)]

    def _run(self, alpha: list[Table]) -> list[Table]:
        self.form = self._form(alpha)

        def step(carry: list[jax.Array], xs: list[jax.Array]) -> tuple[list[jax.Array], Any]:
            after, _ = self._advance(self._unpack(carry), self._new(xs), self.size)
            return self._pack(after), carry

        rows = [t.value for t in self.varying]
        final, self.alphas = lax.scan(step, self._pack(alpha), rows, length=self.size - self.start)
        return self._unpack(final)

    def _form(self, alpha: Sequence[Table]) -> list[Table]:
        """The digits of the tables that are known after each step, such that a step leads from them
        to others of the same."""
        dry = lambda ts: [dataclasses.replace(t, value=None) for t in ts]
        form = _largest(dry(alpha))
        while True:
            after, _ = self._advance(form, dry([*self.fixed, *self.varying]), self.size)
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
            x = added(ts, f.digits, f.classes) if ts else jnp.zeros(())
            out.append(jnp.broadcast_to(x, shape))
        return out

    def _unpack(self, carry: Sequence[jax.Array]) -> list[Table]:
        return [dataclasses.replace(f, value=x) for f, x in zip(self.form, carry, strict=True)]

    # --- draws ------------------------------------------------------------------------------------

    def draw(self, outer: Callable[[Table], Look], pick: Pick) -> dict[int, jax.Array]:
        """The variables, all steps of them; ``outer`` says what was drawn of others."""
        window = self._drawn(self._ending, {}, outer, pick)
        steps: list[States] = []
        if self.size > self.start:
            xs = self.alphas, [t.value for t in self.varying]

            def one(window: States, x: Any) -> tuple[States, States]:
                alpha, rows = x
                _, how = self._advance(self._unpack(alpha), self._new(rows), self.size, "step")
                return self._back(self._drawn(how, window, outer, pick))

            window, later = lax.scan(one, window, xs, reverse=True)
        for at in reversed(range(self.start)):
            _, how = self._advance(self.before[at], self.first[at], at, f"{at}")
            window, now = self._back(self._drawn(how, window, outer, pick))
            steps.append(now)
        out: dict[int, jax.Array] = {}
        for i in self.group:
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


def _largest(tables: Sequence[Table]) -> list[Table]:
    """Those whose digits are not among those of others."""
    kept: list[Table] = []
    for t in sorted(tables, key=lambda t: (-len(t.digits), t.digits)):
        if not any(set(t.digits) <= set(k.digits) for k in kept):
            kept.append(t)
    return kept


__all__ = ["Recursion"]
