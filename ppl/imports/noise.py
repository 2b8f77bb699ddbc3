"""Distributions that statements of NumPyro stand for."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.primitives import _subsample_fn

from transforms.program.site import Noise

_ANYWHERE: Any = constraints.dependent(is_discrete=False, event_dim=0)


class Subsample(Noise, dist.Distribution):
    """``m`` of ``size`` indices, without replacement, of density 0."""

    pytree_aux_fields = ("size",)
    support = constraints.dependent(is_discrete=True, event_dim=1)  # type: ignore[assignment]

    def __init__(self, size: int, m: int) -> None:
        self.size = size
        super().__init__((), (m,))

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        keys = jax.random.split(key, sample_shape)  # type: ignore[arg-type]
        draw = lambda key: _subsample_fn(self.size, self.event_shape[0], key)
        for _ in sample_shape:
            draw = jax.vmap(draw)
        return jnp.asarray(draw(keys))

    def log_prob(self, value: Any) -> jax.Array:
        return jnp.zeros(jnp.shape(value)[:-1])


class Delta(dist.Delta):
    """A point, of which nobody knows where it may be: numpyro says that it may be anywhere."""

    support = _ANYWHERE  # type: ignore[assignment]


def is_delta(d: Any) -> bool:
    return type(d) is dist.Delta


def somewhere(d: Any) -> Any:
    """``d`` with its points as :class:`Delta`."""

    def replace(part: Any) -> Any:
        if is_delta(part):
            part = copy.copy(part)
            part.__class__ = Delta
        return part

    return jax.tree.map(replace, d, is_leaf=is_delta)


class Placed(dist.Distribution):
    """A value with a log density that it brings along, whatever value is scored."""

    arg_constraints: ClassVar[Any] = {"v": _ANYWHERE}
    reparametrized_params: ClassVar[Any] = ["v"]
    pytree_data_fields = ("v", "log_density")
    support = _ANYWHERE  # type: ignore[assignment]

    def __init__(self, v: Any, log_density: Any, event_dim: int = 0) -> None:
        self.v, self.log_density = v, log_density
        n = jnp.ndim(v) - event_dim
        super().__init__(jnp.shape(v)[:n], jnp.shape(v)[n:])

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> Any:
        return jnp.broadcast_to(self.v, (*sample_shape, *jnp.shape(self.v)))

    def log_prob(self, value: Any) -> jax.Array:
        return jnp.asarray(self.log_density)
