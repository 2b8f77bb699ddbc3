"""Leaves of a loop that a step adds up: nothing changes but what is stacked.

Each payoff of a step is compared with itself where leaves are stacked whole, at the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ppl
from ppl import dist
from transforms import _jax
from transforms.analyses import terms

T, D, N = 5, 2, 7
RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
W = np.asarray(RNG.normal(size=(D, N)), np.float32)
Y = np.asarray(RNG.integers(0, 2, (T, N)), np.float32)


def normal(z: Any, y: Any, s: Any) -> Any:
    return jnp.sum(-0.5 * ((y - z @ W) / s) ** 2 - jnp.log(s))


def bits(z: Any, y: Any, s: Any) -> Any:
    logits = z @ W * s
    return jnp.sum(y * logits - jax.nn.softplus(logits))


def weighed_twice(z: Any, y: Any, s: Any) -> Any:
    return jnp.sum(s * (y * jnp.sin(z @ W) * (1.0 - 3 * y) + jnp.cos(z @ W) / 3.0 - y))


def one_by_one(z: Any, y: Any, s: Any) -> Any:
    """Elements are told apart along one axis, and not along the other."""
    return jnp.sum(jnp.sin(z[:, None] * W + y)) * s


def hidden(z: Any, y: Any, s: Any) -> Any:
    """Numbers that are not finite, times 0."""
    return jnp.sum(y * jnp.log(y * jnp.exp(z[0]))) * s


def in_a_function(z: Any, y: Any, s: Any) -> Any:
    return jnp.sum(jax.jit(lambda x: y * jnp.sin(x) - jnp.cos(x))(z @ W) * s)


def read_twice(z: Any, y: Any, s: Any) -> Any:
    """Its numbers are needed one by one, too."""
    x = jax.jit(jnp.sin)(z @ W)
    return jnp.sum(x) * s + jnp.sum(x * y[::-1]) + x[2]


PAYOFFS = [normal, bits, weighed_twice, one_by_one, hidden, in_a_function, read_twice]


def objective(payoff: Callable[..., Any], estimator: Any) -> Callable[..., Any]:
    @ppl.expectation
    def f(m: jax.Array, s: jax.Array) -> jax.Array:
        def step(carry: Any, y: Any) -> Any:
            z, total = carry
            z = ppl.sample("z", dist.Normal(m + 0.5 * z, s), estimator())
            return (z, total + payoff(z, y, s)), None

        return lax.scan(step, (jnp.zeros(D), 0.0), Y)[0][1]

    return lambda m, s: f.surrogate(KEY, m, s)


ARGS = np.array([0.3, -0.2], np.float32), np.float32(0.7)


@pytest.mark.parametrize("payoff", PAYOFFS, ids=lambda f: f.__name__)
def test_values_and_gradients_stay(payoff: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = jax.jit(jax.value_and_grad(objective(payoff, ppl.reinforce), (0, 1)))(*ARGS)
    monkeypatch.setattr(terms, "sum_in_loops", lambda level, told_apart: None)
    whole = jax.jit(jax.value_and_grad(objective(payoff, ppl.reinforce), (0, 1)))(*ARGS)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, equal_nan=False)


@pytest.mark.parametrize(
    "payoff", [normal, bits, weighed_twice, in_a_function], ids=lambda f: f.__name__
)
def test_a_step_stacks_sums(payoff: Any) -> None:
    traced = jax.make_jaxpr(objective(payoff, ppl.reinforce))(*ARGS)
    assert max(v.aval.size for v in stacked(traced)) == T * D


def test_what_a_step_computes_twice_is_stacked_once() -> None:
    """The density of a draw is a term and a score: it and what its derivative needs are stacked."""

    @ppl.gen
    def guide(m: jax.Array, s: jax.Array) -> None:
        def step(z: Any, _: Any) -> Any:
            return ppl.sample("z", dist.Normal(m + 0.5 * z, s), ppl.reinforce()), None

        lax.scan(step, jnp.zeros(D), length=T)

    elbo = ppl.expectation(lambda m, s: -guide(m, s).simulate().log_density)
    traced = jax.make_jaxpr(jax.grad(lambda m, s: elbo.surrogate(KEY, m, s)))(*ARGS)
    shapes = [v.aval.shape for v in stacked(traced)]
    assert shapes.count((T, D)) == 2


def stacked(closed: Any) -> Iterator[Any]:
    """The variables that loops return."""
    for eqn in closed.jaxpr.eqns:
        if eqn.primitive.name == "scan":
            yield from eqn.outvars
        for sub in _jax.sub_jaxprs(eqn):
            yield from stacked(sub)
