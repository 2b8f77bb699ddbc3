"""Means of terms over independent elements that are read at static places.

For ``t = f(z[1:], z[:-1])`` of independent elements with probabilities p, the mean of a number is a
sum over the two elements that it reads, ``sum_ab p[1:, a] p[:-1, b] t[a, b]``, for all numbers at
once. An element that a number reads twice has one value.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from ..analyses.dependence import Along, Dependence
from .by_element import (
    axes_of_classes,
    digits_of,
    element_of,
    is_constant,
    joint_axes,
    reads_of,
    values_of,
)
from .classes import Plan
from .static_reads import ReadApart

Averaged = tuple[Callable[[Sequence[Any]], list[jax.Array]], int]
"""The means of outputs, from the other inputs of their program, and how many joint values meet in
one of them."""


def means_by_reads(
    plan: Plan, program: _jax.ClosedJaxpr, outs: Sequence[Dependence], known: Sequence[Any]
) -> Averaged | None:
    """Of outputs over independent variables, the probabilities of which are the last outputs.

    None if they are not independent, or it is not known which of their elements each number reads.
    The inputs before the variables are ``known``, or None.
    """
    m = len(plan.variables)
    for i, (v, d) in enumerate(zip(plan.variables, outs[-m:], strict=True)):
        if d not in ({}, {i: tuple(map(Along, range(len(v.shape))))}):
            return None
    found = reads_of(plan, program, known, outs)
    if found is None:
        return None
    each = [_Weights(plan, found, d, k) for k, d in enumerate(outs)]

    def means(args: Sequence[Any]) -> list[jax.Array]:
        parts = values_of(plan, found, outs, args)
        masses = [_masses(plan, i, p.value, len(p.digits)) for i, p in enumerate(parts[-m:])]
        return [w.mean(p.value, masses) for w, p in zip(each[:-m], parts[:-m], strict=True)]

    return means, max(math.prod(plan.variables[i].n for i in w.variables) for w in each)


def _masses(plan: Plan, i: int, x: jax.Array, digits: int) -> jax.Array:
    """How probable the values of a variable are: of its elements that meet, in its plates."""
    v, joint = plan.variables[i], joint_axes(plan, i)
    x = x if digits else jnp.broadcast_to(x, (v.n, *v.shape))
    x = jnp.moveaxis(x, [1 + a for a in joint], range(1, 1 + len(joint)))
    elements, plates = math.prod(x.shape[1 : 1 + len(joint)]), x.shape[1 + len(joint) :]
    if not elements:  # numbers that depend on none read some
        return jnp.zeros((v.n, 1, *plates), x.dtype)
    return x.reshape(v.n, elements, *plates)


class _Weights:
    """How probable the values of the digits are that an output depends on. ``variables`` are those
    of the digits."""

    def __init__(self, plan: Plan, found: ReadApart, d: Dependence, k: int) -> None:
        shape = found.program.out_avals[k].shape  # type: ignore[attr-defined]
        copies, axis_of = digits_of(found, d, k), axes_of_classes(plan, d)
        self.variables = [found.copies[c] for c in copies]
        self._told = [bool(joint_axes(plan, i)) for i in self.variables]
        self._at = [_small(element_of(found.reads[k], c, shape)) for c in copies]
        self._plates = [
            [axis_of[c] for c in plan.classes[i] if c is not None] for i in self.variables
        ]

    def mean(self, value: jax.Array, masses: Sequence[jax.Array]) -> jax.Array:
        """The mean of the output over its digits, which are in front; its own axes stay."""
        n = len(self.variables)
        if not n:
            return value
        weights = [self._of(a, masses[i]) for a, i in enumerate(self.variables)]
        weight = functools.reduce(jnp.multiply, weights)
        safe = jnp.where((weight == 0) & ~jnp.isfinite(value), 0.0, value)
        return jnp.sum(weight * safe, axis=tuple(range(n)))

    def _of(self, a: int, mass: jax.Array) -> jax.Array:
        """Of the values of a digit, given those before it."""
        at, n = self._at[a], mass.shape[0]
        w = jnp.take(mass, np.maximum(at, 0).ravel(), axis=1)
        w = w.reshape(n, *at.shape, *w.shape[2:])
        for k, axis in enumerate(self._plates[a]):
            w = jnp.swapaxes(w, 1 + axis, 1 + at.ndim + k)
        w = w.reshape(*self._axes(n, a), *w.shape[1 : 1 + at.ndim])
        if not self._told[a]:
            return w
        if np.any(at < 0):  # what a number does not depend on has the first value
            first = np.arange(n) == 0
            w = jnp.where(at < 0, first.reshape(*self._axes(n, a), *[1] * at.ndim), w)
        for b in range(a):
            same = (at == self._at[b]) & (at >= 0)
            if self.variables[b] == self.variables[a] and np.any(same):
                equal = np.eye(n).reshape(*self._axes(n, a, b), *[1] * at.ndim)
                w = jnp.where(same, equal, w)
        return w

    def _axes(self, size: int, *digits: int) -> list[int]:
        return [size if k in digits else 1 for k in range(len(self.variables))]


def _small(at: np.ndarray) -> np.ndarray:
    """With size 1 along the axes along which all is the same."""
    for a in range(at.ndim):
        if at.shape[a] and is_constant(at, a):
            at = np.take(at, [0], a)
    return at


__all__ = ["Averaged", "means_by_reads"]
