"""Guides in which all continuous choices depend on each other: full rank, low rank, Laplace."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transforms import _jax
from transforms.errors import UnsupportedError, show
from transforms.program.compiled import computed
from transforms.runs.addresses import flatten, nest

from ..programs.enumeration import enumeration
from ..programs.generative import Generative
from ..programs.given import Choices, as_count, merge
from ..programs.marginal import marginal
from ..programs.space import Space
from .guide import Family, coordinates, start
from .joint import FullRank, Joint, LowRank, of_scale_tril

Made = tuple[Family, dict[str, Any]]
STEPS, TOLERANCE = 500, 1e-6
"""Most steps to the mode, and the relative size of one that is the last."""


def full_rank(g: Generative, data: Choices, *, key: jax.Array, scale: float = 0.1) -> Made:
    """One normal law with a full covariance over all unconstrained numbers.

    Discrete choices have free laws of their own, as in :func:`mean_field`.

    Args:
        g: a generative function that was called.
        data: nested dict of observed choices.
        key: for the draws of the prior, at whose median the guide begins.
        scale: the standard deviations that it begins with.

    Returns:
        ``guide, params``; ``params["continuous"]`` has ``loc`` and ``log_scale`` f[n], and
        ``lower`` f[n, n], of which the strict lower triangle counts: the Cholesky factor is
        ``exp(log_scale)[:, None] * (lower + 1)``, in the order of ``guide.space``.

    Raises:
        UnsupportedError: a continuous choice stands in a branch, or is masked, so that it may be
            absent; or its support has no bijection.

    Source: Kucukelbir et al., "Automatic differentiation variational inference", JMLR 2017.

    Example:
        >>> guide, params = ppl.guides.full_rank(model(), data, key=key)
        >>> list(guide(params).simulate(key).choices)
        ['x']
    """
    space, point, discrete = start(g, data, key, "ppl.guides.full_rank")
    return made("full_rank", space, FullRank(space.size), space.join(point), discrete, scale)


def low_rank(
    g: Generative, data: Choices, *, key: jax.Array, rank: int = 4, scale: float = 0.1
) -> Made:
    """As :func:`full_rank`, with a covariance that is diagonal but for ``rank`` directions.

    ``params["continuous"]`` has ``loc`` and ``log_scale`` f[n], and ``factor`` f[n, rank]: the
    covariance is S (1 + factor factor') S with S = diag(exp(log_scale)).

    Source: Ong, Nott & Smith, "Gaussian variational approximation with a factor covariance
    structure", JCGS 2018.

    Example:
        >>> guide, params = ppl.guides.low_rank(model(), data, key=key)
        >>> list(guide(params).simulate(key).choices)
        ['x']
    """
    rank = as_count(rank, "the rank")
    space, point, discrete = start(g, data, key, "ppl.guides.low_rank")
    joint = LowRank(space.size, min(rank, max(space.size, 1)))
    return made("low_rank", space, joint, space.join(point), discrete, scale)


def laplace(g: Generative, data: Choices, *, key: jax.Array) -> Made:
    """The normal law at the mode of the posterior of the unconstrained numbers, whose covariance
    is the inverse of minus the Hessian there.

    It is found when this is called, and ``guide(params)`` needs no fit; with the parameters of
    :func:`full_rank`, it can be one's start. Finite discrete choices are summed out on the way
    where that is possible, others are held at a draw of the prior; their laws are free.

    Raises:
        UnsupportedError: as :func:`full_rank`; or no mode is found.

    Example:
        >>> guide, params = ppl.guides.laplace(model(), data, key=key)
        >>> list(guide(params).simulate(key).choices)
        ['x']
    """
    space, point, discrete = start(g, data, key, "ppl.guides.laplace")
    if not space.size:
        return made("laplace", space, FullRank(0), jnp.zeros(0), discrete, 1.0)
    target = _target(space, discrete)
    u = computed(lambda u: _mode(target, u), space.join(point))
    precision = -computed(jax.hessian(target), u)
    tril = jnp.linalg.cholesky(jnp.linalg.inv(precision))
    off = tril.T @ computed(jax.grad(target), u)  # how far the mode is, in standard deviations
    if not isinstance(off, _jax.Tracer) and not np.all(np.abs(off) < 0.01):
        raise UnsupportedError(
            f"ppl.guides.laplace at {_jax.user_line()}: the log density of {g.name} has no "
            "maximum with a curvature in all directions where the search ended, so that it has no "
            "Laplace approximation. A variance that can shrink to 0 (a hierarchical model, "
            "centered) is a common reason. Use ppl.guides.full_rank; or reparameterise the model."
        )
    family, params = made("laplace", space, FullRank(space.size), u, discrete, 0.1)
    params["continuous"] = of_scale_tril(u, tril)
    return family, params


def made(name: str, space: Space, joint: Joint, point: Any, discrete: Any, scale: float) -> Made:
    found = coordinates(space)
    for c in found:
        if c.inside and c.address in space.slices:
            raise UnsupportedError(
                f"the choice {show(c.address)} at {c.entry.source} may be absent: it stands in a "
                f"branch, or has a mask. A joint law over it and the others ({name}, at "
                f"{_jax.user_line()}) would count it where it is. Use ppl.guides.mean_field or "
                "ppl.guides.structured, which draw it where it stands."
            )
    own = [(c.address, c.start(discrete[c.address], scale)) for c in found if c.address in discrete]
    params = {"continuous": joint.start(point, scale), "discrete": nest(own)}
    return Family(name, space, found, joint), params


def _target(space: Space, discrete: Any) -> Any:
    """The log density of unconstrained numbers, f[size] -> f[]."""
    if discrete:
        kept = [a for a in flatten(space.g.choices_like) if a not in discrete]
        try:
            summed = Space(marginal(space.g, kept, by=enumeration()), space.data)
            jax.eval_shape(summed.log_density, jnp.zeros(space.size))
            return summed.log_density
        except UnsupportedError:  # not finite, or too many values
            pass

    def log_density(u: jax.Array) -> jax.Array:
        choices, log_jacobian = space.place(space.split(u), discrete)
        return space.g.log_density(merge(choices, space.data)) + log_jacobian

    return log_density


def _mode(log_density: Any, u: jax.Array) -> jax.Array:
    """Where a log density is largest: damped Newton steps, uphill along each axis of the Hessian
    whatever its sign."""

    def step(carry: Any) -> Any:
        u, damping, i, _ = carry
        curvature, axes = jnp.linalg.eigh(jax.hessian(log_density)(u))
        along = axes.T @ jax.grad(log_density)(u)
        move = axes @ (along / (jnp.abs(curvature) + damping))
        better = log_density(u + move) >= log_density(u)
        moved = jnp.max(jnp.abs(move)) > TOLERANCE * (1.0 + jnp.max(jnp.abs(u)))
        damping = jnp.where(better, 0.2 * damping, 5.0 * damping)
        return jnp.where(better, u + move, u), damping, i + 1, moved

    def more(carry: Any) -> jax.Array:
        return (carry[2] < STEPS) & carry[3]

    start = (u, jnp.ones((), u.dtype), 0, jnp.array(True))
    return jax.lax.while_loop(more, step, start)[0]
