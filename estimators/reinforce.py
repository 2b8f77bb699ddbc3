r"""REINFORCE, the score-function estimator.

    d/dθ E_p[f(x)] = E_p[ df/dθ + (f(x) - b) d log p(x; θ)/dθ ]

Conditions: p is differentiable in θ for almost every x, its *support does not depend on θ*, and
b does not depend on x. f may be discontinuous in x (but not at a place that moves with θ). One
run of the program. Sources: Glynn 1990; Williams 1992; Ranganath, Gerrish & Blei 2014. The
score enters as a factor of value 1, so that higher derivatives are right too (DiCE, Foerster et
al. 2018). Baselines: ``baselines.py``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, final

import jax

from transforms.estimation.draws import sampled
from transforms.estimation.elements import unmasked
from transforms.estimation.estimator import Baseline, InPlace
from transforms.estimation.flows import is_one_way

from .baselines import baseline as _baseline


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reinforce(InPlace):
    """Score function, with an optional baseline; see the module docstring."""

    control: Baseline | None = None

    name = "reinforce"
    score = True

    @property
    def baseline(self) -> Baseline | None:
        return self.control

    def unsuitable(self, d: Any) -> str | None:
        if not hasattr(d, "log_prob"):
            return "it has no density."
        if _point(d):
            return "it is a point, of which no density has a derivative. Use ppl.reparam()."
        if is_one_way(d):
            return (
                "its transform has no inverse, which the density of a given draw needs. Use "
                "ppl.reparam(); or draw it in an @ppl.gen function, g(...).simulate(), where what "
                "is transformed is scored."
            )
        return None

    def log_prob(self, d: Any, value: jax.Array) -> jax.Array:
        return unmasked(d).log_prob(value)

    def draw(self, d: Any, key: jax.Array, sample_shape: tuple[int, ...]) -> jax.Array:
        return sampled(d, key, sample_shape)


def _point(d: Any) -> bool:
    while hasattr(d, "base_dist"):
        d = d.base_dist
    return type(d).__name__ == "Delta"


def reinforce(baseline: Any = None) -> Reinforce:
    """The score-function estimator: for any distribution whose support is fixed.

    Args:
        baseline: what is subtracted from the payoff: None; a number, or an array f32[] or
            f32[batch_shape] that does not depend on the draw; ``"loo"``, the mean of the other
            ``samples``; ``"within"``, inside a multi-sample bound like ``ppl.iwelbo``, the bound
            without the particle (VIMCO); ``ppl.learned(value)``; ``ppl.moving_average(decay)``.

    Example:
        >>> @ppl.expectation
        ... def f(rate):
        ...     return ppl.sample("n", dist.Poisson(rate), ppl.reinforce("loo")) * 1.0
        >>> grad = f.grad(key, 2.0, samples=10)
    """
    return Reinforce(_baseline(baseline))
