"""Is a suspect seen to jump? (``verdicts.py`` tells what a suspect is.)

It is if none of the values, in which its paths meet again, is continuous where the outcome of its
equation changes, or at its pole, and one of them jumps there by a finite amount.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import verdicts
from .flat import Op
from .lines import (
    CLOSER,
    GRID,
    along,
    elements,
    ends,
    flattened,
    gap_of,
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

    def points(t: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        env, found = along(fault, ops, *lines, t)
        if pole is not None:
            zero = flattened(env[pole], avals[pole].ndim, t)
            found = np.cos(zero) if op.name == "tan" else zero
        outcome = one_of(elements(found, 1, t))
        operand = outcome
        if op.name == "is_finite":
            (v,) = op.values
            operand = one_of(flattened(env[v], avals[v].ndim, t))
        return outcome, operand, [flattened(env[v], avals[v].ndim, t) for v in places]

    closer = _closer_to_a_change if pole is None else _closer_to_zero
    below, above, crossed, operands, coarse, fine = closer(points, n)
    if op.name == "is_finite":
        edge = np.stack([operands[np.arange(n), below], operands[np.arange(n), above]])
        size = np.max(np.abs(edge), axis=0, where=np.isfinite(edge), initial=0.0)
        crossed &= size < HUGE
    seams, seen = seams_of(fault, ops), False
    for near, line in zip(fine, coarse, strict=True):
        jumps, poles, continuous = _sides(near, line, below, above, crossed)
        if continuous >= ENOUGH and jumps + poles <= seams * (jumps + continuous):
            return False
        seen |= jumps >= ENOUGH
    return seen


def _closer_to_a_change(points: Callable[..., Any], n: int) -> tuple[Any, ...]:
    """The two sides of a change of the outcome on each line, as indices of the finest grid."""
    grid, each, coarse = np.broadcast_to(GRID, (n, GRID.size)), np.arange(n), None
    shares = np.asarray(weights(GRID.size - 1, each[:, None]))
    crossed = np.zeros(n, bool)
    for i in range(CLOSER):
        outcomes, operands, fine = points(grid)
        changes = outcomes[:, 1:] != outcomes[:, :-1]
        first = np.argmax(changes * shares, axis=1)
        if coarse is None:
            coarse, crossed = fine, changes.any(1)
            if not crossed.any():
                break
        if i < CLOSER - 1:
            low, high = grid[each, first, None], grid[each, first + 1, None]
            grid = low * (1 - GRID) + high * GRID
    return first, first + 1, crossed, operands, coarse, fine


def _closer_to_zero(points: Callable[..., Any], n: int) -> tuple[Any, ...]:
    """Two places beside a zero of the outcome on each line, as indices of the finest grid."""
    grid, each, coarse, size = np.broadcast_to(GRID, (n, GRID.size)), np.arange(n), None, 0.0
    last = GRID.size - 1
    for i in range(CLOSER):
        outcomes, operands, fine = points(grid)
        distance = np.where(np.isfinite(outcomes), np.abs(outcomes), np.inf)
        if coarse is None:
            coarse = fine
            size = np.max(distance, axis=1, where=np.isfinite(distance), initial=0.0)
        nearest = np.argmin(distance, axis=1)
        if i < CLOSER - 1:
            low = grid[each, np.maximum(nearest - 1, 0), None]
            high = grid[each, np.minimum(nearest + 1, last), None]
            grid = low * (1 - GRID) + high * GRID
    crossed = (distance[each, nearest] <= TOUCHED * size) & (nearest > 1) & (nearest < last - 1)
    below, above = np.maximum(nearest - 2, 0), np.minimum(nearest + 2, last)
    return below, above, crossed, operands, coarse, fine


def _sides(near: Any, line: Any, below: Any, above: Any, crossed: Any) -> tuple[int, int, int]:
    """On how many lines a value jumps by a finite amount, has a pole, and is continuous."""
    each = np.arange(len(near))
    left, right = near[each, below], near[each, above]
    with np.errstate(invalid="ignore", over="ignore"):
        gap = gap_of(left, right, line)
        height = np.max(np.abs(right - left), axis=1, initial=0.0)
        beside = np.maximum(np.abs(left - near[:, 0]), np.abs(right - near[:, -1]))
        clear = np.max(beside, axis=1, initial=0.0) <= CLEAR * height
    decisive = crossed & np.isfinite(gap)
    kinds = (gap > 1.0) & clear, (gap > 1.0) & ~clear, gap <= 1.0
    jumps, poles, continuous = (int((decisive & kind).sum()) for kind in kinds)
    return jumps, poles, continuous
