"""One law for all the unconstrained numbers of a model together: full rank, low rank."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, final

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular


class Joint(abc.ABC):
    """A law of f[size]: a draw of :meth:`law`, pushed forward."""

    @abc.abstractmethod
    def law(self, params: Any) -> dist.Distribution:
        """What is drawn."""

    def push(self, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The unconstrained numbers at a draw, and the log Jacobian f[]."""
        return x, jnp.zeros(())

    def pull(self, params: Any, u: jax.Array) -> jax.Array:
        """The draw at unconstrained numbers."""
        return u

    @abc.abstractmethod
    def start(self, point: jax.Array, scale: float) -> Any:
        """Parameters to begin with, around a point f[size]."""


@final
@dataclasses.dataclass(frozen=True)
class FullRank(Joint):
    """loc + L x of standard normal x: a draw carries its density, with no system to solve."""

    size: int

    def law(self, params: Any) -> dist.Distribution:
        return standard(self.size)

    def push(self, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        u = params["loc"] + scale_tril(params) @ x
        return u, jnp.sum(params["log_scale"])

    def pull(self, params: Any, u: jax.Array) -> jax.Array:
        return solve_triangular(scale_tril(params), u - params["loc"], lower=True)

    def start(self, point: jax.Array, scale: float) -> Any:
        n = self.size
        log_scale = jnp.full((n,), jnp.log(scale), point.dtype)
        return {"loc": point, "log_scale": log_scale, "lower": jnp.zeros((n, n), point.dtype)}


def scale_tril(params: Any) -> jax.Array:
    """L = diag(exp(log_scale)) (1 + the strict lower triangle of ``lower``), f[size, size]."""
    unit = jnp.tril(params["lower"], -1) + jnp.eye(params["loc"].size)
    return jnp.exp(params["log_scale"])[:, None] * unit


def of_scale_tril(loc: jax.Array, tril: jax.Array) -> dict[str, jax.Array]:
    """The parameters of a normal law with this Cholesky factor."""
    diagonal = jnp.diagonal(tril)
    lower = jnp.tril(tril, -1) / diagonal[:, None]
    return {"loc": loc, "log_scale": jnp.log(diagonal), "lower": lower}


@final
@dataclasses.dataclass(frozen=True)
class LowRank(Joint):
    """Normal with covariance diag(exp(2 log_scale)) + F F', F = diag(exp(log_scale)) factor."""

    size: int
    rank: int

    def law(self, params: Any) -> dist.Distribution:
        scale = jnp.exp(params["log_scale"])
        factor = scale[:, None] * params["factor"]
        return dist.LowRankMultivariateNormal(params["loc"], factor, scale**2)

    def start(self, point: jax.Array, scale: float) -> Any:
        n = self.size
        log_scale = jnp.full((n,), jnp.log(scale), point.dtype)
        shifted = jnp.arange(n)[:, None] % self.rank == jnp.arange(self.rank)
        factor = 0.1 * shifted.astype(point.dtype)  # at 0 its gradient would be 0
        return {"loc": point, "log_scale": log_scale, "factor": factor}


def standard(size: int) -> dist.Distribution:
    """Independent standard normal numbers, f[size]."""
    return dist.Normal(jnp.zeros(size), 1.0)
