"""The sampling terms of choices whose estimator is given the continuation.

The continuation is the program run again with the same key and the draw replaced: what does not
depend on the choice is the same (it is not computed again), everything else is drawn anew with
common random numbers. The choice therefore stands in loops and branches like any other, and costs
nothing where only the value is wanted. Only terms that depend on the choice count.

What the estimators of all choices ask for is run side by side (``beside.py``); of a choice in a
loop, what they ask for in a step.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..errors import UnsupportedError, show
from ..estimation.draws import Context
from ..estimation.estimator import constant
from ..plan.layout import Elements
from ..program.interpret import Record, Rule, kept_of
from ..program.sums import added
from .asking import Asked, Asking
from .beside import Other, Pass
from .local import Term, across_steps, in_step
from .payoffs import Payoffs
from .reach import Reach

AT_ONCE = 64
"""Most instances of a choice in a loop that are treated side by side."""
MOST_NUMBERS = 2**24
"""Most numbers that the rows of a variable have together, in all samples: more replays are run in
parts."""


class First(NamedTuple):
    """The first run: its key, what was given, what it recorded, its terms, and which of the samples
    it is."""

    key: jax.Array
    given: Record
    made: Record
    terms: list[jax.Array]
    number: Any = None


class Replays:
    """The replays of the continued choices of a scope, by their numbers."""

    def __init__(
        self,
        reach: Reach,
        sites: Sequence[Elements],
        payoffs: Payoffs,
        rule: Callable[[Context], Rule],
        context: Context,
    ) -> None:
        self._reach, self.sites, self._payoffs = reach, sites, payoffs
        # values of a derivative are its arguments
        self._rule, self._context = rule, dataclasses.replace(context, given=None)
        copies = context.samples * payoffs.points
        self._numbers = {replays: copies * n for replays, n in reach.numbers.items()}
        self._copies = copies
        self._counts = {*map(kept_of, reach.kept), *payoffs.enumerated}

    def _at(self, first: First) -> Context:
        return dataclasses.replace(self._context, given=first.number)

    def corrections(self, first: First) -> list[jax.Array]:
        """The sampling terms of all choices: value 0."""
        payoffs = self._payoffs.of_first_run(first.terms, first.made)
        rest = first._replace(made={p: v for p, v in first.made.items() if p in self._counts})
        loops = {i: payoffs.pop(i) for i in [*payoffs] if self.sites[i].loops}
        parts = [self._in_loop(i, payoff, first, rest) for i, payoff in loops.items()]
        if not payoffs:
            return parts
        found = {i: self._beginning(i, first.made) for i in payoffs}
        parameters = [own for own, _, _ in found.values()]
        fixed = [lax.stop_gradient(p) for p in payoffs.values()]
        values = [(x, k, p) for (_, x, k), p in zip(found.values(), fixed, strict=True)]
        sites = tuple(self.sites[i] for i in payoffs)
        f = functools.partial(self._together, list(payoffs))
        return [*parts, _differentiated_only(f, sites, fixed, parameters, (values, rest))]

    def _beginning(self, number: int, made: Record) -> tuple[list[Any], jax.Array, jax.Array]:
        """The operands of a choice (they are zeros in a branch that is not taken: harmless ones
        there), its value, and its key."""
        s = self.sites[number]
        visited, operands, value, keys = made[s.path]

        def harmless(a: jax.Array) -> jax.Array:
            seen = visited.reshape((*visited.shape, *[1] * (a.ndim - s.loops)))
            return jnp.where(seen, a, jnp.asarray(0.5, a.dtype))

        if s.loops or s.chosen.choice.conditional:
            operands = jax.tree.map(harmless, operands)
        return operands, lax.stop_gradient(value), keys

    def _together(self, numbers: Sequence[int], parameters: Any, rest: Any) -> jax.Array:
        """The sampling terms of choices outside of loops."""
        values, first = rest
        args = {i: (p, *v) for i, p, v in zip(numbers, parameters, values, strict=True)}
        done: list[jax.Array] = []
        waiting: list[tuple[list[int], Asked, Any]] = []
        for group in self._alike(args):
            term = Term(self.sites[group[0]], self._at(first))
            several = term if len(group) == 1 else term.of_several
            own = jax.tree.map(lambda *a: _stacked(a), *(args[i] for i in group))
            asking = Asking(several, args[group[0]][-1], (*own, first.key))
            if asking.is_known:
                waiting.append((group, asking.asked(), None))
                continue
            for i in group:
                k = lambda x, i=i: _constant(self.answers, {i: Other(x[None])}, first)[i][0]
                done.append(term(k, *args[i], first.key))
        while waiting:
            asked, others = [], {}
            for group, questions, answers in waiting:
                try:
                    rows = questions.send(answers)
                except StopIteration as end:
                    done.append(end.value)
                    continue
                asked.append((group, questions, rows))
                others |= {
                    i: Other(v) for i, v in zip(group, _of_each(rows, len(group)), strict=True)
                }
            payoffs = _constant(self.answers, others, first) if others else {}
            waiting = [
                (group, questions, _answered([payoffs[i] for i in group], rows))
                for group, questions, rows in asked
            ]
        return added(done, None)

    def _alike(self, args: Mapping[int, tuple[Any, ...]]) -> list[list[int]]:
        """The choices, those together that differ by numbers alone (and are not large)."""
        found: dict[Any, list[list[int]]] = {}
        for i, own in args.items():
            like, size = Term(self.sites[i], self._context).like(own), self._copies * own[1].size
            try:
                groups = found.setdefault(like, [[]])
            except TypeError:  # a static part that has no hash
                groups = found.setdefault(i, [[]])
            if groups[-1] and len(groups[-1]) * size >= MOST_NUMBERS:
                groups.append([])
            groups[-1].append(i)
        return [group for groups in found.values() for group in groups]

    def answers(self, others: Mapping[int, Other], first: First) -> dict[int, jax.Array]:
        """The payoffs ``[rows, ...]`` of other values."""
        found: dict[int, jax.Array] = {}
        rule = self._rule(self._at(first))
        for part in self._parts({i: len(o.value) for i, o in others.items()}):
            chosen = {i: others[i] for i in part}
            replay = Pass(self._reach, rule, first.given, first.made, chosen)
            outs = replay.run(first.key)[: len(first.terms)]
            found |= self._payoffs.of(replay.sizes, first.terms, first.made, outs, replay.made)
        return found

    def _parts(self, rows: Mapping[int, int]) -> list[list[int]]:
        """Replays that are run side by side, as many as :data:`MOST_NUMBERS` allows."""
        most = max(
            n * sum(rows[i] for i in rows if replays >> i & 1)
            for replays, n in self._numbers.items()
        )
        numbers = sorted(rows)
        if most <= MOST_NUMBERS or len(numbers) == 1:
            return [numbers]
        half = len(numbers) // 2
        halves = ({i: rows[i] for i in part} for part in (numbers[:half], numbers[half:]))
        return [part for each in halves for part in self._parts(each)]

    def _in_loop(self, number: int, payoff: jax.Array, first: First, rest: First) -> jax.Array:
        """The sampling terms of a choice in a loop: of all steps at once, or of each."""
        s = self.sites[number]
        parameters, value, keys = self._beginning(number, first.made)
        payoff, lengths = lax.stop_gradient(payoff), s.shape[: s.loops]
        f = functools.partial(self._instance, number)

        def zero(parameters: list[Any], *more: Any) -> jax.Array:
            return _differentiated_only(f, (s,), [parameters, more], parameters, (*more, rest))

        if in_step(s) or across_steps(s):
            own = keys.reshape(-1, keys.shape[-1])[0]
            return zero(parameters, None, value, own, payoff)
        n = math.prod(lengths)
        flatten = lambda a: a.reshape((n, *a.shape[s.loops :]))
        xs = jax.tree.map(flatten, (parameters, value, keys))
        each = lambda i, own, value, key: zero(own, i, value, key, payoff)
        if n <= AT_ONCE:
            parts = jax.vmap(each)(jnp.arange(n), *xs)
        else:
            even = [b for b in range(AT_ONCE // 4, AT_ONCE + 1) if n % b == 0]  # no remainder
            batch = max(even, default=AT_ONCE)
            parts = lax.map(lambda x: each(*x), (jnp.arange(n), *xs), batch_size=batch)
        visited = first.made[s.path][0]
        return jnp.sum(jnp.where(visited.reshape(n), parts, 0.0))

    def _instance(self, number: int, parameters: list[Any], rest: Any) -> jax.Array:
        """The sampling terms of a choice in step ``i`` of the loops around it, or in all steps."""
        i, value, own_key, payoff, first = rest
        s = self.sites[number]
        lengths = s.shape[: s.loops]

        def other(x: jax.Array) -> Other:
            if i is not None:
                there = (jnp.arange(math.prod(lengths)) == i).reshape(lengths)
                return Other(jnp.broadcast_to(x, (1, *lengths, *x.shape)), there[None])
            there = jnp.ones(lengths, bool) if in_step(s) else x != value
            return Other(x[None], there[None])

        def k(x: jax.Array) -> jax.Array:
            return _constant(self.answers, {number: other(x)}, first)[number][0]

        return Term(s, self._at(first))(k, parameters, value, own_key, payoff, first.key)


def _stacked(parts: Sequence[jax.Array]) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.stack(parts)


def _joined(parts: Sequence[jax.Array]) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def _of_each(asked: Sequence[jax.Array], n: int) -> list[jax.Array]:
    """The rows of each of n choices, of those that they ask for together: ``[n * rows, ...]``."""
    if n == 1:
        return [_joined(asked)]
    apart = [x.reshape(n, -1, *x.shape[1:]) for x in asked]
    return [_joined([x[j] for x in apart]) for j in range(n)]


def _answered(payoffs: Sequence[jax.Array], asked: Sequence[jax.Array]) -> list[jax.Array]:
    """The reverse: what is answered to each of the questions of choices together."""
    if len(asked) == 1:
        return [_joined(payoffs)]
    ends = [0]
    for x in asked:
        ends.append(ends[-1] + len(x) // len(payoffs))
    return [_joined([p[a:b] for p in payoffs]) for a, b in itertools.pairwise(ends)]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _differentiated_only(f: Any, sites: Any, like: Any, x: Any, rest: Any) -> jax.Array:
    """0, with the derivative of ``f(x, rest)`` in ``x``; not evaluated for the value.

    It is mapped where one of ``like`` is.
    """
    return constant(0.0, like)


@_differentiated_only.defjvp
def _(f: Any, sites: Sequence[Elements], primals: Any, tangents: Any) -> Any:
    like, x, rest = primals
    x, rest = _first_order(sites, (x, rest))
    _, tangent = jax.jvp(lambda x: f(x, rest), (x,), (tangents[1],))
    zero = constant(0.0, like)
    return zero, tangent.astype(zero.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _constant(f: Any, x: Any, rest: Any) -> Any:
    """``f(x, rest)`` as numbers without derivative."""
    return f(x, rest)


@_constant.defjvp
def _(f: Any, primals: Any, tangents: Any) -> Any:
    out = f(*primals)
    return out, jax.tree.map(jnp.zeros_like, out)


def _first_order(sites: Sequence[Elements], values: Any) -> Any:
    """``values``, which must not be differentiated: the estimate holds to first order."""

    @jax.custom_jvp
    def identity(values: Any) -> Any:
        return values

    @functools.partial(identity.defjvp, symbolic_zeros=True)
    def _(primals: Any, tangents: Any) -> Any:
        symbolic = jax.custom_derivatives.SymbolicZero
        is_zero = lambda t: isinstance(t, symbolic)
        ((own, _),) = tangents
        moves = [not all(map(is_zero, jax.tree.leaves(t, is_leaf=is_zero))) for t in own]
        s = next((s for s, m in zip(sites, moves, strict=False) if m), sites[0]).chosen
        raise UnsupportedError(
            f"a second derivative is taken through {show(s.choice.address)} at "
            f"{s.choice.source}, whose estimator {s.estimator.name} gives first derivatives only. "
            "Use ppl.reparam(), ppl.reinforce() or ppl.enum() for this site."
        )

    return identity(values)


__all__ = ["First", "Replays"]
