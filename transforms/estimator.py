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

from .site import Site, element_keys, per_element


class Estimator(abc.ABC):
    """How the gradient flows through one random choice; the base of the three kinds."""

    name: str = "estimator"

    @abc.abstractmethod
    def unsuitable(self, d: Any) -> str | None:
        """Why the estimator cannot be used for the distribution ``d``, or None if it can.

        ``d`` has shapes in place of numbers: only its type and its static parameters are known.
        """


class InPlace(Estimator):
    """One draw where the choice stands: works in loops and branches at no extra cost."""

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
    """Every value of a finite support, weighted by its probability: exact, no variance."""

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
    """

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
    """A random choice as a :class:`Continued` estimator sees it."""

    site: Site
    operands: list[Any]
    value: jax.Array
    """The value that was drawn, ``[*sizes, *shape]``; ``sizes`` are the surrounding vmaps."""
    payoff: jax.Array
    """``k(value)``, already known."""

    def per_element(self, f: Callable[..., Any], *mapped: Any) -> Any:
        """``f(distribution, *mapped)`` for each element of the surrounding ``vmap``\\ s.

        Results have the leading axes ``sizes``; so must the arguments in ``mapped``.
        """

        def one(operands: list[Any], *mapped: Any) -> Any:
            return f(self.site.rebuild(self.site.live(operands)), *mapped)

        return per_element(self.site.axes, one, len(mapped))(self.operands, *mapped)

    def keys(self, key: jax.Array) -> jax.Array:
        """A key for each element of the surrounding ``vmap``\\ s."""
        return element_keys(key, self.site.axes)


class Baseline(abc.ABC):
    """What is subtracted from the payoff that a score multiplies.

    The scores of a scope add up in accumulators, so that they may stand in loops. For every
    group of baselines, :meth:`accumulate` gives the contribution of one choice and
    :meth:`finish` turns the sums into a term of value 0 that is added to the payoff. A baseline
    must not depend on the draw that it is for, or on anything that comes after it.
    """

    accumulators: tuple[str, ...] = ()
    """Names of what :meth:`accumulate` returns."""
    independent: bool = False
    """Whether it is known not to depend on its own draw; otherwise the checker tries it."""

    @property
    def group(self) -> str:
        """Baselines of equal group share accumulators (and must be alike but for arrays)."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    @abc.abstractmethod
    def accumulate(self, log_prob: jax.Array) -> dict[str, jax.Array]:
        """Scalars to add up, from the log density of each element of the choice."""

    @abc.abstractmethod
    def finish(self, totals: dict[str, jax.Array], payoff: jax.Array, context: Any) -> jax.Array:
        """The term of value 0, from the sums and the (constant) payoff."""


def constant(value: float, *like: Any) -> jax.Array:
    """A scalar constant that is mapped by every ``vmap`` that maps one of ``like``.

    ``vmap`` of a ``custom_jvp`` function goes wrong in a ``scan`` where its value is not mapped
    and its derivative is. XLA folds the comparison away.
    """
    first = [jnp.ravel(a)[0] for a in jax.tree.leaves(like) if jnp.size(a)]
    mapped = functools.reduce(jnp.logical_and, [a == a for a in first])
    return jnp.where(mapped, value, value)


@jax.custom_jvp
def magic_box(log_prob: jax.Array) -> jax.Array:
    """1, with the derivative of exp(log_prob) at every order (DiCE, Foerster et al. 2018)."""
    return jnp.where(log_prob > 0, jnp.ones_like(log_prob), jnp.ones_like(log_prob))


@magic_box.defjvp
def _(primals: Any, tangents: Any) -> Any:
    box = magic_box(primals[0])
    return box, box * tangents[0]
