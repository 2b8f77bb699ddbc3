"""Choices that are absent: those in a branch that is not taken weigh nothing, 1 in total."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ztest
from jax.scipy.special import logsumexp
from scipy.stats import norm

import ppl
from ppl import dist

KEY = jax.random.key(0)
P = jnp.array([0.2, 0.3, 0.5])
Y = jnp.linspace(-1.0, 3.0, 30)


def normal(mean, y):
    return dist.Normal(mean, 2.0).log_prob(y)


def one_branch(c):
    """z, from 0 to 2, if c is 1; else 7."""
    return jax.lax.cond(c == 1, lambda: 1.0 * ppl.sample("z", dist.Categorical(P)), lambda: 7.0)


@ppl.gen
def single(t, y=None):
    c = ppl.sample("c", dist.Bernoulli(t))
    ppl.sample("y", dist.Normal(one_branch(c), 2.0))


def of_one(t, y):
    taken = logsumexp(jnp.log(P)[:, None] + normal(jnp.arange(3.0)[:, None], y), axis=0)
    return jnp.logaddexp(jnp.log(t) + taken, jnp.log(1 - t) + normal(7.0, y)).sum()


@ppl.gen
def plate(t, y):
    def one(_):
        c = ppl.sample("c", dist.Bernoulli(t))
        ppl.sample("y", dist.Normal(one_branch(c), 2.0))

    jax.vmap(one)(y)


@ppl.gen
def nested(t, y):
    def one(_):
        c = ppl.sample("c", dist.Bernoulli(t))
        taken = lambda: (
            1.0 * ppl.sample("in", ppl.gen(lambda: ppl.sample("z", dist.Categorical(P)))())
        )
        ppl.sample("y", dist.Normal(jax.lax.cond(c == 1, taken, lambda: 7.0), 2.0))

    jax.vmap(one)(y)


@ppl.gen
def scanned(t, y):
    def one(carry, _):
        c = ppl.sample("c", dist.Bernoulli(t))
        ppl.sample("y", dist.Normal(one_branch(c), 2.0))
        return carry, None

    jax.lax.scan(one, 0, y)


@ppl.gen
def arrays(t, y):
    """Each has an array of z that is drawn in one go; the mean is that of the first."""

    def one(_):
        c = ppl.sample("c", dist.Bernoulli(t))
        taken = lambda: 1.0 * ppl.sample("z", dist.Categorical(P).expand((2,)))[0]
        ppl.sample("y", dist.Normal(jax.lax.cond(c == 1, taken, lambda: 7.0), 2.0))

    jax.vmap(one)(y)


PROGRAMS = {
    "single": (single, jnp.array(1.0)),
    "vmap": (plate, Y),
    "nested": (nested, Y),
    "scan": (scanned, Y[:2]),
    "arrays": (arrays, Y[:2]),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_value_and_gradient(name):
    g, y = PROGRAMS[name]

    def f(t):
        return ppl.marginal(g(t, y), "y", ppl.enumeration()).log_density({"y": y})

    exact = jax.jit(jax.value_and_grad(lambda t: of_one(t, y)))
    ztest.check_exact(jax.value_and_grad(f), [0.3], lambda: exact(0.3), [of_one, y], rtol=2e-5)


def test_two_of_three_branches_share_an_address():
    @ppl.gen
    def g():
        def one(_):
            i = ppl.sample("i", dist.Categorical(P))
            arm = lambda p: lambda: 1.0 * ppl.sample("z", dist.Bernoulli(p))
            mean = jax.lax.switch(i, [arm(0.1), lambda: 4.0, arm(0.9)])
            ppl.sample("y", dist.Normal(mean, 2.0))

        jax.vmap(one)(Y)

    def exact(y):
        zero, one = normal(0.0, y), normal(1.0, y)
        each = [jnp.logaddexp(jnp.log1p(-p) + zero, jnp.log(p) + one) for p in (0.1, 0.9)]
        arms = jnp.stack([each[0], normal(4.0, y), each[1]])
        return logsumexp(jnp.log(P)[:, None] + arms, axis=0).sum()

    m = ppl.marginal(g(), "y", ppl.enumeration())
    found = lambda y: m.log_density({"y": y})
    ztest.check_exact(found, [Y], lambda: jax.jit(exact)(Y), exact, rtol=2e-5)


def test_posterior_and_its_draws():
    """P(c = 1 | y) of 20,000 elements: a bound of 5 standard deviations, false alarms 6e-7."""
    y = jnp.full(2_000, 1.0)
    t = 0.3
    post = ppl.normalize(plate(t, y), {"y": y}, ppl.enumeration())
    p = (1 - t) * norm.pdf(1.0, 7.0, 2.0) / np.exp(jax.jit(of_one)(t, np.ones(1)))
    trace = jax.jit(post.simulate)(KEY)
    c = np.asarray(trace["c"])
    assert np.mean(c == 0) == pytest.approx(p, abs=5 * (p * (1 - p) / 2_000) ** 0.5)
    small = ppl.normalize(single(t), {"y": 1.0}, ppl.enumeration())
    density = jax.jit(small.log_density)
    for z in (0, 2):
        assert float(density({"c": 0, "z": z})) == pytest.approx(np.log(p), abs=1e-5)
    drawn = jax.jit(small.simulate)(KEY)
    again = float(density(drawn.choices))
    assert float(drawn.log_density) == pytest.approx(again, abs=1e-5)


# --- explicit proposals --------------------------------------------------------------------------


def proposal(p=(0.5, 0.2, 0.3), where=1):
    @ppl.gen
    def q():
        c = ppl.sample("c", dist.Bernoulli(0.6))
        taken = lambda: 1.0 * ppl.sample("z", dist.Categorical(jnp.array(p)))
        jax.lax.cond(c == where, taken, lambda: 7.0)

    return q()


def test_a_proposal_that_branches_alike():
    """6 standard errors of 4,000 estimates of p(x) and of 1 / p(x): false alarms 2e-9 each."""
    m = ppl.marginal(single(0.3), "y", ppl.importance(2, proposal()))
    exact = np.exp(jax.jit(of_one)(0.3, np.ones(1)))
    keys = jax.random.split(KEY, 4000)
    z = np.exp(jax.jit(jax.vmap(lambda k: m.log_density({"y": 1.0}, k)))(keys))
    assert z.mean() == pytest.approx(exact, abs=6 * float(z.std()) / 4000**0.5)
    post = ppl.normalize(single(0.3), {"y": 1.0}, ppl.importance(2, proposal()))
    drawn = jax.device_get(jax.jit(jax.vmap(post.simulate))(keys))
    mass = np.exp(-drawn.log_density) * (drawn["c"] == 0)  # one trace: the mass is 1
    assert mass.mean() == pytest.approx(1.0, abs=6 * float(mass.std()) / 4000**0.5)


def test_a_proposal_that_branches_elsewhere_is_no_number():
    m = ppl.marginal(single(0.3), "y", ppl.importance(2, proposal(where=0)))
    assert np.isnan(jax.jit(m.log_density)({"y": 1.0}, KEY))


@ppl.gen
def always():
    ppl.sample("c", dist.Bernoulli(0.6))
    ppl.sample("z", dist.Categorical(P))


@pytest.mark.parametrize("swapped", [False, True])
def test_choices_in_a_branch_of_one_side_are_refused(swapped):
    @ppl.gen
    def model():
        c = ppl.sample("c", dist.Bernoulli(0.6))
        one_branch(c)

    p, q = (always(), model()) if swapped else (model(), always())
    match = r"'z' stands in one branch of .*model.*always.*test_absent.py.*same branch of both"
    with pytest.raises(ppl.UnsupportedError, match=match):
        ppl.marginal(p, [], ppl.importance(2, q)).log_density({}, KEY)
    objective = ppl.expectation(lambda: ppl.elbo(p, q, {}))
    with pytest.raises(ppl.UnsupportedError, match=match):
        objective.value(KEY)


def test_a_choice_in_every_branch_is_always_made():
    @ppl.gen
    def model():
        c = ppl.sample("c", dist.Bernoulli(0.6))
        arm = lambda p: lambda: ppl.sample("z", dist.Categorical(p))
        jax.lax.cond(c == 1, arm(P), arm(P[::-1]))

    m = ppl.marginal(model(), [], ppl.importance(20_000, always()))
    assert float(jax.jit(m.log_density)({}, KEY)) == pytest.approx(0.0, abs=0.05)


# --- programs with weights -----------------------------------------------------------------------


@ppl.gen
def weighted():
    u = ppl.sample("u", dist.Bernoulli(0.3))
    ppl.factor("f", 2.0 * u)
    ppl.sample("x", dist.Bernoulli(0.2 + 0.5 * u))


UNNORMALIZED = {1: 0.7 * 0.2 + 0.3 * 0.7 * np.exp(2.0), 0: 0.7 * 0.8 + 0.3 * 0.3 * np.exp(2.0)}


def test_the_density_of_a_program_with_weights_is_unnormalized():
    exact = ppl.marginal(weighted(), "x", ppl.enumeration())
    m = ppl.marginal(weighted(), "x", ppl.importance(4000))
    densities = jax.jit(lambda x: (exact.log_density({"x": x}), m.log_density({"x": x}, KEY)))
    for x, p in UNNORMALIZED.items():
        one, other = densities(x)
        assert float(one) == pytest.approx(np.log(p), rel=1e-5)
        assert float(other) == pytest.approx(np.log(p), abs=0.2)
    drawn = jax.jit(exact.simulate)(KEY)
    at = np.log(UNNORMALIZED[int(drawn["x"])])
    assert float(drawn.log_density) == pytest.approx(at, rel=1e-5)


@ppl.gen
def q_weighted():
    ppl.sample("z", dist.Bernoulli(0.3))
    ppl.factor("f", 1.0)


@ppl.gen
def around(by):
    ppl.sample("in", ppl.marginal(weighted(), "x", by))


REFUSED = {
    "draw": lambda: ppl.marginal(weighted(), "x").simulate(KEY),
    "draw inside": lambda: around(ppl.importance(2)).simulate(KEY),
    "integrate inside": lambda: ppl.marginal(around(ppl.enumeration()), []).log_density({}, KEY),
    "proposal": lambda: ppl.normalize(always(), {}, ppl.importance(2, q_weighted())).simulate(KEY),
}


@pytest.mark.parametrize("name", REFUSED)
def test_draws_that_do_not_go_with_their_density_are_refused(name):
    match = r"test_absent\.py.*weights.*without them.*ppl\.normalize\(g, data\)"
    with pytest.raises(ppl.UnsupportedError, match=match):
        REFUSED[name]()


def test_the_density_of_a_weighted_program_inside_another():
    got = around(ppl.enumeration()).log_density({"in": {"x": 1}})
    assert float(got) == pytest.approx(np.log(UNNORMALIZED[1]), rel=1e-5)
