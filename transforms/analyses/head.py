"""A program without its tail: what is computed up to the leaves (``terms.py``).

Equations stay as they are, but for those that read what the tail of a program inside has left.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from .. import _jax
from ..program.choices import is_random
from ..program.control import Loop, Whole, control
from .summed import sums
from .tail import Level, is_var, read


def head_of(level: Level, outs: Sequence[Any]) -> tuple[list[int], list[Any]]:
    """The equations that stay as they are, none of which reads what an inner level makes; and the
    variables of these and of the inputs that others read. Choices and effects keep their order."""
    jaxpr = level.closed.jaxpr
    whole = _whole(level, outs)
    head: list[int] = []
    made: dict[Any, None] = dict.fromkeys((*jaxpr.constvars, *jaxpr.invars))
    read_ = {v for v in (*outs, *level.leaves, *level.constants) if is_var(v)}
    passed = False
    for i, eqn in enumerate(jaxpr.eqns):
        own = [v for v in eqn.invars if is_var(v)]
        ordered = bool(eqn.effects) or is_random(eqn)
        stays = i in whole and i not in level.inner and not (passed and ordered)
        if stays and all(v in made for v in own):
            head.append(i)
            made.update(dict.fromkeys(eqn.outvars))
        elif i in whole or i in level.inner:
            read_.update(own)
            passed = passed or ordered
    return head, [v for v in made if v in read_]


def _whole(level: Level, outs: Sequence[Any]) -> set[int]:
    """The equations of which results are needed, for leaves and ``outs``."""
    jaxpr = level.closed.jaxpr
    needed = {v for v in (*outs, *level.leaves, *level.constants) if is_var(v)}
    whole = set()
    for i in reversed(range(len(jaxpr.eqns))):
        eqn = jaxpr.eqns[i]
        if i not in level.tail or needed.intersection(eqn.outvars):
            whole.add(i)
        if i in whole or i in level.inner:
            needed.update(v for v in eqn.invars if is_var(v))
    return whole


def run_head(
    level: Level, known: dict[Any, Any], outs: Sequence[Any], done: Sequence[int] = ()
) -> dict[Any, Any]:
    """The variables of a program, up to its leaves and ``outs``, from those that are known, what is
    ``done`` among them.

    What an inner level has collected stands under the number of its equation.
    """
    jaxpr, env, before = level.closed.jaxpr, dict(known), set(done)
    whole = _whole(level, outs)
    needed = {v for v in (*outs, *level.leaves, *level.constants) if is_var(v)}
    for i in whole.union(level.inner):
        needed.update(v for v in jaxpr.eqns[i].invars if is_var(v))
    for i, eqn in enumerate(jaxpr.eqns):
        if i in before or (i not in whole and i not in level.inner):
            continue
        operands = [read(env, v) for v in eqn.invars]
        if i not in level.inner:
            values = _jax.evaluate_equation(eqn, operands)
        elif isinstance(inside := control(eqn), Loop):
            read_ = [v in needed for v in eqn.outvars]
            values, env[i] = _run_loop(inside, level.inner[i], level.outs[i], operands, read_)
        else:
            inner = level.inner[i]
            wanted = inner.closed.jaxpr.outvars if i in whole else []
            run = functools.partial(_run_inside, inner, wanted)
            values, env[i] = (inside.around(run) if isinstance(inside, Whole) else run)(operands)
        env.update(zip(eqn.outvars, values, strict=False))
    return env


def _run_inside(level: Level, outs: Sequence[Any], operands: list[Any]) -> tuple[list[Any], Any]:
    inside = run_head(level, _entered(level, operands), outs)
    return [read(inside, v) for v in outs], collect(level, inside)


def _entered(level: Level, operands: Sequence[Any]) -> dict[Any, Any]:
    """The inputs of a program, and its constants."""
    jaxpr, consts = level.closed.jaxpr, level.closed.consts
    pairs = zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *operands), strict=True)
    return dict(pairs)


def _run_loop(
    loop: Loop, inner: Level, added: Sequence[int], operands: list[Any], needed: list[bool]
) -> tuple[list[Any], Any]:
    """A loop that also stacks what its level collects; sums that are not needed are no carry."""
    results, n_carry = inner.closed.jaxpr.outvars, loop.n_carry
    consts, init, rows = loop.operands(operands)
    kept = [n for n in range(n_carry) if needed[n] or n not in added]
    ys = [n for n in range(n_carry, len(results)) if needed[n]]

    def step(carry: list[Any], xs: list[Any]) -> Any:
        before = [jnp.zeros_like(c) for c in init]
        for n, c in zip(kept, carry, strict=True):
            before[n] = c
        entered = _entered(inner, [*consts, *before, *xs])
        inside = run_head(inner, entered, [results[n] for n in (*kept, *ys)])
        made = [read(inside, results[n]) for n in (*kept, *ys)]
        return made[: len(kept)], (made[len(kept) :], collect(inner, inside))

    carry, (stacked, collected) = lax.scan(
        step,
        [init[n] for n in kept],
        rows,
        length=loop.length,
        reverse=loop.reverse,
        unroll=loop.unroll,
    )
    made = dict(zip((*kept, *ys), (*carry, *stacked), strict=True))
    return [made.get(n) for n in range(len(results))], collected


def collect(level: Level, env: dict[Any, Any]) -> tuple[Any, Any]:
    """The leaves, and the constants of the tail, with those of inner levels."""
    leaves = sums(level, env)
    constants = [read(env, v) for v in level.constants]
    inside = [env[i] for i in sorted(level.inner)]
    return [leaves, *(leaf for leaf, _ in inside)], [constants, *(c for _, c in inside)]


__all__ = ["collect", "head_of", "run_head"]
