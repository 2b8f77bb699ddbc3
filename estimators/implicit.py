r"""Draws whose derivative is implicit: the cdf at the draw stays what it is.

    F(x; θ) = u fixed:   dx/dθ = -(dF/dθ) / (dF/dx)

The draw may come from any sampler. :func:`implicit` is that identity; below it are the laws that
need it: Gamma (and Beta, Dirichlet, StudentT), von Mises, mixtures. Sources: Figurnov, Mohamed &
Mnih 2018; Jankowiak & Obermeyer 2018.

A second derivative differentiates the identity along x(θ). It is right wherever JAX knows the
second derivatives of the cdf; where it does not (the shape of a Gamma), JAX raises.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax
from jax.scipy.special import digamma, i0e
from numpyro.distributions import constraints

from transforms.estimation.draws import sampled
from transforms.estimation.rounding import at_ends, largest_log


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def implicit(cdf: Callable[[Any, jax.Array], jax.Array], params: Any, x: jax.Array) -> jax.Array:
    """``x``, differentiable in ``params`` as a draw of the law with cdf ``cdf(params, x)``.

    Elementwise in x; what x itself depends on is held fixed.
    """
    return lax.stop_gradient(x)


@implicit.defjvp
def _(cdf: Any, primals: Any, tangents: Any) -> Any:
    params, x = primals
    x = implicit(cdf, params, x)  # and not the x that came in: a derivative of this rule moves it
    moved = jax.jvp(lambda params: cdf(params, x), (params,), (tangents[0],))[1]
    density = jax.jvp(lambda x: cdf(params, x), (x,), (jnp.ones_like(x),))[1]
    positive = density > 0  # false where rounding put the draw on the edge of the support
    return x, jnp.where(positive, -moved / jnp.where(positive, density, 1.0), 0.0)


# --- Gamma -------------------------------------------------------------------------------


def loggamma(key: jax.Array, a: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The logarithm of a draw of Gamma(a, 1), in range where the draw itself underflows."""
    y = jax.random.loggamma(key, lax.stop_gradient(a), shape)
    return _loggamma(jnp.broadcast_to(jnp.asarray(a, y.dtype), y.shape), y)


@jax.custom_jvp
def _loggamma(a: jax.Array, y: jax.Array) -> jax.Array:
    return y


@_loggamma.defjvp
def _(primals: Any, tangents: Any) -> Any:
    a, y = primals
    return y, _slope(a, y) * tangents[0]


@jax.custom_jvp
def _slope(a: jax.Array, y: jax.Array) -> jax.Array:
    """d log x / da at a draw x = exp(y)."""
    # for small x, F = x^a / Γ(a + 1) up to a factor 1 + O(x)
    small = y < jnp.log(jnp.finfo(y.dtype).eps)
    x = jnp.exp(jnp.where(small, 0.0, y))
    slope: Any = lax.random_gamma_grad
    return jnp.where(small, (digamma(a + 1) - y) / a, slope(a, x) / x)


@_slope.defjvp
def _(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "the second derivative of a pathwise draw in the shape of a Gamma (of Beta, Dirichlet "
        "and StudentT too) is not known. Choose ppl.reinforce() at this site, whose derivatives "
        "are right at every order."
    )


def gamma(d: Any, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    y = loggamma(key, d.concentration, (*shape, *d.batch_shape)) - jnp.log(d.rate)
    return at_ends(d, jnp.exp(y))


def inverse_gamma(d: Any, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    base = d.base_dist
    y = jnp.log(base.rate) - loggamma(key, base.concentration, (*shape, *d.batch_shape))
    return at_ends(d, jnp.exp(jnp.minimum(y, largest_log(y.dtype) + 1)))


def beta(d: Any, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    keys = jax.random.split(key)
    shape = (*shape, *d.batch_shape)
    y1 = loggamma(keys[0], d.concentration1, shape)
    y0 = loggamma(keys[1], d.concentration0, shape)
    return at_ends(d, jax.nn.sigmoid(y1 - y0))


def dirichlet(d: Any, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    y = loggamma(key, d.concentration, (*shape, *d.batch_shape, *d.event_shape))
    return at_ends(d, jax.nn.softmax(y))


def student_t(d: Any, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Normal / sqrt(Gamma(df / 2) / (df / 2)), finite also where the Gamma underflows."""
    keys = jax.random.split(key)
    y = loggamma(keys[0], d.df / 2, (*shape, *d.batch_shape))
    normal = jax.random.normal(keys[1], y.shape, y.dtype)
    return d.loc + d.scale * normal * jnp.exp((jnp.log(d.df / 2) - y) / 2)


# --- von Mises ---------------------------------------------------------------------------

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)


def von_mises(d: Any, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A point of the circle: loc turns it, and the concentration moves it along the arc."""
    fixed = lax.stop_gradient(d)
    t = _wrap(fixed.sample(key, shape) - fixed.loc)
    concentration = jnp.broadcast_to(jnp.asarray(d.concentration, t.dtype), t.shape)
    return _wrap(implicit(_arc, concentration, t) + d.loc)


def _wrap(x: jax.Array) -> jax.Array:
    return (x + jnp.pi) % (2 * jnp.pi) - jnp.pi


def _arc(concentration: jax.Array, t: jax.Array) -> jax.Array:
    """The probability between 0 and the angle t, of von Mises(0, concentration)."""
    angles = t[..., None] / 2 * jnp.asarray(_NODES + 1, t.dtype)
    # cos - 1, without cancellation
    heights = jnp.exp(-2 * concentration[..., None] * jnp.sin(angles / 2) ** 2)
    area = jnp.sum(heights * jnp.asarray(_WEIGHTS, t.dtype), axis=-1) * t / 2
    return area / (2 * jnp.pi * i0e(concentration))


# --- mixtures ----------------------------------------------------------------------------


def mixture(d: Any, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    leaves, tree = jax.tree.flatten(d)
    x = sampled(lax.stop_gradient(d), key, shape)
    return implicit(lambda leaves, x: cdf(jax.tree.unflatten(tree, leaves), x), leaves, x)


def mixture_unsuitable(d: Any) -> str | None:
    """Why the implicit derivative of a mixture does not exist or is not known."""
    parts = _parts(d)
    names = ", ".join(dict.fromkeys(type(_unwrapped(p)).__name__ for p in parts))
    advice = (
        'Sample the index of the component as a site of its own, ppl.sample("k", ..., ppl.enum())'
    )
    advice += ", and then the component."
    if any(p.support.is_discrete for p in parts):
        return f"its components ({names}) are discrete. {advice}"
    if d.event_shape:
        return f"its components ({names}) are not one-dimensional. {advice}"
    # All of these contain (0, 1), so that there is no gap between components, over which a
    # change of the weights would have to carry probability.
    if not all(isinstance(p.support, constraints.ParameterFreeConstraint) for p in parts):
        return f"the support of its components ({names}) depends on parameters. {advice}"
    try:
        total = lambda d: jnp.sum(cdf(d, jnp.full(d.batch_shape, 0.5)))
        jax.eval_shape(jax.grad(total, allow_int=True), d)
    except Exception:
        return (
            f"the cdf of its components ({names}) is not known, or not its derivative in their "
            f"parameters. {advice}"
        )
    return None


def cdf(d: Any, x: jax.Array) -> jax.Array:
    """The cdf of a one-dimensional distribution, also outside its support."""
    d = _unwrapped(d)
    if isinstance(d, dist.MixtureSameFamily | dist.MixtureGeneral):
        probs: Any = d.mixing_distribution.probs
        return jnp.sum(probs * _component_cdfs(d, x), -1) / jnp.sum(probs, -1)
    inside = d.support(x)
    return jnp.where(inside, d.cdf(jnp.where(inside, x, 0.5)), x > 0.5)


def _component_cdfs(d: Any, x: jax.Array) -> jax.Array:
    if isinstance(d, dist.MixtureSameFamily):
        return cdf(d.component_distribution, x[..., None])
    return jnp.stack([cdf(p, x) for p in d.component_distributions], axis=-1)


def _parts(d: Any) -> list[Any]:
    """The components of a mixture, of mixtures within it too."""
    same = isinstance(d, dist.MixtureSameFamily)
    parts = [d.component_distribution] if same else d.component_distributions
    mixtures = dist.MixtureSameFamily | dist.MixtureGeneral
    return [q for p in parts for q in (_parts(p) if isinstance(p, mixtures) else [p])]


def _unwrapped(d: Any) -> Any:
    while isinstance(d, dist.ExpandedDistribution | dist.MaskedDistribution):
        d = d.base_dist
    return d
