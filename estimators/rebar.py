r"""REBAR: RELAX with the program's own relaxation for control.

The control variate of ``relax.py`` is c(z) = η f(σ(z / λ)): f at draws between 0 and 1, a
concrete relaxation of temperature λ (Maddison, Mnih & Teh 2017; Jang, Gu & Poole 2017). The
relaxation is biased and REBAR is not, for every λ and η. Since a program need not make sense
between 0 and 1, f is given: what follows the choice, of floats.

Source: Tucker, Mnih, Maddison, Lawson & Sohl-Dickstein, "REBAR: low-variance, unbiased gradient
estimates for discrete latent variable models", 2017.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, final

import jax

from .relax import Alone, Relax, check_control


@final
@dataclasses.dataclass(frozen=True)
class Concrete:
    """η f(σ(z / λ)), of parameters (those of f, λ, η) and z."""

    f: Callable[[Any, jax.Array], Any]

    def __call__(self, params: Any, z: jax.Array) -> Any:
        own, temperature, eta = params
        return eta * self.f(own, jax.nn.sigmoid(z / temperature))


def rebar(
    relaxed: Callable[..., Any],
    params: Any = None,
    *,
    temperature: Any = 0.5,
    eta: Any = 1.0,
    weight: float = 1.0,
) -> Relax:
    """REBAR, for Bernoulli choices: a score whose control variate is the relaxed payoff.

    Args:
        relaxed: f(s), or f(params, s) where ``params`` are given: what follows the choice, of draws
            f32[batch_shape of the choice] between 0 and 1, to one number f32[].
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
    check_control(relaxed, "ppl.rebar(relaxed)")
    f = relaxed if params is not None else Alone(relaxed)
    return Relax((params, temperature, eta), Concrete(f), weight, "rebar")
