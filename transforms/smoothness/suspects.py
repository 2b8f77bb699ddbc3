"""Is a suspect seen to jump? (``verdicts.py`` tells what a suspect is.)

It is if none of the values, in which its paths meet again, is continuous where the outcome of its
equation changes, or at its pole, and one of them jumps there by a finite amount.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..program.flat import Op
from . import verdicts
from .lines import (
    CLOSER,
    GRID,
    along,
    elements,
    ends,
    flattened,
    gap_of,
    leading_to,
    number_of_lines,
    one_of,
    seams_of,
    weights,
)
from .slices import ENOUGH, Place

CLEAR = 0.1
"""How much the values beside a jump may vary, relative to it: more is a pole, not a jump."""
HUGE = 1e6
"""What is larger, where it ceases to be finite, overflows."""
TOUCHED = 1e-4
"""How close to zero, relative to its largest value, a denominator comes that has a zero."""


def is_seen_to_jump(fault: Place, places: Sequence[int], ops: Sequence[Op]) -> bool:
    """Whether none of ``places`` is continuous, and one jumps by a finite amount."""
    op, n = fault.op, number_of_lines(fault, ops)
    pole = verdicts.pole(op)

    lines, avals = ends(fault, ops, n), fault.flat.avals

    before = leading_to(op, ops)

    def outcomes_at(t: np.ndarray) -> np.ndarray:
        env, found = along(fault, before, *lines, t)
        if pole is not None:
            zero = flattened(env[pole], avals[pole].ndim, t)
            found = np.cos(zero) if op.name == "tan" else zero
        return one_of(elements(found, 1, t))

    def values_at(t: np.ndarray) -> list[np.ndarray]:
        env, _ = along(fault, ops, *lines, t)
        return [flattened(env[v], avals[v].ndim, t) for v in places]

    closer = _closer_to_a_change if pole is None else closer_to_zero
    near, crossed = closer(outcomes_at, n)
    if op.name == "is_finite":
        (v,) = op.values
        env, _ = along(fault, before, *lines, near)
        edge = one_of(flattened(env[v], avals[v].ndim, near))[:, 1:3]
        crossed &= np.max(np.abs(edge), axis=1, where=np.isfinite(edge), initial=0.0) < HUGE
    if not crossed.any():
        return False
    seams, seen = seams_of(fault, ops), False
    coarse = values_at(np.broadcast_to(GRID, (n, GRID.size)))
    for sides, line in zip(values_at(near), coarse, strict=True):
        jumps, poles, continuous = _sides(sides, line, crossed)
        if continuous >= ENOUGH and jumps + poles <= seams * (jumps + continuous):
            return False
        seen |= jumps >= ENOUGH
    return seen


def _closer_to_a_change(outcomes_at: Callable[..., Any], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the finest grid begins, the two sides of a change of the outcome, where it ends.

    And on which lines there is one.
    """
    grid, each = np.broadcast_to(GRID, (n, GRID.size)), np.arange(n)
    shares = np.asarray(weights(GRID.size - 1, each[:, None]))
    changes, first = _changes(outcomes_at(grid), shares)
    crossed: Any = changes.any(1)
    for _ in range(CLOSER - 1 if crossed.any() else 0):
        low, high = grid[each, first, None], grid[each, first + 1, None]
        grid = low * (1 - GRID) + high * GRID
        _, first = _changes(outcomes_at(grid), shares)
    return _around(grid, first, first + 1), crossed


def _changes(outcomes: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the outcome changes, and one of those places on each line."""
    changes = outcomes[:, 1:] != outcomes[:, :-1]
    return changes, np.argmax(changes * shares, axis=1)


def _around(grid: np.ndarray, below: np.ndarray, above: np.ndarray) -> np.ndarray:
    each = np.arange(len(grid))
    return np.stack([grid[:, 0], grid[each, below], grid[each, above], grid[:, -1]], axis=1)


def closer_to_zero(outcomes_at: Callable[..., Any], n: int) -> tuple[np.ndarray, np.ndarray]:
    """As above, beside a zero of the outcome."""
    grid, each, last = np.broadcast_to(GRID, (n, GRID.size)), np.arange(n), GRID.size - 1
    distance = _distance(outcomes_at(grid))
    size = np.max(distance, axis=1, where=np.isfinite(distance), initial=0.0)
    for _ in range(CLOSER - 1):
        nearest = np.argmin(distance, axis=1)
        low = grid[each, np.maximum(nearest - 1, 0), None]
        high = grid[each, np.minimum(nearest + 1, last), None]
        grid = low * (1 - GRID) + high * GRID
        distance = _distance(outcomes_at(grid))
    nearest = np.argmin(distance, axis=1)
    crossed = (distance[each, nearest] <= TOUCHED * size) & (nearest > 1) & (nearest < last - 1)
    around = _around(grid, np.maximum(nearest - 2, 0), np.minimum(nearest + 2, last))
    return around, crossed


def _distance(outcomes: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(outcomes), np.abs(outcomes), np.inf)


def _sides(near: Any, line: Any, crossed: Any) -> tuple[int, int, int]:
    """On how many lines a value jumps by a finite amount, has a pole, and is continuous."""
    left, right = near[:, 1], near[:, 2]
    with np.errstate(invalid="ignore", over="ignore"):
        gap = gap_of(left, right, line)
        height = np.max(np.abs(right - left), axis=1, initial=0.0)
        beside = np.maximum(np.abs(left - near[:, 0]), np.abs(right - near[:, -1]))
        clear = np.max(beside, axis=1, initial=0.0) <= CLEAR * height
    decisive = crossed & np.isfinite(gap)
    kinds = (gap > 1.0) & clear, (gap > 1.0) & ~clear, gap <= 1.0
    jumps, poles, continuous = (int((decisive & kind).sum()) for kind in kinds)
    return jumps, poles, continuous
