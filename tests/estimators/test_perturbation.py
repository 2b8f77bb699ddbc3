"""Smoothed perturbation analysis: every row of its table, random walks, and its variance.

Value and gradient are held against exact sums, in float64, by the two-stage z-test of ``ztest.py``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as S
import ztest
from jax import lax
from scipy.special import expit

import ppl
from ppl import dist

pytestmark = pytest.mark.usefixtures("x64")

ROWS = {
    "Bernoulli(1)": (lambda t: dist.Bernoulli(t), None, 1.0),
    "Binomial(logits)": (
        lambda t: dist.Binomial(4, logits=t),
        lambda t: S.binom(4, expit(t)),
        -0.4,
    ),
    "Poisson": (lambda t: dist.Poisson(t), lambda t: S.poisson(t), 1.7),
    "Geometric(probs)": (lambda t: dist.Geometric(t), lambda t: S.geom(t, loc=-1), 0.45),
}


def payoff(x, np_=jnp):
    """Smooth, with a jump."""
    return 0.5 * x + 0.2 * x**2 + 0.3 * np_.sin(2.0 * x) + 2.0 * (x > 1)


def exact(law, t):
    x = np.arange(400.0)
    value = lambda t: float(law(t).pmf(x) @ payoff(x, np))
    h = 1e-3
    ahead, behind = (value(t + 2 * s * h) - 8 * value(t + s * h) for s in (-1, 1))
    return value(t), (ahead - behind) / (12 * h)


def test_rows():
    """Each with its own parameter, two elements that meet for each."""
    start = {name: jnp.asarray(row[2]) for name, row in ROWS.items()}

    @ppl.expectation
    def f(phi):
        total = 0.0
        for name, (make, _, _) in ROWS.items():
            x = ppl.sample(name, make(phi[name]).expand((2,)), ppl.spa())
            total += payoff(1.0 * x[0]) * (1.0 + payoff(1.0 * x[1]))
        return total

    value, grads = 0.0, {}
    for name, (_, law, t) in ROWS.items():
        v, g = exact(law, t) if law else (payoff(1.0, np), payoff(1.0, np) - payoff(0.0, np))
        value += v + v**2
        grads[name] = g + 2 * v * g
    ztest.check(lambda key: f.value_and_grad(key, start), (value, grads), n=40_000)


def walk(estimator, n):
    """Steps that depend on where it is."""

    @ppl.expectation
    def f(p):
        def step(x, _):
            up = ppl.sample("up", dist.Bernoulli(jnp.exp(-jnp.maximum(x, 0.0) / p)), estimator)
            return x + 2.0 * up - 1.0, None

        return lax.scan(step, 0.0, length=n)[0] ** 2

    return f


def walk_exactly(p, n):
    x = np.arange(-n - 1, n + 2)
    law = 1.0 * (x == 0)
    up = np.exp(-np.maximum(x, 0.0) / p)
    for _ in range(n):
        law = np.roll(law * up, 1) + np.roll(law * (1.0 - up), -1)
    return law @ x**2


def test_a_walk():
    """Unbiased for 1 and 3 alternatives; in lanes, each of which has alternatives of its own."""
    value, n = walk_exactly(5.0, 12), 12
    slope = np.imag(walk_exactly(5.0 + 1e-20j, n)) / 1e-20
    for estimator in (ppl.spa(), ppl.spa(3)):
        one = walk(estimator, n)
        ztest.check(lambda key, f=one: f.value_and_grad(key, 5.0), (value, slope))

    @ppl.expectation
    def lanes(ps):
        def step(x, _):
            law = dist.Bernoulli(jnp.exp(-jnp.maximum(x, 0.0) / ps))
            return x + 2.0 * ppl.sample("up", law, ppl.spa()) - 1.0, None

        return jnp.sum(lax.scan(step, jnp.zeros(2), length=n)[0] ** 2)

    both = 2 * value, np.array([slope, slope])
    ztest.check(lambda key: lanes.value_and_grad(key, jnp.array([5.0, 5.0])), both)


def test_variance_of_the_literature():
    """A walk of 100 steps: a standard deviation of 94 by scores, and of 6.5 by stochastic triples
    (Arya et al. 2022; 8.5 without their reset of weights); 4,000 draws."""
    keys = jax.random.split(jax.random.key(1), 4000)

    def deviation(estimator):
        f = walk(estimator, 100)
        grads = ztest.compiled(
            lambda keys: lax.map(lambda k: f.grad(k, 200.0), keys, batch_size=500)
        )
        return float(grads(keys).std())

    np.testing.assert_allclose(deviation(ppl.spa()), 8.8, rtol=0.05)
    np.testing.assert_allclose(deviation(ppl.spa(4)), 6.0, rtol=0.05)
