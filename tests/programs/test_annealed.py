"""Annealed importance sampling: its contract, and models of which the evidence is known."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ztest

import ppl
from ppl import dist

pytestmark = pytest.mark.usefixtures("x64")

CHANCES = np.array([[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]])


@ppl.gen
def model(t=0.0):
    """Two choices that meet in the data."""
    a = ppl.sample("a", dist.Bernoulli(0.3))
    b = ppl.sample("b", dist.Categorical(jnp.asarray(CHANCES)[a]))
    ppl.sample("y", dist.Normal(a * (b - 1.0) + t * b, 0.7))


@ppl.gen
def guess(data):
    ppl.sample("a", dist.Bernoulli(0.5 + 0.1 * data["y"]))
    ppl.sample("b", dist.Categorical(jnp.array([0.3, 0.4, 0.3])))


def metropolis(log_density, u):
    """One other value of ``b``, or of both."""
    shift = ppl.sample("shift", dist.Categorical(jnp.array([0.4, 0.4, 0.2])))
    flip = shift == 2
    a = jnp.where(flip, 1 - u["a"], u["a"])
    b = jnp.where(flip, 2 - u["b"], (u["b"] + shift + 1) % 3)
    new = {"a": a, "b": b}
    better = log_density(new) - log_density(u)
    accept = ppl.sample("accept", dist.Bernoulli(jnp.exp(jnp.minimum(better, 0.0))))
    return jax.tree.map(lambda old, new: jnp.where(accept == 1, new, old), u, new)


def gibbs(first, second):
    """Both choices in turn, which is not reversible."""

    def one(log_density, u, name, n):
        logits = jax.vmap(lambda v: log_density({**u, name: v}))(jnp.arange(n))
        return {**u, name: ppl.sample(name, dist.Categorical(logits=logits))}

    def kernel(log_density, u):
        for name in (first, second):
            u = one(log_density, u, name, {"a": 2, "b": 3}[name])
        return u

    return kernel


CASES = {
    "from the program": (ppl.ais(2, metropolis, 3), {"y": 0.8}),
    "from a proposal, not reversible": (
        ppl.ais(2, gibbs("a", "b"), jnp.array([0.0, 0.3, 1.0]), guess, reverse=gibbs("b", "a")),
        {"y": 0.8},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_contract(name):
    """E_simulate[h(u) φ(w)] = sum_u h(u) E[e^w φ(w)] of three φ, and E[e^w] = p: 20,000 draws."""
    by, data = CASES[name]
    g = ppl.normalize(model(), data, by=by)
    values = jnp.array(list(itertools.product(range(2), range(3))))
    h = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3)))
    phis = lambda w: jnp.stack([jnp.ones_like(w), jnp.exp(-w), jnp.sin(3.0 * w)])
    evidence = np.exp(ppl.marginal(model(), ["y"], by=ppl.enumeration()).log_density(data))

    def difference(key):
        one, two, three = jax.random.split(key, 3)
        drawn = g.simulate(one)
        left = h[drawn.choices["a"], drawn.choices["b"]] * phis(drawn.log_density)
        density = lambda v, key: g.log_density({"a": v[0], "b": v[1]}, key)
        w = jax.vmap(density)(values, jax.random.split(two, len(values)))
        right = jnp.exp(w) * h.ravel() * phis(w)
        p = jnp.exp(ppl.marginal(model(), ["y"], by=by).log_density(data, three))
        return left - jnp.sum(right, axis=1), p

    ztest.check(difference, (np.zeros(3), evidence))


def test_a_linear_gaussian():
    """E[e^w] = p(y), and chains that are moved have less variance than those that are not."""
    y = np.array([1.4, 2.2, 1.9])

    @ppl.gen
    def line():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(x, 0.5).expand((3,)))

    def kernel(log_density, u):
        x = u["x"] + ppl.sample("step", dist.Normal(0.0, 0.6))
        better = log_density({"x": x}) - log_density(u)
        accept = ppl.sample("accept", dist.Bernoulli(jnp.exp(jnp.minimum(better, 0.0))))
        return {"x": jnp.where(accept == 1, x, u["x"])}

    law = np.eye(3) * 0.25 + 1.0
    exact = np.exp(-0.5 * y @ np.linalg.solve(law, y)) / np.sqrt(np.linalg.det(2 * np.pi * law))
    p = [ppl.marginal(line(), ["y"], by=ppl.ais(1, kernel, n)) for n in (16, 1)]
    weights = lambda key: [jnp.exp(g.log_density({"y": y}, key)) / exact for g in p]
    ztest.check(weights, [1.0, 1.0])
    drawn = jax.jit(jax.vmap(weights))(jax.random.split(jax.random.key(1), 4000))
    assert drawn[0].std() < 0.8 * drawn[1].std()


def test_its_gradient():
    """Of one chain backwards all is enumerated, so that values have exact differences."""
    by = ppl.ais(1, metropolis, 2)

    @ppl.expectation
    def kept(t):
        return ppl.normalize(model(t), {"y": 0.8}, by=by).log_density({"a": 1, "b": 2})

    h, key = 1e-5, jax.random.key(0)
    ahead, behind = (kept.value(key, 0.3 + s * h) for s in (1, -1))
    np.testing.assert_allclose(kept.grad(key, 0.3), (ahead - behind) / (2 * h), rtol=1e-6)


def test_what_is_refused():
    for betas in (jnp.array([0.0, 0.5]), jnp.array([1.0]), 0):
        with pytest.raises(ValueError, match="betas"):
            ppl.ais(2, metropolis, betas)
    other = ppl.ais(2, lambda log_density, u: {"a": u["a"]})
    with pytest.raises(ppl.UnsupportedError, match="choices of the same names"):
        ppl.marginal(model(), ["y"], by=other).log_density({"y": 0.8}, jax.random.key(0))
