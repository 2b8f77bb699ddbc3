"""Functions of expectations: means of several draws, and what has no bias."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from estimators.automatic import choose
from transforms import _jax
from transforms.errors import UnsupportedError, describe
from transforms.program import marks
from transforms.program.averaged import mark_mean
from transforms.program.site import Expect, Noise, expect_p
from transforms.program.site import sample as _sample

from ..programs.given import as_count
from .expectation import Expectation

MOST = 30
"""Levels from here on are taken for this one: with a probability of 1e-13 or less."""


def mean(inner: Any, n: int) -> jax.Array:
    """The mean of ``n`` independent draws of an expectation, in another one: f32[].

    Its value and gradient are unbiased for those of the expectation. A function of it that is not
    linear is a *plug-in*, log(ppl.mean(inner(x), n)) for log E[inner(x)]: its value and gradient
    have a bias of O(1/n), which ``explain`` says. :func:`debias` has none.

    Args:
        inner: a call of an ``@ppl.expectation``, ``inner(args)``, which is then drawn n times; or
            a function without arguments, like ``lambda: ppl.elbo(p, q, data)``, that is run n times
            as an expectation of its own.
        n: how many.

    Raises:
        UnsupportedError: what it is given is neither; or is used elsewhere too.

    Example:
        >>> @ppl.expectation
        ... def likelihood(y):
        ...     x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ...     return jnp.exp(dist.Normal(x, 1.0).log_prob(y))
        >>> log_evidence = ppl.expectation(lambda y: jnp.log(ppl.mean(likelihood(y), 20)))
        >>> value = log_evidence.value(key, 1.0, samples=10)
    """
    n = as_count(n, "the number of draws in ppl.mean")
    if callable(inner):
        inner = _expectation(inner, "ppl.mean")()
    if not isinstance(inner, _jax.Tracer):
        raise UnsupportedError(
            f"ppl.mean at {_jax.user_line()} is given {describe(inner)}. Inside an "
            "@ppl.expectation, type ppl.mean(inner(args), n), or ppl.mean(lambda: ..., n)."
        )
    return inner if n == 1 else mark_mean(inner, n)


def debias(f: Callable[..., Any], *inner: Any, n: int = 1, rate: float = 1.5) -> Any:
    """An unbiased estimate of f(E[a], E[b], ...), the value and the gradient, in an expectation.

    With means M_l of n 2^l draws, f(M_0) has a bias that the differences Δ_l = f(M_l) - (f(A_l) +
    f(B_l)) / 2 take away, where A_l and B_l are the means of the two halves. One of them is drawn,
    level l >= 1 with probability p_l = (1 - ρ) ρ^(l-1), ρ = 2^-rate, and f(M_0) + Δ_l / p_l has the
    mean f(E[a]).

    Where f is twice differentiable and a has a fourth moment, the variance of Δ_l falls as 4^-l,
    and so the variance is finite for a rate below 2, and the mean number of draws, n (1 + 2 (1 - ρ)
    / (1 - 2ρ)), for one above 1: at 1.5 it is 5.4 n. The variance of that number is infinite: of S
    samples side by side all wait for the longest, of about n S^(1 / rate) draws. A larger ``n``
    lowers the variance, and keeps the means away from where f is not defined (a mean that is
    negative, under a logarithm). Where f has a kink at the mean, the variance is infinite at 1.5.

    Args:
        f: a function of as many numbers as there are expectations.
        *inner: functions without arguments that return one draw each, like ``lambda: inner(x)``; or
            expectations without arguments.
        n: the draws in the first mean.
        rate: how fast the probability of a level falls, above 1 and below 2.

    Raises:
        UnsupportedError: no expectation is given, or what is none.
        ValueError: a rate outside (1, 2).

    Example:
        >>> @ppl.expectation
        ... def likelihood(y):
        ...     x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ...     return jnp.exp(dist.Normal(x, 1.0).log_prob(y))
        >>> log_p = lambda y: ppl.debias(jnp.log, lambda: likelihood(y), n=4)
        >>> log_evidence = ppl.expectation(log_p)
        >>> value = log_evidence.value(key, 1.0, samples=10)

    Source: Blanchet & Glynn, "Unbiased Monte Carlo for optimization and functions of expectations
    via multi-level randomization", WSC 2015.
    """
    n = as_count(n, "n of ppl.debias")
    if not 1.0 < rate < 2.0:
        raise ValueError(
            f"the rate of ppl.debias at {_jax.user_line()} is {rate}: at 1 or less the mean number "
            "of draws is infinite, at 2 or more the variance. Type 1.5."
        )
    if not inner:
        raise UnsupportedError(
            f"ppl.debias at {_jax.user_line()} is given no expectation. Type ppl.debias(f, lambda: "
            "inner(args))."
        )
    ratio = 2.0**-rate
    level = _sample(("level",), Level(ratio), None, _jax.user_line())
    half = n * 2 ** (level - 1)
    first, left, right = zip(*(_means(i, n, half) for i in inner), strict=True)
    middle = [(a + b) / 2 for a, b in zip(left, right, strict=True)]
    p = (1.0 - ratio) * ratio ** (level - 1.0)

    with marks.mark(marks.DEBIASED):
        base, whole, a, b = (f(*means) for means in (first, middle, left, right))
        difference = jax.tree.map(lambda w, a, b: (w - (a + b) / 2) / p, whole, a, b)
        return jax.tree.map(jnp.add, base, difference)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Level(Noise):
    """l = 1, 2, ... with probability (1 - ratio) ratio^(l - 1)."""

    ratio: float

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        level = jax.random.geometric(key, 1.0 - self.ratio, sample_shape, dtype=jnp.int32)
        return jnp.minimum(level, MOST)


def _means(inner: Any, n: int, half: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The mean of ``n`` draws, and two of ``half`` each."""
    objective = _expectation(inner, "ppl.debias")
    closed, consts, _ = objective.trace()
    one = Expect(_jax.user_line(), objective.name, closed, choose, draws=n)
    (first,) = expect_p.bind(*consts, expect=one)
    avals = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in closed.in_avals]
    count = jax.ShapeDtypeStruct((), half.dtype)
    more, _, _ = _jax.trace(lambda *xs: _jax.evaluate(closed, *xs[:-1]), *avals, count)
    several = dataclasses.replace(one, jaxpr=more, draws=1, counted=True)
    left, right = (expect_p.bind(*consts, half, expect=several)[0] for _ in range(2))
    return first, left, right


def _expectation(inner: Any, what: str) -> Expectation:
    if isinstance(inner, Expectation):
        return inner
    if not callable(inner):
        raise UnsupportedError(
            f"{what} at {_jax.user_line()} is given {describe(inner)}. Give a function that draws, "
            "lambda: inner(args)."
        )
    return Expectation(inner)
