r"""Measure-valued (weak) derivatives: the derivative of a distribution is a difference of two.

    d/dθ E_p[f(x)] = c(θ) ( E_{p+}[f(x)] - E_{p-}[f(x)] )

:func:`terms` is the table of the triples (c, p+, p-), one row for each distribution. The rest of
the program runs once more for each alternative value, with common random numbers. Every
element of a choice is a choice by itself: its alternatives replace it and leave the others.

Two things make it cheap. Where p+ or p- is the distribution itself, the drawn value x stands
for it (a *phantom*), whose payoff is known. And then the other one is drawn *given x*, from a
coupling under which the two are close:

- scale families with unimodal density h: x = loc + s y, where y is a uniform fraction of a w of
  density -w h'(w) (Khinchin 1938), so c = 1/s, x+ = loc + s w, with h(w) = U h(y). For a
  normal: w² = y² + 2E with E exponential; for a Laplace and an exponential: w = y + E.
- counts: a binomial is n trials, of which one is set to 1 and to 0.
- convolution semigroups (Poisson in its rate, gamma in its concentration, negative binomial in
  its count): the derivative adds one jump, d/dt E f(X_t) = ∫ (E f(X_t + y) - E f(X_t)) ν(dy),
  with ν the Lévy measure: 1 at y = 1; exp(-y)/y; q^y/y on the positive integers. That of the
  gamma is not finite near 0, where it is the difference that is small.

Conditions: f is integrable under p+ and p-, and may be discontinuous; a support that depends on
θ is fine, where the table has its row. For the concentration of a gamma or beta f must be
piecewise Hölder continuous as well. First derivatives only. Runs of the program: 1, and for
each element one for each scalar parameter (two for a normal's loc; K - 1 for K categories); only
1 where the derivative is not asked for. Sources: Pflug 1989; Heidergott, Vázquez-Abad &
Volk-Makarewicz 2008; Mohamed, Rosca, Figurnov & Mnih 2020, section 6.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax

from transforms.estimation.estimator import Continued, LocalSite
from transforms.estimation.flows import is_one_way
from transforms.program.opened import arrays

from .alternatives import met_first, payoffs
from .enumeration import mass, success


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MVD(Continued):
    """Measure-valued derivatives; see the module docstring."""

    name = "mvd"
    elementwise = True

    def unsuitable(self, d: Any) -> str | None:
        d = _row(d)
        missing = terms.dispatch(type(d)) is terms.dispatch(object)
        if missing or isinstance(d, dist.TransformedDistribution):
            return (
                f"no measure-valued derivative of {type(d).__name__} is known. Use {_instead(d)}."
            )
        count = getattr(d, "total_count", None) if isinstance(d, _BINOMIAL) else None
        if count is not None and jnp.issubdtype(jnp.result_type(count), jnp.floating):
            return (
                "its total_count is a floating point number, in which there is no derivative. "
                "Use an integer, like total_count=9."
            )
        return None

    def surrogate(
        self, site: LocalSite, key: jax.Array, k: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        def one(d: Any, key: jax.Array, x: jax.Array) -> list[Term]:
            return [
                Term(
                    jnp.broadcast_to(t.weight, x.shape),
                    None if t.value is None else t.value.astype(x.dtype),
                )
                for t in terms(d, key, x)
            ]

        found = site.per_element(one, site.keys(key), site.value)
        own = sum((t.weight for t in found if t.value is None), jnp.zeros(site.value.shape))
        result = jnp.sum(met_first(site, own) * lax.stop_gradient(site.payoff))
        other = [t for t in found if t.value is not None]
        if other:
            weights = jnp.stack([met_first(site, t.weight) for t in other])
            values = jnp.stack([t.value for t in other])
            result += jnp.sum(weights * payoffs(site, values, k))
        return result


def mvd() -> MVD:
    """Measure-valued derivatives: of low variance, for any payoff, also a discontinuous one.

    Each element of the choice costs one or two more runs of what follows for each of its scalar
    parameters (as one ``vmap``), and nothing where only the value is wanted. Bernoulli,
    Categorical, Binomial, Poisson, Geometric, NegativeBinomial; Normal, LogNormal, HalfNormal,
    Laplace, Uniform (also its ends), Exponential, Gamma, Weibull, Beta.

    Example:
        >>> @ppl.expectation
        ... def above(m):
        ...     return jnp.where(ppl.sample("x", dist.Normal(m, 1.0), ppl.mvd()) > 0.0, 1.0, 0.0)
        >>> grad = above.grad(key, 0.5, samples=100)
    """
    return MVD()


# --- the table ----------------------------------------------------------------------------------


class Term(NamedTuple):
    """``weight * k(value)``, of which the derivative of the weight counts."""

    weight: jax.Array
    value: jax.Array | None
    """None stands for the value that was drawn."""


@functools.singledispatch
def terms(d: Any, key: jax.Array, x: jax.Array) -> list[Term]:
    """What the derivative of E[k(x)] consists of, for each element of ``x`` ~ ``d`` by itself.

    ``x`` has the shape of a draw; the parameters of ``d`` broadcast against it.
    """
    raise NotImplementedError(type(d).__name__)


def _pair(theta: Any, c: Any, plus: Any, minus: Any = None) -> list[Term]:
    """The derivative c (E_{p+} - E_{p-}) in ``theta``; None stands for the value drawn."""
    weight = theta * lax.stop_gradient(c)
    return [Term(weight, plus), Term(-weight, minus)]


@terms.register(dist.BernoulliProbs)
@terms.register(dist.BernoulliLogits)
def _(d: Any, key: jax.Array, x: jax.Array) -> list[Term]:
    return [Term(mass(d, x), None), Term(mass(d, 1 - x), 1 - x)]


@terms.register(dist.CategoricalProbs)
@terms.register(dist.CategoricalLogits)
def _(d: Any, key: jax.Array, x: jax.Array) -> list[Term]:
    n = d.probs.shape[-1]
    values = (x[..., None] + jnp.arange(n, dtype=x.dtype)) % n  # the drawn one first
    probs = jnp.take_along_axis(jnp.broadcast_to(d.probs, values.shape), values, axis=-1)
    return [Term(probs[..., i], values[..., i] if i else None) for i in range(n)]


@terms.register(dist.BinomialProbs)
@terms.register(dist.BinomialLogits)
def _(d: Any, key: jax.Array, x: jax.Array) -> list[Term]:
    n = d.total_count
    one = jax.random.uniform(key, x.shape) * n < x  # the outcome of the trial that changes
    return _pair(success(d), jnp.where(one, -n, n), jnp.where(one, x - 1, jnp.minimum(x + 1, n)))


@terms.register(dist.Poisson)
def _(d: Any, key: jax.Array, x: jax.Array) -> list[Term]:
    return _pair(d.rate, 1.0, x + 1)


@terms.register(dist.GeometricProbs)
@terms.register(dist.GeometricLogits)
def _(d: Any, key: jax.Array, x: jax.Array) -> list[Term]:
    return _pair(success(d), -1.0 / d.probs, x + 1 + _geometric(key, x, d.probs))


@terms.register(dist.GammaPoisson)
def _(d: Any, key: jax.Array, x: jax.Array) -> list[Term]:
    return _negative_binomial(d.concentration, 1.0 / (1.0 + d.rate), key, x)


@terms.register(dist.NegativeBinomialProbs)
def _(d: Any, key: jax.Array, x: jax.Array) -> list[Term]:
    return _negative_binomial(d.concentration, d.probs, key, x)  # also where probs is 0


def _negative_binomial(r: Any, q: Any, key: jax.Array, x: jax.Array) -> list[Term]:
    """C(x + r - 1, x) q^x (1 - q)^r."""
    one, two, three = jax.random.split(key, 3)
    # a jump of the logarithmic law q^y / y is 1 + a geometric of random parameter (Kemp 1981)
    s = -jnp.expm1(jax.random.uniform(two, x.shape) * jnp.log1p(-q))
    return [
        *_pair(q, r / (1.0 - q), x + 1 + _geometric(one, x, 1.0 - q)),
        *_pair(r, -jnp.log1p(-q), x + 1 + _geometric(three, x, 1.0 - s)),
    ]


@terms.register(dist.Normal)
def _(d: Any, key: jax.Array, x: jax.Array) -> list[Term]:
    one, two = jax.random.split(key)
    rayleigh = jnp.sqrt(2.0 * _exponential(one, x))
    y = (x - d.loc) / d.scale
    maxwell = jnp.copysign(jnp.sqrt(y**2 + 2.0 * _exponential(two, x)), y)
    c = 1.0 / (d.scale * math.sqrt(2.0 * math.pi))
    return [
        *_pair(d.loc, c, d.loc + d.scale * rayleigh, d.loc - d.scale * rayleigh),
        *_pair(d.scale, 1.0 / d.scale, d.loc + d.scale * maxwell),
    ]


@terms.register(dist.HalfNormal)
def _(d: Any, key: jax.Array, x: jax.Array) -> list[Term]:
    maxwell = jnp.sqrt((x / d.scale) ** 2 + 2.0 * _exponential(key, x))
    return _pair(d.scale, 1.0 / d.scale, d.scale * maxwell)


@terms.register(dist.Laplace)
def _(d: Any, key: jax.Array, x: jax.Array) -> list[Term]:
    side = jnp.copysign(1.0, x - d.loc)
    return [
        *_pair(d.loc, -side / (2.0 * d.scale), 2.0 * d.loc - x),
        *_pair(d.scale, 1.0 / d.scale, x + side * d.scale * _exponential(key, x)),
    ]


@terms.register(dist.Uniform)
def _(d: Any, key: jax.Array, x: jax.Array) -> list[Term]:
    c = 1.0 / (d.high - d.low)
    low, high = jnp.broadcast_to(d.low, x.shape), jnp.broadcast_to(d.high, x.shape)
    return [*_pair(d.low, -c, low), *_pair(d.high, c, high)]


@terms.register(dist.Exponential)
def _(d: Any, key: jax.Array, x: jax.Array) -> list[Term]:
    return _pair(d.rate, -1.0 / d.rate, x + _exponential(key, x) / d.rate)


@terms.register(dist.Gamma)
def _(d: Any, key: jax.Array, x: jax.Array) -> list[Term]:
    one, two = jax.random.split(key)
    jump, c = _gamma_jump(two, x)
    return [
        *_pair(d.rate, -d.concentration / d.rate, x + _exponential(one, x) / d.rate),
        *_pair(d.concentration, c, x + jump / d.rate),
    ]


@terms.register(dist.Beta)
def _(d: Any, key: jax.Array, x: jax.Array) -> list[Term]:
    one, two, three = jax.random.split(key, 3)
    a, b = d.concentration1, d.concentration0
    total = jax.random.gamma(one, a + b, x.shape)  # x is the share of one of two gammas
    up, c_up = _gamma_jump(two, x)
    down, c_down = _gamma_jump(three, x)
    return [
        *_pair(a, c_up, (x * total + up) / (total + up)),
        *_pair(b, c_down, x * total / (total + down)),
    ]


@terms.register(dist.Weibull)
def _(d: Any, key: jax.Array, x: jax.Array) -> list[Term]:
    one, two = jax.random.split(key)
    k, scale = d.concentration, d.scale
    y = k * jnp.log(x / scale)  # of density exp(y - exp(y)) and scale 1 / k
    w = _beyond(y, _exponential(two, x))
    return [
        *_pair(scale, k / scale, scale * (jnp.exp(y) + _exponential(one, x)) ** (1.0 / k)),
        *_pair(1.0 / k, k, scale * jnp.exp(w / k)),
    ]


@terms.register(dist.TransformedDistribution)
def _(d: Any, key: jax.Array, x: jax.Array) -> list[Term]:
    def through(y: jax.Array) -> jax.Array:
        return functools.reduce(lambda y, t: t(y), d.transforms, y)

    y = functools.reduce(lambda y, t: t.inv(y), reversed(d.transforms), x)
    return [
        Term(t.weight, None if t.value is None else through(t.value))
        for t in terms(d.base_dist, key, y)
    ]


@terms.register(dist.ExpandedDistribution)
@terms.register(dist.Independent)
@terms.register(dist.MaskedDistribution)
def _(d: Any, key: jax.Array, x: jax.Array) -> list[Term]:
    return terms(d.base_dist, key, x)


_BINOMIAL = dist.BinomialProbs | dist.BinomialLogits
_WRAPPERS = dist.ExpandedDistribution | dist.Independent | dist.MaskedDistribution


def _row(d: Any) -> Any:
    """What a row of the table must be for: ``d`` without what keeps elements apart."""
    while isinstance(d, _WRAPPERS) or (
        isinstance(d, dist.TransformedDistribution) and _elementwise(d)
    ):
        d = d.base_dist
    return d


def _elementwise(d: Any) -> bool:
    """Whether the transforms act on each element by itself, have an inverse and no parameters."""
    return not (arrays(d.transforms) or is_one_way(d)) and all(
        t.domain.event_dim == t.codomain.event_dim == 0
        and not isinstance(t, dist.transforms.AbsTransform)
        for t in d.transforms
    )


def _instead(d: Any) -> str:
    if getattr(d, "has_enumerate_support", False):
        return "ppl.enum() or ppl.reinforce()"
    if getattr(d, "has_rsample", True):
        return "ppl.reparam() or ppl.reinforce()"
    return "ppl.reinforce()"


# --- draws --------------------------------------------------------------------------------------


def _exponential(key: jax.Array, x: jax.Array) -> jax.Array:
    return jax.random.exponential(key, x.shape)


def _geometric(key: jax.Array, x: jax.Array, p: Any) -> jax.Array:
    """Failures before the first success, of the shape and dtype of ``x``."""
    return dist.GeometricProbs(jnp.broadcast_to(p, x.shape)).sample(key).astype(x.dtype)


def _gamma_jump(key: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A jump y ~ Gamma(1/2), and the density exp(-y)/y of the Lévy measure over its own."""
    n = jax.random.normal(key, x.shape)
    c = jnp.where(n == 0, 0.0, math.sqrt(2.0 * math.pi) / jnp.where(n == 0, 1.0, jnp.abs(n)))
    return n**2 / 2.0, c


def _beyond(y: jax.Array, e: jax.Array) -> jax.Array:
    """The w on the side of y with h(w) = exp(-e) h(y), for h(y) = exp(y - exp(y)).

    That is exp(w) - 1 - w = a. Newton's method decreases monotonically to the root from
    outside of it; the starts are bounds that are exact to first order near 0.
    """
    a = jnp.expm1(y) - y + e
    above = jnp.minimum(jnp.sqrt(2.0 * a), jnp.log(2.0 * (1.0 + a)))
    w = jnp.where(y > 0, above, -(a + jnp.sqrt(2.0 * a)))
    for _ in range(8):
        slope = jnp.expm1(w)
        w = w - jnp.where(slope == 0, 0.0, (slope - w - a) / jnp.where(slope == 0, 1.0, slope))
    return w
