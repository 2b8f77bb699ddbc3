"""Guides that keep the dependences of their model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to

from transforms.program.choices import abstractly
from transforms.runs.addresses import nest

from ..programs.generative import Generative
from ..programs.given import Choices
from .coordinates import Continuous, Params, leaf
from .guide import Family, coordinates, start


class Dependent(Continuous):
    """Normal unconstrained numbers given the choices before, as the model's own law is: their
    location and log scale are affine in the (unconstrained) parameters of that law."""

    dependent = True

    def law(self, d: Any, params: Params) -> dist.Distribution:
        x = _features(d, params["loc"].shape)
        loc = params["loc"] + jnp.sum(params["loc_slopes"] * x, -1)
        log_scale = params["log_scale"] + jnp.sum(params["scale_slopes"] * x, -1)
        return dist.Normal(loc, jnp.exp(log_scale))

    def start(self, point: jax.Array, scale: float) -> Params:
        c = self.entry.choice
        own = len(point.shape) - (len(c.lengths) + len(c.site.sizes))
        shape = point.shape[len(point.shape) - own :]
        n = abstractly(c, lambda d: _features(d, shape)).shape[-1]
        slopes = jnp.zeros((*point.shape, n), point.dtype)
        return super().start(point, scale) | {"loc_slopes": slopes, "scale_slopes": slopes}


def _features(d: Any, shape: tuple[int, ...]) -> jax.Array:
    """The parameters of a law, unconstrained, for each number of a choice: f[*shape, features]."""
    d, found = leaf(d), []
    for name, constraint in sorted(d.arg_constraints.items()):
        value = vars(d).get(name)
        if value is None or constraint is constraints.dependent or constraint.is_discrete:
            continue
        if not jnp.issubdtype(jnp.result_type(value), jnp.inexact) or not _elementwise(constraint):
            continue
        x = biject_to(constraint).inv(jnp.asarray(value))
        if len(x.shape) <= len(shape) and jnp.broadcast_shapes(x.shape, shape) == shape:
            found.append(jnp.broadcast_to(x, shape))
    return jnp.stack(found, -1) if found else jnp.zeros((*shape, 0))


def _elementwise(constraint: Any) -> bool:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    known = (constraints.real, constraints.unit_interval)
    return constraint in known or isinstance(constraint, constraints.greater_than)


def structured(
    g: Generative, data: Choices, *, key: jax.Array, scale: float = 0.1
) -> tuple[Family, dict[str, Any]]:
    """A guide that draws each choice given those before it, as the model does.

    The unconstrained numbers of a choice are normal; their location and log scale are affine in
    the parameters that the model's own law has at that place, made unconstrained (the location,
    the log scale). So a guide of a Gaussian chain is exact, and one of a hierarchical model knows
    that the spread of a group goes with its scale. It begins as :func:`mean_field`, with slopes
    of 0. What the data alone couple, and the model draws independently, stays independent:
    :func:`full_rank` has that.

    Returns:
        ``guide, params``: as :func:`mean_field`, with ``loc_slopes`` and ``scale_slopes``
        f[*axes, *unconstrained, parameters] too at continuous choices.

    Raises:
        UnsupportedError: the support of a continuous choice has no bijection.

    Source: after Ambrogioni et al., "Automatic structured variational inference", AISTATS 2021,
    where a parameter is a convex combination of the model's and a free one.

    Example:
        >>> guide, params = ppl.guides.structured(model(), data, key=key)
        >>> list(guide(params).simulate(key).choices)
        ['x']
    """
    space, parts, discrete = start(g, data, key, "ppl.guides.structured")
    found = coordinates(space, Dependent)
    point = {**parts, **discrete}
    params = nest((c.address, c.start(point[c.address], scale)) for c in found)
    return Family("structured", space, found), params
