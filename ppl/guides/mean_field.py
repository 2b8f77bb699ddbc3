"""Independent choices."""

from __future__ import annotations

from typing import Any

import jax

from transforms.runs.addresses import nest

from ..programs.generative import Generative
from ..programs.given import Choices
from .guide import Family, coordinates, start


def mean_field(
    g: Generative, data: Choices, *, key: jax.Array, scale: float = 0.1
) -> tuple[Family, dict[str, Any]]:
    """Independent normal unconstrained numbers, and a free law of each discrete choice.

    Args:
        g: a generative function that was called.
        data: nested dict of observed choices.
        key: for the draws of the prior, at whose median the guide begins.
        scale: the standard deviations that it begins with.

    Returns:
        ``guide, params``: ``guide(params)`` is a Generative over the choices that are not in
        ``data``; ``params`` is nested like them, ``{"loc", "log_scale"}`` f[*axes, *unconstrained]
        at continuous choices and ``{"logits"}`` f[*shape, K] (for two values f[*shape]) or
        ``{"log_mean", "log_concentration"}`` at discrete ones.

    Raises:
        UnsupportedError: the support of a continuous choice has no bijection.

    Example:
        >>> guide, params = ppl.guides.mean_field(model(), data, key=key)
        >>> elbo = ppl.expectation(lambda params: ppl.elbo(model(), guide(params), data))

    Source: Kucukelbir et al., "Automatic differentiation variational inference", JMLR 2017.
    """
    space, parts, discrete = start(g, data, key, "ppl.guides.mean_field")
    found = coordinates(space)
    point = {**parts, **discrete}
    params = nest((c.address, c.start(point[c.address], scale)) for c in found)
    return Family("mean_field", space, found), params
