"""Which equation a number that is not finite comes from.

The program runs once more with a flag for every equation: whether its results are finite. From the
result that is not, one goes back to what it was computed from, as long as that is not finite
either. The last equation has finite operands; where it is a loop or a branch, the program that it
runs is searched in the same way. What ``where`` does not choose is never reached.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .. import _jax
from ..program.control import Branches, Control, Loop, Whole, control

Value = tuple[Any, int | None]
"""A value, and the number of the step that it comes from."""


@dataclasses.dataclass
class _Step:
    """An equation that was run."""

    eqn: _jax.JaxprEqn
    line: str
    operands: list[Value]
    results: list[Any]


def origin(f: Callable[..., Any], *args: Any) -> str:
    """What to say of the equation behind the first result of ``f(*args)`` that is not finite:
    ``", first by log at FILE:LINE"``; empty if none is found."""
    return _search(_jax.traced(f, *args), jax.tree.leaves(args), "")


def _search(closed: _jax.ClosedJaxpr, values: Sequence[Any], around: str) -> str:
    steps: list[_Step] = []
    ends: list[Value] = []

    def run(which: int | None, *values: Any) -> list[Any]:
        """Whether the results of each step are finite; or the operands of one."""
        steps.clear()
        ends[:] = _run(closed, [(x, None) for x in values], steps, around)
        if which is None:
            return [_is_finite(s.results) for s in steps]
        return [x for x, _ in steps[which].operands]

    flags = jax.jit(functools.partial(run, None))(*values)
    bad = lambda values: next((i for _, i in values if i is not None and not flags[i]), None)
    at = bad(ends)
    if at is None:
        return ""
    while (before := bad(steps[at].operands)) is not None:
        at = before
    step, inside = steps[at], control(steps[at].eqn)
    operands = jax.jit(functools.partial(run, at))(*values) if inside else []
    program, given = _goes_wrong(inside, operands) or (None, [])
    if program is not None and (found := _search(program, given, step.line)):
        return found
    return f", first by {step.eqn.primitive.name} at {step.line}" if step.line else ""


def _run(
    closed: _jax.ClosedJaxpr, args: Sequence[Value], steps: list[_Step], around: str
) -> list[Value]:
    """Run a program, and those that its equations run as they are; adds to ``steps``."""
    jaxpr = closed.jaxpr
    known: dict[Any, Value] = dict(zip(jaxpr.invars, args, strict=True))
    known |= {v: (c, None) for v, c in zip(jaxpr.constvars, closed.consts, strict=True)}
    read = lambda v: (v.val, None) if isinstance(v, _jax.Literal) else known[v]
    for eqn in jaxpr.eqns:
        ins = [read(v) for v in eqn.invars]
        line, inside = _jax.line_of(eqn) or around, control(eqn)
        if isinstance(inside, Whole) and not inside.is_opaque:
            outs = inside.results(_run(inside.program, ins, steps, line))
        else:
            results = _jax.evaluate_equation(eqn, [x for x, _ in ins])
            outs = [(x, len(steps)) for x in results]
            steps.append(_Step(eqn, line, ins, results))
        known |= zip(eqn.outvars, outs, strict=True)
    return [read(v) for v in jaxpr.outvars]


def _goes_wrong(
    inside: Control | None, operands: Sequence[Any]
) -> tuple[_jax.ClosedJaxpr, list[Any]] | None:
    """The program of an equation that computes what is not finite, and what it is given then."""
    if isinstance(inside, Branches):
        which = min(max(int(operands[0]), 0), len(inside.programs) - 1)
        return inside.programs[which], list(operands[1:])
    if not isinstance(inside, Loop):
        return None
    consts, carry, rows = inside.operands(operands)
    body = jax.jit(functools.partial(_jax.evaluate, inside.body))
    for t in reversed(range(inside.length)) if inside.reverse else range(inside.length):
        given = [*consts, *carry, *(x[t] for x in rows)]
        outs = body(*given)
        if not _is_finite(outs):
            return inside.body, given
        carry = inside.results(outs)[0]
    return None


def _is_finite(values: Sequence[Any]) -> jax.Array:
    inexact = [x for x in values if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    return functools.reduce(
        jnp.logical_and, [jnp.all(jnp.isfinite(x)) for x in inexact], jnp.array(True)
    )
