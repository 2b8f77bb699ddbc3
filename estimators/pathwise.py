r"""Pathwise (reparameterised) draws.

    x = g(ε, θ), ε ~ fixed:   d/dθ E[f(x)] = E[ df/dθ + f'(x) dg/dθ ]

Conditions: f is continuous, piecewise differentiable and locally Lipschitz in x with an
integrable constant. A support that depends on θ is fine. One run of the program. Sources: Kingma
& Welling 2014; Rezende, Mohamed & Wierstra 2014.
"""

from __future__ import annotations

import dataclasses
from typing import Any, final

import jax

from transforms.estimator import InPlace


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reparam(InPlace):
    """Pathwise derivative of the draw; see the module docstring."""

    name = "reparam"

    def unsuitable(self, d: Any) -> str | None:
        if getattr(d, "has_rsample", True):
            return None
        return "its draws are not a differentiable function of its parameters. Use ppl.reinforce()."

    def draw(self, d: Any, key: jax.Array, sample_shape: tuple[int, ...]) -> jax.Array:
        return d.sample(key, sample_shape)


def reparam() -> Reparam:
    """The pathwise estimator: differentiates through the draw."""
    return Reparam()
