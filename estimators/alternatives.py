"""Other values of a choice, one element at a time: what follows runs once more for each.

Elements that are apart (they meet in no term) have their alternatives at once, those that meet one
after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from transforms.estimation.estimator import LocalSite


def met_first(site: LocalSite, x: jax.Array) -> jax.Array:
    """Elements that meet, one by one, and for each of them those that are apart: ``[n, ...]``."""
    met = _met(site)
    x = jnp.moveaxis(x, met, range(len(met)))
    return x.reshape(-1, *x.shape[len(met) :])


def from_met_first(site: LocalSite, x: jax.Array) -> jax.Array:
    """The reverse of :func:`met_first`."""
    met, shape = _met(site), site.value.shape
    x = x.reshape(*(shape[i] for i in met), *x.shape[1:])
    return jnp.moveaxis(x, range(len(met)), met)


def payoffs(site: LocalSite, values: jax.Array, k: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The payoffs of ``values``, ``[m, *shape of the site]``, in the place of one element each, in
    the order of :func:`met_first`: numbers without a derivative."""
    met, shape = _met(site), site.value.shape
    n = math.prod(shape[i] for i in met)
    one_of = jnp.eye(n, dtype=bool).reshape(n, *(m if i in met else 1 for i, m in enumerate(shape)))
    values = jnp.where(one_of, lax.stop_gradient(values)[:, None], site.value)
    return lax.stop_gradient(jax.vmap(jax.vmap(k))(values))


def _met(site: LocalSite) -> list[int]:
    return [i for i, apart in enumerate(site.apart) if not apart]
