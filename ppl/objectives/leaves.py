"""Pytrees as inputs of compiled code: their arrays, and what is static."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from transforms import _jax
from transforms.errors import UnsupportedError

from ..programs.given import is_array


def split_arrays(tree: Any) -> tuple[list[Any], tuple[tuple[int, Any], ...], Any]:
    """As :func:`split`, where Python numbers stay what they are."""
    leaves, structure = jax.tree.flatten(tree)
    whole = [isinstance(v, jax.Array | np.ndarray) for v in leaves]
    arrays = [v for v, a in zip(leaves, whole, strict=True) if a]
    return arrays, tuple((i, v) for i, v in enumerate(leaves) if not whole[i]), structure


def split(tree: Any) -> tuple[list[Any], tuple[tuple[int, Any], ...], Form]:
    """Arrays, static leaves by position, and the form of a pytree."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = [v for v in leaves if is_array(v)]
    static = tuple((i, v) for i, v in enumerate(leaves) if not is_array(v))
    for _, v in static:
        try:
            hash(v)
        except TypeError:
            raise UnsupportedError(
                f"an argument of type {type(v).__name__} ({_jax.user_line()}) is neither an array "
                "nor hashable, so it can be no input of compiled code. Close over it, give an "
                "array, or register its type as a pytree."
            ) from None
    return arrays, static, Form(structure, tuple(_classes(structure)))


@dataclasses.dataclass(frozen=True)
class Form:
    """The tree of a pytree and the classes in it: to JAX trees of different dataclasses with like
    fields are equal, and two that have none are one key of its caches."""

    tree: Any
    classes: tuple[Any, ...]

    @property
    def num_leaves(self) -> int:
        return self.tree.num_leaves

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        return jax.tree.unflatten(self.tree, leaves)


def _classes(tree: Any) -> Iterator[Any]:
    data = tree.node_data()
    if data is not None:
        yield data[0]
        for child in tree.children():
            yield from _classes(child)


def join(arrays: Sequence[Any], static: Sequence[tuple[int, Any]]) -> list[Any]:
    """The leaves that :func:`split` took apart."""
    leaves = list(arrays)
    for i, v in static:
        leaves.insert(i, v)
    return leaves
