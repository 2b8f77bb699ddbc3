r"""RELAX: the score of a discrete choice, with a control variate of a relaxed draw.

z is a draw of real numbers of which the choice b is a function (``relaxed.py``: a logistic one and
its sign, Gumbel draws and their argmax), z' another one given the same b, and c any differentiable
function of it. Then

    d/dφ E[f(b)] = E[ (f(b) - c(z')) d log p(b)/dφ + d c(z)/dφ - d c(z')/dφ ]

z and z' are driven by the same noise, so that they have one value and two derivatives. The variance
is small where c(z') is near f(b). Only f(b) runs the program: no more evaluations of what follows.

Conditions: Bernoulli or Categorical choices; c is continuous, and depends on nothing that comes
after the choice.
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

from .relaxed import kind, not_relaxed

Link = Callable[[jax.Array], jax.Array]
Control = Callable[[Any, jax.Array, Link], Any]
"""c, of parameters, z, and what maps z to values like those of the choice."""


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Relax(Continued):
    """A relaxed control variate; see the module docstring."""

    params: Any
    control: Control = dataclasses.field(metadata={"static": True})
    weight: float = dataclasses.field(default=1.0, metadata={"static": True})
    label: str = dataclasses.field(default="relax", metadata={"static": True})
    elementwise = True

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.label

    def unsuitable(self, d: Any) -> str | None:
        return not_relaxed(d)

    def surrogate(
        self, site: LocalSite, key: jax.Array, k: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        def one(d: Any, own: Any, key: jax.Array, x: jax.Array, payoff: jax.Array) -> jax.Array:
            how = kind(d)
            drawn = how.draw(d, key, x)
            fixed = lax.stop_gradient(own.params)
            at = lambda params, z: one_number(own.control(params, z, how.link), z, own.name)
            c, moved = at(fixed, drawn.again), at(fixed, drawn.z)
            score = payoff * drawn.log_prob - lax.stop_gradient(c) * drawn.own_log_prob
            sampling = jnp.sum(score) + moved - c
            learning = at(own.params, lax.stop_gradient(drawn.again))
            error = lax.stop_gradient(jnp.mean(payoff) - learning)
            return sampling + self.weight * site.direction * error * learning

        apart = [n if a else 1 for n, a in zip(site.value.shape, site.apart, strict=True)]
        payoff = lax.stop_gradient(site.payoff).reshape(apart)
        payoff = jnp.broadcast_to(payoff, site.value.shape)
        return jnp.sum(site.per_element_with(self, one, site.keys(key), site.value, payoff))


def one_number(c: Any, z: jax.Array, name: str) -> jax.Array:
    """What a control returns for z, f32[]; refuses another shape."""
    c = jnp.asarray(c)
    if c.shape != ():
        raise ValueError(
            f"the control of ppl.{name} returns shape {c.shape} for z of shape {z.shape} "
            f"({_jax.user_line()}): it is one number. Sum it over the elements of z."
        )
    return c


def relax(control: Callable[..., Any], params: Any = None, *, weight: float = 1.0) -> Relax:
    """RELAX: a score with a control variate of a relaxed draw; Bernoulli and Categorical choices.

    Args:
        control: c(z), or c(params, z) where ``params`` are given, to one number f32[], close to the
            payoff. Of Bernoulli choices z is f32[batch_shape of the choice], positive where the
            draw is 1; of categorical ones f32[batch_shape, K], the largest at the draw. Arrays that
            it needs are ``params``; it closes over none that are traced.
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
    return Relax(params, as_control(control, params, "ppl.relax(control)"), weight)


@final
@dataclasses.dataclass(frozen=True)
class Plain:
    """A function of z, or of parameters and z, as a control."""

    f: Callable[..., Any]
    alone: bool

    def __call__(self, params: Any, z: jax.Array, link: Link) -> Any:
        return self.f(z) if self.alone else self.f(params, z)


def as_control(f: Any, params: Any, what: str) -> Plain:
    """What a user typed, as a control; refuses what is no function."""
    if not callable(f):
        raise ValueError(
            f"{what} gets {describe(f)} ({_jax.user_line()}). Give a function of the relaxed draws "
            "that returns one number."
        )
    return Plain(f, params is None)
