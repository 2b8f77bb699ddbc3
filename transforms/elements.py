"""The independent elements of a random choice.

A choice consists of elements: one for each ``vmap`` around it and each batch dimension of its
distribution, event dimensions that merely group a batch (``to_event``) included.
"""

from __future__ import annotations

from typing import Any

import jax

from .site import Site


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


def element_shape(site: Site, avals: Any) -> tuple[int, ...]:
    """Batch shape of the elements of a site within one element of the ``vmap``\\ s around it.

    ``avals`` are the shapes of its operands without the axes of these.
    """
    shape = jax.eval_shape(lambda ops: jax.numpy.zeros(apart(site.rebuild(ops)).batch_shape), avals)
    return shape.shape
