r"""REBAR: RELAX with the program's own relaxation for control.

The control variate of ``relax.py`` is c(z) = η f(σ(z / λ)): f at draws between 0 and 1, a
concrete relaxation of temperature λ (Maddison, Mnih & Teh 2017; Jang, Gu & Poole 2017); of a
categorical at the softmax of z / λ, which is close to the indicator of x. The relaxation is biased
and REBAR is not, for every λ and η. Since a program need not make sense between 0 and 1, f is
given: what follows the choice, of floats.

Source: Tucker, Mnih, Maddison, Lawson & Sohl-Dickstein, "REBAR: low-variance, unbiased gradient
estimates for discrete latent variable models", 2017.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, final

import jax

from .relax import Control, Relax, as_control


@final
@dataclasses.dataclass(frozen=True)
class Concrete:
    """η f(σ(z / λ)), of parameters (those of f, λ, η) and z; ``link`` is σ."""

    f: Control

    def __call__(self, params: Any, z: jax.Array, link: Callable[[jax.Array], jax.Array]) -> Any:
        own, temperature, eta = params
        return eta * self.f(own, link(z / temperature), link)


def rebar(
    relaxed: Callable[..., Any],
    params: Any = None,
    *,
    temperature: Any = 0.5,
    eta: Any = 1.0,
    weight: float = 1.0,
) -> Relax:
    """REBAR: a score whose control variate is the relaxed payoff; Bernoulli and Categorical.

    Args:
        relaxed: f(s), or f(params, s) where ``params`` are given: what follows the choice, to one
            number f32[]. Of Bernoulli choices s has the shape of the choice, f32[batch_shape], and
            is between 0 and 1; of categorical ones it is f32[batch_shape, K], probabilities that
            are close to the indicator of the draw.
        params: any pytree of arrays that it needs; it closes over none that are traced.
        temperature, eta: positive numbers; any are unbiased. Those that depend on the parameters
            of the objective are learned, as in ``ppl.relax``.
        weight: step size of that, relative to the other parameters.

    Example:
        >>> after = lambda target, b: jnp.sum((b - target) ** 2)
        >>> @ppl.expectation
        ... def loss(logits, target):
        ...     b = ppl.sample("b", dist.Bernoulli(logits=logits), ppl.rebar(after, target))
        ...     return after(target, b)
        >>> grad = loss.grad(key, jnp.zeros(3), 0.4, samples=10)
    """
    f = as_control(relaxed, params, "ppl.rebar(relaxed)")
    return Relax((params, temperature, eta), Concrete(f), weight, "rebar")
