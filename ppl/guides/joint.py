"""One law for all the unconstrained numbers of a model together."""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist


class Joint(abc.ABC):
    """A law of ``f[size]``: a draw of :meth:`law`, pushed forward."""

    @abc.abstractmethod
    def law(self, params: Any) -> dist.Distribution:
        """What is drawn, an event of f[size]."""

    def push(self, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The unconstrained numbers at a draw, and the log Jacobian f[]."""
        return x, jnp.zeros(())

    def pull(self, params: Any, u: jax.Array) -> jax.Array:
        """The draw at unconstrained numbers."""
        return u
