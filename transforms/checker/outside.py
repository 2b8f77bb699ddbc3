"""Where a density of 0 gets to: what a choice that reaches beyond a support does to an objective.

Its log density is minus infinity there, and so is an objective that is an average of logarithms
(ELBO). An average of weights (importance sampling) is finite: those outside are 0. Here a value
carries, for each misfit (``contained.py``),

- *test*: it tells whether a choice is inside;
- *below*: it may be minus infinity for being outside, and *infinite*: infinite otherwise, or NaN;
- *zero*: it may be 0 for that.

Of several numbers that are added up, or of which the largest is taken, not all are outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..analyses import primitives
from ..program import marks
from ..program.flat import Op

TEST, BELOW, INFINITE, ZERO = "test", "below", "infinite", "zero"
Outside = frozenset[tuple[int, str]]
NOWHERE: Outside = frozenset()


def passed_on(op: Op, args: Sequence[Outside]) -> Outside:
    """What the results of an equation carry."""
    found: set[tuple[int, str]] = set()
    for m in {m for a in args for m, _ in a}:
        states = [{state for k, state in a if k == m} for a in args]
        found.update((m, state) for state in _states(op, states))
    return frozenset(found)


def is_infinite(outside: Outside, misfit: int) -> bool:
    return not outside.isdisjoint({(misfit, BELOW), (misfit, INFINITE)})


def _states(op: Op, states: list[set[str]]) -> set[str]:
    name, every = op.name, set[str]().union(*states)
    moves = primitives.of(op.eqn).moves or name in ("convert_element_type", "cumsum")
    if name == "select_n":
        masks = TEST in states[0] and marks.is_outside(op.stack)
        return set[str]().union(*states[1:]) - {TEST} | ({BELOW} if masks else set())
    if TEST in every:
        return every if moves or name in ("and", "or", "not", "reduce_and") else every - {TEST}
    if not jnp.issubdtype(op.eqn.outvars[0].aval.dtype, jnp.inexact):  # type: ignore[attr-defined]
        return set()
    several = _merged(op) > 1
    if name in ("exp", "exp2", "logistic"):
        return {INFINITE} & every | ({ZERO} if BELOW in every else set())
    if name in ("reduce_max", "max"):
        some = several if name == "reduce_max" else not all(states)
        return {INFINITE} & every if some else every
    if name in ("add", "add_any"):
        return every if all(ZERO in s for s in states) else every - {ZERO}
    if name == "sub":
        return states[0] - {ZERO} | ({INFINITE} if _infinite(states[1]) else set())
    if name == "reduce_sum":
        return every - {ZERO} if several else every
    if name in ("mul", "div", "dot_general"):
        return _product(op, states, several)
    if name == "log":
        return {INFINITE} if _infinite(every) else {BELOW}
    if moves:
        return every
    return {INFINITE} if _infinite(every) else every


def _infinite(states: set[str]) -> bool:
    return bool(states & {BELOW, INFINITE})


def _product(op: Op, states: list[set[str]], several: bool) -> set[str]:
    if op.name == "div" and states[1]:
        return {INFINITE}
    every = states[0] | states[1]
    if not _infinite(every):
        return set() if several else every
    other = op.ins[1] if _infinite(states[0]) else op.ins[0]
    positive = not isinstance(other, int) and bool(np.all(np.asarray(other.val) > 0))
    return every if positive else {INFINITE}


def _merged(op: Op) -> int:
    """How many numbers become one."""
    before: Any = op.eqn.invars[0].aval
    if op.name == "dot_general":
        (axes, _), _ = op.eqn.params["dimension_numbers"]
    else:
        axes = op.eqn.params.get("axes", ())
    return math.prod(before.shape[i] for i in axes) if axes else 1
