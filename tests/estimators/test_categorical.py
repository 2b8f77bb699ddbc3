"""Categorical REBAR and RELAX, sets without replacement, steps by 1: unbiased in every construct.

Each is held against enumeration, in float64, by the two-stage z-test of ``ztest.py``: 31 numbers
for each of five estimators, so that a right suite fails with probability 3e-6.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ztest
from jax import lax

import ppl
from ppl import dist

pytestmark = pytest.mark.usefixtures("x64")

W = np.random.default_rng(5).normal(size=(2, 3, 4))
PHI = {
    "vector": np.array([[0.4, -0.9, 1.2], [0.1, 0.3, -0.4]]),
    "plate": np.array([0.3, -0.2, 0.8]),
    "loop": np.array([0.5, 0.1, -0.3]),
    "branch": np.array([-0.4, 0.2, 0.1]),
    "guide": np.array([[0.6, -1.1, 0.2], [0.4, 0.3, -0.5]]),
    "probs": np.array([[0.3, 0.5, 0.2], [0.8, 0.05, 0.15]]),
    "shared": np.array([0.2, -0.3, 0.4]),
}
LEARNED = np.array([0.3, -0.2, 0.5, 0.1])


def everywhere(phi, e):
    """Choices in straight line, ``vmap``, ``scan``, ``cond``, a nested program and an expectation
    inside, each with a parameter of its own."""
    k = ppl.sample("vector", dist.Categorical(logits=phi["vector"]).to_event(1), e)
    w = jnp.asarray(W)
    total = jax.nn.logsumexp(w[0, k[0]] + w[1, k[1]])

    def element(x):
        c = ppl.sample("plate", dist.Categorical(logits=x * phi["shared"]), e)
        return (c - 0.3) ** 2 * x

    total += jnp.sum(jax.vmap(element)(phi["plate"])) * k[0]

    def step(x, _):
        c = ppl.sample("loop", dist.Categorical(logits=phi["loop"] * (1.0 + 0.3 * x)), e)
        return x + c - 1.0, jnp.sin(x + c)

    x, ys = lax.scan(step, 0.0, length=2)
    total += x**2 + jnp.sum(ys)
    law = dist.Categorical(logits=phi["branch"])
    there = lambda: 1.0 * ppl.sample("branch", law, e)
    total += lax.cond(k[1] == 1, there, lambda: jnp.sum(phi["branch"] ** 2))

    @ppl.gen
    def model():
        z = ppl.sample("z", dist.Categorical(np.array([0.3, 0.5, 0.2])).expand((2,)))
        ppl.sample("x", dist.Normal(0.5 * z[0] * z[1] - z[0], 0.8))

    @ppl.gen
    def inside():
        jax.vmap(lambda l: ppl.sample("z", dist.Categorical(logits=l), e))(phi["guide"])

    total += ppl.elbo(model(), inside(), {"x": 0.4})

    @ppl.expectation
    def alone(p):
        return jnp.exp(0.5 * ppl.sample("alone", dist.Categorical(p), e) * p[0])

    return total + jnp.sum(jax.vmap(alone)(phi["probs"]))


def control(w, z):
    return jnp.sum(jnp.tanh(w[0] * z[..., 0] + w[1] * z[..., 2])) * w[2] + w[3]


def quadratic(s):
    return jnp.sum((s @ jnp.arange(3.0) - 0.4) ** 2)


ESTIMATORS = {
    "rebar": ppl.rebar(quadratic, temperature=0.7, eta=0.8),
    "relax": ppl.relax(control, LEARNED),
    "unordered(2)": ppl.unordered(),
    "unordered(3)": ppl.unordered(3),
    "spa": ppl.spa(),
    "stein": ppl.stein(quadratic),
}


@functools.cache
def exact():
    by_enumeration = ppl.expectation(functools.partial(everywhere, e=ppl.enum()))
    with jax.enable_x64(True):
        return jax.device_get(by_enumeration.value_and_grad(jax.random.key(0), PHI))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_unbiased(name):
    objective = ppl.expectation(functools.partial(everywhere, e=ESTIMATORS[name]))
    samples = 3 if name == "stein" else 1
    one = lambda key: objective.value_and_grad(key, PHI, samples=samples)
    ztest.check(one, exact(), n=10_000 // samples)


def test_values_of_probability_0():
    """They are passed over; where the derivative in such a probability is asked for, and nothing
    tries it, it is not a number."""
    gap = jnp.array([0.3, -jnp.inf, -jnp.inf, 0.2, -jnp.inf])

    @ppl.expectation
    def f(t, e):
        k = ppl.sample("k", dist.Categorical(logits=gap + t * jnp.arange(5.0)), e)
        return jnp.array([1.0, 50.0, -9.0, 3.0, 70.0])[k]

    exact = f.grad(jax.random.key(0), 0.1, ppl.enum())
    c = lambda w, z: w * z[0] / 100.0
    tried = (ppl.spa(), ppl.unordered(2), ppl.unordered(3), ppl.relax(c, 1.0))
    ztest.check(lambda key: [f.grad(key, 0.1, e) for e in tried], [exact] * len(tried), n=4000)

    @ppl.expectation
    def g(p, e):
        return jnp.array([1.0, 5.0, 2.0])[ppl.sample("k", dist.Categorical(p), e)]

    p = jnp.array([0.4, 0.0, 0.6])
    assert np.isnan(g.grad(jax.random.key(0), p, ppl.spa())).tolist() == [False, True, False]
    h = ppl.expectation(lambda t: g(jnp.stack([t, 0.0, 1.0 - t]), ppl.spa()))
    ztest.check(lambda key: h.grad(key, 0.4), -1.0, n=1000)  # a 0 that is no parameter is nothing
    grad = g.grad(jax.random.key(0), p, ppl.unordered(3))
    np.testing.assert_allclose(grad, [1.0, 5.0, 2.0], rtol=1e-10)


def test_what_is_refused():
    for e, why in ((ppl.unordered(), "not finite"), (ppl.spa(), "no steps by 1")):

        @ppl.expectation
        def f(t, e=e):
            return ppl.sample("x", dist.Normal(t, 1.0), e)

        with pytest.raises(ppl.UnsupportedError, match=why):
            f.value(jax.random.key(0), 1.0)
    for make in (lambda: ppl.unordered(1), lambda: ppl.unordered(9), lambda: ppl.spa(0)):
        with pytest.raises(ValueError, match="Type ppl"):
            make()
