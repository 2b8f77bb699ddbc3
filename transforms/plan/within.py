"""What the payoff of a score would be without one particle.

In a multi-sample bound, log 1/n sum_i w_i, the draws of n particles meet in one term. A baseline
for those of particle i is what the term would be if what i computed were the mean of what the
others did: it depends on the others alone, so it is independent of the draws of i, and it is close
to the term. For the logarithm of a mean of weights that is VIMCO (Mnih & Rezende 2016, with the
geometric mean).

*What i computed* is found where particles meet: values that run along their axis, read by equations
whose results do not. Only these equations run again, not the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jax
from ..analyses.dependence import NONE, Along, Dependence, Dependences
from ..errors import UnsupportedError, show
from ..estimation.weighted import times
from ..program.choices import Path, is_random
from .layout import Elements, Layout, onto


@dataclasses.dataclass(frozen=True)
class Tail:
    """What follows where the particles of a choice meet, in some terms.

    ``axis`` is that of the particles, among those of the elements of the choice. ``program`` takes
    ``meeting`` variables, each with its own axis of the particles, and ``others``.
    """

    axis: int
    terms: tuple[int, ...]
    program: _jax.ClosedJaxpr
    meeting: tuple[tuple[Any, int], ...]
    others: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Within:
    """The tails of the scores of a scope, and the program that also returns what they read."""

    program: _jax.ClosedJaxpr
    outputs: int
    tails: dict[Path, list[Tail]]
    read: tuple[Any, ...]

    def parts(
        self, layout: Layout, s: Elements, extra: Sequence[Any], weights: Any
    ) -> list[tuple[Dependence, jax.Array]]:
        """For each term that the choice is in, its dependence and the baseline of each element."""
        value = dict(zip(self.read, map(lax.stop_gradient, extra), strict=True))
        out = []
        for tail in self.tails[s.path]:
            n = s.shape[tail.axis]

            def without(i: jax.Array, tail: Tail = tail) -> list[jax.Array]:
                seen = [_replaced(value[v], axis, i) for v, axis in tail.meeting]
                terms = _jax.evaluate(tail.program, *seen, *(value[v] for v in tail.others))
                parts = []
                for t, number in zip(terms, tail.terms, strict=True):
                    d = layout.terms[number]
                    t = times(layout.law(d, t.ndim, weights), jnp.where(jnp.isfinite(t), t, 0.0))
                    parts.append(onto(lax.stop_gradient(t), d[s.path], [True] * len(s.shape)))
                return parts

            if n > 1:
                for number, part in zip(tail.terms, jax.vmap(without)(jnp.arange(n)), strict=True):
                    part = jnp.moveaxis(jnp.squeeze(part, 1 + tail.axis), 0, tail.axis)
                    out.append((layout.terms[number], part))
        return out


def _replaced(x: jax.Array, axis: int, i: jax.Array) -> jax.Array:
    """``x`` with row ``i`` the mean of the others, or (integers) another one."""
    n = x.shape[axis]
    here = (jnp.arange(n) == i).reshape([n if a == axis else 1 for a in range(x.ndim)])
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.where(here, jnp.roll(x, 1, axis), x)
    mean = jnp.sum(jnp.where(here, 0.0, x), axis=axis, keepdims=True) / (n - 1)
    return jnp.where(here, mean, x)


def within(layout: Layout, sites: Sequence[Elements]) -> Within:
    """The tails for choices whose baseline asks for them.

    Raises:
        UnsupportedError: a choice has no particles that meet.
    """
    tails = {s.path: _tails(layout, s) for s in sites}
    for s in sites:
        if not tails[s.path]:
            c = s.chosen.choice
            raise UnsupportedError(
                f'ppl.reinforce("within") of {show(c.address)} at {c.source} compares particles '
                "that jax.vmap draws side by side, as in ppl.iwelbo, with each other, and no draws "
                'of it meet so in a term of the objective. Use ppl.reinforce("loo") with several '
                "samples."
            )
    read = tuple(
        dict.fromkeys(
            v for ts in tails.values() for t in ts for v in (*(v for v, _ in t.meeting), *t.others)
        )
    )
    jaxpr = layout.program.jaxpr
    program = _jax.with_outputs(layout.program, [*jaxpr.outvars, *read])
    return Within(program, len(jaxpr.outvars), tails, read)


def _tails(layout: Layout, s: Elements) -> list[Tail]:
    closed = layout.program
    found = Dependences(lambda path: path == s.path)
    env = found.variables(closed, [NONE] * len(closed.in_avals))
    vmaps = range(s.loops, s.loops + len(s.chosen.choice.site.sizes))
    axis_of: dict[int, list[int]] = {}
    for number, d in enumerate(layout.terms):
        if s.path not in d or _weighed_by_own_draw(layout, s, d):
            continue
        met = next((a for a in vmaps if d[s.path][a] is None), None)
        if met is not None:
            axis_of.setdefault(met, []).append(number)
    tails = [_tail(closed, env, s.path, axis, numbers) for axis, numbers in axis_of.items()]
    return [t for t in tails if t is not None]


def _weighed_by_own_draw(layout: Layout, s: Elements, d: Dependence) -> bool:
    """Whether the law of an enumerated choice that a term depends on moves with the draw."""
    return any(s.path in layout.sites[p].parameters for p in layout.together(d))


def _tail(
    closed: _jax.ClosedJaxpr, env: Any, path: Path, axis: int, numbers: Sequence[int]
) -> Tail | None:
    jaxpr = closed.jaxpr
    outs = [jaxpr.outvars[i] for i in numbers]

    def along(v: Any) -> Along | None:
        found = env[v][path][axis]
        return found if found is not None and not found.lag and found.axis >= 0 else None

    def depends(v: Any) -> bool:
        return isinstance(v, _jax.Var) and path in env.get(v, NONE)

    needed = {v for v in outs if isinstance(v, _jax.Var)}
    eqns, meeting, others = [], dict[Any, int](), dict[Any, None]()
    for eqn in reversed(jaxpr.eqns):
        mine = needed.intersection(eqn.outvars)
        if not any(depends(v) and along(v) is None for v in mine):
            continue
        if is_random(eqn):
            return None
        eqns.append(eqn)
        for v in eqn.invars:
            if not isinstance(v, _jax.Var):
                continue
            place = along(v) if depends(v) else None
            if place is not None:
                meeting[v] = place.axis
            elif depends(v):
                needed.add(v)
            else:
                others[v] = None
    made = {v for e in eqns for v in e.outvars}
    if not eqns or not made.issuperset(v for v in outs if isinstance(v, _jax.Var)):
        return None
    invars = [*meeting, *others]
    program = _jax.open_jaxpr(jaxpr, invars, outs, eqns[::-1])
    return Tail(axis, tuple(numbers), program, tuple(meeting.items()), tuple(others))
