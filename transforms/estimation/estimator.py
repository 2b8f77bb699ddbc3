"""The protocol between *surrogate* and the gradient estimators.

An estimator says how the derivative of an expectation flows through one random choice. There
are three kinds, and a user can write one of each (see ``docs/estimators.md``):

- :class:`InPlace`: one draw where the choice stands. Either the draw itself is differentiable
  (pathwise), or its log density is a *score* that multiplies what comes after.
- :class:`Enumerated`: every value of a finite support, weighted by its probability.
- :class:`Continued`: given the site, a key and the continuation, return the surrogate.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp

from ..errors import UnsupportedError, show
from ..program.site import Site, element_keys, per_element


class Estimator(abc.ABC):
    """How the gradient flows through one random choice; the base of the three kinds.

    Example:
        >>> isinstance(ppl.reparam(), ppl.InPlace), isinstance(ppl.mvd(), ppl.Continued)
        (True, True)
    """

    name: str = "estimator"
    biased: bool = False
    """Whether its derivative is biased, which who types it knows: ``explain`` says so."""

    def law(self, d: Any) -> Any:
        """The distribution of a choice of ``d`` that is made with the estimator: ``d``, or what
        draws the same numbers in another type."""
        return d

    @abc.abstractmethod
    def unsuitable(self, d: Any) -> str | None:
        """Why the estimator cannot be used for the distribution ``d``, or None if it can.

        ``d`` has shapes in place of numbers: only its type and its static parameters are known.
        """


class InPlace(Estimator):
    """One draw where the choice stands: works in loops and branches at no extra cost.

    Example:
        >>> class Quantile(ppl.InPlace):
        ...     def unsuitable(self, d):
        ...         return None if hasattr(d, "icdf") else "it has no inverse cdf."
        ...
        ...     def draw(self, d, key, sample_shape):
        ...         return d.icdf(jax.random.uniform(key, (*sample_shape, *d.batch_shape)))
        >>> f = ppl.expectation(lambda m: ppl.sample("x", dist.Normal(m, 1.0), Quantile()))
        >>> float(f.grad(key, 0.0))
        1.0
    """

    score: bool = False
    """Whether the log density of the draw is a score that multiplies what comes after."""

    @property
    def baseline(self) -> Baseline | None:
        """What is subtracted from the payoff of the score, or None."""
        return None

    @abc.abstractmethod
    def draw(self, d: Any, key: jax.Array, sample_shape: tuple[int, ...]) -> jax.Array:
        """A draw of ``d``, ``[*sample_shape, *d.batch_shape, *d.event_shape]``.

        With ``score`` False the draw must be differentiable in the parameters of ``d`` with the
        pathwise (or implicit) derivative.
        """

    def log_prob(self, d: Any, value: jax.Array) -> jax.Array:
        """The log density of the draw, of which the score is the derivative: ``[*batch_shape]``."""
        return d.log_prob(value)


class Enumerated(Estimator):
    """Every value of a finite support, weighted by its probability: exact, no variance.

    Example:
        >>> class Coin(ppl.Enumerated):
        ...     def unsuitable(self, d):
        ...         return None if isinstance(d, dist.BernoulliProbs) else "no Bernoulli(p)."
        ...
        ...     def support(self, d):
        ...         return jnp.arange(2)
        ...
        ...     def mass(self, d, value):
        ...         return jnp.where(value == 1, d.probs, 1 - d.probs)
        >>> f = ppl.expectation(lambda p: 3.0 * ppl.sample("b", dist.Bernoulli(p), Coin()))
        >>> float(f.grad(key, 0.5))
        3.0
    """

    @abc.abstractmethod
    def support(self, d: Any) -> jax.Array:
        """All values of one element of ``d``: ``[K, *d.event_shape]``."""

    @abc.abstractmethod
    def mass(self, d: Any, value: jax.Array) -> jax.Array:
        """The probability of ``value``, ``[*d.batch_shape]``, differentiable also where it is 0."""


class Continued(Estimator):
    """Given the site, a key and the continuation, return the surrogate.

    The site is drawn from its distribution. What :meth:`surrogate` returns is only
    differentiated, with respect to the parameters of the site's distribution, and its
    derivative is added to the derivative at the fixed draw. The estimate must therefore be
    unbiased for d/d(parameters) E[k(x)], for *every* function k.

    Example:
        >>> class Both(ppl.Continued):
        ...     # both values of one Bernoulli(probs)
        ...     def unsuitable(self, d):
        ...         return None if isinstance(d, dist.BernoulliProbs) else "no Bernoulli(p)."
        ...
        ...     def surrogate(self, site, key, k):
        ...         one = jnp.ones_like(site.value)
        ...         return site.per_element(lambda d: d.probs) * (k(one) - k(0 * one))
        >>> @ppl.expectation
        ... def f(p):
        ...     return 3.0 * ppl.sample("b", dist.Bernoulli(p), Both())
        >>> float(f.grad(key, 0.5))
        3.0
    """

    elementwise: bool = False
    """Whether :meth:`surrogate` makes use of ``site.apart``."""
    across_steps: bool = False
    """Whether :meth:`surrogate` is asked once for all steps of the loops around the choice, which
    are then axes of the site like those of a ``vmap``; else once for each step. Given values
    replace the drawn ones where they differ: after that step all is drawn anew."""

    @abc.abstractmethod
    def surrogate(
        self, site: LocalSite, key: jax.Array, k: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        """A scalar whose derivative estimates that of the expectation.

        ``k`` takes a value of the whole site, ``[*sizes, *shape]`` like ``site.value``, runs the
        rest of the program with the later choices drawn anew, and returns its value as a number
        without derivative. Call it under ``jax.vmap`` to evaluate several values at once.
        """


@final
@dataclasses.dataclass(frozen=True)
class LocalSite:
    """A random choice as a :class:`Continued` estimator sees it.

    Example:
        >>> class Both(ppl.Continued):
        ...     def unsuitable(self, d):
        ...         return None
        ...
        ...     def surrogate(self, site, key, k):
        ...         one = jnp.ones_like(site.value)
        ...         return site.per_element(lambda d: d.probs) * (k(one) - k(0 * one))
    """

    site: Site
    operands: list[Any]
    value: jax.Array
    """The value that was drawn, ``[*sizes, *shape]``; ``sizes`` are the surrounding vmaps."""
    payoff: jax.Array
    """``k(value)``, already known."""
    apart: tuple[bool, ...] = ()
    """The axes of the value along which elements meet in no term, for ``elementwise`` estimators:
    there ``k`` may be given other values for all elements at once, and what it returns (and
    ``payoff``) has these axes, with the terms of each element."""
    direction: int = 1
    """Whether the objective is ascended (1) or descended (-1), for estimators that learn."""
    others: Callable[[jax.Array], jax.Array] = jnp.zeros_like
    """The mean over the other ``samples`` of an array that each of them has; 0 without others."""

    def per_element(self, f: Callable[..., Any], *mapped: Any) -> Any:
        """``f(distribution, *mapped)`` for each element of the surrounding ``vmap``\\ s.

        Results have the leading axes ``sizes``; so must the arguments in ``mapped``.
        """

        return self.per_element_with(None, lambda d, _, *mapped: f(d, *mapped), *mapped)

    def per_element_with(
        self, estimator: Estimator | None, f: Callable[..., Any], *mapped: Any
    ) -> Any:
        """``f(distribution, estimator, *mapped)``: as :meth:`per_element`, with the arrays that the
        estimator holds for each element, where it was chosen at the choice."""

        def one(operands: list[Any], *mapped: Any) -> Any:
            chosen = self.site.rebuild_estimator(operands)
            own = estimator if chosen is None else chosen
            return f(self.site.rebuild(self.site.live(operands)), own, *mapped)

        return per_element(self.site.axes, one, len(mapped))(self.operands, *mapped)

    def keys(self, key: jax.Array) -> jax.Array:
        """A key for each element of the surrounding ``vmap``\\ s."""
        return element_keys(key, self.site.axes)


class Baseline(abc.ABC):
    """What is subtracted from the payoff that a score multiplies.

    The payoff of an element of a choice is the sum of the terms that depend on it.
    :meth:`accumulate` is called where the choice stands, :meth:`finish` when the payoffs are known:
    it returns terms of value 0. A baseline must not depend on the draw that it is for, or on
    anything that comes after it.

    Example:
        >>> @jax.tree_util.register_static
        ... class Three(ppl.Baseline):
        ...     independent = True
        ...
        ...     def accumulate(self, log_prob):
        ...         return {"log_prob": log_prob}
        ...
        ...     def finish(self, totals, payoff, context):
        ...         return -3.0 * (ppl.magic_box(totals["log_prob"]) - 1.0)
        >>> @ppl.expectation
        ... def f(m):
        ...     return ppl.sample("x", dist.Normal(m, 1.0), ppl.reinforce(Three())) + 3.0
        >>> grad = f.grad(key, 0.0, samples=10)
    """

    independent: bool = False
    """Whether it is known not to depend on its own draw; otherwise the checker tries it."""
    whole: bool = False
    """Whether all terms of the scope count for each element, not only those that depend on it."""
    within: bool = False
    """Whether the payoff that :meth:`finish` gets is that without the element: what its particle
    (of a ``vmap`` whose elements meet) computed replaced by the mean of what the others did."""

    @abc.abstractmethod
    def accumulate(self, log_prob: jax.Array) -> dict[str, jax.Array]:
        """What is kept of a choice: arrays like ``log_prob``, the log density of its elements."""

    @abc.abstractmethod
    def finish(self, totals: dict[str, jax.Array], payoff: jax.Array, context: Any) -> jax.Array:
        """The term of value 0 of each element, from what was kept and the (constant) payoffs."""


def refuse_rounding(site: Site, estimator: str, gives: str, dtype: Any) -> None:
    """Refuse a value of an estimator that its site would round."""
    if not jnp.issubdtype(dtype, jnp.inexact) or jnp.issubdtype(site.dtype, jnp.inexact):
        return
    raise UnsupportedError(
        f"the estimator {estimator} of {show(site.address)} at {site.source} {gives} {dtype}, and "
        f"the choice has type {site.dtype}: what follows would get the draw rounded, without a "
        f"derivative. Give the choice a distribution that draws {dtype} too, as in the "
        f"straight-through recipe of docs/estimators.md, or let the estimator give {site.dtype}."
    )


def constant(value: float, *like: Any) -> jax.Array:
    """A scalar constant that is mapped by every ``vmap`` that maps one of ``like``.

    ``vmap`` of a ``custom_jvp`` function goes wrong in a ``scan`` where its value is not mapped
    and its derivative is. XLA folds the comparison away.
    """
    first = [jnp.ravel(a)[0] for a in jax.tree.leaves(like) if jnp.size(a)]
    mapped = functools.reduce(jnp.logical_and, [a == a for a in first])
    return jnp.where(mapped, value, value)


@functools.partial(jax.jit, inline=True)
def magic_box(log_prob: jax.Array) -> jax.Array:
    """1, with the derivative of exp(log_prob) at every order (DiCE, Foerster et al. 2018).

    Example:
        >>> score = lambda m: ppl.magic_box(dist.Normal(m, 1.0).log_prob(2.0))
        >>> float(score(0.5)), float(jax.grad(score)(0.5))
        (1.0, 1.5)
    """
    return _box(log_prob)


@jax.custom_jvp
def _box(log_prob: jax.Array) -> jax.Array:
    return jnp.where(log_prob > 0, jnp.ones_like(log_prob), jnp.ones_like(log_prob))


@_box.defjvp
def _(primals: Any, tangents: Any) -> Any:
    box = _box(primals[0])
    return box, box * tangents[0]
