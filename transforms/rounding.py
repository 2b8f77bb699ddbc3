"""Draws that round to the end of their support.

A draw of Gamma(a, 1) lies below x with probability x^a / Γ(a + 1): where ``a`` is small, often
below the smallest float. Its logarithm is lost then, and with it a part of every density there.
The rule: where that part is negligible (under a hundredth, in the derivative of a log density by
log a), such a draw is moved inside, to the smallest float; where it is not, the draw is the end of
the support, 0, at which a log density is not finite, so that a value is never finite and wrong.
What needs no logarithm, like a mean, is right with both. The same holds at both ends of a Beta (the
upper one is an ``eps`` away), for each element of a Dirichlet and, at infinity, for InverseGamma.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

NEGLIGIBLE = 6.64
"""s at which (1 + s) exp(-s), the part that is lost, is a hundredth."""


def least_concentration(dtype: Any, upper: bool = False) -> float:
    """The concentration from which on the logarithm of a draw is known well enough; ``upper``: that
    of 1 - x."""
    info = jnp.finfo(dtype)
    return NEGLIGIBLE / -math.log(float(info.eps if upper else info.tiny))


def at_ends(d: Any, x: jax.Array) -> jax.Array:
    """A draw ``x`` of the distribution ``d``, at or inside the ends of the support by the rule."""
    d, kind = family(d)
    if kind == "Gamma":
        small = d.concentration * _reach(x.dtype, d.rate) < NEGLIGIBLE
        return _lower(x, small)
    if kind == "Dirichlet":
        x = _lower(x, d.concentration < least_concentration(x.dtype))
        return jnp.minimum(x, 1 - jnp.finfo(x.dtype).eps)
    if kind == "Beta":
        x = _lower(x, d.concentration1 < least_concentration(x.dtype))
        return _upper(x, d.concentration0 < least_concentration(x.dtype, True))
    return x


def inverse_at_ends(d: Any, log_x: jax.Array) -> jax.Array:
    """The draw of an InverseGamma whose logarithm is given, by the rule."""
    # small enough that the derivative, x d log x, is in range as well
    most = math.log(float(jnp.finfo(log_x.dtype).max)) - 20
    base = d.base_dist
    small = base.concentration * (most - jnp.log(base.rate)) < NEGLIGIBLE
    end = jnp.where(small, jnp.inf, math.exp(most)).astype(log_x.dtype)
    return jnp.where(log_x >= most, end, jnp.exp(jnp.minimum(log_x, most)))


def own_log_prob(d: Any, draw: jax.Array) -> jax.Array:
    """The log density of a distribution at its own draw, not a number at an end of a Beta, where
    numpyro's is infinite with a finite derivative."""
    log_prob = d.log_prob(draw)
    if family(d)[1] != "Beta":
        return log_prob
    at_end = (draw == 0) | (draw == 1)
    axes = tuple(range(log_prob.ndim - at_end.ndim, 0))
    at_end = jnp.any(at_end, axis=axes) if axes else at_end
    return log_prob * jnp.where(at_end, jnp.nan, 1.0)  # its derivative too


def family(d: Any) -> tuple[Any, str]:
    """The distribution that is wrapped, and its family, empty for those without the problem."""
    while type(d).__name__ in ("Independent", "MaskedDistribution", "ExpandedDistribution"):
        d = d.base_dist
    names = {k.__name__ for k in type(d).__mro__ if k.__module__.startswith("numpyro.")}
    return d, next((n for n in ("Gamma", "Beta", "Dirichlet") if n in names), "")


def concentrations(d: Any, dtype: Any) -> list[tuple[Any, float]]:
    """Those of a distribution whose draws may round to an end, and from which on they may not."""
    d, kind = family(d)
    if not kind:
        return []
    low = least_concentration(dtype)
    if kind == "Beta":
        upper = least_concentration(dtype, True)
        return [(d.concentration1, low), (d.concentration0, upper)]
    return [(d.concentration, low)]


def cure(dtype: Any, low: float) -> str:
    """What to do about draws that round to the end of their support."""
    wider = (
        ""
        if jnp.dtype(dtype).itemsize > 4
        else (' Type jax.config.update("jax_enable_x64", True) at the top of the program, or keep')
    )
    return (
        f"Of a concentration below {low:.2g} the draws in {jnp.dtype(dtype)} round to the end of "
        f"the support, where a log density is not finite.{wider or ' Keep'} the concentration "
        f"above, for instance {low:.2g} + jnp.exp(a)."
    )


def _reach(dtype: Any, rate: Any) -> Any:
    """How far below 1 / rate the logarithm of a draw is known."""
    return -math.log(float(jnp.finfo(dtype).tiny)) - jnp.log(rate)


def _lower(x: jax.Array, small: Any) -> jax.Array:
    tiny = jnp.finfo(x.dtype).tiny
    # less itself, so that an infinite derivative there, of a logarithm, is not lost either
    return jnp.where(small, x - jnp.where(x > tiny, 0.0, x), jnp.maximum(x, tiny))


def _upper(x: jax.Array, small: Any) -> jax.Array:
    most = 1 - jnp.finfo(x.dtype).eps
    return jnp.where(small, x + jnp.where(x < most, 0.0, 1 - x), jnp.minimum(x, most))
