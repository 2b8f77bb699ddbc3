"""A masked choice is absent: its density counts nowhere, and yet it is drawn."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from ppl import dist

KEY = jax.random.key(0)
HALF_LOG = -0.5 * math.log(2 * math.pi)


def normal(x, m=0.0):
    return HALF_LOG - 0.5 * (x - m) ** 2


@ppl.gen
def whole():
    """z is masked, and y does not depend on it."""
    ppl.sample("z", dist.Categorical(jnp.array([0.3, 0.7])).mask(False))
    ppl.sample("y", dist.Normal(0.0, 1.0))


def plate(z):
    ppl.sample("y", dist.Normal(z[0].astype(float) + z[1], 1.0))


@ppl.gen
def of_a_batch():
    d = dist.Bernoulli(jnp.array([0.7, 0.7]))
    plate(ppl.sample("z", d.mask(jnp.array([True, False]))))


@ppl.gen
def of_an_event():
    d = dist.Bernoulli(0.7).expand((2,)).mask(jnp.array([True, False]))
    plate(ppl.sample("z", d.to_event(1)))


@ppl.gen
def of_a_vmap():
    def one(mask):
        return ppl.sample("z", dist.Bernoulli(0.7).mask(mask))

    plate(jax.vmap(one)(jnp.array([True, False])))


@ppl.gen
def of_a_scan():
    def step(c, mask):
        return c, ppl.sample("z", dist.Bernoulli(0.7).mask(mask))

    plate(jax.lax.scan(step, 0.0, jnp.array([True, False]))[1])


@ppl.gen
def proposal():
    d = dist.Bernoulli(jnp.array([0.5, 0.6]))
    ppl.sample("z", d.mask(jnp.array([False, True])))


@ppl.gen
def proposal_whole():
    ppl.sample("z", dist.Bernoulli(jnp.array([0.5, 0.6])))


PLATES = {"batch": of_a_batch, "event": of_an_event, "vmap": of_a_vmap, "scan": of_a_scan}
P = {0: 0.3**2, 1: 2 * 0.3 * 0.7, 2: 0.7**2}
EXACT = math.log(sum(p * math.exp(normal(1.0, k)) for k, p in P.items()))


def test_a_masked_choice_weighs_nothing():
    marginal = ppl.marginal(whole(), "y", by=ppl.enumeration())
    np.testing.assert_allclose(jax.jit(marginal.log_density)({"y": 0.0}, KEY), HALF_LOG, rtol=1e-6)


def test_a_plate_of_which_one_is_masked():
    @ppl.gen
    def model():
        d = dist.Bernoulli(jnp.array([0.7, 0.7])).mask(jnp.array([True, False]))
        z = ppl.sample("z", d)
        ppl.sample("y", dist.Normal(z[0].astype(float), 1.0))

    marginal = ppl.marginal(model(), "y", by=ppl.enumeration())
    np.testing.assert_allclose(jax.jit(marginal.log_density)({"y": 1.0}, KEY), -1.044548, rtol=1e-6)


@pytest.mark.parametrize("name", PLATES)
def test_enumeration(name):
    g = PLATES[name]()
    marginal = ppl.marginal(g, "y", by=ppl.enumeration())
    np.testing.assert_allclose(jax.jit(marginal.log_density)({"y": 1.0}, KEY), EXACT, rtol=1e-5)
    posterior = ppl.normalize(g, {"y": 1.0}, by=ppl.enumeration())
    z = jnp.array([1, 1])
    log_joint = math.log(0.7) + normal(1.0, 2.0)  # of what is not absent
    found = jax.jit(posterior.log_density)({"z": z}, KEY)
    np.testing.assert_allclose(found, log_joint - EXACT, rtol=1e-5)


ALGORITHMS = [ppl.importance(3), ppl.importance(3, proposal()), ppl.importance(2, proposal_whole())]


@pytest.mark.parametrize("by", ALGORITHMS)
def test_the_contract(by):
    """E[exp w] = p(x), E[exp -w | x] = 1 / p(x); 20,000 draws, |z| < 4.5, false alarms 1e-5."""
    marginal = ppl.marginal(of_a_batch(), "y", by=by)
    keys = jax.random.split(KEY, 20_000)
    w = np.exp(jax.jit(jax.vmap(lambda k: marginal.log_density({"y": 1.0}, k)))(keys))
    assert abs(np.mean(w) - math.exp(EXACT)) < 4.5 * np.std(w) / math.sqrt(len(w))

    def inverse(key):  # E[exp(-w) h(y)] = ∫ h for h the density of N(0, 1)
        trace = marginal.simulate(key)
        return jnp.exp(normal(trace["y"]) - trace.log_density)

    v = np.asarray(jax.jit(jax.vmap(inverse))(keys))
    assert abs(np.mean(v) - 1.0) < 4.5 * np.std(v) / math.sqrt(len(v))


@pytest.mark.parametrize("by", [*ALGORITHMS, ppl.enumeration()])
def test_the_posterior_gives_the_evidence(by):
    """E_q[p(x, z) / q(z)] = p(x), where the masked element counts in neither."""
    posterior = ppl.normalize(of_a_batch(), {"y": 1.0}, by=by)

    def ratio(key):
        trace = posterior.simulate(key)
        joint = of_a_batch().log_density({**trace.choices, "y": 1.0})
        return jnp.exp(joint - trace.log_density)

    w = np.asarray(jax.jit(jax.vmap(ratio))(jax.random.split(KEY, 20_000)))
    bound = 4.5 * np.std(w) / math.sqrt(len(w)) + 1e-5
    assert abs(np.mean(w) - math.exp(EXACT)) < bound


def test_a_marginal_inside_another():
    inner = ppl.marginal(of_a_batch(), ["z", "y"], by=ppl.enumeration())
    outer = ppl.marginal(inner, "y", by=ppl.importance(2, proposal()))
    with pytest.raises(ppl.UnsupportedError, match=r"'z' .* is masked"):
        outer.log_density({"y": 1.0}, KEY)


@pytest.mark.parametrize("estimator", [ppl.reinforce, ppl.enum, ppl.mvd])
def test_a_masked_guide(estimator):
    """f = E[log p(z, y) - log q(z)], the second element masked in q: the exact gradient."""
    mask = jnp.array([True, False])

    @ppl.gen
    def model():
        z = ppl.sample("z", dist.Bernoulli(jnp.array([0.5, 0.5])).mask(mask))
        ppl.sample("y", dist.Normal(z.astype(float) @ jnp.array([1.0, 2.0]), 1.0))

    @ppl.gen
    def guide(t):
        ppl.sample("z", dist.Bernoulli(logits=t).mask(mask), estimator())

    @ppl.expectation
    def objective(t):
        return ppl.elbo(model(), guide(t), {"y": 1.0})

    def exact(t):
        q = jax.nn.sigmoid(t)
        total = 0.0
        for a in (0, 1):
            for b in (0, 1):
                qa, qb = (q[0] if a else 1 - q[0]), (q[1] if b else 1 - q[1])
                total += qa * qb * (normal(1.0, a + 2 * b) + math.log(0.5) - jnp.log(qa))
        return total

    t = jnp.array([0.2, -0.4])
    run = jax.jit(jax.vmap(lambda k: objective.grad(k, t)))
    grads = np.asarray(run(jax.random.split(KEY, 20_000)), np.float64)
    error = np.abs(np.mean(grads, 0) - jax.jit(jax.grad(exact))(t))
    assert np.all(error < 4.5 * np.std(grads, 0) / math.sqrt(20_000) + 1e-5)
