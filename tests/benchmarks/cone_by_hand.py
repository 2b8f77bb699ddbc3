"""Two objectives of the cone (``ppl.demo.cone``), written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def normal(x: Any, loc: Any, scale: Any) -> jax.Array:
    return -0.5 * ((x - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)


def log_weight(key: jax.Array, phi: Mapping[str, Any]) -> jax.Array:
    """log p(x, y, z = 5) - log q(x, y) at a draw of the mean-field guide."""
    noise = jax.random.normal(key, (2,))
    sx, sy = jnp.exp(phi["log_sx"]), jnp.exp(phi["log_sy"])
    x, y = phi["x"] + sx * noise[0], phi["y"] + sy * noise[1]
    r = x**2 + y**2
    prior = normal(x, 0.0, 10.0) + normal(y, 0.0, 10.0)
    guide = normal(x, phi["x"], sx) + normal(y, phi["y"], sy)
    return prior + normal(5.0, r, 0.1 + r / 100.0) - guide


def elbo(key: jax.Array, phi: Mapping[str, Any], samples: int) -> jax.Array:
    keys = jax.random.split(key, samples)
    return jax.vmap(log_weight, in_axes=(0, None))(keys, phi).mean()


def iwelbo(key: jax.Array, phi: Mapping[str, Any], samples: int) -> jax.Array:
    keys = jax.random.split(key, (samples, 5))
    weights = jax.vmap(jax.vmap(log_weight, (0, None)), (0, None))(keys, phi)
    return (jax.nn.logsumexp(weights, axis=1) - jnp.log(5.0)).mean()
