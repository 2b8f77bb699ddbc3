"""Distributions of numpyro whose derivative is wrong somewhere, corrected.

numpyro computes log(1 + exp(x)) as max(x, 0) + log(1 + exp(-|x|)). JAX takes 1/2 and 1 for the
slopes of max and |x| at 0, so the derivative of a Bernoulli or binomial log density is off by 1/2
at logits of exactly 0, where a fit often starts. ``jax.nn.softplus`` is right there, and cheaper.
"""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
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


_CORRECTED: dict[type, type] = {
    dist.BernoulliLogits: BernoulliLogits,
    dist.BinomialLogits: BinomialLogits,
}


def corrected(d: dist.Distribution) -> dist.Distribution:
    """``d`` with its corrected form, or those of its parts, in its place."""

    def replace(part: Any) -> Any:
        if type(part) not in _CORRECTED:
            return part
        part = copy.copy(part)
        part.__class__ = _CORRECTED[type(part)]
        return part

    return jax.tree.map(replace, d, is_leaf=lambda part: type(part) in _CORRECTED)
