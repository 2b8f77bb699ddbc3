"""How much of a gradient estimate is signal: its mean against its standard deviation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from transforms.program.compiled import computed

from ..programs.given import as_count, as_key
from .expectation import Expectation

TOGETHER = 20
"""Gradients that are computed side by side."""


def signal_to_noise(
    objective: Expectation,
    key: jax.Array,
    params: Any,
    *args: Any,
    samples: int = 1,
    chunk: int | None = None,
    n: int = 500,
) -> Any:
    """The signal-to-noise ratio of every parameter's gradient: ‖E g‖ / sqrt(E ‖g - E g‖²).

    The parameters of ``ppl.guides`` are named after the choices of the model, so this shows the
    choices whose gradients are noise: give these another estimator, more ``samples``, or
    ``ppl.tune``. Near the optimum it tends to 0 everywhere, and averaging is what helps.

    Args:
        objective: called as ``objective(params, *args)``.
        key: random key.
        params: where the gradient is taken, any pytree.
        samples, chunk: estimates averaged for each gradient, and in memory at a time, as in a fit.
        n: number of gradients.

    Returns:
        A pytree like ``params``, f32[] for each array, less what ``n`` finite adds to the norm.

    Example:
        >>> ratios = ppl.signal_to_noise(elbo, key, phi, n=100)
        >>> sorted(ratios)
        ['m', 's']
    """
    n = as_count(n, "n", 2)
    blocks = -(-n // TOGETHER)

    def ratios(key: jax.Array, params: Any, args: Any) -> Any:
        gradient = lambda k: objective.grad(k, params, *args, samples=samples, chunk=chunk)
        keys = jax.random.split(key, (blocks, TOGETHER))
        drawn = lax.map(jax.vmap(gradient), keys)
        return jax.tree.map(lambda g: _ratio(g.reshape(blocks * TOGETHER, -1)), drawn)

    return computed(ratios, as_key(key), params, args)


def _ratio(g: jax.Array) -> jax.Array:
    noise = jnp.sum(jnp.var(g, axis=0, ddof=1))
    signal = jnp.sum(jnp.mean(g, axis=0) ** 2) - noise / g.shape[0]
    return jnp.sqrt(jnp.maximum(signal, 0.0) / noise)
