r"""Pathwise (reparameterised) draws.

    x = g(ε, θ), ε ~ fixed:   d/dθ E[f(x)] = E[ df/dθ + f'(x) dx/dθ ]

with dx/dθ = dg/dθ, or, where g is not known, the implicit derivative -(dF/dθ) / p(x) of
``implicit.py``. Conditions: f is continuous, piecewise differentiable and locally Lipschitz in x
with an integrable constant. A support that depends on θ is fine. On the circle (VonMises),
continuous means of period 2π. One run of the program. Sources: Kingma & Welling 2014; Rezende,
Mohamed & Wierstra 2014; Figurnov, Mohamed & Mnih 2018; Jankowiak & Obermeyer 2018.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from transforms.estimation.draws import sampled
from transforms.estimation.estimator import InPlace
from transforms.program.opened import arrays

from . import implicit


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reparam(InPlace):
    """Pathwise derivative of the draw; see the module docstring."""

    name = "reparam"

    def unsuitable(self, d: Any) -> str | None:
        return rule(d).unsuitable(d)

    def draw(self, d: Any, key: jax.Array, sample_shape: tuple[int, ...]) -> jax.Array:
        return rule(d).draw(d, key, tuple(sample_shape))


def reparam() -> Reparam:
    """The pathwise estimator: differentiates through the draw.

    Example:
        >>> f = ppl.expectation(lambda m: ppl.sample("x", dist.Normal(m, 1.0), ppl.reparam()))
        >>> float(f.grad(key, 0.0))
        1.0
    """
    return Reparam()


# --- the rules ---------------------------------------------------------------------------


@final
@dataclasses.dataclass(frozen=True)
class Rule:
    """How to draw from one family of distributions, with the pathwise derivative."""

    draw: Callable[[Any, jax.Array, tuple[int, ...]], jax.Array]
    unsuitable: Callable[[Any], str | None] = lambda d: None


def rule(d: Any) -> Rule:
    kinds = [k for k in type(d).__mro__ if k in RULES and k.sample is type(d).sample]
    return RULES[kinds[0]] if kinds else RULES.get(type(d).sample, NATIVE)


def draw(d: Any, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return rule(d).draw(d, key, shape)


def _undeclared(d: Any) -> str | None:
    if not isinstance(d, dist.Distribution):
        return None  # a random key
    # has_rsample is true by default, of a class that declares nothing at all
    declared = d.has_rsample or not d.arg_constraints
    if declared and (d.reparametrized_params or (d.has_rsample and not arrays(d))):
        return None
    other = "ppl.enum() or ppl.reinforce()" if d.has_enumerate_support else "ppl.reinforce()"
    return f"its draws are not a differentiable function of its parameters. Use {other}."


def _expanded(d: Any, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    base = d.base_dist
    front = (*shape, *d.batch_shape[: len(d.batch_shape) - len(base.batch_shape)])
    back = d.batch_shape[len(d.batch_shape) - len(base.batch_shape) :]
    grown = [i for i, n in enumerate(base.batch_shape) if n != back[i]]
    x = draw(base, key, (*front, *(back[i] for i in grown)))
    # each grown axis takes the place of the axis of size 1 that it came from
    n = len(front)
    x = jnp.squeeze(x, [n + len(grown) + i for i in grown])
    return jnp.moveaxis(x, range(n, n + len(grown)), [n + i for i in grown])


def _transformed(d: Any, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    x = draw(d.base_dist, key, shape)
    for transform in d.transforms:
        x = transform(x)
    return x


def _of_base(d: Any) -> str | None:
    return rule(d.base_dist).unsuitable(d.base_dist)


def _draw_base(d: Any, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return draw(d.base_dist, key, shape)


def _native(d: Any, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return sampled(d, key, shape)


NATIVE = Rule(_native, _undeclared)

# By class or by the method that is replaced, so that a subclass that draws in a way of its own is
# not taken for its parent.
RULES: dict[Any, Rule] = {
    dist.Independent.sample: Rule(_draw_base, _of_base),
    dist.MaskedDistribution.sample: Rule(_draw_base, _of_base),
    dist.ExpandedDistribution.sample: Rule(_expanded, _of_base),
    dist.TransformedDistribution.sample: Rule(_transformed, _of_base),
    # not declared by numpyro, but measured right (tests/estimators/test_pathwise.py)
    dist.Levy.sample: Rule(_native),
    dist.WishartCholesky.sample: Rule(_native),
    dist.InverseWishartCholesky.sample: Rule(_native),
    dist.Gamma.sample: Rule(implicit.gamma),  # Chi2 too
    dist.InverseGamma: Rule(implicit.inverse_gamma),
    dist.Beta.sample: Rule(implicit.beta),  # BetaProportion too
    dist.Dirichlet.sample: Rule(implicit.dirichlet),
    dist.StudentT.sample: Rule(implicit.student_t),
    dist.VonMises.sample: Rule(implicit.von_mises),
    dist.MixtureSameFamily.sample: Rule(implicit.mixture, implicit.mixture_unsuitable),
}
