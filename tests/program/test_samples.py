"""Samples are independent, and drawn by one call where their parameters are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import particles
import pytest
import random_bits
from jax import lax

import ppl
from ppl import dist

KEY = jax.random.key(0)


def normal(m, estimator=None):
    return ppl.sample("x", dist.Normal(m, 1.0), estimator)


@ppl.expectation
def inner(m):
    return normal(m) + ppl.sample("b", dist.Bernoulli(0.3), ppl.reinforce())


def in_a_scan(t):
    step = lambda x, _: (0.5 * x + normal(t * x + t), None)
    return lax.scan(step, 0.0, None, length=3)[0]


def in_a_branch(t):
    first = normal(t, ppl.reinforce())
    return lax.cond(first > 0, lambda: normal(t), lambda: 2.0 * normal(-t))


def after_an_enumerated_choice(t):
    b = ppl.sample("b", dist.Bernoulli(t), ppl.enum())
    return (1.0 + b) * normal(t * b)


def in_a_branch_after_an_enumerated_choice(t):
    b = ppl.sample("b", dist.Bernoulli(t), ppl.enum())
    return lax.cond(b == 1, lambda: normal(t), lambda: 2.0 * normal(-t))


PROGRAMS = {
    "same parameters": lambda t: normal(t) ** 2,
    "own parameters": lambda t: normal(t * normal(t)),
    "vmap": lambda t: jax.vmap(normal)(t * jnp.arange(3.0)).prod(),
    "vmap of own parameters": lambda t: jax.vmap(normal)(normal(t) * jnp.arange(3.0)).sum(),
    "scan": in_a_scan,
    "cond": in_a_branch,
    "checkpoint": lambda t: jax.checkpoint(normal)(t) ** 2,
    "enum": after_an_enumerated_choice,
    "enum and cond": in_a_branch_after_an_enumerated_choice,
    "mvd": lambda t: normal(t * normal(t, ppl.mvd()), ppl.mvd()) ** 2,
    "inner expectation": lambda t: inner(t),
    "vmap of an inner expectation": lambda t: jax.vmap(inner)(t * jnp.arange(3.0)).sum(),
    "gradient of an inner expectation": lambda t: t * jax.grad(inner)(normal(t)),
}


@pytest.mark.filterwarnings("ignore::ppl.SoundnessWarning")
@pytest.mark.parametrize("name", PROGRAMS)
def test_samples_are_independent(name):
    """The mean of 16 has a 16th of the variance: within 25 % for 4,000 means, 16,000 draws.

    The relative error of a variance is √((κ - 1)/n) for kurtosis κ, below .03 for these; samples
    that share a draw would add its whole variance.
    """
    f = ppl.expectation(PROGRAMS[name])

    @jax.jit
    def variances():
        def variance(n, samples):
            one = lambda key: jnp.stack(f.value_and_grad(key, 0.4, samples=samples))
            return jax.vmap(one)(jax.random.split(KEY, n)).var(axis=0)

        return variance(16_000, 1), variance(4_000, 16)

    alone, mean = map(np.asarray, variances())
    np.testing.assert_allclose(16 * mean, alone, rtol=0.25, atol=1e-6)


def test_a_choice_of_the_same_parameters_is_one_call():
    """64 numbers from one key, not one from each of 64."""
    f = ppl.expectation(lambda t: normal(t) * normal(t))
    jaxpr = str(jax.make_jaxpr(lambda t: f.surrogate(KEY, t, samples=64))(0.4))
    assert "random_bits[bit_width=32 shape=(64,)]" in jaxpr
    assert "random_split[shape=(64,)]" not in jaxpr and "random_fold_in" not in jaxpr


@pytest.mark.parametrize("make", [random_bits.plate, lambda: particles.bound(4, 8)])
def test_a_plate_and_particles_draw_from_one_key(make):
    """No key for each element, also in the derivative."""
    _, ours, args = make()
    jaxpr = jax.make_jaxpr(jax.value_and_grad(ours, 1))(KEY, *args).jaxpr
    assert [e.primitive.name for e in random_bits.equations(jaxpr)] == ["random_bits"]
