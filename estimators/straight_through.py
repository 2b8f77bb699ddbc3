r"""Straight-through estimators: discrete draws with the derivative of something else. *Biased.*

The draw is 0.0 or 1.0 (of a ``dist.Multinomial`` of one trial, an indicator), and its derivative

- that of the probability (Bengio, Léonard & Courville 2013);
- with a temperature τ, that of softmax(z / τ) at the Gumbel draws z of which it is the argmax
  (straight-through Gumbel-softmax, Jang, Gu & Poole 2017);
- averaged over n draws of z given the discrete one: Gumbel-Rao (Paulus, Maddison & Krause, "Rao-
  Blackwellizing the straight-through Gumbel-softmax gradient estimator", 2021), of the same bias
  and less variance.

The value is unbiased. The derivative is unbiased where what follows is linear in the draw and no τ
is given; elsewhere it has a bias that no number of samples lowers, and may have the wrong sign. So
``explain`` says that it is biased, ``ppl.strict`` refuses it, and it is never chosen by itself, nor
by ``ppl.tune``. What follows must take floats: comparisons and indices have no derivative. One run
of the program.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax
from jax.scipy.special import xlog1py, xlogy
from numpyro.distributions.util import validate_sample

from transforms import _jax
from transforms.errors import describe
from transforms.estimation.estimator import InPlace

from .bernoulli import bare, coin, log_masses
from .relaxed import kind


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StraightThrough(InPlace):
    """Biased; see the module docstring."""

    temperature: float | None = dataclasses.field(default=None, metadata={"static": True})
    average: int = dataclasses.field(default=1, metadata={"static": True})

    name = "straight_through"
    biased = True

    def law(self, d: Any) -> Any:
        part = lambda a: type(a) in _FLOATING
        try:
            return jax.tree.map(_floating, d, is_leaf=part)
        except NotImplementedError:  # a transform that is no pytree
            return d

    def unsuitable(self, d: Any) -> str | None:
        d = bare(d)
        if isinstance(d, tuple(_FLOATING.values())):
            return None if _is_single(d) else "it has several trials. Use ppl.reinforce()."
        if isinstance(d, tuple(_FLOATING)):
            return (
                "its draws are integers. Choose the estimator where the choice is made, "
                "ppl.sample(..., ppl.straight_through()), which makes them floats."
            )
        if isinstance(d, dist.CategoricalProbs | dist.CategoricalLogits):
            return (
                "its draws are indices. Use dist.Multinomial(1, ...), whose draws are indicators, "
                "or an unbiased estimator, like ppl.unordered()."
            )
        return "it is no Bernoulli and no Multinomial. Use ppl.reinforce() or ppl.reparam()."

    def draw(self, d: Any, key: jax.Array, sample_shape: tuple[int, ...]) -> jax.Array:
        own, noise = jax.random.split(key)
        hard = lax.stop_gradient(d.sample(own, sample_shape))
        if self.temperature is None:
            soft = jnp.exp(log_masses(d, hard)[1]) if coin(d) is not None else bare(d).probs
        else:
            temperature = self.temperature
            one = lambda key: _relaxed(d, key, hard, temperature)
            soft = jnp.mean(jax.vmap(one)(jax.random.split(noise, self.average)), axis=0)
        return hard + (soft - lax.stop_gradient(soft))


def _relaxed(d: Any, key: jax.Array, hard: jax.Array, temperature: float) -> jax.Array:
    """A relaxed draw given the discrete one."""
    index = hard
    if coin(d) is None:
        d, index = dist.Categorical(bare(d).probs), jnp.argmax(hard, axis=-1)
    how = kind(d)
    return how.link(how.draw(d, key, index).z / temperature)


class _Floats:
    """Draws of floating point type, whose density is linear in them."""

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        return super().sample(key, sample_shape).astype(jnp.result_type(float))  # type: ignore[misc]


class FloatBernoulliProbs(_Floats, dist.BernoulliProbs):
    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        return xlogy(value, self.probs) + xlog1py(1.0 - value, -jnp.asarray(self.probs))


class FloatBernoulliLogits(_Floats, dist.BernoulliLogits):
    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        logits = jnp.asarray(self.logits)
        return value * logits - jax.nn.softplus(logits)


class FloatMultinomialProbs(_Floats, dist.MultinomialProbs):
    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        return jnp.sum(xlogy(value, self.probs), axis=-1)


class FloatMultinomialLogits(_Floats, dist.MultinomialLogits):
    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        return jnp.sum(value * jax.nn.log_softmax(jnp.asarray(self.logits)), axis=-1)


_FLOATING: dict[type, type] = {
    dist.BernoulliProbs: FloatBernoulliProbs,
    dist.BernoulliLogits: FloatBernoulliLogits,
    dist.MultinomialProbs: FloatMultinomialProbs,
    dist.MultinomialLogits: FloatMultinomialLogits,
}


def _floating(part: Any) -> Any:
    if type(part) not in _FLOATING:
        return part
    part = copy.copy(part)
    part.__class__ = _FLOATING[type(part)]
    return part


def _is_single(d: Any) -> bool:
    count = getattr(d, "total_count", 1)
    return not isinstance(count, _jax.Tracer) and bool(np.all(np.asarray(count) == 1))


def straight_through(temperature: float | None = None, *, average: int = 1) -> StraightThrough:
    """A biased estimator, for Bernoulli choices and ``dist.Multinomial(1, ...)``: the draw is 0.0
    or 1.0, with the derivative of its probability, or of a relaxed draw.

    Not chosen unless you type it; ``explain`` says that it is biased, and ``ppl.strict`` refuses
    it. What scores the draw must take floats: where a guide draws by it, give the model's choice
    the same estimator.

    Args:
        temperature: of the relaxed draw, a positive number that is known while the program is
            traced: straight-through Gumbel-softmax. Without it the derivative is that of the
            probability.
        average: over how many relaxed draws given the discrete one: Gumbel-Rao.

    Raises:
        ValueError: no positive temperature; no positive number of relaxed draws, or several without
            a temperature.

    Example:
        >>> @ppl.expectation
        ... def loss(logits):
        ...     b = ppl.sample("b", dist.Bernoulli(logits=logits), ppl.straight_through())
        ...     return jnp.sum((b - 0.4) ** 2)
        >>> grad = loss.grad(key, jnp.zeros(3))
        >>> [f.kind for f in loss.explain(jnp.zeros(3)).findings]
        ['biased by choice']
    """
    if not isinstance(average, int) or average < 1 or (temperature is None and average > 1):
        raise ValueError(
            f"ppl.straight_through at {_jax.user_line()} gets average={describe(average)}: it is "
            "1, or with a temperature more. Type ppl.straight_through(0.5, average=10)."
        )
    if temperature is None:
        return StraightThrough()
    if isinstance(temperature, _jax.Tracer) or not float(temperature) > 0.0:
        raise ValueError(
            f"ppl.straight_through at {_jax.user_line()} gets the temperature "
            f"{describe(temperature)}, which is a positive number. Type ppl.straight_through(0.5)."
        )
    return StraightThrough(float(temperature), average)
