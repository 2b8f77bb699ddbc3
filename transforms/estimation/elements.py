"""The independent elements of a random choice.

A choice consists of elements: one for each ``vmap`` around it and each batch dimension of its
distribution, event dimensions that merely group a batch (``to_event``) included.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..program.site import Site, per_element
from .estimator import Enumerated, refuse_rounding


def apart(d: Any) -> Any:
    """The distribution with its independent elements in its batch shape: ``to_event`` undone."""
    kind = type(d).__name__
    if kind == "Independent":
        return apart(d.base_dist)
    if kind == "ExpandedDistribution":
        base = apart(d.base_dist)
        if base is not d.base_dist:
            inner = base.batch_shape[len(d.base_dist.batch_shape) :]
            return base.expand((*d.batch_shape, *inner))
    return d


def unmasked(d: Any) -> Any:
    """The distribution without its masks, which hide its density but do not change its draws."""
    kind = type(d).__name__
    if kind == "MaskedDistribution":
        return unmasked(d.base_dist)
    if kind == "Independent":
        return unmasked(d.base_dist).to_event(d.reinterpreted_batch_ndims)
    if kind == "ExpandedDistribution":
        return unmasked(d.base_dist).expand(d.batch_shape)
    return d


def is_masked(d: Any) -> bool:
    """Whether a distribution has a mask."""
    kind = type(d).__name__
    if kind == "MaskedDistribution":
        return d._mask is not True or is_masked(d.base_dist)
    return kind in ("Independent", "ExpandedDistribution") and is_masked(d.base_dist)


def absent(d: Any) -> list[Any]:
    """Distributions whose log densities add up to that of what the masks of one hide."""
    kind = type(d).__name__
    if kind == "Independent":
        return [p.to_event(d.reinterpreted_batch_ndims) for p in absent(d.base_dist)]
    if kind == "ExpandedDistribution":
        return [p.expand(d.batch_shape) for p in absent(d.base_dist)]
    if kind != "MaskedDistribution":
        return []
    mask = d._mask
    while type(d.base_dist).__name__ == "MaskedDistribution":
        d = d.base_dist
        mask = mask & d._mask
    hidden = not mask if isinstance(mask, bool) else ~mask
    return [unmasked(d.base_dist).mask(hidden), *(p.mask(mask) for p in absent(d.base_dist))]


def element_shape(site: Site, avals: Any) -> tuple[int, ...]:
    """Batch shape of the elements of a site within one element of the ``vmap``\\ s around it.

    ``avals`` are the shapes of its operands without the axes of these.
    """
    shape = jax.eval_shape(lambda ops: jnp.zeros(apart(site.rebuild(ops)).batch_shape), avals)
    return shape.shape


def value_and_mass(
    site: Site, estimator: Enumerated, operands: list[Any], digits: Any
) -> tuple[jax.Array, jax.Array]:
    """Each element's value number ``digits`` of its support, and how probable it is.

    In a branch that is not taken all values are as probable.
    """

    def one(operands: list[Any], digits: jax.Array) -> tuple[jax.Array, jax.Array]:
        d = apart(site.rebuild(site.live(operands)))
        values = estimator.support(d)
        refuse_rounding(site, estimator.name, "enumerates", values.dtype)
        value = values[digits].astype(site.dtype)
        mass = estimator.mass(d, value)
        if site.masked:
            mass = jnp.where(site.mask(operands), mass, 1.0 / len(values))
        return value, mass

    value, mass = per_element(site.axes, one, 1)(operands, digits)
    return lax.stop_gradient(value), mass.astype(jnp.zeros(()).dtype)
