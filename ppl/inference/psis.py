"""Importance weights and whether to trust them: Pareto smoothing (PSIS).

Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling, JMLR 25. The
largest ratios are fitted by a generalized Pareto distribution, by the estimator of Zhang & Stephens
(2009) with a prior worth ten ratios at a shape of 1/2. Computed in 64 bits by NumPy.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from transforms import _jax
from transforms.errors import ShapeError, UnsupportedError

FEWEST = 5
"""Ratios in a tail that is fitted."""
BAD = 0.7
"""Shapes above this say that no estimate by these ratios can be trusted."""


class Smoothed(NamedTuple):
    """Normalized log weights f64[n], smoothed in the tail, and the Pareto shape of the tail."""

    log_weights: np.ndarray
    k_hat: float


def k_hat(log_ratios: Any) -> float:
    """The Pareto shape of importance ratios: whether a guide covers what it stands for.

    Under .5 importance sampling works, up to .7 with many draws, above .7 neither corrected draws
    nor the ELBO's ranking can be trusted: the guide misses a tail or a part of the posterior.

    Args:
        log_ratios: ``log p(x, z) - log q(z)`` at draws z of q, f[n]; a constant makes no
            difference. (The sign matters: some libraries want minus this.)

    Returns:
        A number; infinity for fewer than 25 draws, which have no tail, and where a ratio is
        infinite; 0 where all are equal.

    Raises:
        ShapeError: ``log_ratios`` is no vector.
        ValueError: a ratio is not a number, or all are 0.

    Example:
        >>> ppl.k_hat(jax.random.exponential(key, (10_000,)) * 0.4)  # a Pareto tail of shape .4
    """
    return smoothed(log_ratios).k_hat


def ess(log_ratios: Any) -> float:
    """The effective number of draws, (Σ w)² / Σ w² of the smoothed importance weights w.

    Args:
        log_ratios: ``log p(x, z) - log q(z)`` at draws z of q, f[n].

    Example:
        >>> round(ppl.ess(np.zeros(100)))
        100
    """
    return float(1.0 / np.sum(np.exp(2.0 * smoothed(log_ratios).log_weights)))


def smoothed(log_ratios: Any) -> Smoothed:
    """Smoothed, normalized weights and their Pareto shape."""
    ratios = _vector(log_ratios)
    n = ratios.size
    if np.max(ratios) == np.inf:
        return Smoothed(_normalized(np.where(ratios == np.inf, 0.0, -np.inf)), math.inf)
    ratios = ratios - np.max(ratios)
    tail = min(max(int(3.0 * math.sqrt(n)), FEWEST), n // 5)
    if tail < FEWEST:
        return Smoothed(_normalized(ratios), math.inf)
    order = np.argsort(ratios, kind="stable")
    largest = np.exp(ratios[order[-tail:]])
    cutoff = np.exp(ratios[order[-tail - 1]])
    k, scale = _pareto(largest - cutoff)
    if k >= 1.0 / 3.0:  # below, the largest ratios are as good as their expectations
        at = -np.log1p(-(np.arange(tail) + 0.5) / tail)
        expected = cutoff + scale * (np.expm1(k * at) / k)
        ratios[order[-tail:]] = np.log(np.minimum(expected, 1.0))
    return Smoothed(_normalized(ratios), float(k))


def _vector(log_ratios: Any) -> np.ndarray:
    if isinstance(log_ratios, _jax.Tracer):
        raise UnsupportedError(
            f"the log ratios at {_jax.user_line()} are traced by jax.jit or a relative, and are "
            "diagnosed on the host. Return them, and diagnose them outside."
        )
    ratios = np.array(log_ratios, np.float64)
    if ratios.ndim != 1 or ratios.size == 0:
        raise ShapeError(
            f"the log ratios at {_jax.user_line()} have the shape {list(ratios.shape)}, and are a "
            "vector [n], log p - log q at n draws. Type .ravel() if all are draws of one guide."
        )
    if np.any(np.isnan(ratios)) or np.max(ratios) == -np.inf:
        what = "NaN" if np.any(np.isnan(ratios)) else "minus infinity at every draw"
        raise ValueError(
            f"the log ratios at {_jax.user_line()} are {what}: log p - log q of no density. Look "
            "at model.log_density and guide.log_density at one draw."
        )
    return ratios


def _normalized(ratios: np.ndarray) -> np.ndarray:
    top = ratios - np.max(ratios)
    return top - np.log(np.sum(np.exp(top)))


def _pareto(excess: np.ndarray) -> tuple[float, float]:
    """Shape and scale of a generalized Pareto distribution, from ascending numbers above 0.

    The posterior mean of b = -shape / scale over a grid, by the profile likelihood (Zhang &
    Stephens 2009, section 3.2).
    """
    n = excess.size
    if excess[-1] <= np.finfo(np.float64).tiny:
        return 0.0, 0.0
    points = 30 + int(math.sqrt(n))
    quartile = max(excess[int(n / 4 + 0.5) - 1], np.finfo(np.float64).tiny)
    grid = 1.0 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))
    b = grid / (3.0 * quartile) + 1.0 / excess[-1]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shapes = np.mean(np.log1p(-b[:, None] * excess), axis=1)
        likelihood = n * (np.log(-b / shapes) - shapes - 1.0)
    likelihood = np.where(np.isfinite(likelihood), likelihood, -np.inf)
    b_mean = np.sum(b * np.exp(_normalized(likelihood)))
    shape = float(np.mean(np.log1p(-b_mean * excess)))
    return (n * shape + 10 * 0.5) / (n + 10), -shape / float(b_mean)
