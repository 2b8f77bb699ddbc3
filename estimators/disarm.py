r"""DisARM: a Bernoulli choice and its antithetic partner.

With b = 1[u > 1 - p] and b' = 1[u < p] of one uniform u, log odds φ and σ the logistic function,

    d/dφ E[f(b)] = E[ 1/2 (f(b) - f(b')) (-1)^{b'} 1[b ≠ b'] σ(|φ|) ]

which is the ARM estimator (Yin & Zhou 2019) averaged over what of u is not in (b, b'). All elements
that meet have their partners at once, in one more run of the program for all of them, whatever
their number; the u of each is drawn given its b.

Conditions: Bernoulli choices; f may be discontinuous. At a probability of exactly 0 or 1 (typed as
``probs``) the other value is never tried, and the derivative is not a number. First derivatives
only; nothing is paid where only the value is wanted. Sources: Dong, Mnih & Tucker, "DisARM", 2020;
the same as U2G, Yin, Ho, Yan, Qian & Zhou 2020.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp
from jax import lax

from transforms.estimation.estimator import Continued, LocalSite

from .bernoulli import log_masses, not_a_coin


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Disarm(Continued):
    """Antithetic pairs; see the module docstring."""

    name = "disarm"
    elementwise = True

    def unsuitable(self, d: Any) -> str | None:
        return not_a_coin(d)

    def surrogate(
        self, site: LocalSite, key: jax.Array, k: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        def one(d: Any, key: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            zero, one = log_masses(d, x)
            odds = jnp.where(x == 1, one - zero, zero - one)  # log odds of the value drawn
            other, own = lax.stop_gradient((jnp.minimum(-odds, 0.0), jnp.minimum(odds, 0.0)))
            differs = jnp.log(jax.random.uniform(key, x.shape)) + own < other
            weight = jnp.where(differs, jax.nn.sigmoid(jnp.abs(lax.stop_gradient(odds))) / 2, 0.0)
            known = jnp.where(jnp.isfinite(lax.stop_gradient(odds)), 1.0, jnp.nan)
            return weight * odds * known, jnp.where(differs, 1 - x, x)

        weight, partner = site.per_element(one, site.keys(key), site.value)
        partner = k(lax.stop_gradient(partner).astype(site.value.dtype))
        apart = [n if a else 1 for n, a in zip(site.value.shape, site.apart, strict=True)]
        difference = lax.stop_gradient(site.payoff - partner).reshape(apart)
        return jnp.sum(weight * difference)


def disarm() -> Disarm:
    """DisARM, for Bernoulli choices (vectors and plates too): one more run of what follows.

    Unbiased, of at most the variance of ``ppl.reinforce("loo")`` with two samples, which costs the
    same.

    Example:
        >>> @ppl.expectation
        ... def loss(logits):
        ...     b = ppl.sample("b", dist.Bernoulli(logits=logits), ppl.disarm())
        ...     return jnp.sum((b - 0.4) ** 2)
        >>> grad = loss.grad(key, jnp.zeros(3), samples=10)
    """
    return Disarm()
