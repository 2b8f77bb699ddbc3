"""Distributions of numpyro whose derivative is wrong somewhere, corrected.

numpyro computes log(1 + exp(x)) as max(x, 0) + log(1 + exp(-|x|)). JAX takes 1/2 and 1 for the
slopes of max and |x| at 0, so the derivative of a Bernoulli or binomial log density is off by 1/2
at logits of exactly 0, where a fit often starts. ``jax.nn.softplus`` is right there, and cheaper.
The density of an InverseGamma squares the value, which overflows in 32 bits where many values of a
small concentration are, and that of a Kumaraswamy is clipped near 1, where others of them are.
A Levy loses its support when it is made of its numbers again.
A censored distribution asks the expanded one inside of it for a cdf, which that does not have.
"""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln, xlogy
from numpyro import distributions as dist
from numpyro.distributions.util import validate_sample


class BernoulliLogits(dist.BernoulliLogits):
    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        logits = jnp.asarray(self.logits)
        return value * logits - jax.nn.softplus(logits)


class BinomialLogits(dist.BinomialLogits):
    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        n, logits = jnp.asarray(self.total_count, float), jnp.asarray(self.logits)
        ways = gammaln(n + 1) - gammaln(value + 1) - gammaln(n - value + 1)
        return ways + value * logits - n * jax.nn.softplus(logits)


class InverseGamma(dist.InverseGamma):
    @validate_sample
    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        base: Any = self.base_dist
        a, b = base.concentration, base.rate
        return a * jnp.log(b) - gammaln(a) - (a + 1.0) * jnp.log(value) - b / value


class Kumaraswamy(dist.Kumaraswamy):
    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        a, b = jnp.asarray(self.concentration1), jnp.asarray(self.concentration0)
        rest = -jnp.expm1(a * jnp.log(value))  # 1 - value**a
        return jnp.log(a) + jnp.log(b) + xlogy(a - 1.0, value) + xlogy(b - 1.0, rest)


class Levy(dist.Levy):
    @property
    def support(self) -> Any:  # type: ignore[override]
        return dist.constraints.greater_than(jnp.asarray(self.loc))


_CORRECTED: dict[type, type] = {
    dist.BernoulliLogits: BernoulliLogits,
    dist.BinomialLogits: BinomialLogits,
    dist.InverseGamma: InverseGamma,
    dist.Kumaraswamy: Kumaraswamy,
    dist.Levy: Levy,
}
_CENSORED = (
    dist.LeftCensoredDistribution,
    dist.RightCensoredDistribution,
    dist.IntervalCensoredDistribution,
)


def corrected(d: dist.Distribution) -> dist.Distribution:
    """``d`` with its corrected form, or those of its parts, in its place."""

    def wrong(part: Any) -> bool:
        return type(part) in _CORRECTED or type(part) in _CENSORED

    def replace(part: Any) -> Any:
        if not wrong(part):
            return part
        part = copy.copy(part)
        if type(part) in _CENSORED:
            part.base_dist = corrected(_unexpanded(part.base_dist))
        else:
            part.__class__ = _CORRECTED[type(part)]
        return part

    try:
        parts = jax.tree.leaves(d, is_leaf=wrong)
    except NotImplementedError:  # a transform that is no pytree
        return d
    if not any(map(wrong, parts)):
        return d
    return jax.tree.map(replace, d, is_leaf=wrong)


def _unexpanded(d: dist.Distribution) -> dist.Distribution:
    """What was expanded, which has a cdf: a censored distribution broadcasts by itself."""
    while isinstance(d, dist.ExpandedDistribution):
        d = d.base_dist
    return d
