"""``ppl.score_only``: a distribution that is known by the gradient of its log density."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from transforms import _jax
from transforms.errors import ShapeError, UnsupportedError, describe
from transforms.estimation.unknown import of_score


@final
class ScoreOnly(dist.ImproperUniform):
    """See :func:`score_only`."""

    def __init__(self, score: Callable[[jax.Array], jax.Array], shape: tuple[int, ...]):
        self.score = score
        super().__init__(dist.constraints.independent(dist.constraints.real, len(shape)), (), shape)

    def log_prob(self, value: Any) -> jax.Array:
        value = jnp.asarray(value, jnp.result_type(float))
        one = lambda z: of_score(self._score, z)
        for _ in range(value.ndim - len(self.event_shape)):
            one = jax.vmap(one)
        return one(value)

    def _score(self, z: jax.Array) -> jax.Array:
        found = jnp.asarray(self.score(z))
        if found.shape != z.shape:
            raise ShapeError(
                f"the score of ppl.score_only at {_jax.user_line()} has shape {found.shape}, and "
                f"the value {z.shape}: it is the gradient of the log density in the value. Return "
                "an array of that shape; ppl.score_only(score, shape=(3,)) is for vectors f32[3]."
            )
        return found


def score_only(
    score: Callable[[jax.Array], jax.Array], shape: tuple[int, ...] = ()
) -> dist.Distribution:
    """A distribution over real numbers whose log density is known by its gradient alone.

    For a prior that is a denoiser (Tweedie: score(z) = (D(z) - z) / σ²), or a physical force. It
    has no draws and no value: give it the value that a guide draws. The gradient of an objective is
    right where all choices that the value depends on are pathwise (``ppl.reparam``); estimators
    that need the value, and ``objective.value``, are refused; functions of the density that are not
    linear (an IWELBO) are found by the checker. The values that ``value_and_grad`` and a fit show
    lack this log density, which ``explain`` says.

    Args:
        score: from a value f32[*shape] to the gradient of its log density, f32[*shape]. It is held
            constant: the derivative in parameters of the score is not known, and where it is asked
            for, the checker says so (``ppl.detach`` them).
        shape: of one value.

    Example:
        >>> @ppl.gen
        ... def denoised():
        ...     x = ppl.sample("x", ppl.score_only(lambda x: -x))
        ...     ppl.sample("y", dist.Normal(x, 1.0))
        >>> f = ppl.expectation(lambda phi: ppl.elbo(denoised(), guide(phi), data))
        >>> grad = f.grad(key, phi, samples=10)
    """
    if not callable(score):
        raise UnsupportedError(
            f"ppl.score_only at {_jax.user_line()} is given {describe(score)}. Give a function "
            "from a value to the gradient of its log density."
        )
    return ScoreOnly(score, tuple(shape))
