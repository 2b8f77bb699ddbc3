"""Replays side by side are what they are one by one, and their gradients are exact."""

from __future__ import annotations

from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from ztest import check, compiled

import ppl
from ppl import dist
from transforms.gradient import replay

KEY = jax.random.key(0)
mvd = ppl.mvd


@ppl.gen
def pair(m: Any) -> Any:
    a = ppl.sample("a", dist.Normal(m, 1.0), mvd())
    return a + ppl.sample("b", dist.Exponential(jnp.exp(0.1 * a)), mvd())


@ppl.expectation
def everything(t: Any) -> Any:
    """Choices inside functions, branches, loops, plates and programs, and other estimators."""
    x = ppl.sample("x", dist.Normal(t[0], jnp.exp(t[1])), mvd())
    k = ppl.sample("k", dist.Bernoulli(logits=x), ppl.enum())
    u = jax.jit(lambda m: ppl.sample("u", dist.Normal(m, 1.0), mvd()))(x * t[1] + k)
    ya = lambda m: ppl.sample("ya", dist.Normal(m, 1.0), mvd()) ** 2
    yb = lambda m: ppl.sample("yb", dist.Poisson(jnp.exp(0.1 * m)), mvd()) * 2.0
    y = lax.cond(u > 0.2, ya, yb, u * t[2])
    v = jax.vmap(lambda m: ppl.sample("v", dist.Normal(m * x, 1.0), mvd()))(jnp.arange(3.0))

    def step(c: Any, _: Any) -> Any:
        return c + ppl.sample("s", dist.Bernoulli(logits=t[1] * c), mvd()), None

    c = lax.scan(step, y, None, length=3)[0]
    r = ppl.sample("r", dist.Normal(c, 1.0), ppl.reinforce())
    h = ppl.sample("h", pair(r * t[2]))
    w = ppl.sample("w", dist.Normal(h, 1.0))
    return jnp.sin(w) * x + jnp.sum(v**2) * k + jnp.prod(v) + y * u + r


def test_side_by_side_is_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    t = jnp.array([0.3, -0.4, 0.7])

    def grad() -> Any:
        return jax.make_jaxpr(jax.grad(lambda t: everything.surrogate(KEY, t)))(t)

    together = grad()
    monkeypatch.setattr(replay, "MOST_NUMBERS", 0)
    alone = grad()
    assert len(alone.jaxpr.eqns) > len(together.jaxpr.eqns)
    found, exact = (compiled(jax.extend.core.jaxpr_as_fun(p))(t)[0] for p in (together, alone))
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_a_chain_of_mixed_estimators() -> None:
    """x' ~ N(a x + b, s), of which all moments are known; z-test."""
    kinds = [mvd(), ppl.reparam(), mvd(), ppl.reinforce(), mvd()]

    @ppl.expectation
    def f(t: Any) -> Any:
        x, total = 0.0, 0.0
        for i, kind in enumerate(kinds):
            x = ppl.sample(f"x{i}", dist.Normal(t[0] * x + t[1], t[2]), kind)
            total += (i + 1.0) * x**2 / 10.0
        return total

    def exact(t: Any) -> Any:
        mean, square, total = 0.0, 0.0, 0.0
        for i in range(len(kinds)):
            square = t[0] ** 2 * square + 2 * t[0] * t[1] * mean + t[1] ** 2 + t[2] ** 2
            mean = t[0] * mean + t[1]
            total += (i + 1.0) * square / 10.0
        return total

    t = jnp.array([0.6, 0.3, 0.8])
    check(lambda key: f.grad(key, t), jax.grad(exact)(t))


class InRounds(ppl.Continued):
    """Asks for a value where it knows the payoff of another, at once or in a branch."""

    name = "in rounds"

    def __init__(self, branch: bool) -> None:
        self.branch = branch

    def unsuitable(self, d: Any) -> str | None:
        return None

    def surrogate(self, site: Any, key: Any, k: Any) -> Any:
        zero = k(0 * site.value)
        next_ = lambda: k(jnp.where(zero > -1.0, 1, 5) + 0 * site.value)
        one = lax.cond(zero > -1.0, next_, lambda: 0.0) if self.branch else next_()
        return site.per_element(lambda d: d.probs) * (one - zero)


@pytest.mark.parametrize("branches", [(False, False), (False, True), (True, True)])
def test_questions_in_rounds(branches: tuple[bool, bool]) -> None:
    @ppl.expectation
    def f(p: Any) -> Any:
        a, b = (
            ppl.sample(f"b{i}", dist.Bernoulli(p[i]), InRounds(branch))
            for i, branch in enumerate(branches)
        )
        return 2.0 * a + jnp.exp(1.0 * b) + a

    grad = f.grad(KEY, jnp.array([0.3, 0.6]))
    np.testing.assert_allclose(grad, [3.0, np.e - 1.0], rtol=1e-6)
