r"""Baselines of the score estimator (``reinforce.py``).

For a baseline b that does not depend on the draw, E[(f - b) d log p] = E[f d log p], since
E[d log p] = 0. Each baseline here adds a term of value 0 and derivative -b d log p.

- :class:`Constant`: a number or an array that broadcasts against the elements of the choice.
- :class:`LeaveOneOut`: b_i = mean of the other samples' payoffs (Salimans & Knowles 2014; Kool
  et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free").
- :class:`Within`: inside a multi-sample bound, b_i is the bound with what particle i computed
  replaced by the mean of what the others did (VIMCO, Mnih & Rezende 2016).
- :class:`Learned`: b is computed from parameters, and learns by min (f - b)^2 (NVIL, Mnih &
  Gregor 2014).
- :class:`MovingAverage`: b_t = decay b_{t-1} + (1 - decay) f_{t-1}, used, then updated.
"""

from __future__ import annotations

import dataclasses
from typing import Any, final

import jax
import jax.numpy as jnp
from jax import lax

from transforms import _jax
from transforms.errors import describe
from transforms.estimation.draws import Context
from transforms.estimation.estimator import Baseline, magic_box


def _of_elements(b: Any, log_prob: jax.Array) -> jax.Array:
    """The baseline of each element: leading axes of ``b`` are those of the elements."""
    b = jnp.asarray(b, log_prob.dtype)
    shape = log_prob.shape[: b.ndim]
    if b.ndim > log_prob.ndim or any(n not in (1, m) for n, m in zip(b.shape, shape, strict=True)):
        raise ValueError(
            f"a baseline of shape {b.shape} stands at a choice whose elements have shape "
            f"{log_prob.shape} ({_jax.user_line()}). Give a number, or an array with an entry for "
            "each element; under jax.vmap each element's own: map over the baseline too."
        )
    return jnp.broadcast_to(b.reshape(*b.shape, *[1] * (log_prob.ndim - b.ndim)), log_prob.shape)


@jax.custom_jvp
def _derivative(weight: Any, x: jax.Array) -> jax.Array:
    """0, even where a weight is infinite, with the derivative of ``weight * x`` in ``x``."""
    return jnp.where(True, 0.0, x)  # reads x, so that under vmap it has the axes of its derivative


@_derivative.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return _derivative(*primals), lax.stop_gradient(primals[0]) * tangents[1]


def _subtract(b: Any, log_prob: jax.Array) -> jax.Array:
    return -_derivative(b, magic_box(log_prob))


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Constant(Baseline):
    """A baseline that is known before the draw: a number, or an array computed upstream."""

    value: Any
    independent = True

    def accumulate(self, log_prob: jax.Array) -> dict[str, jax.Array]:
        return {"term": _subtract(_of_elements(self.value, log_prob), log_prob)}

    def finish(self, totals: Any, payoff: jax.Array, context: Context) -> jax.Array:
        return totals["term"]


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Learned(Baseline):
    """A baseline computed from parameters, trained together with the objective.

    The derivative of the surrogate with respect to ``value`` is ``weight * (payoff - value)``,
    that of -weight (payoff - value)^2 / 2: *ascending* it fits the baseline. ``ppl.maximize``
    and ``ppl.minimize`` do; who descends by hand sets ``weight=-1``.
    """

    value: Any
    weight: float = dataclasses.field(default=1.0, metadata={"static": True})
    independent = True

    def accumulate(self, log_prob: jax.Array) -> dict[str, jax.Array]:
        b = _of_elements(self.value, log_prob)
        return {
            "term": _subtract(b, log_prob),
            "value": b,
            "square": (b**2 - lax.stop_gradient(b**2)) / 2,
        }

    def finish(self, totals: Any, payoff: jax.Array, context: Context) -> jax.Array:
        fit = _derivative(payoff, totals["value"]) - totals["square"]
        return totals["term"] + self.weight * context.direction * fit


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LeaveOneOut(Baseline):
    """The mean payoff of the other samples; no baseline where there is only one sample."""

    independent = True

    def accumulate(self, log_prob: jax.Array) -> dict[str, jax.Array]:
        return {"log_prob": log_prob}

    def finish(self, totals: Any, payoff: jax.Array, context: Context) -> jax.Array:
        return _subtract(context.others(payoff), totals["log_prob"])


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Within(Baseline):
    """The payoff without the particle; see ``transforms/plan/within.py``."""

    within = True
    independent = True

    def accumulate(self, log_prob: jax.Array) -> dict[str, jax.Array]:
        return {"log_prob": log_prob}

    def finish(self, totals: Any, payoff: jax.Array, context: Context) -> jax.Array:
        return _subtract(payoff, totals["log_prob"])


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MovingAverage(Baseline):
    """The average of past payoffs; the state is kept by the fit (0 outside a fit)."""

    decay: float = dataclasses.field(default=0.9, metadata={"static": True})
    whole = True
    independent = True

    def accumulate(self, log_prob: jax.Array) -> dict[str, jax.Array]:
        return {"log_prob": log_prob}

    def finish(self, totals: Any, payoff: jax.Array, context: Context) -> jax.Array:
        average = context.averages.get(self.decay, 0.0)
        return _subtract(average, totals["log_prob"])


def baseline(spec: Any) -> Baseline | None:
    """A baseline from what a user types: None, a number, an array, a name, or a Baseline."""
    if spec is None or isinstance(spec, Baseline):
        return spec
    if isinstance(spec, str) and spec == "loo":
        return LeaveOneOut()
    if isinstance(spec, str) and spec == "within":
        return Within()
    if isinstance(spec, str | list | tuple | dict) or callable(spec):
        raise ValueError(
            f"unknown baseline {describe(spec)} ({_jax.user_line()}): a baseline is a number, an "
            "array, 'loo', 'within', ppl.learned(value) or ppl.moving_average(decay)."
        )
    return Constant(spec)


def learned(value: Any, weight: float = 1.0) -> Learned:
    """A baseline that is trained: ``value`` is any function of the parameters.

    Args:
        value: f32[] or f32[batch_shape of the choice].
        weight: step size of the baseline relative to the other parameters; see
            :class:`Learned` for its sign.

    Example:
        >>> @ppl.expectation
        ... def f(params):
        ...     score = ppl.reinforce(ppl.learned(params["b"]))
        ...     x = ppl.sample("x", dist.Normal(params["m"], 1.0), score)
        ...     return -((x - 3.0) ** 2)
        >>> start = {"m": 0.0, "b": 0.0}
        >>> fit = ppl.maximize(f, start, optax.adam(0.1), key=key, steps=10, progress=False)
    """
    return Learned(value, weight)


def moving_average(decay: float = 0.9) -> MovingAverage:
    """A baseline that averages the payoffs of past steps of a fit, with weight ``decay``.

    Example:
        >>> @ppl.expectation
        ... def f(m):
        ...     x = ppl.sample("x", dist.Normal(m, 1.0), ppl.reinforce(ppl.moving_average(0.9)))
        ...     return -((x - 3.0) ** 2)
        >>> fit = ppl.maximize(f, 0.0, optax.adam(0.1), key=key, steps=10, progress=False)
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(
            f"decay is {describe(decay)} ({_jax.user_line()}), and is the weight of the past: 0 or "
            "more, and less than 1. Type ppl.moving_average(0.9)."
        )
    return MovingAverage(decay)
