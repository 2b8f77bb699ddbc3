"""Draws that round to the end of their support.

A draw of Gamma(a, 1) lies below x with probability x^a / Γ(a + 1): where ``a`` is small, often
below the smallest float. Its logarithm is lost then, and with it a part of every log density there.
The rule: where that part is negligible (under a hundredth, in the derivative of E[log x] by log a),
such a draw is moved inside, to the smallest float; where it is not, the draw is *lost*, and is the
end of the support itself. What needs no logarithm, like a mean, is right with both; a logarithm is
infinite at the end, and the derivative of a value that is not finite is not a number
(:func:`as_finite`). So nothing is finite and wrong. The same holds at both ends of a Beta (the
upper one is an ``eps`` away), for each element of a Dirichlet, and for what is made of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .inside import support_of

NEGLIGIBLE = 6.64
"""s at which (1 + s) exp(-s), the part that is lost, is a hundredth."""
_FAMILIES = {"Gamma", "InverseGamma", "Beta", "Dirichlet", "Kumaraswamy"}

End = tuple[float, float, Any, Any]
"""An end of a support, the last float inside, the concentration there, and how far the logarithms
of floats reach to it."""


def is_lost(concentration: Any, reach: Any) -> Any:
    """Whether too many draws have a logarithm below -``reach``."""
    return concentration * reach < NEGLIGIBLE


def at_ends(d: Any, x: jax.Array) -> jax.Array:
    """A draw ``x`` of the distribution ``d``, at or inside the ends of the support by the rule."""
    for end, inside, concentration, reach in ends(d, x.dtype):
        at = jnp.where(is_lost(concentration, reach), end, inside).astype(x.dtype)
        x = jnp.where(x >= inside if end else x <= inside, at, x)
    return x


def ends(d: Any, dtype: Any) -> list[End]:
    """The ends of the support of a distribution to which its draws round."""
    family, info = _family(d), jnp.finfo(dtype)
    tiny, eps = float(info.tiny), float(info.eps)
    low, high = -math.log(tiny), -math.log(eps)
    if family == "Gamma":
        return [(0.0, tiny, d.concentration, low - jnp.log(d.rate))]
    if family == "InverseGamma":
        most, base = largest_log(dtype), d.base_dist
        return [(math.inf, math.exp(most), base.concentration, most - jnp.log(base.rate))]
    if family == "Dirichlet":
        return [(0.0, tiny, d.concentration, low)]
    if not family:
        return []
    return [(0.0, tiny, d.concentration1, low), (1.0, 1 - eps, d.concentration0, high)]


def largest_log(dtype: Any) -> float:
    """The logarithm of numbers x so large that derivatives, x d log x, are in range as well."""
    return math.log(float(jnp.finfo(dtype).max)) - 20.0


def rounding_parts(d: Any) -> list[Any]:
    """The distributions that a continuous one is made of whose draws round."""
    if getattr(support_of(d), "is_discrete", False):
        return []
    try:
        return [x for x in jax.tree.leaves(d, is_leaf=_rounds) if _rounds(x)]
    except NotImplementedError:  # a transform that is no pytree
        return []


def sample(
    d: Any,
    key: jax.Array,
    sample_shape: tuple[int, ...],
    change: Callable[[Any, jax.Array], jax.Array] = at_ends,
) -> jax.Array:
    """A draw of the distribution's own, where those of its ``rounding_parts`` are changed."""

    def changed(part: Any) -> Any:
        if not _rounds(part):
            return part
        new = copy.copy(part)
        new.sample = lambda key, sample_shape=(): change(part, part.sample(key, sample_shape))
        return new

    if rounding_parts(d):
        d = jax.tree.map(changed, d, is_leaf=_rounds)
    return d.sample(key, sample_shape)


def _rounds(d: Any) -> bool:
    return bool(_family(d))


def _family(d: Any) -> str:
    """The family of a distribution, empty for those whose draws do not round."""
    names = (k.__name__ for k in type(d).__mro__ if k.__module__.startswith("numpyro."))
    return next((n for n in names if n in _FAMILIES), "")


def as_finite(value: jax.Array, inputs: Sequence[Any]) -> jax.Array:
    """``value``, whose derivatives by ``inputs`` are no numbers where it is not finite.

    They are not made of those of ``value``: numpyro hides them at the ends of a Beta.
    """
    smooth = [x for x in inputs if jnp.issubdtype(jnp.result_type(x), jnp.floating)]
    return _as_finite(value, smooth) if smooth else value


@jax.custom_jvp
def _as_finite(value: jax.Array, inputs: list[Any]) -> jax.Array:
    return value


@_as_finite.defjvp
def _(primals: Any, tangents: Any) -> Any:
    value, (moved, inputs) = _as_finite(*primals), tangents
    spoilt = jnp.where(jnp.all(jnp.isfinite(value)), 0.0, jnp.nan)
    total = sum(jnp.sum(t) for t in inputs) * spoilt
    return value, moved + jnp.asarray(total, value.dtype)


def smallest_lost(d: Any, dtype: Any) -> jax.Array:
    """The smallest concentration of which draws are lost, and from which on they are not:
    ``[2]``; infinite where there is none."""
    found = [jnp.full(2, jnp.inf, jnp.float32)]
    for part in rounding_parts(d):
        for *_, concentration, reach in ends(part, dtype):
            c, limit = jnp.broadcast_arrays(concentration, NEGLIGIBLE / jnp.asarray(reach))
            lost = jnp.where(c < limit, c, jnp.inf).ravel()
            i = jnp.argmin(lost)
            found.append(jnp.stack([lost[i], limit.ravel()[i]]).astype(jnp.float32))
    pairs = jnp.stack(found)
    return pairs[jnp.argmin(pairs[:, 0])]


def cure(dtype: Any, limit: float) -> str:
    """What to do about draws that are lost."""
    wider = ' Type jax.config.update("jax_enable_x64", True) at the top of the program, or keep'
    keep = " Keep" if jnp.dtype(dtype).itemsize > 4 else wider
    return (
        f"Below a concentration of {limit:.2g} draws in {jnp.dtype(dtype)} round to the end of the "
        f"support, where a log density is not finite.{keep} the concentration above, for instance "
        f"{limit:.2g} + jnp.exp(a)."
    )
