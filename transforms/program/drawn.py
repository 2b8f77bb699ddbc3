"""The shape of a draw, found by drawing once without numbers.

Distributions of one kind whose parameters are traced draw alike, as in the rounds of a Python loop:
they are asked once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .. import _jax
from ..errors import Address, UnsupportedError, show
from .improper import is_improper, undrawn

KEPT = 512
"""How many kinds are kept."""


def draw_like(address: Address, source: str, d: Any, leaves: list[Any], tree: Any) -> Any:
    """The shape of a draw of the distribution as it is made again of its leaves."""
    try:
        holds_more, draw = _found(leaves, tree)
    except NotImplementedError as error:
        if is_improper(d):  # it can be given
            kind = int if d.support.is_discrete else float
            return jax.ShapeDtypeStruct(d.shape(), jnp.result_type(kind))
        raise undrawn(address, source, d) from error
    if holds_more:
        raise UnsupportedError(
            f"the choice {show(address)} ~ {type(d).__name__} at {source} holds a value that is "
            "computed in the program where it cannot be found, so its gradient would be lost. Make "
            "it an attribute of the distribution, and declare it in pytree_data_fields."
        )
    return draw


def _found(leaves: Sequence[Any], tree: Any) -> tuple[bool, Any]:
    """Whether a distribution holds traced values besides its leaves, and the shape of a draw."""
    traced = [isinstance(v, _jax.Tracer) for v in leaves]
    parts = [jax.typeof(v) if t else v for v, t in zip(leaves, traced, strict=True)]
    types = [None if t else type(v) for v, t in zip(leaves, traced, strict=True)]
    if any(not t and not isinstance(v, int | float) for v, t in zip(parts, traced, strict=True)):
        return _trace_draw(tree, parts)
    try:
        numbers = jnp.result_type(float), jnp.result_type(int)  # of 64 bits, maybe
        return _known_draw(tree, tuple(parts), (*types, *numbers))
    except TypeError:  # a tree that has no hash
        return _trace_draw(tree, parts)


@functools.lru_cache(maxsize=KEPT)
def _known_draw(tree: Any, parts: tuple[Any, ...], types: tuple[Any, ...]) -> tuple[bool, Any]:
    return _trace_draw(tree, parts)


def _trace_draw(tree: Any, parts: Sequence[Any]) -> tuple[bool, Any]:
    """With the shapes of leaves that are traced."""

    def run(*arrays: Any) -> Any:
        given = iter(arrays)
        leaves = [next(given) if isinstance(v, _jax.ShapedArray) else v for v in parts]
        return jax.tree.unflatten(tree, leaves).sample(jax.random.key(0))

    _, consts, draw = _jax.trace(run, *(v for v in parts if isinstance(v, _jax.ShapedArray)))
    return any(isinstance(c, _jax.Tracer) for c in consts), draw


__all__ = ["draw_like"]
