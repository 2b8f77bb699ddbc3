"""Draws of flows whose transforms have no inverse.

A transformed distribution scores a value by taking it back through its transforms. A draw of its
own came forward through them, so it is scored without: the base is drawn, and

    log q(y) = log base(x) - log |det dy/dx|,    y = T(x).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .. import _jax
from ..program import marks, opened
from ..program.site import Axis, Opaque, Site, per_element
from .elements import absent


def is_one_way(d: Any) -> bool:
    """Whether a distribution (with shapes in place of numbers) is a flow that can be drawn, and not
    scored at a given value."""
    flow = d
    while type(flow).__name__ in _WRAPPERS:
        flow = flow.base_dist
    if getattr(type(flow).sample, "__qualname__", "") != "TransformedDistribution.sample":
        return False
    leaves, tree = opened.flatten(d)
    static, kept = opened.set_apart(leaves)

    def density(leaves: Any, x: Any) -> Any:
        return jax.tree.unflatten(tree, opened.put_back(static, leaves)).log_prob(x)

    try:
        jax.eval_shape(density, kept, jax.ShapeDtypeStruct(d.shape(), jnp.result_type(float)))
    except NotImplementedError:
        return True
    except Exception:  # an error of the density, which says more where it is taken
        return False
    return False


_WRAPPERS = {"Independent", "ExpandedDistribution", "MaskedDistribution"}


def base_of(site: Site, operands: Sequence[Any]) -> tuple[Site, list[Any]]:
    """The choice of what the transforms of a site are given, and those operands that it needs."""
    found: dict[str, Any] = {}

    def leaves_of(*operands: Any) -> list[Any]:
        d = _base(site.rebuild(operands))
        leaves, tree = opened.flatten(d)
        static, kept = opened.set_apart(leaves)
        found.update(static=static, distribution=Opaque(tree))
        found["draw"] = jax.eval_shape(d.sample, jax.random.key(0))
        return list(map(jnp.asarray, kept))

    skip = [sum(a.mapped[j] for a in site.axes) for j in range(len(operands))]
    own = [
        jax.ShapeDtypeStruct(jnp.shape(v)[n:], v.dtype) for v, n in zip(operands, skip, strict=True)
    ]
    closed = _jax.traced(leaves_of, *own)
    place = {v: j for j, v in enumerate(closed.jaxpr.invars)}
    kept = [None if isinstance(v, _jax.Literal) else place.get(v) for v in closed.jaxpr.outvars]
    first = len(operands) - site.n_estimator - site.masked
    kept += range(first, len(operands))
    made: list[Any] = []
    if None in kept:  # something is computed of the operands
        made = per_element(site.axes, lambda ops: _jax.evaluate(closed, *ops), 0)(list(operands))
    new = [made[i] if j is None else operands[j] for i, j in enumerate(kept)]
    axes = tuple(
        Axis(a.size, tuple(j is None or a.mapped[j] for j in kept), a.loops) for a in site.axes
    )
    draw = found.pop("draw")
    base = dataclasses.replace(site, shape=draw.shape, dtype=draw.dtype, axes=axes, **found)
    return base, new


def _base(d: Any) -> Any:
    kind = type(d).__name__
    if kind == "Independent":
        return _base(d.base_dist).to_event(d.reinterpreted_batch_ndims)
    if kind == "ExpandedDistribution":
        return _base(d.base_dist).expand(d.batch_shape)
    if kind == "MaskedDistribution":
        return _base(d.base_dist).mask(d._mask)
    return d.base_dist


def push(
    site: Site, operands: Sequence[Any], x: Any, *, hidden: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The draw that a draw of the base is taken to, and what the log density of each element has
    more than that of the base. With ``hidden``, of what a mask hides."""

    def one(operands: list[Any], x: Any) -> tuple[Any, Any]:
        d = site.rebuild(site.live(operands))
        pairs = [_pushed(p, x) for p in (absent(d) if hidden else [d])] or [(x, jnp.zeros(()))]
        with marks.mark(marks.DENSITY):
            total = functools.reduce(jnp.add, [jnp.sum(more) for _, more in pairs])
            total = jnp.where(site.mask(operands), total, 0.0) if site.masked else total
        return pairs[0][0], total

    return per_element(site.axes, one, 1)(list(operands), x)


def _pushed(d: Any, x: Any) -> tuple[Any, Any]:
    kind = type(d).__name__
    if kind == "Independent":
        y, more = _pushed(d.base_dist, x)
        return y, jnp.sum(more, axis=tuple(range(-d.reinterpreted_batch_ndims, 0)))
    if kind == "ExpandedDistribution":
        return _pushed(d.base_dist, x)
    if kind == "MaskedDistribution":
        y, more = _pushed(d.base_dist, x)
        with marks.mark(marks.DENSITY):
            return y, jnp.where(d._mask, more, 0.0)
    y, steps = x, []
    for transform in d.transforms:
        before = y
        y, step = transform.call_with_intermediates(before)
        steps.append([before, step])
    volume = copy.copy(d)
    volume.base_dist = _Flat(d.base_dist)
    return y, volume.log_prob(y, steps)


class _Flat:
    """In place of the base of a flow: its density is 1."""

    def __init__(self, d: Any) -> None:
        self.batch_shape, self.event_shape = d.batch_shape, d.event_shape

    def log_prob(self, value: Any) -> jax.Array:
        return jnp.broadcast_to(0.0, jnp.shape(value)[: jnp.ndim(value) - len(self.event_shape)])


__all__ = ["base_of", "is_one_way", "push"]
