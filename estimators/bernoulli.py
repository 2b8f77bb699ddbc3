"""What the estimators of binary choices (``disarm.py``, ``relax.py``, ``rebar.py``) share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

_WRAPPERS = dist.ExpandedDistribution | dist.Independent | dist.MaskedDistribution


def bare(d: Any) -> Any:
    """A distribution without what shapes and masks it."""
    while isinstance(d, _WRAPPERS):
        d = d.base_dist
    return d


def coin(d: Any) -> Any:
    """The Bernoulli inside of what shapes and masks it; None if it is none."""
    d = bare(d)
    return d if isinstance(d, dist.BernoulliProbs | dist.BernoulliLogits) else None


def not_a_coin(d: Any) -> str | None:
    """Why an estimator of binary choices cannot be used for ``d``, or None if it can."""
    if coin(d) is not None:
        return None
    instead = "ppl.reinforce() or ppl.mvd()"
    if getattr(d, "has_enumerate_support", False):
        instead = "ppl.enum(), ppl.mvd() or ppl.reinforce()"
    return f"it is no Bernoulli. Use {instead}."


def log_masses(d: Any, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log P(0) and log P(1) of each element of a draw."""
    c = coin(d)
    if isinstance(c, dist.BernoulliLogits):
        logits = jnp.broadcast_to(jnp.asarray(c.logits), like.shape)
        return -jax.nn.softplus(logits), -jax.nn.softplus(-logits)
    probs = jnp.broadcast_to(jnp.asarray(c.probs), like.shape)
    return jnp.log1p(-probs), jnp.log(probs)
