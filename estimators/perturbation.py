r"""Smoothed perturbation analysis: of integers, one alternative for all that meet.

With F the distribution function of an integer x ~ p and Δf(k) = f(k + 1) - f(k),

    d/dθ E[f(x)] = - sum_k dF(k)/dθ Δf(k)

so the derivative is that of steps by 1: an infinitesimal change of θ moves a draw to its neighbour,
with a rate w that :func:`edges` lists. The step between k and k + 1 is taken from either side, of
which the probabilities are p(k) and p(k + 1): w = -dF(k) / (p(k) + p(k + 1)).

Of all elements that meet, whatever their number, those of all steps of a ``scan`` included, m steps
are *kept* (pruned, in stochastic automatic differentiation), with a probability π in proportion to
w and to how much a parameter is likely to move, and w / (m π) is what counts. What follows is run
again for each of them with the same random numbers, so that later draws follow the change. The m
are drawn systematically, one from each m-th part of the elements, so that little of the variance of
choosing is left.

Conditions: Bernoulli, Binomial, Poisson, Geometric and Categorical choices; f may be discontinuous.
Values of a categorical whose probability is 0 are passed over; where one is typed as exactly 0 (in
``probs``) the derivative in it, of which nothing is known, is not a number, and those in the others
are what they are. First derivatives only. m more runs of what follows,
whatever the number of elements; 1 where only the value is wanted.

Sources: Gong & Ho 1987 (smoothed perturbation analysis); Arya, Schauer, Schäfer & Rackauckas,
"Automatic differentiation of programs with discrete randomness", 2022, which carries the
alternative along with the program, takes one side of each step, and prunes by weights along one
direction.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax

from transforms import _jax
from transforms.errors import describe
from transforms.estimation.estimator import Continued, LocalSite

from .alternatives import from_met_first, met_first
from .bernoulli import bare
from .enumeration import mass, success

LEAST = 1e-3
"""What is added to how much a parameter is likely to move, so that nothing is never kept."""


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SPA(Continued):
    """Steps by 1, ``alternatives`` of which are kept; see the module docstring."""

    alternatives: int = dataclasses.field(default=1, metadata={"static": True})

    name = "spa"
    elementwise = True
    across_steps = True

    def unsuitable(self, d: Any) -> str | None:
        if edges.dispatch(type(bare(d))) is not edges.dispatch(object):
            return None
        if getattr(d, "has_enumerate_support", False):
            return "its values are no integers of a known law. Use ppl.enum() or ppl.reinforce()."
        other = "ppl.reparam()" if getattr(d, "has_rsample", True) else "ppl.mvd()"
        return f"it has no steps by 1. Use {other} or ppl.reinforce()."

    def surrogate(
        self, site: LocalSite, key: jax.Array, k: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        def one(d: Any, x: jax.Array) -> tuple[list[Edge], jax.Array]:
            found, total = edges(bare(d), x)
            return found, jnp.broadcast_to(total, x.shape)

        found, total = site.per_element(one, site.value)
        place = functools.partial(met_first, site)
        of_edges = lambda name: jnp.concatenate([place(getattr(e, name)) for e in found])
        weights, sizes = of_edges("weight"), lax.stop_gradient(of_edges("size"))
        kept, share = _kept(sizes, self.alternatives, key)
        by = of_edges("by")
        steps = [sum(jnp.split(jnp.where(i, by, 0), len(found))) for i in kept]
        values = [site.value + from_met_first(site, jnp.asarray(step)) for step in steps]
        others = jax.vmap(k)(jnp.stack(values).astype(site.value.dtype))
        payoff = lax.stop_gradient(site.payoff)
        scale = jnp.where(share > 0, 1.0 / jnp.where(share > 0, share, 1.0), 0.0)
        weight = jnp.sum(jnp.where(kept, weights * scale, 0.0), axis=1)  # of those kept, by lane
        result = jnp.sum(weight * (lax.stop_gradient(others) - payoff)) / self.alternatives
        return result + jnp.sum(place(total) * payoff)


def _kept(sizes: jax.Array, m: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which of the edges ``[n, *lanes]`` are kept, ``[m, n, *lanes]``, and with which probability
    each time."""
    ends = jnp.cumsum(sizes, axis=0)
    total = ends[-1]
    number = jnp.arange(m).reshape(-1, *[1] * total.ndim)
    at = (jax.random.uniform(key, total.shape, total.dtype) + number) / m * total
    kept = (ends - sizes <= at[:, None]) & (at[:, None] < ends)
    return kept, sizes / jnp.where(total > 0, total, 1.0)


def spa(alternatives: int = 1) -> SPA:
    """Smoothed perturbation analysis, for integers: the derivative of a draw as a step by 1.

    Where many integers meet, in the steps of a ``scan`` or in a plate, one or a few of their steps
    stand for all of them, so that it costs two runs and not one for each of them (``ppl.mvd()``).
    Bernoulli, Binomial, Poisson, Geometric, Categorical (of which the order of the values counts).

    Args:
        alternatives: how many are kept: that many more runs of what follows.

    Raises:
        ValueError: no positive number of alternatives.

    Example:
        >>> @ppl.expectation
        ... def walk(p):
        ...     def step(x, _):
        ...         up = ppl.sample("up", dist.Bernoulli(p * jnp.exp(-x / 20.0)), ppl.spa())
        ...         return x + 2.0 * up - 1.0, None
        ...     return jax.lax.scan(step, 0.0, length=50)[0] ** 2
        >>> grad = walk.grad(key, 0.9, samples=10)
    """
    if not isinstance(alternatives, int) or alternatives < 1:
        raise ValueError(
            f"ppl.spa at {_jax.user_line()} gets {describe(alternatives)} for the number of "
            "alternatives, which is 1 or more. Type ppl.spa()."
        )
    return SPA(alternatives)


# --- the table ----------------------------------------------------------------------------------


class Edge(NamedTuple):
    """A step from the drawn value: ``weight * (f(x + by) - f(x))``, of which the derivative of the
    weight counts; ``size`` is what it is likely to be."""

    weight: jax.Array
    size: jax.Array
    by: jax.Array


Steps = tuple[list[Edge], Any]
"""Those of each element, and a term that multiplies f(x): 0 where the masses sum to 1."""


@functools.singledispatch
def edges(d: Any, x: jax.Array) -> Steps:
    """The steps of a draw ``x``; the parameters of ``d`` broadcast against it."""
    raise NotImplementedError(type(d).__name__)


def _both(x: jax.Array, theta: Any, change: Any, up: Any, down: Any) -> Steps:
    """From a parameter, its likely change, and the weights for 1 of the steps up and down."""
    change, up, down = lax.stop_gradient((change + LEAST, up, down))
    sides = ((theta * w, change * jnp.abs(w), 0 * x + by) for w, by in ((up, 1), (down, -1)))
    return [Edge(*(jnp.broadcast_to(a, x.shape) for a in side)) for side in sides], jnp.zeros(())


@edges.register(dist.BernoulliProbs)
@edges.register(dist.BernoulliLogits)
def _(d: Any, x: jax.Array) -> Steps:
    p = mass(d, jnp.ones_like(x))
    return _both(x, p, p * (1.0 - p), 1.0 * (x == 0), -1.0 * (x == 1))


@edges.register(dist.BinomialProbs)
@edges.register(dist.BinomialLogits)
def _(d: Any, x: jax.Array) -> Steps:
    p, n = success(d), d.total_count

    def rate(k: jax.Array) -> jax.Array:
        ahead, behind = jnp.maximum(n - k, 0), jnp.maximum(k + 1, 0)
        either = behind * (1.0 - p) + ahead * p
        return ahead * behind / jnp.where(either > 0, either, 1.0)

    return _both(x, p, p * (1.0 - p), rate(x), -rate(x - 1))


@edges.register(dist.Poisson)
def _(d: Any, x: jax.Array) -> Steps:
    rate: Any = d.rate
    down = jnp.where(x > 0, x / jnp.where(x > 0, x + rate, 1.0), 0.0)
    return _both(x, rate, rate, (x + 1) / (x + 1 + rate), -down)


@edges.register(dist.GeometricProbs)
@edges.register(dist.GeometricLogits)
def _(d: Any, x: jax.Array) -> Steps:
    p = d.probs
    rate = 1.0 / (p * (2.0 - p))
    return _both(x, success(d), p * (1.0 - p), -(x + 1) * rate, x * rate)


@edges.register(dist.CategoricalProbs)
@edges.register(dist.CategoricalLogits)
def _(d: Any, x: jax.Array) -> Steps:
    """Of probabilities whose derivatives do not sum to 0, their sum multiplies f(x)."""
    probs = jnp.broadcast_to(d.probs, (*x.shape, d.probs.shape[-1]))
    total = jnp.sum(probs, axis=-1)
    p, k = probs / total[..., None], jnp.arange(probs.shape[-1])
    fixed = lax.stop_gradient(p)
    if isinstance(d, dist.CategoricalProbs):
        untried = jnp.where(fixed > 0, 0.0, jnp.nan)  # their own derivatives are not known
        total = total + jnp.sum(untried * probs, axis=-1)
    own = jnp.sum(jnp.where(k == x[..., None], fixed, 0.0), axis=-1)
    none = p.shape[-1]
    above = jnp.min(jnp.where((fixed > 0) & (k > x[..., None]), k, none), axis=-1)
    below = jnp.max(jnp.where((fixed > 0) & (k < x[..., None]), k, -1), axis=-1)

    def edge(to: jax.Array, sign: int, there: jax.Array) -> Edge:
        neighbour = jnp.sum(jnp.where(k == to[..., None], fixed, 0.0), axis=-1)
        rate = jnp.where(there, 1.0 / (own + neighbour), 0.0)
        low = jnp.minimum(x, to)  # the distribution function on this step
        share = jnp.sum(jnp.where(k <= low[..., None], p, 0.0), axis=-1)
        size = rate * (lax.stop_gradient(share * jnp.abs(1.0 - share)) + LEAST)
        return Edge(-sign * rate * share, size, jnp.where(there, to - x, 0))

    return [edge(above, 1, above < none), edge(below, -1, below >= 0)], total
