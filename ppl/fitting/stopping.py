"""When a fit has converged: the rule, and the sentence that says so.

The objective at the mean of the iterates over the last window is estimated at every doubling of the
steps, with the same keys and batches each time. A gain under the tolerance is the end. Where the
objective falls instead, the optimizer's updates are made smaller from there on.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .keys import folded, mean_over
from .steps import Loop

FIRST = 500
"""Steps before the first check; the others are at its doubles."""
DRAWS, TOGETHER = 500, 10
"""Estimates for each check, and how many are computed side by side."""
LOWER = 0.25
"""What the rate is multiplied by where the objective fell."""
FIXED = np.uint32(2**32 - 1)
"""What is folded into the key of a fit for these estimates; a step folds in its number."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Judged:
    """The last check: when, the estimates f32[n] (f32[restarts, n]), and what was gained.

    ``gain`` and its standard ``error`` are against the check before, NaN at the first.
    """

    step: Any
    values: Any
    gain: Any
    error: Any
    converged: Any


def unjudged(loop: Loop, restarts: int | None) -> Judged:
    """What stands before the first check."""
    n = _count(loop)[0]
    values = np.full((n,) if restarts is None else (restarts, n), np.nan, jnp.zeros(()).dtype)
    return Judged(np.int32(0), values, np.float32(np.nan), np.float32(np.nan), np.bool_(False))


def next_check(step: int) -> int:
    """The first number of steps after ``step`` at which a fit is checked."""
    return FIRST if step < FIRST else FIRST * 2 ** (int(math.log2(step // FIRST)) + 1)


def _count(loop: Loop) -> tuple[int, int]:
    together = max(1, TOGETHER // loop.samples)
    return -(-DRAWS // (loop.samples * together)) * together, together


def estimates(
    loop: Loop, values: Any, averages: Any, fixed: list[Any], key: jax.Array, rows: Any
) -> jax.Array:
    """Estimates f32[n] of the objective at some values of the parameters, with fixed keys.

    ``rows`` are batches ``[m, ...]`` of the host that are taken in turn, or None.
    """
    n, together = _count(loop)
    key = folded(key, FIXED)

    def one(i: jax.Array) -> jax.Array:
        batch = jax.tree.map(lambda a: a[i % a.shape[0]], rows)
        k, args = loop.arguments(values, fixed, folded(key, i), batch)
        how = loop.how(averages)
        out = mean_over(lambda k: loop.objective.surrogate(k, *args, **how), k)
        return out[0] if isinstance(out, tuple) else out

    return lax.map(one, jnp.arange(n), batch_size=together)


def judge(
    before: Judged, values: np.ndarray, step: int, tolerance: float, direction: int
) -> tuple[Judged, np.ndarray]:
    """The check at ``step``, and what the rate (of every restart) is multiplied by."""
    gains = direction * (values - before.values)
    own, errors = gains.mean(-1), _error(gains)
    if values.ndim == 2:  # of the best now, against the best then
        rank = lambda v: np.nan_to_num(direction * v.mean(-1), nan=-np.inf).argmax()
        gains = direction * (values[rank(values)] - before.values[rank(before.values)])
    gain, error = gains.mean(), _error(gains)
    fell = own < -np.maximum(tolerance, 2 * errors)
    converged = gain < tolerance and not gain < -max(tolerance, 2 * error)
    now = Judged(np.int32(step), values, np.float32(gain), np.float32(error), np.bool_(converged))
    return now, np.where(fell, np.float32(LOWER), np.float32(1.0))


def _error(gains: np.ndarray) -> Any:
    n = gains.shape[-1]
    return gains.std(-1, ddof=1) / math.sqrt(n) if n > 1 else np.zeros(gains.shape[:-1])


def verdict(judged: Judged | None, tolerance: float | None, steps: int, rate: Any) -> str:
    """A sentence on whether the fit has converged."""
    if judged is None or tolerance is None:
        return f"{steps:,} steps; tolerance=0.02 would tell whether these are enough."
    gain, error = float(judged.gain), float(judged.error)
    if not math.isfinite(gain) and int(judged.step) >= 2 * FIRST:
        return (
            f"not converged after {steps:,} steps: the objective at the averaged parameters is not "
            "finite at some of its draws, so it cannot be compared."
        )
    if math.isnan(gain):
        return (
            f"not known to have converged: {steps:,} steps are fewer than {2 * FIRST:,}, where the "
            f"objective is first compared with that at {FIRST:,}."
        )
    now, change = int(judged.step), f"{abs(gain):.2g} ± {error:.1g}"
    span = f"from step {now // 2:,} to step {now:,} the objective at the averaged parameters"
    noisy = error > tolerance and abs(gain) < 2 * error
    unsure = " The error is larger than the tolerance: more samples would tell." if noisy else ""
    if judged.converged:
        moved = f"{'gained' if gain >= 0 else 'lost'} {change}"
        return f"converged: {span} {moved}, and the tolerance is {tolerance:g}.{unsure}"
    lowest = float(np.min(rate))
    if gain < 0:
        return (
            f"not converged after {steps:,} steps: {span} lost {change}, and the updates are "
            f"multiplied by {lowest:g} since. Go on with state=fit.state and more steps, or "
            "give a lower learning rate."
        )
    return (
        f"not converged after {steps:,} steps: {span} gained {change}, and the tolerance is "
        f"{tolerance:g}. Go on with state=fit.state and more steps.{unsure}"
    )
