"""The baseline inside a multi-sample bound: unbiased, and VIMCO where the bound is the IWELBO."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ztest
from jax import lax
from jax.scipy.special import logsumexp

import ppl
from ppl import dist

pytestmark = pytest.mark.usefixtures("x64")

WITHIN = ppl.reinforce("within")
PHI = np.array([0.4, -0.6, 0.3])
XS = np.array([0.7, -0.3])


@ppl.gen
def model():
    z = ppl.sample("z", dist.Bernoulli(jnp.array([0.3, 0.6])))

    @ppl.gen
    def inner():
        return lax.cond(z[0] == 1, lambda: 0.7, lambda: ppl.sample("k", dist.Bernoulli(0.2)) * 1.0)

    ppl.sample("x", dist.Normal(z[0] - z[1] + ppl.sample("in", inner()), 0.6))


@ppl.gen
def guide(phi, e):
    z = jax.vmap(lambda l: ppl.sample("z", dist.Bernoulli(logits=l), e))(phi[:2])

    @ppl.gen
    def inner():
        k = lambda: ppl.sample("k", dist.Bernoulli(logits=phi[2]), e) * 1.0
        lax.cond(z[0] == 1, lambda: 0.7, k)

    ppl.sample("in", inner())


def bounds(e):
    """A plate of bounds, one of another kind, and a term in which no particles meet."""

    @ppl.expectation
    def objective(phi):
        q = guide(phi, e)
        plate = jax.vmap(lambda x: ppl.iwelbo(model(), q, {"x": x}, 2))(XS)
        return jnp.sum(plate) + ppl.renyi(model(), q, {"x": 0.1}, 0.5, 2)

    return objective


def test_unbiased():
    """Against enumeration: 20,000 draws in each stage."""
    exact = jax.device_get(bounds(ppl.enum()).value_and_grad(jax.random.key(0), PHI))
    ztest.check(lambda key: bounds(WITHIN).value_and_grad(key, PHI), exact)


def particles(e, n):
    def log_w(b, phi):
        log_q = jnp.sum(b * phi - jax.nn.softplus(phi))
        return jnp.sum(b * jnp.array([0.2, -0.5, 0.4])) - (jnp.sum(b) - 1.7) ** 2 - log_q

    def objective(phi):
        one = lambda: ppl.sample("b", dist.Bernoulli(logits=phi), e)
        b = jax.vmap(one, axis_size=n)()
        log_weights = jax.vmap(log_w, (0, None))(b, phi)
        return logsumexp(log_weights) - jnp.log(n), (1.0 * b, log_weights)

    return ppl.expectation(objective, has_aux=True), log_w


def test_is_vimco():
    """At its own draws, the gradient is that of Mnih & Rezende, eq. 8 to 10, by hand."""
    objective, log_w = particles(WITHIN, 5)
    (bound, (b, w)), grad = objective.value_and_grad(jax.random.key(3), PHI)
    others = (jnp.sum(w) - w) / 4
    without = [logsumexp(w.at[i].set(others[i])) - jnp.log(5) for i in range(5)]
    signals = bound - jnp.stack(without)
    scores = b - jax.nn.sigmoid(PHI)
    slopes = jax.vmap(jax.grad(log_w, 1), (0, None))(b, PHI)
    np.testing.assert_allclose(grad, signals @ scores + jax.nn.softmax(w) @ slopes, rtol=1e-10)


def test_variance():
    """Far less than without a baseline, and only the bound runs again, not the model."""

    def variance(e):
        objective, _ = particles(e, 10)
        keys = jax.random.split(jax.random.key(0), 4000)
        one = lambda key: objective.grad(key, PHI)[0]
        return float(ztest.compiled(jax.vmap(one))(keys).var(0).sum())

    assert variance(WITHIN) < 0.05 * variance(ppl.reinforce())


def test_one_particle_and_none():
    objective, _ = particles(WITHIN, 1)
    plain, _ = particles(ppl.reinforce(), 1)
    grads = [o.grad(jax.random.key(0), PHI)[0] for o in (objective, plain)]
    np.testing.assert_allclose(*grads, rtol=1e-12)

    @ppl.expectation
    def alone(t):
        return jnp.exp(ppl.sample("b", dist.Bernoulli(t), WITHIN))

    with pytest.raises(ppl.UnsupportedError, match=r"within.*'b' at .*test_within.py:\d+"):
        alone.grad(jax.random.key(0), 0.3)
