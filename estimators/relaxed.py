r"""Draws of real numbers from which a discrete draw follows, as ``relax.py`` and ``rebar.py`` need.

- A coin: z is logistic with the log odds for its mean, and b = 1[z > 0].
- A categorical of log probabilities l: z = l + g with independent Gumbel g, and x = argmax z. Given
  x, the largest is a Gumbel draw (of location 0, as the probabilities sum to 1) and the others are
  Gumbel draws that are truncated at it (Maddison, Tarlow & Minka 2014): with E exponential,
  z_x = -log E_x and z_i = -log(E_i / p_i + E_x).

Two such draws of one value are returned: z moves with the parameters at fixed noise, z' at fixed
noise and x. A probability below the smallest normal number is taken for that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax

from .bernoulli import bare, coin, log_masses


class Relaxed(NamedTuple):
    """Of each element of a draw x: log p(x); log p of the relaxed law, which is normalised whatever
    the parameters are; and the two relaxed draws."""

    log_prob: jax.Array
    own_log_prob: jax.Array
    z: jax.Array
    again: jax.Array


@final
@dataclasses.dataclass(frozen=True)
class Kind:
    """How one family is relaxed; ``link`` maps a relaxed draw to what is like a discrete one."""

    draw: Callable[[Any, jax.Array, jax.Array], Relaxed]
    link: Callable[[jax.Array], jax.Array]


def not_relaxed(d: Any) -> str | None:
    """Why a choice has no relaxation, or None if it has one."""
    if coin(d) is not None or categorical(d) is not None:
        return None
    instead = "ppl.reinforce() or ppl.mvd()"
    if getattr(d, "has_enumerate_support", False):
        instead = "ppl.enum(), ppl.mvd() or ppl.reinforce()"
    return f"it is no Bernoulli and no Categorical. Use {instead}."


def kind(d: Any) -> Kind:
    """That of a distribution with a relaxation."""
    return _COIN if coin(d) is not None else _CATEGORICAL


def categorical(d: Any) -> Any:
    """The Categorical inside of what shapes and masks it; None if it is none."""
    d = bare(d)
    return d if isinstance(d, dist.CategoricalProbs | dist.CategoricalLogits) else None


def log_probs(d: Any, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log probabilities ``[*like.shape, K]`` of a categorical: as its density has them, and
    normalised, of which none is minus infinity."""
    c = categorical(d)
    if isinstance(c, dist.CategoricalProbs):
        lowest = jnp.finfo(jnp.result_type(c.probs)).tiny
        log_p = jnp.log(jnp.maximum(c.probs, lowest))
    else:
        log_p = jax.nn.log_softmax(jnp.asarray(c.logits))
    log_p = jnp.broadcast_to(log_p, (*like.shape, log_p.shape[-1]))
    normalised = log_p - jax.nn.logsumexp(log_p, axis=-1, keepdims=True)
    return log_p, jnp.maximum(normalised, jnp.log(jnp.finfo(log_p.dtype).tiny))


def _of_coin(d: Any, key: jax.Array, x: jax.Array) -> Relaxed:
    zero, one = log_masses(d, x)
    v = jax.random.uniform(key, x.shape, zero.dtype, minval=jnp.finfo(zero.dtype).eps)
    noise = jnp.log(v) - jnp.log1p(-v)
    again = jnp.where(x == 1, jnp.logaddexp(noise - zero, 0.0), -jnp.logaddexp(-noise - one, 0.0))
    score = jnp.where(x == 1, one, zero)
    return Relaxed(score, score, _moving(again, one - zero), again)


def _of_categorical(d: Any, key: jax.Array, x: jax.Array) -> Relaxed:
    log_p, own = log_probs(d, x)
    e = jax.random.exponential(key, own.shape, own.dtype)
    e = jnp.log(jnp.maximum(e, jnp.finfo(e.dtype).tiny))
    at = lambda a: jnp.take_along_axis(a, x[..., None], axis=-1)
    first = at(e)
    drawn = jnp.arange(own.shape[-1]) == x[..., None]
    again = jnp.where(drawn, -first, -jnp.logaddexp(e - own, first))
    return Relaxed(at(log_p)[..., 0], at(own)[..., 0], _moving(again, own), again)


def _moving(value: jax.Array, by: jax.Array) -> jax.Array:
    """``value``, with the derivative of ``by``."""
    return lax.stop_gradient(value) + by - lax.stop_gradient(by)


_COIN = Kind(_of_coin, jax.nn.sigmoid)
_CATEGORICAL = Kind(_of_categorical, jax.nn.softmax)
