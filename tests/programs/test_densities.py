"""Approximate marginals and posteriors: the contract of their random densities.

Exact where an algorithm is; else z-tests with bound 4.75 in float64, of 20,000 draws or as said.
"""

import math

import jax
import jax.numpy as jnp
import kept
import numpy as np
import pytest
from scipy.stats import norm

import ppl
from ppl import dist

KEY = jax.random.key(0)
SIZE = 20_000
BOUND = 4.75
P_U = np.array([0.3, 0.7])
P_X = np.array([[0.9, 0.1], [0.2, 0.8]])  # p(x | u)
JOINT = P_U[:, None] * P_X


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def equal_means(a, b):
    error = math.sqrt(np.var(a) / np.size(a) + np.var(b) / np.size(b))
    assert abs(np.mean(a) - np.mean(b)) <= BOUND * error + 1e-9, (np.mean(a), np.mean(b), error)


@ppl.gen
def pair():
    u = ppl.sample("u", dist.Bernoulli(jnp.asarray(P_U[1])))
    ppl.sample("x", dist.Bernoulli(jnp.asarray(P_X[:, 1])[u]))


@ppl.gen
def triple():
    v = ppl.sample("v", dist.Bernoulli(0.35))
    u = ppl.sample("u", dist.Bernoulli(jnp.array([0.25, 0.6])[v]))
    x = ppl.sample("x", dist.Bernoulli(jnp.array([0.9, 0.3])[u]))
    ppl.sample("y", dist.Bernoulli(jnp.array([0.2, 0.7])[x]))


@ppl.gen
def guess(a):
    ppl.sample("u", dist.Bernoulli(a))


@ppl.gen
def guess_from(kept):
    ppl.sample("u", dist.Bernoulli(0.4 + 0.2 * kept["x"]))


@ppl.gen
def guess_both():
    ppl.sample("u", dist.Bernoulli(0.45))
    ppl.sample("x", dist.Bernoulli(0.55))


@ppl.gen
def nothing():
    return 0.0


def approximations(n):
    posterior = ppl.normalize(pair(), {"x": 1}, ppl.importance(2, guess(0.4)))
    inner = ppl.marginal(triple(), ["u", "x", "y"], ppl.importance(1))
    deep = ppl.normalize(inner, {"y": 1}, ppl.importance(2, guess_both()))
    return {
        "marginal_prior": ("x", ppl.marginal(pair(), "x", ppl.importance(n))),
        "marginal_proposal": ("x", ppl.marginal(pair(), "x", ppl.importance(n, guess(0.4)))),
        "marginal_dependent": ("x", ppl.marginal(pair(), "x", ppl.importance(n, guess_from))),
        "posterior_prior": ("u", ppl.normalize(pair(), {"x": 1}, ppl.importance(n))),
        "posterior_proposal": ("u", ppl.normalize(pair(), {"x": 1}, ppl.importance(n, guess(0.4)))),
        "marginal_of_posterior": ("u", ppl.marginal(posterior, "u", ppl.importance(n, nothing()))),
        "depth_three": ("x", ppl.marginal(deep, "x", ppl.importance(n, guess(0.5)))),
    }


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("name", list(approximations(1)))
def test_contract(name, n):
    """The law of w under simulate is that under log_density, size biased:
    E_sim[1(x) exp(a w)] = E_dens[exp((1 + a) w)] for several a. With a = -1 that is
    E[exp(-w) | x] p(x) = 1, with a = 0 it is E[exp w] = p(x)."""
    address, g = approximations(n)[name]

    def draws(key):
        one, *two = jax.random.split(key, 3)
        t = jax.vmap(g.simulate)(jax.random.split(one, SIZE))
        density = lambda x, key: jax.vmap(lambda k: g.log_density({address: x}, k))(
            jax.random.split(key, SIZE)
        )
        return t[address], t.log_density, [density(i, k) for i, k in enumerate(two)]

    known = name in ("marginal_prior", "marginal_proposal", "marginal_dependent")
    run, key = jax.jit(draws), jax.random.key(n)

    def test():
        x, w, densities = jax.tree.map(np.asarray, run(key))
        for value, d in enumerate(densities):
            here = (x == value).astype(float)
            for a in (-1.0, -0.5, 0.0, 0.5, 1.0):
                equal_means(here * np.exp(a * w), np.exp((1 + a) * d))
            if known:
                equal_means(np.exp(d), JOINT.sum(0)[value])

    kept.passed(run, [key], [equal_means, known, JOINT, n], test)


def densities_and_draws(g, address):
    """The densities of 0 and of 1, and 4,000 draws."""
    at = lambda value: g.log_density({address: value}, KEY)
    run = jax.jit(lambda keys: ([at(0), at(1)], jax.vmap(g.simulate)(keys)))
    return run(jax.random.split(KEY, 4000))


def test_enumeration_is_exact():
    v, u = np.array([0.65, 0.35]), np.array([[0.75, 0.25], [0.4, 0.6]])
    chain = (v @ u) @ np.array([[0.1, 0.9], [0.7, 0.3]])
    everything = ppl.enumeration()
    for g, address, p in [
        (ppl.marginal(pair(), "x", everything), "x", JOINT.sum(0)),
        (ppl.normalize(pair(), {"x": 1}, everything), "u", JOINT[:, 1] / JOINT[:, 1].sum()),
        (ppl.marginal(triple(), ["x"], everything), "x", chain),
    ]:
        densities, t = densities_and_draws(g, address)
        np.testing.assert_allclose(densities, np.log(p), rtol=1e-9)
        np.testing.assert_allclose(t.log_density, np.log(p)[np.asarray(t[address])], rtol=1e-9)
        equal_means(np.asarray(t[address], float), p[1])
        np.testing.assert_array_equal(t.retval[address], t[address])


def test_marginal_of_a_mixture_under_vmap():
    means = np.array([-1.0, 0.0, 2.0])

    @ppl.gen
    def mixture(w):
        k = ppl.sample("k", dist.Categorical(w))
        ppl.sample("y", dist.Normal(jnp.asarray(means)[k], 0.5))

    w, ys = np.array([0.2, 0.3, 0.5]), np.linspace(-2, 3, 7)
    one = lambda y: ppl.marginal(mixture(w), "y", ppl.enumeration()).log_density({"y": y}, KEY)
    by_hand = np.log(norm.pdf(ys[:, None], means, 0.5) @ w)
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(ys), by_hand, rtol=1e-9)


def test_posterior_with_many_particles():
    """Prior N(0, 1), y = 1 observed with scale 1: the posterior is N(1/2, 1/2)."""

    @ppl.gen
    def model():
        ppl.sample("y", dist.Normal(ppl.sample("x", dist.Normal(0.0, 1.0)), 1.0))

    g = ppl.normalize(model(), {"y": 1.0}, ppl.importance(300))
    t = jax.jit(jax.vmap(g.simulate))(jax.random.split(KEY, 4000))
    x = np.asarray(t["x"])
    assert abs(x.mean() - 0.5) < BOUND * math.sqrt(0.5 / 4000) + 0.005
    assert abs(x.var() - 0.5) < BOUND * 0.5 * math.sqrt(2 / 4000) + 0.005
    exact = norm.logpdf(x, 0.5, math.sqrt(0.5))
    assert np.mean(np.abs(np.asarray(t.log_density) - exact)) < 0.1
    assert set(t.retval) == {"x"}


def test_hierarchical_gap():
    """z ~ N(u, s), u from its prior of scale c: as a marginal with one particle of the prior,
    -E log q(z) is the entropy of z given u, log s + log(2 pi e) / 2, whatever c is."""

    @ppl.gen
    def guide(s, c):
        u = ppl.sample("u", dist.Normal(0.0, c))
        ppl.sample("z", dist.Normal(u, s))

    @ppl.expectation
    def f(s, c):
        return -ppl.marginal(guide(s, c), "z").simulate().log_density

    run = lambda k: f.value_and_grad(k, 1.0, 1.5, argnums=(0, 1))
    value, (ds, dc) = jax.jit(jax.vmap(run))(jax.random.split(KEY, SIZE))
    equal_means(np.asarray(value), 1.4189385332046727)
    equal_means(np.asarray(ds), 1.0)
    equal_means(np.asarray(dc), 0.0)


@pytest.mark.parametrize("estimator", [None, ppl.reinforce(), ppl.mvd()])
def test_gradient_through_the_index_of_a_posterior(estimator):
    """The index that normalize selects is enumerated unasked, or as ``with_estimators`` says."""

    @ppl.gen
    def model(th):
        u = ppl.sample("u", dist.Bernoulli(0.5))
        ppl.sample("x", dist.Bernoulli(jnp.stack([jax.nn.sigmoid(th), 0.5])[u]))

    @ppl.gen
    def proposal():
        ppl.sample("u", dist.Bernoulli(0.5), ppl.enum())

    @ppl.expectation
    def f(th):
        g = ppl.normalize(model(th), {"x": 1}, ppl.importance(2, proposal()))
        if estimator is not None:
            g = ppl.with_estimators(g, {"index": estimator})
        return (2.0 * g.simulate()["u"] + th) ** 2

    def exact(th):
        p, total = [jax.nn.sigmoid(th), 0.5], 0.0
        for i in (0, 1):
            for j in (0, 1):
                a, b = (2 * i + th) ** 2, (2 * j + th) ** 2
                total += 0.25 * (p[i] * a + p[j] * b) / (p[i] + p[j])
        return total

    run = jax.jit(jax.vmap(lambda k: f.value_and_grad(k, 0.4)))
    value, grad = map(np.asarray, run(jax.random.split(KEY, 4 if estimator is None else 10_000)))
    right, slope = jax.jit(jax.value_and_grad(exact))(0.4)
    equal_means(value, float(right))
    equal_means(grad, float(slope))


def test_true_is_one_where_a_choice_has_numbers():
    @ppl.gen
    def model():
        ppl.sample("k", dist.Categorical(jnp.array([0.2, 0.8])))

    assert float(model().log_density({"k": True})) == pytest.approx(np.log(0.8), rel=1e-6)
