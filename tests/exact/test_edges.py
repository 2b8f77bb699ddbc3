"""Exact sums at the edges: plates without elements, impossible values, draws beside the sum."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import ppl
from ppl import dist

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(0)
ENUMERATION = ppl.enumeration()


@ppl.gen
def with_plate(n):
    a = ppl.sample("a", dist.Bernoulli(0.3))

    def one(_):
        z = ppl.sample("z", dist.BernoulliProbs(0.2 + 0.5 * a))
        ppl.sample("x", dist.Normal(z, 1.0))

    jax.vmap(one)(jnp.zeros(n))
    ppl.sample("y", dist.Normal(a, 1.0))


def test_a_plate_without_elements_weighs_nothing():
    data = {"x": np.zeros(0), "y": 2.0}
    density = norm.logpdf(2.0, np.arange(2)) + np.log([0.7, 0.3])
    evidence = np.logaddexp(*density)
    marginal = ppl.marginal(with_plate(0), ["x", "y"], by=ENUMERATION)
    found = jax.jit(marginal.log_density)(data, KEY)
    np.testing.assert_allclose(found, evidence, rtol=1e-12)
    draw = jax.jit(ppl.normalize(with_plate(0), data, by=ENUMERATION).simulate)(KEY)
    assert draw["z"].shape == (0,)
    np.testing.assert_allclose(draw.log_density, density[draw["a"]] - evidence, rtol=1e-12)


def test_second_derivatives_past_values_of_probability_zero():
    """z_1 = 1, z_2 = 0 or 2: what is left is a mixture of two."""
    rows = jnp.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [0.0, 0.0, 1.0]])
    y = np.array([0.1, 0.5])

    @ppl.gen
    def chain(means):
        def step(z, _):
            z = ppl.sample("z", dist.CategoricalProbs(rows[z]))
            ppl.sample("y", dist.Normal(means[z], 1.0))
            return z, None

        jax.lax.scan(step, 0, length=2)

    def found(means):
        return ppl.marginal(chain(means), ["y"], by=ENUMERATION).log_density({"y": y}, KEY)

    def exact(means):
        log_p = dist.Normal(means, 1.0).log_prob(y[:, None])
        return log_p[0, 1] + jnp.log(0.5) + jnp.logaddexp(log_p[1, 0], log_p[1, 2])

    both = jax.jit(lambda means: [jax.hessian(f)(means) for f in (found, exact)])
    np.testing.assert_allclose(*both(np.array([0.3, -0.7, 1.1])), rtol=1e-9, atol=1e-12)


def test_an_estimate_beside_the_sum_is_drawn_once():
    """c has a density that is an estimate: exact here, since its proposal is its posterior."""

    @ppl.gen
    def inner():
        u = ppl.sample("u", dist.Normal(0.0, 1.0))
        ppl.sample("v", dist.Normal(u, 1.0))

    @ppl.gen
    def proposal():
        ppl.sample("u", dist.Normal(0.15, jnp.sqrt(0.5)))

    @ppl.gen
    def outer():
        by = ppl.importance(2, proposal())
        ppl.sample("c", ppl.marginal(inner(), ["v"], by=by))
        k = ppl.sample("k", dist.Bernoulli(0.3))
        ppl.sample("y", dist.Normal(k, 1.0))

    data = {"c": {"v": 0.3}, "y": 0.5}
    marginal = ppl.marginal(outer(), ["c", "y"], by=ENUMERATION)
    found = jax.jit(marginal.log_density)(data, KEY)
    law = norm.logpdf(0.3, scale=np.sqrt(2.0)) + norm.logpdf(0.5)
    np.testing.assert_allclose(found, law, rtol=1e-9)
