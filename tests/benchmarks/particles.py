"""Objectives of many particles beside hand-written code.

A multi-sample bound over local latents, pathwise and by scores, and an ELBO whose guide is a
posterior by importance sampling. ``scaling.py`` compares value and gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_softmax, logsumexp

import ppl
from ppl import dist

Pair = tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]
"""By hand, and ours: functions of a key and arrays; and the arrays."""
RNG = np.random.default_rng(0)


@ppl.gen
def model(w: jax.Array, n: int) -> None:
    def one(_: Any) -> None:
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(w * z, 1.0))

    jax.vmap(one)(jnp.arange(n))


@ppl.gen
def guide(m: jax.Array, s: jax.Array, by: ppl.Estimator | None = None) -> None:
    jax.vmap(lambda m, s: ppl.sample("z", dist.Normal(m, jnp.exp(s)), by))(m, s)


def _log_joint(z: jax.Array, w: jax.Array, x: jax.Array) -> jax.Array:
    """Of each element."""
    return dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(w * z, 1.0).log_prob(x)


def _start(latents: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    return jnp.float32(0.5), jnp.zeros(latents), jnp.zeros(latents)


def bound(n: int = 64, latents: int = 1_000, scores: bool = False) -> Pair:
    """``scores``: by REINFORCE; the score of a particle multiplies the whole bound."""
    x = jnp.asarray(RNG.normal(size=latents), jnp.float32)

    def by_hand(key: jax.Array, w: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
        q = dist.Normal(m, jnp.exp(s))
        z = m + jnp.exp(s) * jax.random.normal(key, (n, latents))
        z = jax.lax.stop_gradient(z) if scores else z
        log_q = q.log_prob(z)
        value = logsumexp(jnp.sum(_log_joint(z, w, x) - log_q, -1)) - jnp.log(n)
        score = jnp.sum(log_q)
        score = jax.lax.stop_gradient(value) * (score - jax.lax.stop_gradient(score))
        return value + score if scores else value

    @ppl.expectation
    def ours(w: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
        q = guide(m, s, ppl.reinforce() if scores else None)
        return ppl.iwelbo(model(w, latents), q, {"x": x}, n)

    return by_hand, ours.surrogate, _start(latents)


def resampled(n: int = 100, latents: int = 200) -> Pair:
    """One of ``n`` particles is kept, by its weight: the guide."""
    x = jnp.asarray(RNG.normal(size=latents), jnp.float32)

    def by_hand(key: jax.Array, w: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
        ours, other = jax.random.split(key)
        q = dist.Normal(m, jnp.exp(s))
        z = m + jnp.exp(s) * jax.random.normal(ours, (n, latents))
        weights = jnp.sum(_log_joint(z, w, x) - q.log_prob(z), -1)
        kept = jax.random.categorical(other, weights)
        log_joint = jnp.sum(_log_joint(z[kept], w, x))
        value = log_joint - (log_joint - logsumexp(weights) + jnp.log(n))
        score = log_softmax(weights)[kept]
        return value + jax.lax.stop_gradient(value) * (score - jax.lax.stop_gradient(score))

    @ppl.expectation
    def ours(w: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
        p = model(w, latents)
        q = ppl.normalize(p, {"x": x}, by=ppl.importance(n, guide(m, s)))
        return ppl.elbo(p, q, {"x": x})

    return by_hand, ours.surrogate, _start(latents)


PAIRS: dict[str, Callable[[], Pair]] = {
    "IWELBO of local latents": bound,
    "IWELBO of local latents, REINFORCE": lambda: bound(16, 200, scores=True),
    "ELBO of a posterior by importance": resampled,
}
