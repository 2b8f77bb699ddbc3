"""Means of terms over independent elements that are read at static places.

For ``t = f(z[1:], z[:-1])`` of independent elements with probabilities p, the mean of a number is a
sum over the two elements that it reads, ``sum_ab p[1:, a] p[:-1, b] t[a, b]``, for all numbers at
once. An element that a number reads twice has one value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from ..analyses.dependence import Along, Dependence
from .by_element import axes_of_classes, digits_of, element_of, joint_axes, reads_of, values_of
from .classes import Plan
from .static_reads import ReadApart
from .tables import Part

Averaged = tuple[Callable[[Sequence[Any]], list[jax.Array]], int]
"""The means of outputs, from the other inputs of their program, and how many joint values meet in
one of them."""


def means_by_reads(
    plan: Plan, program: _jax.ClosedJaxpr, outs: Sequence[Dependence], known: Sequence[Any]
) -> Averaged | None:
    """Of outputs over independent variables, the probabilities of which are the last outputs.

    The inputs before the variables are ``known``, or None. None if they are not independent, or it is not known which of their elements each number reads.
    """
    m = len(plan.variables)
    for i, (v, d) in enumerate(zip(plan.variables, outs[-m:], strict=True)):
        if d not in ({}, {i: tuple(map(Along, range(len(v.shape))))}):
            return None
    found = reads_of(plan, program, known, outs)
    if found is None:
        return None

    def means(args: Sequence[Any]) -> list[jax.Array]:
        parts = values_of(plan, found, outs, args)
        weights = [
            _weights(plan, i, p, bool(d)) for i, (p, d) in enumerate(zip(parts[-m:], outs[-m:], strict=True))
        ]
        return [_mean(plan, found, d, k, p, weights) for k, (d, p) in enumerate(zip(outs[:-m], parts[:-m], strict=True))]

    sizes = [
        math.prod(plan.variables[found.copies[c]].n for c in digits_of(plan, found, d, k))
        for k, d in enumerate(outs)
    ]
    return means, max(sizes)


def _weights(plan: Plan, i: int, part: Part, depends: bool) -> jax.Array:
    """The probability of each value of a variable: its values, its elements that meet, its
    plates."""
    v, joint = plan.variables[i], joint_axes(plan, i)
    x = part.value if depends else jnp.broadcast_to(part.value, (v.n, *v.shape))
    x = jnp.moveaxis(x, [1 + a for a in joint], range(1, 1 + len(joint)))
    return x.reshape(v.n, -1, *x.shape[1 + len(joint) :])


def _mean(
    plan: Plan, found: ReadApart, d: Dependence, k: int, part: Part, weights: Sequence[jax.Array]
) -> jax.Array:
    """The mean of an output; its own axes stay."""
    n = len(part.digits)
    if not n:
        return part.value
    shape = part.value.shape[n:]
    copies = digits_of(plan, found, d, k)
    at = [_small(element_of(found.reads[k], c, shape)) for c in copies]
    axis_of = axes_of_classes(plan, d)
    weight = jnp.ones(())
    for place, (c, e) in enumerate(zip(copies, at, strict=True)):
        i = found.copies[c]
        classes = [axis_of[c] for c in plan.classes[i] if c is not None]
        w = _placed(weights[i], np.maximum(e, 0) if joint_axes(plan, i) else e * 0, classes)
        same = [
            b for b in range(place) if found.copies[copies[b]] == i and joint_axes(plan, i)
        ]
        if joint_axes(plan, i):  # what reads none has the first value
            first = np.arange(w.shape[0]).reshape(-1, *[1] * e.ndim) == 0
            w = jnp.where(e < 0, first.astype(w.dtype), w)
        w = w.reshape(*[w.shape[0] if b == place else 1 for b in range(n)], *w.shape[1:])
        for b in same:
            w = jnp.where((e == at[b]) & (e >= 0), _equal(w.shape[place], b, place, n, e.ndim), w)
        weight = weight * w
    safe = jnp.where((weight == 0) & ~jnp.isfinite(part.value), 0.0, part.value)
    return jnp.sum(weight * safe, axis=tuple(range(n)))


def _small(at: np.ndarray) -> np.ndarray:
    """With size 1 along the axes along which all is the same."""
    for a in range(at.ndim):
        if at.shape[a] and np.all(at == np.take(at, [0], a)):
            at = np.take(at, [0], a)
    return at


def _placed(w: jax.Array, at: np.ndarray, classes: Sequence[int]) -> jax.Array:
    """The probabilities of elements for each number, with their plates along its axes."""
    w = jnp.take(w, at.ravel(), axis=1)
    w = w.reshape(w.shape[0], *at.shape, *w.shape[2:])
    ndim = 1 + at.ndim
    for k, a in enumerate(classes):
        w = jnp.swapaxes(w, 1 + a, ndim + k)
    return w.reshape(w.shape[:ndim])


def _equal(size: int, a: int, b: int, n: int, ndim: int) -> np.ndarray:
    """1 where two of n digits have the same value."""
    shape = [size if k in (a, b) else 1 for k in range(n)]
    return np.eye(size).reshape(*shape, *[1] * ndim)


__all__ = ["Averaged", "means_by_reads"]
