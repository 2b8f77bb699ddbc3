r"""Enumeration: every value of a finite support.

    E_p[f(x)] = sum_k p_k(θ) f(k)

Exact: no variance, right derivatives of every order, also where a probability is 0 or 1 (the
weights are probabilities, never exp(log p)). A choice of several elements is their joint
product, K^D runs of the program (as one ``vmap``), and so is an event (``to_event``). Source:
ADEV, Lew et al. 2023; TraceEnum in Pyro.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import gammaln

from transforms.estimator import Enumerated

MAX_EVENT = 20
"""Most elements of one event (``d.to_event(n)``) that are enumerated jointly."""


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Enum(Enumerated):
    """All values of a finite support; see the module docstring."""

    name = "enum"

    def unsuitable(self, d: Any) -> str | None:
        if not getattr(d, "has_enumerate_support", False):
            return (
                "its support is not finite. Use ppl.reinforce(), ppl.mvd(), or ppl.reparam() for "
                "a continuous one."
            )
        event = math.prod(d.event_shape) if isinstance(d, dist.Independent) else 1
        if event > MAX_EVENT:
            return (
                f"its event of {event} elements has too many joint values. Use ppl.reinforce(), "
                "ppl.mvd(), or, where each element can be treated by itself, an inner expectation "
                "under jax.vmap."
            )
        try:
            jax.eval_shape(lambda: support(d))
        except Exception:
            return (
                "the size of its support is not known while tracing. Give it a Python integer "
                "(like total_count=9 with scalar probs) rather than a traced or array value."
            )
        return None

    def support(self, d: Any) -> jax.Array:
        return support(d)

    def mass(self, d: Any, value: jax.Array) -> jax.Array:
        return mass(d, value)


def enum() -> Enum:
    """Enumeration of a finite support: exact value and gradient, K^D runs as one ``vmap``."""
    return Enum()


def support(d: Any) -> jax.Array:
    """All values of one element of ``d``: ``[K, *event_shape]``."""
    if isinstance(d, dist.ExpandedDistribution | dist.MaskedDistribution):
        return support(d.base_dist)
    if isinstance(d, dist.Independent):
        values = support(d.base_dist)
        shape = d.event_shape[: d.reinterpreted_batch_ndims]
        n, elements = values.shape[0], math.prod(shape)
        places = np.array([n**i for i in range(elements)][::-1], dtype=np.int32)
        digits = jnp.arange(n**elements)[:, None] // jnp.asarray(places) % n
        return values[digits.reshape(-1, *shape)]
    values = d.enumerate_support(expand=False)
    return values.reshape(values.shape[0], *d.event_shape)


def mass(d: Any, value: jax.Array) -> jax.Array:
    """Probability of ``value``, ``[*batch_shape]``: differentiable also at 0 and 1."""
    if isinstance(d, dist.Independent):
        masses = mass(d.base_dist, value)
        return jnp.prod(masses, axis=tuple(range(-d.reinterpreted_batch_ndims, 0)))
    if isinstance(d, dist.MaskedDistribution):  # masks its density, not its draws
        return mass(d.base_dist, value)
    if isinstance(d, dist.ExpandedDistribution):
        return jnp.broadcast_to(mass(d.base_dist, value), d.batch_shape)
    if isinstance(d, dist.BernoulliLogits):
        return jax.nn.sigmoid(jnp.where(value == 1, d.logits, -d.logits))
    if isinstance(d, dist.BernoulliProbs):
        p: Any = d.probs
        return jnp.where(value == 1, p, 1.0 - p)
    if isinstance(d, dist.CategoricalProbs | dist.CategoricalLogits):
        probs: Any = d.probs
        probs = jnp.broadcast_to(probs, (*d.batch_shape, probs.shape[-1]))
        index = jnp.broadcast_to(value, d.batch_shape)[..., None].astype(int)
        return jnp.take_along_axis(probs, index, axis=-1)[..., 0]
    if isinstance(d, dist.BinomialProbs | dist.BinomialLogits):
        n, q = jnp.asarray(d.total_count), jnp.asarray(d.probs)
        ways = jnp.exp(gammaln(n + 1.0) - gammaln(value + 1.0) - gammaln(n - value + 1.0))
        return ways * q**value * (1.0 - q) ** (n - value)
    return jnp.exp(d.log_prob(value))
