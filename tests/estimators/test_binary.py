"""DisARM, REBAR and RELAX: unbiased in every construct, and of the variance of the literature.

Each is held against enumeration, in float64, by the two-stage z-test of ``ztest.py``: 14 numbers
for each of four estimators, so that a right suite fails with probability 1e-6.
"""

from __future__ import annotations

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import ztest
from jax import lax

import ppl
from ppl import dist

pytestmark = pytest.mark.usefixtures("x64")

W = np.random.default_rng(5).normal(size=(4, 3))
PHI = {
    "vector": np.array([0.4, -0.9, 1.2]),
    "plate": np.array([0.3, -0.2, 0.8]),
    "loop": np.array(0.5),
    "branch": np.array(-0.4),
    "guide": np.array([0.6, -1.1]),
    "probs": np.array([0.3, 0.8]),
    "shared": np.array(0.2),
}
LEARNED = np.array([0.3, -0.2, 0.5, 0.1])


def everywhere(phi, e):
    """Choices in straight line, ``vmap``, ``scan``, ``cond``, a nested program and an expectation
    inside, each with a parameter of its own; ``e`` are estimators for 3 elements and for one."""
    vector, one = e
    b = ppl.sample("vector", dist.Bernoulli(logits=phi["vector"]).to_event(1), vector)
    total = jax.nn.logsumexp(W @ b)

    def element(x):
        c = ppl.sample("plate", dist.Bernoulli(logits=x * phi["shared"]), one)
        return (c - 0.3) ** 2 * x

    total += jnp.sum(jax.vmap(element)(phi["plate"])) * b[0]

    def step(x, _):
        c = ppl.sample("loop", dist.Bernoulli(logits=phi["loop"] + 0.3 * x), one)
        return x + 2.0 * c - 1.0, jnp.sin(x + c)

    x, ys = lax.scan(step, 0.0, length=3)
    total += x**2 + jnp.sum(ys)
    up = lambda: 1.0 * ppl.sample("branch", dist.Bernoulli(logits=phi["branch"]), one)
    total += lax.cond(b[1] == 1, up, lambda: phi["branch"] ** 2)

    @ppl.gen
    def model():
        z = ppl.sample("z", dist.Bernoulli(0.3).expand((2,)))
        ppl.sample("x", dist.Normal(z[0] * z[1] - z[0], 0.8))

    @ppl.gen
    def inside():
        return jax.vmap(lambda l: ppl.sample("z", dist.Bernoulli(logits=l), one))(phi["guide"])

    total += ppl.elbo(model(), inside(), {"x": 0.4})

    @ppl.expectation
    def alone(p):
        return jnp.exp(0.5 * ppl.sample("alone", dist.Bernoulli(p), one) * p)

    return total + jnp.sum(jax.vmap(alone)(phi["probs"]))


def control(w, z):
    return jnp.sum(jnp.tanh(w[0] * z + w[1])) * w[2] + w[3]


def quadratic(s):
    return jnp.sum((s - 0.4) ** 2 + s)


ESTIMATORS = {
    "disarm": ppl.disarm(),
    "rebar": ppl.rebar(quadratic, temperature=0.7, eta=0.8),
    "relax": ppl.relax(control, LEARNED),
    "relax, no parameters": ppl.relax(lambda z: jnp.sum(jnp.sin(z))),
    "stein": ppl.stein(quadratic),
}


@functools.cache
def exact():
    by_enumeration = ppl.expectation(functools.partial(everywhere, e=(ppl.enum(), ppl.enum())))
    with jax.enable_x64(True):
        return jax.device_get(by_enumeration.value_and_grad(jax.random.key(0), PHI))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_unbiased(name):
    e = ESTIMATORS[name]
    objective = ppl.expectation(functools.partial(everywhere, e=(e, e)))
    samples = 3 if name == "stein" else 1
    one = lambda key: objective.value_and_grad(key, PHI, samples=samples)
    ztest.check(one, exact(), n=10_000 // samples)


TEN = json.loads((pathlib.Path(__file__).parents[1] / "laws/acceptance.json").read_text())
TEN = np.array(TEN["ten_bernoulli_energy"]["params"]["phi"])
WEIGHTS = np.random.default_rng(0).normal(size=(10, 10)) * 0.4


def energy(b):
    return jax.nn.logsumexp(WEIGHTS @ b)


def variance(estimator, of=energy, by="plate", samples=1):
    @ppl.expectation
    def objective(phi):
        if by == "plate":
            draw = lambda p: ppl.sample("b", dist.Bernoulli(logits=p), estimator)
            return of(jax.vmap(draw)(phi))
        return of(ppl.sample("b", dist.Bernoulli(logits=phi), estimator))

    keys = jax.random.split(jax.random.key(1), 20_000)
    grads = ztest.compiled(jax.vmap(lambda key: objective.grad(key, TEN, samples=samples)))(keys)
    return float(grads.var(0).sum())


def test_variance_of_the_literature():
    """Ten Bernoulli choices that meet: .301 for DisARM, 20.7 for REINFORCE; 20,000 draws."""
    np.testing.assert_allclose(variance(ppl.disarm()), 0.301, rtol=0.05)
    np.testing.assert_allclose(variance(ppl.disarm(), by="vector"), 0.301, rtol=0.05)
    np.testing.assert_allclose(variance(ppl.reinforce()), 20.7, rtol=0.1)
    rebar = variance(ppl.rebar(energy, temperature=0.5), by="vector")
    assert rebar < 0.2, rebar
    stein = variance(ppl.stein(energy), by="vector", samples=2)
    assert stein < 0.3, stein  # of the same samples, "loo" has .335


def test_probabilities_of_0_and_1():
    """What is never tried is not silently 0; logits that round have a derivative of 0."""

    @ppl.expectation
    def flip(p, make):
        return 3.0 * ppl.sample("b", make(p), ppl.disarm())

    probs = lambda p: flip.grad(jax.random.key(0), p, dist.BernoulliProbs)
    assert np.isnan(probs(0.0)) and np.isnan(probs(1.0))
    np.testing.assert_allclose(probs(0.5), 3.0, rtol=1e-6)  # partners differ: no variance
    logits = flip.grad(jax.random.key(0), 800.0, dist.BernoulliLogits)
    np.testing.assert_allclose(logits, 0.0, atol=1e-300)


def test_a_control_learns():
    """By least squares, ascending and descending; the gradient of the rest stays what it was."""

    @ppl.expectation
    def objective(params):
        linear = lambda w, z: w[0] + w[1] * jax.nn.sigmoid(3.0 * z)
        e = ppl.relax(linear, params["w"])
        return jnp.exp(2.0 + 0.5 * ppl.sample("b", dist.Bernoulli(logits=params["phi"]), e))

    start = {"phi": jnp.array(0.3), "w": jnp.zeros(2)}
    held = optax.masked(optax.set_to_zero(), {"phi": True, "w": False})
    optimizer = optax.chain(optax.sgd(0.2), held)
    for fit in (ppl.maximize, ppl.minimize):
        key = jax.random.key(0)
        done = fit(objective, start, optimizer, key=key, steps=400, samples=16, progress=False)
        w = done.params["w"]
        assert 6.5 < w[0] < 7.9 and 11.0 < w[0] + w[1] < 13.5, w  # exp(2), exp(2.5)
    gradients = jax.vmap(lambda key: objective.grad(key, {**start, "w": w})["phi"])
    before = jax.vmap(lambda key: objective.grad(key, start)["phi"])
    keys = jax.random.split(jax.random.key(1), 2000)
    assert gradients(keys).var() < 0.15 * before(keys).var()


def test_what_is_refused():
    for e in (ppl.disarm(), ppl.relax(jnp.sum), ppl.rebar(jnp.sum), ppl.stein(jnp.sum)):

        @ppl.expectation
        def f(t, e=e):
            return 1.0 * ppl.sample("k", dist.Poisson(t), e)

        with pytest.raises(ppl.UnsupportedError, match=r"'k' ~ Poisson at .*no Bernoulli"):
            f.value(jax.random.key(0), 1.0)

    @ppl.expectation
    def several(t):
        e = ppl.relax(lambda z: z)
        return 1.0 * jnp.sum(ppl.sample("b", dist.Bernoulli(t), e))

    with pytest.raises(ValueError, match="one number"):
        several.grad(jax.random.key(0), jnp.array([0.3, 0.4]))
    with pytest.raises(ValueError, match="Give a function"):
        ppl.relax(3.0)
