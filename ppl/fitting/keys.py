"""The key of a fit, or an array of keys: then the objective is its mean over them.

Keys that are divided over devices divide the particles: each device draws and scores its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..programs.given import as_key


def as_keys(key: Any) -> jax.Array:
    """A key, or an array of typed keys ``[n]``."""
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key if typed and key.ndim == 1 and key.size else as_key(key)


def one_of(key: jax.Array) -> jax.Array:
    """A key for what all keys share."""
    return key if key.ndim == 0 else key[0]


def folded(key: jax.Array, i: Any) -> jax.Array:
    """``jax.random.fold_in``, of each key."""
    return _each(lambda k: jax.random.fold_in(k, i), key)


def parted(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys for draws, and one key more."""
    halves = _each(jax.random.split, key)
    return halves[..., 0], one_of(halves[..., 1])


def mean_over(f: Callable[[jax.Array], Any], key: jax.Array) -> Any:
    """``f(key)``, or its mean over keys side by side."""
    if key.ndim == 0:
        return f(key)
    return jax.tree.map(lambda a: jnp.mean(a, 0), jax.vmap(f)(key))


def _each(f: Callable[[jax.Array], jax.Array], key: jax.Array) -> jax.Array:
    return f(key) if key.ndim == 0 else jax.vmap(f)(key)
