r"""RELAX: the score of a Bernoulli choice, with a control variate of a relaxed draw.

z = φ + log u - log(1 - u) is a logistic draw with b = 1[z > 0], z' another one given the same b,
and c any differentiable function of it. With φ the log odds,

    d/dφ E[f(b)] = E[ (f(b) - c(z')) d log p(b)/dφ + d c(z)/dφ - d c(z')/dφ ]

z and z' are driven by the same noise, so that they have one value and two derivatives. The variance
is small where c(z') is near f(b). Only f(b) runs the program: no more evaluations of what follows.

Conditions: Bernoulli choices; c is continuous, and depends on nothing that comes after the choice.
Where c has parameters they learn by least squares, min (f(b) - c(z'))^2, while the objective is
fitted (Grathwohl et al. descend the variance, which takes a second gradient). First derivatives
only. Sources: Grathwohl, Choi, Wu, Roeder & Duvenaud, "Backpropagation through the void", 2018;
Tucker, Mnih, Maddison, Lawson & Sohl-Dickstein, "REBAR", 2017.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp
from jax import lax

from transforms import _jax
from transforms.errors import describe
from transforms.estimation.estimator import Continued, LocalSite

from .bernoulli import log_masses, not_a_coin


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Relax(Continued):
    """A relaxed control variate; see the module docstring."""

    params: Any
    control: Callable[[Any, jax.Array], jax.Array] = dataclasses.field(metadata={"static": True})
    weight: float = dataclasses.field(default=1.0, metadata={"static": True})
    label: str = dataclasses.field(default="relax", metadata={"static": True})
    elementwise = True

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.label

    def unsuitable(self, d: Any) -> str | None:
        return not_a_coin(d)

    def surrogate(
        self, site: LocalSite, key: jax.Array, k: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        def one(d: Any, own: Any, key: jax.Array, x: jax.Array, payoff: jax.Array) -> jax.Array:
            zero, one = log_masses(d, x)
            z, again = _relaxed(zero, one, key, x)
            fixed = lax.stop_gradient(own.params)
            c, moved = (own.evaluate(fixed, z) for z in (again, z))
            score = jnp.where(x == 1, one, zero)
            sampling = jnp.sum((payoff - lax.stop_gradient(c)) * score) + moved - c
            learning = own.evaluate(own.params, lax.stop_gradient(again))
            error = lax.stop_gradient(jnp.mean(payoff) - learning)
            return sampling + self.weight * site.direction * error * learning

        apart = [n if a else 1 for n, a in zip(site.value.shape, site.apart, strict=True)]
        payoff = lax.stop_gradient(site.payoff).reshape(apart)
        payoff = jnp.broadcast_to(payoff, site.value.shape)
        return jnp.sum(site.per_element_with(self, one, site.keys(key), site.value, payoff))

    def evaluate(self, params: Any, z: jax.Array) -> jax.Array:
        """c(z), f32[]."""
        c = jnp.asarray(self.control(params, z))
        if c.shape != ():
            raise ValueError(
                f"the control of ppl.{self.name} returns shape {c.shape} for z of shape {z.shape} "
                f"({_jax.user_line()}): it is one number. Sum it over the elements of z."
            )
        return c


def _relaxed(
    zero: jax.Array, one: jax.Array, key: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """z and z', of one value: the first moves with the log odds at fixed u, the second at fixed x
    and noise."""
    v = jax.random.uniform(key, x.shape, zero.dtype, minval=jnp.finfo(zero.dtype).eps)
    noise = jnp.log(v) - jnp.log1p(-v)
    again = jnp.where(x == 1, jnp.logaddexp(noise - zero, 0.0), -jnp.logaddexp(-noise - one, 0.0))
    odds = one - zero
    return lax.stop_gradient(again) + odds - lax.stop_gradient(odds), again


def relax(control: Callable[..., Any], params: Any = None, *, weight: float = 1.0) -> Relax:
    """RELAX, for Bernoulli choices: a score with a control variate of a relaxed draw.

    Args:
        control: c(z), or c(params, z) where ``params`` are given: f32[batch_shape of the choice]
            (real numbers, positive where the draw is 1) to one number f32[], close to the payoff.
            Arrays that it needs are ``params``; it closes over none that are traced.
        params: any pytree of arrays. Where it depends on the parameters of the objective it is
            learned while that is maximised or minimised, by least squares.
        weight: step size of that, relative to the other parameters.

    Example:
        >>> control = lambda w, z: jnp.sum(w * jax.nn.sigmoid(z))
        >>> @ppl.expectation
        ... def loss(p):
        ...     coins = dist.Bernoulli(logits=p["logits"])
        ...     return jnp.sum((ppl.sample("b", coins, ppl.relax(control, p["w"])) - 0.4) ** 2)
        >>> grad = loss.grad(key, {"logits": jnp.zeros(3), "w": jnp.zeros(3)}, samples=10)
    """
    check_control(control, "ppl.relax(control)")
    return Relax(params, control if params is not None else Alone(control), weight)


@final
@dataclasses.dataclass(frozen=True)
class Alone:
    """A function of z alone, as one of parameters and z."""

    f: Callable[[jax.Array], Any]

    def __call__(self, params: Any, z: jax.Array) -> Any:
        return self.f(z)


def check_control(f: Any, what: str) -> None:
    """Refuse what is no function."""
    if not callable(f):
        raise ValueError(
            f"{what} gets {describe(f)} ({_jax.user_line()}). Give a function of the relaxed draws "
            "that returns one number."
        )
