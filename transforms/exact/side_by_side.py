"""A program at values of its discrete variables, all steps of a chain side by side.

What a ``scan`` over a chain computes in one step depends on the digits there and, through the
carry, on those one step before, and so on, up to the order of the chain. So a program is run in
several *worlds*: its variables at their digits, one step before, two steps before. Where a loop is
entered, the carry that comes from the chain is what the next world makes of it, and no step waits
for another.

In a chain of z with carry c_t = g(z_t), a step that adds f(c, z_t) runs once for all steps t and
digits: z_t at digits i, c at g of the digits j of the step before. So f is a table f32[T, K, K],
and only the sum over it is a recursion. In a chain of order k, c is made by k steps at digits of
their own, and f is a table over k + 1 of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jax
from ..analyses.alike import NO, Axes, Uniform
from ..analyses.dependence import NONE, Dependence, Dependences
from ..analyses.primitives import elementwise, of
from ..errors import UnsupportedError
from ..program.choices import is_random
from ..program.control import Loop, control
from ..program.control import loop as as_loop
from ..program.messages import silent, silent_equation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Stacked:
    """The steps of a chain: the first ones, which few are before, and the others.

    ``later`` has a steps' axis in front, of size 1 where they are all the same, so that a chain
    that does not change takes the memory of one step; ``first`` have none.
    """

    first: tuple[jax.Array, ...]
    later: jax.Array
    length: int = dataclasses.field(metadata={"static": True})

    def whole(self) -> jax.Array:
        n = self.length - len(self.first)
        later = jnp.broadcast_to(self.later, (n, *self.later.shape[1:]))
        return jnp.concatenate([jnp.stack(self.first), later])


class Worlds:
    """A program whose last inputs are digits.

    ``in_chain`` says of each digit whether it is one of a chain, ``same`` along which axes every
    input is the same. What depends on no digit is computed once, from ``consts``.
    """

    def __init__(
        self,
        closed: _jax.ClosedJaxpr,
        consts: Sequence[Any],
        in_chain: Sequence[bool],
        same: Sequence[Axes],
    ):
        self._jaxpr = jaxpr = closed.jaxpr
        self._digits = jaxpr.invars[len(consts) :]
        self._same = Uniform().variables(closed, same)
        inputs: list[Dependence] = [{0: ()} if c else NONE for c in in_chain]
        found = Dependences(lambda _: False).variables(closed, [*[NONE] * len(consts), *inputs])
        self._chained = {v for v, d in found.items() if d}
        self._steps = _stepwise(
            jaxpr, {v for v, c in zip(self._digits, in_chain, strict=True) if c}
        )
        self._read = {v for eqn in jaxpr.eqns for v in eqn.invars if isinstance(v, _jax.Var)}
        self._read.update(v for v in jaxpr.outvars if isinstance(v, _jax.Var))
        self._once = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        self._once.update(zip(jaxpr.invars, consts, strict=False))
        self._equations: list[_jax.JaxprEqn] = []
        reached = set(self._digits)
        for eqn in jaxpr.eqns:
            if reached.intersection(v for v in eqn.invars if isinstance(v, _jax.Var)):
                reached.update(eqn.outvars)
                self._equations.append(eqn)
            else:
                outs = _jax.evaluate_equation(eqn, [_read(self._once, v) for v in eqn.invars])
                self._once.update(zip(eqn.outvars, outs, strict=True))

    def run(self, digits: Sequence[Sequence[Any]]) -> list[jax.Array | Stacked]:
        """The outputs, at digits, those one step before, and so on."""
        worlds = [self._once | dict(zip(self._digits, ds, strict=True)) for ds in digits]
        for eqn in self._equations:
            ins = [[_read(w, v) for v in eqn.invars] for w in worlds]
            quiet = silent_equation(eqn)
            if not any(map(self._is_chained, eqn.outvars)):
                made = [_evaluated(eqn, ins[0])] * len(worlds)
            elif isinstance(loop := control(eqn), Loop):
                ins = [list(map(_whole, own)) for own in ins]
                # more steps back than there are worlds is what nothing asks for
                made = [
                    self._scan(quiet if n else eqn, ins[n:] + ins[-1:] * n) for n in range(len(ins))
                ]
                last, _ = loop.results(made[0])  # that of the chain in all worlds
                made = [[*last, *loop.results(values)[1]] for values in made]
            else:
                made = [_evaluated(quiet if n else eqn, own) for n, own in enumerate(ins)]
            for world, values in zip(worlds, made, strict=True):
                world.update(zip(eqn.outvars, values, strict=True))
        return [_read(worlds[0], v) for v in self._jaxpr.outvars]

    def _is_chained(self, v: Any) -> bool:
        return isinstance(v, _jax.Var) and v in self._chained

    def _scan(self, eqn: _jax.JaxprEqn, ins: list[list[Any]]) -> list[Any]:
        if is_random(eqn):
            raise UnsupportedError(
                f"the loop at {_jax.line_of(eqn)} makes random choices of its own, beside those "
                "that enumeration() sums out. Use ppl.importance(n, proposal)."
            )
        loop = as_loop(eqn)
        carries, _ = loop.results(eqn.outvars)
        drawn, _ = loop.results(_drawn(loop, self._steps))
        consts, init, _ = loop.operands(ins[0])
        return _Steps(
            loop,
            consts,
            init,
            [loop.operands(own)[2] for own in ins],
            drawn,
            [0 not in self._same.get(v, NO) for v in loop.operands(eqn.invars)[2]],
            any(v in self._read for v, d in zip(carries, drawn, strict=True) if d),
        ).side_by_side()


def _stepwise(jaxpr: _jax.Jaxpr, digits: set[Any]) -> set[Any]:
    """The variables that are made of the digits of one step each, not of the end of a chain."""
    found = set(digits)
    for eqn in jaxpr.eqns:
        if not found.intersection(v for v in eqn.invars if isinstance(v, _jax.Var)):
            continue
        if isinstance(loop := control(eqn), Loop):
            made = [False] * loop.n_carry + loop.results(_drawn(loop, found))[1]
        else:
            read = list(dict.fromkeys(v for v in eqn.invars if isinstance(v, _jax.Var)))
            each = _jax.open_jaxpr(jaxpr, read, eqn.outvars, [eqn])
            ins: list[Dependence] = [{0: ()} if v in found else NONE for v in read]
            made = list(map(bool, Dependences(lambda _: False).run(each, ins)))
        found.update(v for v, m in zip(eqn.outvars, made, strict=True) if m)
    return found


def _drawn(loop: Loop, steps: set[Any]) -> list[bool]:
    """Which outputs of a loop come from those of its rows that are made of one step each.

    What is made of the end of another chain, say, is the same in all steps, and may be carried on
    for as long as the loop is: such a carry does not come from a chain.
    """
    n, m, (_, _, xs) = loop.n_consts, loop.n_carry, loop.operands(loop.eqn.invars)
    carries: list[Dependence] = [{k: ()} for k in range(m)]
    rows: list[Dependence] = [{"row": ()} if _in(v, steps) else NONE for v in xs]
    outs = Dependences(lambda _: False).run(loop.body, [*[NONE] * n, *carries, *rows])
    drawn = {k for k, d in enumerate(outs) if "row" in d}
    while more := {k for k, d in enumerate(outs) if k not in drawn and drawn.intersection(d)}:
        drawn |= more
    late = {k for k in drawn if k < m}
    for _ in late:  # those that are made of others of them, as often as there are
        late = {k for k in late if late.intersection(outs[k])}
    if late:
        raise UnsupportedError(
            f"the loop at {_jax.line_of(loop.eqn)} carries something of discrete choices along for "
            "as long as it is. Use ppl.importance(n, proposal)."
        )
    return [k in drawn for k in range(len(outs))]


def _in(v: Any, among: set[Any]) -> bool:
    return isinstance(v, _jax.Var) and v in among


@dataclasses.dataclass
class _Steps:
    """A loop; ``drawn`` are the carries that come from a chain, ``mapped`` the rows that are
    not the same in all steps, ``ends`` whether the last of the former is read. The rows are those
    of each world."""

    loop: Loop
    consts: list[Any]
    init: list[Any]
    rows: list[list[Any]]
    drawn: list[bool]
    mapped: list[bool]
    ends: bool

    def outputs(self, plain: Sequence[Any], drawn: Sequence[Any], x: Sequence[Any]) -> list[Any]:
        """The outputs, from those carries that are of no chain, and the others."""
        return self.loop.results(self._step(self.loop.body, plain, drawn, x))[1]

    def carries(self, plain: Any, drawn: Any, x: Sequence[Any]) -> list[Any]:
        """The carries, without the messages of the step."""
        return self.loop.results(self._step(silent(self.loop.body), plain, drawn, x))[0]

    def _step(self, body: _jax.ClosedJaxpr, plain: Any, drawn: Any, x: Any) -> Any:
        given, rest = iter(plain), iter(drawn)
        carry = [next(rest) if d else next(given) for d in self.drawn]
        return _jax.evaluate(body, *self.consts, *carry, *x)

    def of_chain(self, carry: Sequence[Any], yes: bool = True) -> list[Any]:
        return [c for c, d in zip(carry, self.drawn, strict=True) if d == yes]

    def some(self, xs: list[Any], rows: Any) -> list[Any]:
        """Rows, one of them where they are all the same."""
        return [x[rows] if m else x[0] for x, m in zip(xs, self.mapped, strict=True)]

    def side_by_side(self) -> list[Any]:
        plain, drawn, n = (
            self.of_chain(self.init, False),
            self.of_chain(self.init),
            self.loop.length,
        )
        reverse = self.loop.reverse

        def alone(plain: list[Any], x: list[Any]) -> Any:
            return self.of_chain(self.carries(plain, drawn, x), False), plain

        last, entering = lax.scan(alone, plain, self.rows[0], length=n, reverse=reverse)
        if not drawn:
            rows = self.some(self.rows[0], slice(None))
            outs = jax.vmap(lambda c, x: self.outputs(c, [], x), (0, self._in_axes), axis_size=n)(
                entering, rows
            )
            return [*last, *outs]
        assert not reverse
        depth = max(len(self.rows) - 1, 1)
        late_changes, changes = self._changes()

        def at(t: int) -> list[Any]:
            return [c[t] for c in entering]

        def before(t: int, left: int, world: int) -> list[Any]:
            """The carries of the chain that enter a step, made by at most ``left`` steps."""
            if t == 0 or left == 0:
                return drawn
            world = min(world + 1, len(self.rows) - 1)
            x = [x[t - 1] for x in self.rows[world]]
            entered = before(t - 1, left - 1, world)
            return self.of_chain(self.carries(at(t - 1), entered, x))

        firsts = [
            self.outputs(at(t), before(t, t, 0), [x[t] for x in self.rows[0]])
            for t in range(min(depth, n))
        ]
        later = self._later(entering, drawn, depth, late_changes, changes)
        ys = [
            Stacked(tuple(f), y if c else y[None], n)
            for f, y, c in zip(zip(*firsts, strict=True), later, changes, strict=True)
        ]
        ends = [jnp.zeros_like(c) for c in drawn]
        if self.ends:
            x = [x[n - 1] for x in self.rows[0]]
            ends = self.of_chain(self.carries(at(n - 1), before(n - 1, depth, 0), x))
        finals, ended = iter(last), iter(ends)
        return [*(next(ended) if d else next(finals) for d in self.drawn), *ys]

    @property
    def _in_axes(self) -> list[int | None]:
        return [0 if m else None for m in self.mapped]

    def _later(
        self,
        entering: list[Any],
        drawn: list[Any],
        depth: int,
        late_changes: bool,
        changes: list[bool],
    ) -> list[Any]:
        """The outputs of all steps but the first ``depth``."""
        start = min(depth, self.loop.length)
        steps = self.loop.length - start
        late = drawn
        for back in range(depth, 0, -1):  # the step so many before
            world = min(back, len(self.rows) - 1)
            which = slice(start - back, start - back + steps)
            made = lambda c, late, x: self.of_chain(self.carries(c, late, x))
            if late_changes:
                of_late = 0 if back < depth else None
                late = jax.vmap(made, (0, of_late, self._in_axes), axis_size=steps)(
                    [c[which] for c in entering], late, self.some(self.rows[world], which)
                )
            else:
                late = made([c[0] for c in entering], late, [x[0] for x in self.rows[world]])
        which = slice(start, None)
        return jax.vmap(
            self.outputs,
            in_axes=(0, 0 if late_changes else None, self._in_axes),
            out_axes=[0 if c else None for c in changes],
            axis_size=steps,
        )([c[which] for c in entering], late, self.some(self.rows[0], which))

    def _changes(self) -> tuple[bool, list[bool]]:
        """Whether the carries from the chain change from step to step, and which outputs do."""
        jaxpr = self.loop.body.jaxpr
        _, carries, rows = self.loop.operands(jaxpr.invars)
        after, ys = self.loop.results(jaxpr.outvars)
        changing = {*self.of_chain(carries, False)}
        changing.update(x for x, m in zip(rows, self.mapped, strict=True) if m)
        late = bool(changing & _inputs(jaxpr, self.of_chain(after)))
        if late:
            changing.update(self.of_chain(carries))
        return late, [bool(changing & _inputs(jaxpr, [v])) for v in ys]


def _inputs(jaxpr: _jax.Jaxpr, outs: Sequence[Any]) -> set[Any]:
    """The inputs that outputs are computed from."""
    needed = {v for v in outs if isinstance(v, _jax.Var)}
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            needed.update(v for v in eqn.invars if isinstance(v, _jax.Var))
    return needed.intersection(jaxpr.invars)


def _evaluated(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any]:
    """The results of an equation; of the first steps and the others by themselves, if what it makes
    of a step is made of that step alone."""
    like = next((x for x in ins if isinstance(x, Stacked)), None)
    if like is None or of(eqn).axes is not elementwise:
        return _jax.evaluate_equation(eqn, list(map(_whole, ins)))
    n, later = len(like.first), [_later(x, len(like.first)) for x in ins]
    steps = max(x.shape[0] for x in later if x.ndim)
    later = [jnp.broadcast_to(x, (steps, *x.shape[1:])) if x.ndim else x for x in later]
    each = [[_at(x, t) for x in ins] for t in range(n)]
    first = tuple(_jax.evaluate_equation(eqn, xs)[0] for xs in each)
    return [Stacked(first, _jax.evaluate_equation(eqn, later)[0], like.length)]


def _at(x: Any, t: int) -> Any:
    if isinstance(x, Stacked):
        return x.first[t]
    return x[t % x.shape[0]] if x.ndim else x


def _later(x: Any, n: int) -> Any:
    if isinstance(x, Stacked):
        return x.later
    return x[n:] if x.ndim and x.shape[0] > 1 else x


def _whole(x: Any) -> Any:
    return x.whole() if isinstance(x, Stacked) else x


def _read(env: dict[Any, Any], v: Any) -> Any:
    return env[v] if isinstance(v, _jax.Var) else jnp.asarray(v.val, v.aval.dtype)


__all__ = ["Stacked", "Worlds"]
