"""Baselines that depend on the payoff that they are for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .draws import SAMPLES, Context
from .estimator import Baseline


def sees_own_draw(baseline: Baseline, samples: int) -> bool:
    """Whether a baseline depends on the payoff of the sample whose score it multiplies."""
    if baseline.independent:
        return False
    context = Context(samples)

    def term(payoff: jax.Array, log_prob: jax.Array) -> jax.Array:
        return baseline.finish(baseline.accumulate(log_prob), payoff, context)

    def own(payoff: jax.Array) -> jax.Array:
        return jax.grad(term, argnums=1)(payoff, jnp.zeros(()))

    def slopes(payoffs: jax.Array) -> jax.Array:
        if samples == 1:
            return jax.grad(own)(payoffs[0])

        def each(payoffs: jax.Array) -> jax.Array:
            return jax.vmap(own, axis_name=SAMPLES)(payoffs)

        return jnp.diagonal(jax.jacfwd(each)(payoffs))

    with jax.ensure_compile_time_eval():
        payoffs = jnp.asarray(np.linspace(-1.0, 2.0, samples))
        return bool(np.any(np.abs(slopes(payoffs)) > 1e-4))
