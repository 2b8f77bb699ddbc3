"""Is a fault gone where its paths meet again?

From a comparison, a floor, a stopped gradient, ... several paths may lead to the objective: in
bilinear interpolation floor(x) is an index and a weight, in logsumexp a shift that is subtracted
and added. Where all of them have met in one value, the few equations in between are a function
of their own, which :func:`gone` evaluates on random lines:

- a *jump* is gone if the value is continuous where the outcome of the comparison changes, which
  a grid finds that is refined six times;
- the *seam* of a draw on the circle is gone if the value is the same on both of its sides;
- a *stopped* gradient, or a derivative rule of the user's, is harmless if the derivative along
  the line is that of finite differences.

What the slice does not compute itself is free, which can only make the test stricter. A fault is
taken for harmless only if enough lines were decisive, and all of them agree.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from ..numeric import run as numeric
from ..program.choices import is_random
from ..program.flat import Op
from .border import is_at_border
from .lines import (
    CLOSER,
    GRID,
    along,
    derivable,
    elements,
    ends,
    evaluate,
    flattened,
    gap_of,
    leading_to,
    number_of_lines,
    one_of,
    seams_of,
    weights,
)
from .slices import ENOUGH, MAX_OPS, MEETS, Budget, Place, cost, meets, slice_to
from .suspects import closer_to_zero, is_seen_to_jump
from .tapped import tapped

ATTEMPTS = ((1, 24, True), (4, 24, True), (MEETS, 100, False), (MEETS, MAX_OPS, False))
"""How many places are tried, with how many equations that lead there from elsewhere, and
whether only from the value that they all come from, if there is one."""
SLOPE = 2e-2
"""Largest relative error of a derivative along a line."""
KINKS = 0.03
"""How many derivatives may be off, for a kink that lies within a step."""
STEP = 1e-2
_COMPARISONS = {"lt", "le", "gt", "ge"}
_UNREACHED = {"eq", "ne", "atan2"}
"""Where these jump, if anywhere, is no matter of scale: lines that do not cross it settle it."""


def gone(fault: Place, budget: Budget) -> int | None:
    """The value in which a fault is gone, or None.

    Little of what is around it is looked at first: what is not computed is free, so that nothing
    is taken for harmless that is not. More of it is asked of fewer faults.
    """
    if fault.tap and is_random(fault.op.eqn):
        return None
    candidates = meets(fault)
    asked: set[_Question] = set()
    for n, near, waist in (ATTEMPTS[0], ATTEMPTS[-1]) if fault.tap else ATTEMPTS:
        places = candidates[:n]
        while places:
            ops = slice_to(fault, places, near, waist)
            if ops is None:
                places = places[: len(places) // 2]
                continue
            question = _Question(fault, places, ops, near == MAX_OPS)
            if question not in asked:
                if not budget.spend(question.cost, question):
                    return None
                asked.add(question)
                passed = _passed(question)
                found = next((v for v, ok in zip(places, passed, strict=True) if ok), None)
                if found is not None:
                    return found
            break
    return None


def convicted(suspect: Place, budget: Budget) -> bool:
    """Whether a value is seen to jump, by a finite amount, because of an equation."""
    places = meets(suspect)
    while places:
        ops = slice_to(suspect, places, MAX_OPS, False)
        if ops is not None:
            question = _Question(suspect, places, ops, True)
            return budget.spend(question.cost, question) and not any(_passed(question))
        places = places[: len(places) // 2]
    return False


class _Question:
    """A slice and what is asked of it; equal if it reads the same, wherever it stands."""

    def __init__(self, fault: Place, places: Sequence[int], ops: Sequence[Op], far: bool):
        self.args = (fault, places, ops)
        self.settles = far and tapped(fault.op, fault.tap).name in _UNREACHED
        flat, varied = fault.flat, fault.varied
        local: dict[int, tuple[Any, ...]] = {}

        def named(v: Any) -> Any:
            if not isinstance(v, int):
                return np.asarray(v.val).tobytes(), str(np.asarray(v.val).dtype)
            if v not in local:
                given = fault.constant(v)
                shape = str(flat.avals[v]) if given is None else np.asarray(given).tobytes()
                local[v] = (len(local), shape, v in varied, fault.domains.get(v))
            return local[v]

        every = [
            (op.name, op.text, op is fault.op, *map(named, (*op.ins, *op.outs)))
            for op in (*ops, fault.op)
        ]
        derivatives = fault.kind in ("stop", "custom")
        self.cost = cost(ops, number_of_lines(fault, ops), derivatives)
        self._content = (fault.kind, fault.tap, self.settles, *every, *map(named, places))
        self._hash = hash(self._content)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Question) and self._content == other._content


@functools.lru_cache(maxsize=1024)
def _passed(question: _Question) -> list[bool]:
    """The answer for each place; an objective is traced more often than its slices change."""
    fault, places, ops = question.args
    test = {"jump": _jumps, "seam": _seam}.get(fault.kind, _slopes)
    with jax.ensure_compile_time_eval():
        if fault.kind == "suspect":
            return [not is_seen_to_jump(*question.args)]
        passed = test(*question.args)
        if passed is None:  # no line crosses it
            return [question.settles or is_at_border(fault.flat, fault.op)] * len(places)
        if fault.kind == "jump" and any(passed) and any(op.name == "while" for op in ops):
            # of many small jumps in the place of a slope
            passed = [a and b for a, b in zip(passed, _slopes(*question.args), strict=True)]
    return passed


# --- the tests ----------------------------------------------------------------------------------


def _jumps(fault: Place, places: Sequence[int], ops: Sequence[Op]) -> list[bool] | None:
    """Whether each of ``places`` is continuous where the outcome of the equation changes.

    None if it never does.
    """
    n = number_of_lines(fault, ops)
    lines, avals = ends(fault, ops, n), fault.flat.avals
    before = leading_to(fault.op, ops)

    def outcomes_at(t: np.ndarray) -> np.ndarray:
        return one_of(elements(along(fault, before, *lines, t)[1], 1, t))

    def values_at(t: np.ndarray) -> list[np.ndarray]:
        env, _ = along(fault, ops, *lines, t)
        return [flattened(env[v], avals[v].ndim, t) for v in places]

    grid = np.broadcast_to(GRID, (n, GRID.size))
    outcomes = outcomes_at(grid)
    crossed = (outcomes[:, 1:] != outcomes[:, :-1]).any(1)
    if crossed.sum() < ENOUGH and (sides := _across(fault, places, ops, n)) is not None:
        return sides
    if not crossed.any():
        return None
    each, whole = np.arange(n), values_at(grid)
    shares = np.asarray(weights(GRID.size - 1, each[:, None]))
    for i in range(CLOSER):
        first = np.argmax((outcomes[:, 1:] != outcomes[:, :-1]) * shares, axis=1)
        if i < CLOSER - 1:
            low, high = grid[each, first, None], grid[each, first + 1, None]
            grid = low * (1 - GRID) + high * GRID
            outcomes = outcomes_at(grid)
    seams = seams_of(fault, ops)
    sides = values_at(np.stack([grid[each, first], grid[each, first + 1]], axis=1))
    gaps = [gap_of(v[:, 0], v[:, 1], line) for v, line in zip(sides, whole, strict=True)]
    return [_agree(_told(crossed & np.isfinite(g), g, seams), g <= 1.0, seams) for g in gaps]


def _told(decisive: np.ndarray, gaps: np.ndarray, seams: float) -> np.ndarray:
    """The lines that count where some jumps may remain: of another element, none would."""
    changed = decisive & (gaps > 0)
    return changed if seams and changed.sum() >= ENOUGH else decisive


def _across(fault: Place, places: Sequence[int], ops: Sequence[Op], n: int) -> list[bool] | None:
    """As ``_jumps``, of what is compared with a bound that it passes for less than a step alone.

    Both sides of ``abs(x) < 1e-8`` are one step apart, and what is between them too little to
    count.
    """
    if fault.tap or fault.op.name not in _COMPARISONS:
        return None
    compared: list[Any] = [v.aval for v in fault.op.eqn.invars]
    if not all(jnp.issubdtype(a.dtype, jnp.floating) for a in compared):
        return None
    lines, avals = ends(fault, ops, n), fault.flat.avals
    before = leading_to(fault.op, ops)

    def margin_at(t: np.ndarray) -> np.ndarray:
        env, _ = along(fault, before, *lines, t)
        read = lambda v: env[v] if isinstance(v, int) else np.asarray(v.val)
        a, b = (flattened(read(v), c.ndim, t) for v, c in zip(fault.op.ins, compared, strict=True))
        return one_of(a - b)

    def values_at(t: np.ndarray) -> list[np.ndarray]:
        env, _ = along(fault, ops, *lines, t)
        return [flattened(env[v], avals[v].ndim, t) for v in places]

    near, reached = closer_to_zero(margin_at, n)
    if reached.sum() < ENOUGH:
        return None
    sides, whole = values_at(near[:, 1:3]), values_at(np.broadcast_to(GRID, (n, GRID.size)))
    gaps = [gap_of(v[:, 0], v[:, 1], line) for v, line in zip(sides, whole, strict=True)]
    return [_agree(reached & np.isfinite(g), g <= 1.0) for g in gaps]


def _seam(fault: Place, places: Sequence[int], ops: Sequence[Op]) -> list[bool]:
    """Whether each of ``places`` is the same for a draw of -π and of π."""
    n = number_of_lines(fault, ops)
    begin, _, fixed = ends(fault, ops, n)
    t = np.tile(np.linspace(-np.pi, np.pi, 9, dtype=np.float32), (n, 1))
    for v in set(fault.op.outs) & begin.keys():
        angles = t.reshape(*t.shape, *[1] * (begin[v].ndim - 2)).astype(begin[v].dtype)
        begin[v] = np.broadcast_to(angles, (*t.shape, *begin[v].shape[2:]))
    env, _ = evaluate(fault, ops, {**fixed, **begin})

    def is_gone(v: int) -> bool:
        if v in fault.op.outs:
            return False
        value = flattened(env[v], fault.flat.avals[v].ndim, t)
        gap = gap_of(value[:, 0], value[:, -1], value)
        return _agree(np.isfinite(gap), gap <= 1.0)

    return [is_gone(v) for v in places]


def _slopes(fault: Place, places: Sequence[int], ops: Sequence[Op]) -> list[bool]:
    """Whether the derivative of each of ``places`` is that of finite differences."""
    n = number_of_lines(fault, ops)
    begin, end, fixed = ends(fault, ops, n)
    loops = any(_jax.holds(op.eqn, _jax.while_p) and not op.custom for op in ops)
    forward = loops or not any(_jax.holds(op.eqn, _jax.custom_vjp_call_p) for op in ops)
    lengths = [np.abs(end[v] - a).reshape(n, -1).max(1, initial=1e-6) for v, a in begin.items()]
    step = (STEP / functools.reduce(np.maximum, lengths, np.ones(n)))[:, None].astype(np.float32)
    moved = {v: (end[v] - a) / max(1.0, len(begin)) for v, a in begin.items()}
    inputs = {**begin, **fixed}

    def at(i: Any, t: Any, *given: Any) -> list[Any]:
        start, directions = dict(zip(inputs, given, strict=False)), given[len(inputs) :]

        def projected(t: Any) -> tuple[list[jax.Array], list[jax.Array]]:
            shifts = zip(moved, directions, strict=True)
            env = start | {v: start[v] + (t * d).astype(d.dtype) for v, d in shifts}
            ws = derivable(ops, env, places)
            sums = [w @ (weights(w.size, i) - 1.2) for w in ws]
            return sums, sums

        if forward:
            _, slopes, sums = jax.jvp(projected, (t,), (jnp.ones_like(t),), has_aux=True)
        else:
            slopes, sums = jax.jacrev(projected, has_aux=True)(t)
        return [*slopes, *sums]

    t = np.float32(0.4) + step * np.array([0.0, -1.0, 1.0, -0.5, 0.5], np.float32)
    given = [*inputs.values(), *moved.values()]
    number = np.arange(n, dtype=np.int32)[:, None]
    outs = numeric.apply(at, number, t, *given, ndims=[0, 0, *(x.ndim - 2 for x in given)])
    outs = [np.broadcast_to(x, t.shape) for x in outs]
    slopes, values = outs[: len(places)], outs[len(places) :]
    errors = [
        _slope_error(v, slope[:, 0], step[:, 0]) for v, slope in zip(values, slopes, strict=True)
    ]
    return [_agree(np.isfinite(e), e <= 1.0, KINKS) for e in errors]


def _slope_error(values: np.ndarray, slope: np.ndarray, step: np.ndarray) -> np.ndarray:
    """How far a derivative is from finite differences, in units of what is allowed, or NaN.

    The values are those at t, t - step, t + step, t - step/2 and t + step/2.
    """
    at, before, after, shortly_before, shortly_after = values.T
    with np.errstate(invalid="ignore", over="ignore"):
        wide, narrow = (after - before) / (2 * step), (shortly_after - shortly_before) / step
        size = np.maximum(np.abs(slope), np.abs(narrow))
        noise = 1e-6 * np.abs(at) / step
        smooth = np.abs(wide - narrow) <= SLOPE / 2 * size + noise
        relative = np.abs((4 * narrow - wide) / 3 - slope) / (SLOPE * size + noise + 1e-30)
    return np.where(smooth & (noise < SLOPE * size), relative, np.nan)


def _agree(decisive: np.ndarray, passed: np.ndarray, exceptions: float = 0.0) -> bool:
    n = int(decisive.sum())
    return n >= ENOUGH and int((~passed[decisive]).sum()) <= exceptions * n
