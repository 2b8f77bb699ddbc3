"""A program at values of its discrete variables, all steps of a chain side by side.

What a ``scan`` over a chain computes in one step depends on the digits there and, through the
carry, on those one step before. So a program is run in two *worlds*: its variables at their digits,
and one step before. Where a loop is entered, the carry that comes from the chain is what the other
world makes of it, and no step waits for another.

In a chain of z with carry c_t = g(z_t), a step that adds f(c, z_t) runs once for all steps t and
digits: z_t at digits i, c at g of the digits j of the step before. So f is a table f32[T, K, K],
and only the sum over it is a recursion.
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
from ..errors import UnsupportedError
from ..program.choices import is_random
from ..program.messages import silent, silent_equation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Stacked:
    """The steps of a chain: the first one, which none is before, and the others.

    ``later`` has size 1 where they are all the same, so that a chain that does not change takes
    the memory of one step.
    """

    first: jax.Array
    later: jax.Array
    length: int = dataclasses.field(metadata={"static": True})

    def whole(self, axis: int = 0) -> jax.Array:
        shape = list(self.later.shape)
        shape[axis] = self.length - 1
        return jnp.concatenate([self.first, jnp.broadcast_to(self.later, shape)], axis)


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

    def run(self, here: Sequence[Any], before: Sequence[Any]) -> list[jax.Array | Stacked]:
        """The outputs, at digits and those one step before."""
        worlds = [self._once | dict(zip(self._digits, ds, strict=True)) for ds in (here, before)]
        for eqn in self._equations:
            now, late = ([_whole(_read(w, v)) for v in eqn.invars] for w in worlds)
            chained = any(map(self._is_chained, eqn.outvars))
            if eqn.primitive is _jax.scan_p and chained:
                # before, what lags behind would need two steps back: nothing asks for it
                both = self._scan(eqn, now, late), self._scan(silent_equation(eqn), late, late)
            else:
                outs = _jax.evaluate_equation(eqn, now)
                quiet = silent_equation(eqn)
                both = outs, _jax.evaluate_equation(quiet, late) if chained else outs
            for world, values in zip(worlds, both, strict=True):
                world.update(zip(eqn.outvars, values, strict=True))
        return [_read(worlds[0], v) for v in self._jaxpr.outvars]

    def _is_chained(self, v: Any) -> bool:
        return isinstance(v, _jax.Var) and v in self._chained

    def _scan(self, eqn: _jax.JaxprEqn, now: list[Any], late: list[Any]) -> list[Any]:
        if is_random(eqn):
            raise UnsupportedError(
                f"the loop at {_jax.line_of(eqn)} makes random choices of its own, beside those "
                "that enumeration() sums out. Use ppl.importance(n, proposal)."
            )
        n, m = _jax.scan_layout(eqn)
        rows = eqn.invars[n + m :]
        loop = _Loop(
            eqn,
            now[:n],
            now[n : n + m],
            [self._is_chained(v) for v in eqn.outvars[:m]],
            [0 not in self._same.get(v, NO) for v in rows],
        )
        return loop.side_by_side(now[n + m :], late[n + m :])


@dataclasses.dataclass
class _Loop:
    """A ``scan``; ``drawn`` are the carries that come from a chain, ``mapped`` the rows that are
    not the same in all steps."""

    eqn: _jax.JaxprEqn
    consts: list[Any]
    init: list[Any]
    drawn: list[bool]
    mapped: list[bool]

    @property
    def length(self) -> int:
        return self.eqn.params["length"]

    def outputs(self, plain: Sequence[Any], drawn: Sequence[Any], x: Sequence[Any]) -> list[Any]:
        """The outputs, from those carries that are of no chain, and the others."""
        return self._step(self.eqn.params["jaxpr"], plain, drawn, x)[len(self.init) :]

    def carries(self, plain: Sequence[Any], drawn: Sequence[Any], x: Sequence[Any]) -> list[Any]:
        """The carries, without the messages of the step."""
        return self._step(silent(self.eqn.params["jaxpr"]), plain, drawn, x)[: len(self.init)]

    def _step(self, body: _jax.ClosedJaxpr, plain: Any, drawn: Any, x: Any) -> list[Any]:
        given, rest = iter(plain), iter(drawn)
        carry = [next(rest) if d else next(given) for d in self.drawn]
        return _jax.evaluate(body, *self.consts, *carry, *x)

    def of_chain(self, carry: Sequence[Any], yes: bool = True) -> list[Any]:
        return [c for c, d in zip(carry, self.drawn, strict=True) if d == yes]

    def side_by_side(self, xs: list[Any], xs_before: list[Any]) -> list[Any]:
        plain, drawn = self.of_chain(self.init, False), self.of_chain(self.init)
        some = lambda xs, of: [of(x) if m else x[0] for x, m in zip(xs, self.mapped, strict=True)]
        in_axes = [0 if m else None for m in self.mapped]

        def alone(plain: list[Any], x: list[Any]) -> Any:
            return self.of_chain(self.carries(plain, drawn, x), False), plain

        reverse, n = self.eqn.params["reverse"], self.length
        last, entering = lax.scan(alone, plain, xs, length=n, reverse=reverse)
        if not drawn:
            outs = jax.vmap(lambda c, x: self.outputs(c, [], x), (0, in_axes), axis_size=n)
            return [*last, *outs(entering, some(xs, lambda x: x))]
        assert not reverse
        first = self.outputs(plain, drawn, [x[0] for x in xs])
        late_changes, changes = self._changes()
        made = lambda c, x: self.of_chain(self.carries(c, drawn, x))
        if late_changes:
            all_but_last = lambda x: x[: n - 1]
            late = jax.vmap(made, (0, in_axes), axis_size=n - 1)(
                list(map(all_but_last, entering)), some(xs_before, all_but_last)
            )
        else:
            late = made(plain, [x[0] for x in xs_before])
        later = jax.vmap(
            lambda c, late, x: self.outputs(c, late, x),
            in_axes=(0, 0 if late_changes else None, in_axes),
            out_axes=[0 if c else None for c in changes],
            axis_size=n - 1,
        )([c[1:] for c in entering], late, some(xs, lambda x: x[1:]))
        ys = [
            Stacked(f[None], y if c else y[None], n)
            for f, y, c in zip(first, later, changes, strict=True)
        ]
        finals = iter(last)
        ends = zip(self.init, self.drawn, strict=True)
        return [*(jnp.zeros_like(i) if d else next(finals) for i, d in ends), *ys]

    def _changes(self) -> tuple[bool, list[bool]]:
        """Whether the carries from the chain change from step to step, and which outputs do."""
        jaxpr = self.eqn.params["jaxpr"].jaxpr
        n, m = len(self.consts), len(self.init)
        carries, rows = jaxpr.invars[n : n + m], jaxpr.invars[n + m :]
        changing = {*self.of_chain(carries, False)}
        changing.update(x for x, m in zip(rows, self.mapped, strict=True) if m)
        late = bool(changing & _inputs(jaxpr, self.of_chain(jaxpr.outvars[:m])))
        if late:
            changing.update(self.of_chain(carries))
        return late, [bool(changing & _inputs(jaxpr, [v])) for v in jaxpr.outvars[m:]]


def _inputs(jaxpr: _jax.Jaxpr, outs: Sequence[Any]) -> set[Any]:
    """The inputs that outputs are computed from."""
    needed = {v for v in outs if isinstance(v, _jax.Var)}
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            needed.update(v for v in eqn.invars if isinstance(v, _jax.Var))
    return needed.intersection(jaxpr.invars)


def _whole(x: Any) -> Any:
    return x.whole() if isinstance(x, Stacked) else x


def _read(env: dict[Any, Any], v: Any) -> Any:
    return env[v] if isinstance(v, _jax.Var) else jnp.asarray(v.val, v.aval.dtype)


__all__ = ["Stacked", "Worlds"]
