"""Sums that leave no equation where there is nothing to add.

An equation that changes nothing is free for XLA, but not while the program is traced,
differentiated and batched.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def sum_over(x: jax.Array, axis: Sequence[int] | None = None) -> jax.Array:
    """``jnp.sum(x, axis)`` of floating point numbers."""
    axes = range(jnp.ndim(x)) if axis is None else axis
    return jnp.sum(x, axis=tuple(axes)) if len(axes) else x


def added(parts: Iterable[Any], none: Any) -> Any:
    """The sum of the parts; ``none`` if there are none."""
    parts = list(parts)
    return functools.reduce(jnp.add, parts) if parts else none
