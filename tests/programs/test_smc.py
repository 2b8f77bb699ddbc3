"""Sequential Monte Carlo: its contract, and models of which the evidence is known.

The contract (``ppl/programs/target.py``) says of the weight w that ``simulate`` returns with x that
it has the law of ``log_density(x)``, size-biased: E_simulate[h(x) φ(w)] = sum_x h(x) E[e^w φ(w)]
for every h and φ. Both sides are drawn, 50,000 times in float64, with two particles, where a law
that is off is off by much (ancestors of the kept run that are drawn: z = 65 and 84), and compared
by ``ztest.py``.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ztest
from jax import lax

import ppl
from ppl import dist
from ppl.programs.resampling import ancestors

pytestmark = pytest.mark.usefixtures("x64")

ENUM = ppl.enum()
ROWS = np.array([[0.7, 0.3], [0.2, 0.8]])
EMIT = np.array([[0.6, 0.4], [0.1, 0.9]])
Y = np.array([1, 0, 1])


@ppl.gen
def hmm(t, rows=ROWS, e=ENUM):
    def step(z, _):
        z = ppl.sample("z", dist.Categorical(jnp.asarray(rows)[z]), e)
        ppl.sample("y", dist.Categorical(jnp.asarray(EMIT)[z]), e)
        return z, None

    lax.scan(step, 0, length=t)


@ppl.gen
def start(t):
    """A choice and data before the loop, a choice after it, a nested program, ``jit``."""
    first = ppl.sample("first", dist.Bernoulli(0.3), ENUM)
    ppl.factor("w", 0.4 * first)

    @ppl.gen
    def chain():
        def step(z, _):
            z = ppl.sample("z", dist.Categorical(jnp.asarray(ROWS)[z]), ENUM)
            ppl.sample("y", dist.Categorical(jnp.asarray(EMIT)[(z + first) % 2]), ENUM)
            return z, 0.2 * z

        z, zs = lax.scan(step, first, length=t)
        return z, jnp.sum(zs)

    _, total = jax.jit(lambda: ppl.sample("chain", chain()))()
    ppl.sample("last", dist.Bernoulli(logits=total - 0.5 * first), ENUM)


@ppl.gen
def filtering(y):
    def step(z, y):
        rows = jnp.array([[0.5, 0.5], [0.35, 0.65]])
        z = ppl.sample("z", dist.Categorical(rows[(z + y) % 2]), ENUM)
        return z, None

    lax.scan(step, 0, jnp.asarray(y))


def check_law(g, name, length):
    """Both sides of the contract for three φ, and a random h of the choices at ``name``."""
    h = jnp.asarray(np.random.default_rng(1).normal(size=(2,) * length))
    values = jnp.array(list(itertools.product(range(2), repeat=length)))
    phis = lambda w: jnp.stack([jnp.ones_like(w), jnp.exp(-w), jnp.sin(3.0 * w)])

    def difference(key):
        a, b = jax.random.split(key)
        drawn = g.simulate(a)
        left = h[tuple(drawn.choices[name])] * phis(drawn.log_density)
        keys = jax.random.split(b, len(values))
        w = jax.vmap(lambda v, k: g.log_density({name: v}, k))(values, keys)
        right = jnp.exp(w) * h.ravel() * phis(w)
        return left - jnp.sum(right, axis=1)

    ztest.check(difference, np.zeros(3), n=50_000)


CASES = {
    "three steps": (3, ppl.smc(2)),
    "a proposal, resampled where needed": (
        3,
        ppl.smc(2, lambda data: filtering(data["y"]), threshold=0.95),
    ),
    "stratified": (3, ppl.smc(3, scheme="stratified")),
    "systematic, resampled where needed": (3, ppl.smc(3, scheme="systematic", threshold=0.95)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_posterior_keeps_the_contract(name):
    t, by = CASES[name]
    check_law(ppl.normalize(hmm(t), {"y": Y[:t]}, by=by), "z", t)


def test_a_marginal_keeps_the_contract():
    check_law(ppl.marginal(hmm(3), ["y"], by=ppl.smc(2)), "y", 3)


def test_stages_before_and_after_a_loop():
    """E[exp(w)] = p, with weights before the loop and a choice after it that is data."""
    data = {"chain": {"y": Y}, "last": 1}
    keep = [("chain", "y"), "last"]
    marginal = ppl.marginal(start(3), keep, by=ppl.enumeration())
    exact = np.exp(jax.jit(marginal.log_density)(data))
    g = ppl.marginal(start(3), keep, by=ppl.smc(2))
    ztest.check(lambda key: jnp.exp(g.log_density(data, key)), exact)
    posterior = ppl.normalize(start(3), data, by=ppl.smc(100))
    chance = jax.jit(lambda: ppl.marginals(start(3), data)["chain"]["z"][0, 1])()
    keys = jax.random.split(jax.random.key(0), 4000)
    z = jax.jit(jax.vmap(lambda key: posterior.simulate(key).choices["chain"]["z"][0]))(keys)
    assert abs(np.mean(z) - chance) < 4 * 0.5 / np.sqrt(4000) + 0.01  # 1/n of bias


def test_gradients_through_resampling():
    """FIVO's, ancestors and states by REINFORCE, against enumeration: 20,000 draws."""

    def fivo(e):
        @ppl.expectation
        def bound(logits):
            g = hmm(2, jax.nn.softmax(logits), e)
            p = ppl.marginal(g, ["y"], by=ppl.smc(2, resampling=e))
            return p.log_density({"y": Y[:2]})

        return bound

    logits = np.log(ROWS)
    exact = jax.device_get(fivo(ENUM).value_and_grad(jax.random.key(0), logits))
    estimate = fivo(ppl.reinforce())
    ztest.check(lambda key: estimate.value_and_grad(key, logits), exact)


@pytest.mark.parametrize("scheme", ["stratified", "systematic"])
def test_the_law_around_a_kept_one(scheme):
    """That all go on from i in the place of one of them, chosen among n: W_i times the law in which
    i is kept. Tested of products of the numbers of children, of four particles; 20,000 draws."""
    logits = jnp.log(jnp.array([0.08, 0.32, 0.45, 0.15]))
    orders = jnp.array([[j for j in range(4) if j != i] + [i] for i in range(4)])

    def products(found):
        children = jnp.sum(found[:, None] == jnp.arange(4), axis=0)
        return jnp.outer(children, children), children

    def difference(key):
        one, *others = jax.random.split(key, 5)
        free = ppl.seed(lambda: ancestors(logits, False, scheme, None))(one)
        left, children = products(free)
        left = left * children[:, None, None] / 4.0

        def given(key, order):
            kept = ppl.seed(lambda: ancestors(logits[order], True, scheme, None))(key)
            return products(order[kept])[0]

        right = jax.vmap(given)(jnp.stack(others), orders)
        return left - jnp.exp(logits)[:, None, None] * right

    ztest.check(difference, np.zeros((4, 4, 4)))


@pytest.mark.parametrize("scheme", ["stratified", "systematic"])
def test_gradients_through_schemes(scheme):
    """Scores of all ancestors of a step, and of those around a kept one, against a difference of
    values of the same key along one direction, which is off by less than 1e-3: 20,000 draws."""
    by, h = ppl.smc(3, scheme=scheme), 0.05

    @ppl.gen
    def chain(t):
        def step(z, _):
            z = ppl.sample("z", dist.Bernoulli(0.3 + 0.4 * z), ppl.reinforce())
            ppl.sample("y", dist.Normal(2.0 * z, jnp.exp(t * (1.0 + z))))
            return z, None

        lax.scan(step, 0, length=2)

    @ppl.expectation
    def both(t):
        data = {"y": jnp.array([0.4, 1.9])}
        kept = ppl.normalize(chain(t), data, by=by).log_density({"z": jnp.array([1, 0])})
        return ppl.marginal(chain(t), ["y"], by=by).log_density(data) + 2.0 * kept

    def difference(key):
        ahead, behind = jax.vmap(lambda t: both.value(key, t))(jnp.array([0.2 + h, 0.2 - h]))
        return both.grad(key, 0.2) - (ahead - behind) / (2 * h)

    ztest.check(difference, 0.0)


def test_schemes_lower_the_variance():
    """Of the evidence of the linear-Gaussian model, unbiased all the same: 8,000 runs of 10."""
    spread = []
    for scheme in ("multinomial", "stratified", "systematic"):
        ratio = np.exp(log_z(ppl.smc(10, scheme=scheme), 8000) - kalman(SERIES))
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(8000)
        spread.append(ratio.std())
    assert max(spread[1:]) < 0.95 * spread[0], spread


def test_a_jump_of_adaptive_resampling_is_reported():
    @ppl.gen
    def walk(a, e):
        def step(x, _):
            x = ppl.sample("x", dist.Normal(a * x, 0.5), e)
            ppl.sample("y", dist.Normal(x, 0.3))
            return x, None

        lax.scan(step, 1.0, length=3)

    def kinds(e, threshold):
        @ppl.expectation
        def bound(a):
            by = ppl.smc(4, threshold=threshold)
            return ppl.marginal(walk(a, e), ["y"], by=by).log_density({"y": jnp.arange(3.0)})

        return {f.kind for f in bound.explain(0.5).findings}

    assert kinds(ppl.reparam(), 0.5) == {"biased"}
    assert not kinds(ppl.reparam(), None) and not kinds(None, 0.5)


# --- a linear-Gaussian model ----------------------------------------------------------------------

A, Q, R = 0.9, 0.5, 0.7
SERIES = np.sin(np.arange(12.0)) + 0.3 * np.random.default_rng(0).normal(size=12)


@ppl.gen
def linear(t):
    def step(x, _):
        x = ppl.sample("x", dist.Normal(A * x, Q))
        ppl.sample("y", dist.Normal(x, R))
        return x, None

    lax.scan(step, 0.0, length=t)


@ppl.gen
def guide(y):
    """The optimal proposal of one step."""

    def step(x, y):
        s = 1 / (1 / Q**2 + 1 / R**2)
        x = ppl.sample("x", dist.Normal(s * (A * x / Q**2 + y / R**2), jnp.sqrt(s)))
        return x, None

    lax.scan(step, 0.0, jnp.asarray(y))


QUIET = guide(SERIES)


def kalman(y):
    mean, var, total = 0.0, 0.0, 0.0
    for v in y:
        mean, var = A * mean, A**2 * var + Q**2
        total += -0.5 * (np.log(2 * np.pi * (var + R**2)) + (v - mean) ** 2 / (var + R**2))
        gain = var / (var + R**2)
        mean, var = mean + gain * (v - mean), (1 - gain) * var
    return total


def log_z(by, runs):
    p = ppl.marginal(linear(len(SERIES)), ["y"], by=by)
    keys = jax.random.split(jax.random.key(0), runs)
    return np.asarray(jax.jit(jax.vmap(lambda k: p.log_density({"y": SERIES}, k)))(keys))


@pytest.mark.parametrize(("n", "runs"), [(10, 8000), (100, 2000), (1000, 200)])
def test_the_likelihood_of_kalman(n, runs):
    """Within 4 standard errors: a false alarm in 16,000, for each n."""
    ratio = np.exp(log_z(ppl.smc(n, threshold=0.7), runs) - kalman(SERIES))
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(runs)
    assert ratio.std() < 4.5 / np.sqrt(n)


def test_the_order_of_bounds():
    """FIVO >= IWAE >= ELBO, each by many standard errors, and all below the evidence."""
    algorithms = ppl.importance(1), ppl.importance(8), ppl.smc(8)
    bounds = [*(log_z(by, 2000) for by in algorithms), np.full(2000, kalman(SERIES))]
    for low, high in itertools.pairwise(bounds):
        assert high.mean() - low.mean() > 8 * np.hypot(low.std(), high.std()) / np.sqrt(2000)


def test_a_proposal_of_one_step():
    """The best one: unbiased, of a smaller variance than the program's own."""
    best, own = (np.exp(log_z(ppl.smc(8, q), 4000) - kalman(SERIES)) for q in (QUIET, None))
    assert abs(best.mean() - 1) < 4 * best.std() / np.sqrt(4000)
    assert best.std() < 0.7 * own.std()


def test_posterior_means():
    """Draws of the normalized program, weighed by its densities, have the smoothed mean."""
    posterior = ppl.normalize(linear(3), {"y": SERIES[:3]}, by=ppl.smc(200))
    keys = jax.random.split(jax.random.key(1), 4000)
    x = np.asarray(jax.jit(jax.vmap(lambda k: posterior.simulate(k).choices["x"]))(keys))
    lag = np.eye(3) - A * np.eye(3, k=-1)
    precision = lag.T @ lag / Q**2 + np.eye(3) / R**2
    exact = np.linalg.solve(precision, SERIES[:3] / R**2)
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    assert np.all(np.abs(x.mean(0) - exact) < 4 * sd / np.sqrt(4000) + 0.02 * sd)  # 1/n of bias
    np.testing.assert_allclose(x.std(0), sd, rtol=0.06)


def test_what_is_refused():
    @ppl.gen
    def no_loop():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0))

    @ppl.gen
    def no_steps(y):
        ppl.sample("x", dist.Normal(y, 1.0))

    @ppl.gen
    def continuous():
        _, x = lax.scan(lambda x, _: (ppl.sample("x", dist.Normal(x, 1.0)),) * 2, 0.0, length=2)
        ppl.sample("y", dist.Normal(x, 1.0))

    key, data = jax.random.key(0), {"y": SERIES[:2]}
    density = lambda g, by, data=data: ppl.marginal(g, ["y"], by=by).log_density(data, key)
    with pytest.raises(ppl.UnsupportedError, match=r"no_loop has none that makes choices"):
        density(no_loop(), ppl.smc(3), {"y": 0.3})
    with pytest.raises(ppl.UnsupportedError, match=r"draws 'x' at .*other loops"):
        density(continuous(), ppl.smc(3, no_steps(SERIES[:2])))
    with pytest.raises(ppl.AddressError, match="the proposal"):
        density(linear(2), ppl.smc(3, no_loop()))
    with pytest.raises(ppl.UnsupportedError, match=r"needs a @ppl.gen program"):
        density(ppl.marginal(linear(2), ["y"]), ppl.smc(3))
    with pytest.raises(ValueError, match="a share of the particles"):
        ppl.smc(3, threshold=2.0)
    with pytest.raises(ValueError, match="is one of 'multinomial'"):
        ppl.smc(3, scheme="residual")
    with pytest.raises(ValueError, match="is a count"):
        ppl.smc(0)
