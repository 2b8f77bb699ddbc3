"""Maximum a posteriori: one point."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from transforms.program.site import Site
from transforms.runs.addresses import nest

from ..programs.generative import Generative
from ..programs.given import Choices
from .coordinates import Continuous, Params
from .guide import Family, coordinates, start

NEAR = 1e-4


class PointMass(dist.Delta):
    """A point: log density 0 there, up to rounding."""

    def log_prob(self, value: Any) -> jax.Array:
        v = jnp.asarray(self.v)
        near = jnp.abs(value - v) <= NEAR * (1.0 + jnp.abs(v))
        return jnp.where(near, 0.0, -jnp.inf)


class Point(Continuous):
    """Unconstrained numbers that are parameters; what they are mapped to keeps the density."""

    def law(self, d: Any, params: Params) -> dist.Distribution:
        return PointMass(params["loc"])

    def image(self, d: Any, x: Any, site: Site) -> tuple[jax.Array, Any]:
        return super().image(d, x, site)[0], 0.0

    def start(self, point: jax.Array, scale: float) -> Params:
        return {"loc": point}


def map(g: Generative, data: Choices, *, key: jax.Array) -> tuple[Family, dict[str, Any]]:
    """A point for each continuous choice, with log density 0: the ELBO is the log density of the
    model there, and the fit the maximum a posteriori (of the choices as they are, without a
    Jacobian). Discrete choices have free laws, as in :func:`mean_field`.

    Returns:
        ``guide, params``; ``params`` is nested like the choices, with the unconstrained
        ``{"loc"}`` at continuous ones. It begins at the median of prior draws.

    Raises:
        UnsupportedError: the support of a continuous choice has no bijection.

    Example:
        >>> guide, params = ppl.guides.map(model(), data, key=key)
        >>> list(guide(params).simulate(key).choices)
        ['x']
    """
    space, parts, discrete = start(g, data, key, "ppl.guides.map")
    found = coordinates(space, Point)
    point = {**parts, **discrete}
    return Family("map", space, found), nest(
        (c.address, c.start(point[c.address], 0.0)) for c in found
    )
