"""A function at all points of a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def over_axes(f: Callable[..., Any], sizes: Sequence[int], spec: Any) -> Any:
    """``f(*indices)`` for all indices below ``sizes``, one ``vmap`` for each axis.

    ``spec`` says on which axes the parts of the result depend, a frozenset of their numbers for
    each: those they have in front, in order, and no others.
    """
    is_leaf = lambda x: isinstance(x, frozenset)
    for i, n in reversed(list(enumerate(sizes))):
        in_axes = tuple(0 if j == i else None for j in range(len(sizes)))
        out_axes = jax.tree.map(lambda on, i=i: 0 if i in on else None, spec, is_leaf=is_leaf)
        f = jax.vmap(f, in_axes=in_axes, out_axes=out_axes, axis_size=n)
    return f(*(jnp.arange(n) for n in sizes))


__all__ = ["over_axes"]
