r"""RODEO-type Stein baselines: of a discrete choice, from the slopes at the other samples.

Of samples side by side each has a payoff f(b) and, of a function f that makes sense between the
values of the choice, a slope f'(s): s is b, or the indicator of a categorical. With A and G made of
the *other* samples, the mean of f(s) - <f'(s), s> and that of f'(s), and p = E[s],

    d/dφ E[f(b)] = E[ (f(b) - A - <G, s>) d log p(b)/dφ + <G, dp/dφ> ]

What is subtracted is the surrogate A + <G, s>, f as the other samples see it from where they are;
what is added is its mean, which a discrete Stein operator takes away: the choice's elements are
independent, so that the mean of a linear surrogate is known (Shi et al. take one step of a Gibbs
sampler, which costs more evaluations of a surrogate of any form). No more evaluations of f.

Conditions: Bernoulli or Categorical choices, f differentiable between their values; any f is
unbiased, and the variance is small where its slopes are those of the payoff. With one sample there
are no others, and the estimator is ``ppl.reinforce()``. First derivatives only. Source: Shi, Zhou,
Hwang, Titsias & Mackey, "Gradient estimation with discrete Stein operators", 2022; the surrogate
from one sample's own mean is MuProp, Gu, Levine, Sutskever & Mnih 2016.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp
from jax import lax

from transforms.estimation.estimator import Continued, LocalSite

from .bernoulli import coin, log_masses
from .relax import Control, as_control, one_number
from .relaxed import log_probs, not_relaxed


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stein(Continued):
    """A linear surrogate from the other samples; see the module docstring."""

    params: Any
    control: Control = dataclasses.field(metadata={"static": True})
    name = "stein"
    elementwise = True

    def unsuitable(self, d: Any) -> str | None:
        return not_relaxed(d)

    def surrogate(
        self, site: LocalSite, key: jax.Array, k: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        apart = [n if a else 1 for n, a in zip(site.value.shape, site.apart, strict=True)]
        payoff = jnp.broadcast_to(site.payoff.reshape(apart), site.value.shape)

        def one(d: Any, own: Any, x: jax.Array, payoff: jax.Array) -> jax.Array:
            s, p, log_p, own_log_p = _indicator(d, x)
            meet = tuple(i for i in range(-x.ndim, 0) if not site.apart[i])
            f = lambda s: one_number(own.control(own.params, s, _same), s, own.name)
            slope, s, payoff = lax.stop_gradient((jax.grad(f)(s), s, payoff))
            each = lambda slope: jnp.sum(slope * s, range(x.ndim, s.ndim))
            of = lambda slope: jnp.sum(each(slope), meet, keepdims=True)
            others = site.others(slope)
            surrogate = site.others(payoff - of(slope)) + of(others)
            return jnp.sum(payoff * log_p - surrogate * own_log_p) + jnp.sum(others * p)

        return jnp.sum(site.per_element_with(self, one, site.value, payoff))


def _same(z: jax.Array) -> jax.Array:
    return z


def _indicator(d: Any, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """s and its mean, ``[*x.shape]`` of a coin, else ``[*x.shape, K]``; of each element log p, and
    that which is normalised whatever the parameters are."""
    if coin(d) is not None:
        zero, one = log_masses(d, x)
        at = jnp.where(x == 1, one, zero)
        return x.astype(one.dtype), jnp.exp(one), at, at
    log_p, own = log_probs(d, x)
    at = lambda a: jnp.take_along_axis(a, x[..., None], axis=-1)[..., 0]
    return jax.nn.one_hot(x, own.shape[-1], dtype=own.dtype), jnp.exp(own), at(log_p), at(own)


def stein(f: Callable[..., Any], params: Any = None) -> Stein:
    """A score whose baseline is linear in the draw, as the slopes of the other ``samples`` have it.

    For Bernoulli and Categorical choices, with several ``samples``: no more runs of what follows.

    Args:
        f: f(s), or f(params, s) where ``params`` are given: what follows the choice, to one number
            f32[]. Of Bernoulli choices s is f32[batch_shape]; of categorical ones f32[batch_shape,
            K], the indicator of the draw. Only its slope counts; any is unbiased.
        params: any pytree of arrays that it needs; it closes over none that are traced.

    Example:
        >>> after = lambda target, b: jnp.sum((b - target) ** 2)
        >>> @ppl.expectation
        ... def loss(logits, target):
        ...     b = ppl.sample("b", dist.Bernoulli(logits=logits), ppl.stein(after, target))
        ...     return after(target, b)
        >>> grad = loss.grad(key, jnp.zeros(3), 0.4, samples=10)
    """
    return Stein(params, as_control(f, params, "ppl.stein(f)"))
