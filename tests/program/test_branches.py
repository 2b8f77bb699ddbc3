"""Addresses that branches share, evidence, types of draws, and numbers that tracing freezes."""

import random
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ppl
from ppl import dist

KEY = jax.random.key(0)
MEANS = np.array([0.0, 3.0, -3.0, 0.2, 1.0])


def normal(mean, x):
    return stats.norm.logpdf(x, mean)


def branching(mean):
    """c ~ N(mean, 1), x ~ N(20, 1) if c > 0 else N(0, 1)."""
    c = ppl.sample("c", dist.Normal(mean, 1.0))
    return jax.lax.cond(
        c > 0,
        lambda: ppl.sample("x", dist.Normal(20.0, 1.0)),
        lambda: ppl.sample("x", dist.Normal(0.0, 1.0)),
    )


# --- one address in several branches -------------------------------------------------------------


def test_density_of_the_branch_that_is_taken():
    g = ppl.gen(lambda: branching(0.0))()
    density = jax.jit(g.log_density)
    assert float(density({"c": 1.0, "x": 19.0})) == pytest.approx(-2.837877)
    assert float(density({"c": -1.0, "x": 19.0})) == pytest.approx(-182.837877)
    trace, weight = g.generate({"x": 19.0}, KEY)
    assert trace["x"] == 19.0
    assert float(weight) == pytest.approx(normal(20.0 if trace["c"] > 0 else 0.0, 19.0))


AROUND = {
    "vmap": lambda: jax.vmap(branching)(MEANS),
    "scan": lambda: jax.lax.scan(lambda c, m: (c, branching(m)), 0.0, MEANS)[1],
    "map": lambda: jax.lax.map(branching, MEANS, batch_size=2),
    "vmap of scan": lambda: jax.vmap(
        lambda s: jax.lax.scan(lambda c, m: (c, branching(s * m)), 0.0, MEANS)[1]
    )(np.array([1.0, -1.0])),
}
LOCATIONS = {
    "vmap of scan": MEANS * np.array([1.0, -1.0])[:, None],
}


@pytest.mark.parametrize("where", AROUND)
def test_one_entry_for_all_branches(where):
    g = ppl.gen(AROUND[where])()

    @jax.jit
    def drawn():
        trace = g.simulate(KEY)
        return trace, [trace.log_density, g.log_density(trace.choices)]

    trace, found = jax.device_get(drawn())
    np.testing.assert_array_equal(trace["x"], trace.retval)
    means = LOCATIONS.get(where, MEANS)
    exact = normal(means, trace["c"]) + normal(np.where(trace["c"] > 0, 20.0, 0.0), trace["x"])
    np.testing.assert_allclose(found, [exact.sum()] * 2, rtol=1e-5)


def test_two_of_three_branches_share():
    @ppl.gen
    def g():
        i = ppl.sample("i", dist.Categorical(jnp.array([0.2, 0.3, 0.5])))
        branches = [("x", 0.0), ("x", 9.0), ("z", 4.0)]
        return jax.lax.switch(
            i, [lambda a=a, m=m: ppl.sample(a, dist.Normal(m, 1.0)) for a, m in branches]
        )

    density = jax.jit(g().log_density)
    for i, exact in enumerate([normal(0.0, 1.0), normal(9.0, 1.0), normal(4.0, 2.0)]):
        p = exact + np.log([0.2, 0.3, 0.5][i])
        assert float(density({"i": i, "x": 1.0, "z": 2.0})) == pytest.approx(p, rel=1e-5)


def test_nested_programs_and_the_support_of_the_other_branch():
    """Under vmap both densities are taken at the value; the Gamma's has no derivative at -2."""
    normals = ppl.gen(lambda a: ppl.sample("x", dist.Normal(a, 1.0)))
    gammas = ppl.gen(lambda a: ppl.sample("x", dist.Gamma(jnp.exp(a), 1.0)))

    @ppl.gen
    def g(a):
        def one(c):
            return jax.lax.cond(
                c > 0, lambda: ppl.sample("in", normals(a)), lambda: ppl.sample("in", gammas(a))
            )

        return jax.vmap(one)(jnp.array([1.0, -1.0]))

    def density(a, x):
        return g(a).log_density({"in": {"x": x}})

    def exact(a, x):
        return dist.Normal(a, 1.0).log_prob(x[0]) + dist.Gamma(jnp.exp(a), 1.0).log_prob(x[1])

    at = 0.3, jnp.array([-2.0, 2.0])
    both = lambda *at: [jax.value_and_grad(f, argnums=(0, 1))(*at) for f in (density, exact)]
    got, want = jax.jit(both)(*at)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)


def test_marginals_that_are_known_by_their_densities():
    @ppl.gen
    def inner(mean):
        z = ppl.sample("z", dist.Normal(mean, 1.0))
        ppl.sample("x", dist.Normal(z, 1.0))

    @ppl.gen
    def g():
        def one(c):
            arm = lambda m: lambda: ppl.sample("d", ppl.marginal(inner(m), "x"))["x"]
            return jax.lax.cond(c > 0, arm(20.0), arm(0.0))

        return jax.vmap(one)(jnp.array([1.0, -1.0, 2.0]))

    trace = jax.device_get(jax.jit(g().simulate)(KEY))
    np.testing.assert_array_equal(trace["d", "x"], trace.retval)
    assert (np.abs(trace.retval - [20.0, 0.0, 20.0]) < 10).all()


def test_a_guide_and_a_model_that_branch():
    """ELBO and gradient: closed form."""

    def pair(b, name, means):
        arm = lambda m: lambda: ppl.sample(name, dist.Normal(m, 1.0))
        return jax.lax.cond(b == 1, arm(means[0]), arm(means[1]))

    @ppl.gen
    def model():
        pair(ppl.sample("b", dist.Bernoulli(0.3)), "x", [2.0, -1.0])

    @ppl.gen
    def guide(p):
        pair(ppl.sample("b", dist.Bernoulli(p[0])), "x", p[1:])

    @ppl.expectation
    def elbo(p):
        q = ppl.with_estimators(guide(p), {"b": ppl.enum(), "x": ppl.reparam()})
        return ppl.elbo(model(), q, {})

    def exact(p):
        kl = p[0] * (jnp.log(p[0] / 0.3) + (p[1] - 2) ** 2 / 2)
        return -kl - (1 - p[0]) * (jnp.log((1 - p[0]) / 0.7) + (p[2] + 1) ** 2 / 2)

    p = jnp.array([0.4, 1.5, -0.5])
    got = np.asarray(jax.jit(jax.vmap(lambda k: elbo.surrogate(k, p)))(jax.random.split(KEY, 4000)))
    grad = elbo.grad(KEY, p, samples=4000)
    value, slope = jax.jit(jax.value_and_grad(exact))(p)
    assert got.mean() == pytest.approx(float(value), abs=6 * float(got.std()) / 4000**0.5)
    # each derivative has a standard deviation below 1.2: a bound of 6 of 4,000 samples, 2e-9
    np.testing.assert_allclose(grad, slope, atol=6 * 1.2 / 4000**0.5)


def shared(p, other=(0.6, 0.3, 0.1)):
    @ppl.gen
    def g():
        c = ppl.sample("c", dist.Bernoulli(0.3))
        arm = lambda ps: lambda: ppl.sample("k", dist.Categorical(jnp.array(ps)))
        k = jax.lax.cond(c == 1, arm(p), arm(other))
        ppl.sample("y", dist.Normal(1.0 * k, 1.0))

    return g()


def test_enumerated_and_kept():
    p, q = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    g, y = shared(tuple(p)), 0.4
    joint = (0.3 * p + 0.7 * q) * np.exp(normal(np.arange(3.0), y))
    posterior = 0.3 * 0.5 * np.exp(normal(2.0, y)) / joint.sum()

    @jax.jit
    def found():
        by = ppl.enumeration()
        return [
            ppl.marginal(g, "y", by).log_density({"y": y}, KEY),
            ppl.marginal(g, ["k", "y"], by).log_density({"k": 2, "y": y}, KEY),
            ppl.normalize(g, {"y": y}, by).log_density({"c": 1, "k": 2}, KEY),
        ]

    np.testing.assert_allclose(found(), np.log([joint.sum(), joint[2], posterior]), rtol=1e-5)


def test_supports_that_differ_are_not_enumerated():
    m = ppl.marginal(shared((0.5, 0.5)), "y", ppl.enumeration())
    with pytest.raises(
        ppl.UnsupportedError, match=r"'k'.*differs from branch to branch.*importance"
    ):
        m.log_density({"y": 0.4}, KEY)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (dist.Normal(jnp.zeros(2), 1.0), r"float32\[\].*float32\[2\]|float32\[2\].*float32\[\]"),
        (dist.Bernoulli(0.5), r"float32\[\].*int32\[\]|int32\[\].*float32\[\]"),
    ],
)
def test_what_branches_may_not_share(second, words):
    @ppl.gen
    def g():
        c = ppl.sample("c", dist.Bernoulli(0.3))
        arm = lambda d: lambda: (ppl.sample("x", d), None)[1]
        jax.lax.cond(c == 1, arm(dist.Normal(0.0, 1.0)), arm(second))

    with pytest.raises(ppl.AddressError, match=f"exclude each other.*({words}).*d.expand") as error:
        g().simulate(KEY)
    assert str(error.value).count("test_branches.py") == 2


def test_a_function_with_branches_that_is_called_twice():
    @jax.jit
    def f(c):
        arm = lambda m: lambda: ppl.sample("x", dist.Normal(m, 1.0))
        return jax.lax.cond(c > 0, arm(0.0), arm(1.0))

    g = ppl.gen(lambda: jax.vmap(lambda c: f(c) + f(-c))(jnp.arange(3.0)))
    with pytest.raises(ppl.AddressError, match="used twice"):
        g().simulate(KEY)


# --- the evidence ---------------------------------------------------------------------------------


@ppl.gen
def observed():
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    ppl.observe("y", dist.Normal(z, 1.0), 1.0)


@pytest.mark.parametrize("proposal", [False, True])
def test_evidence_by_importance(proposal):
    """6 standard errors of 4,000 estimates: false alarms 2e-9 each."""
    q = ppl.gen(lambda: ppl.sample("z", dist.Normal(0.5, 0.8)))() if proposal else None
    m = ppl.marginal(observed(), [], ppl.importance(3, q))
    keys = jax.random.split(KEY, 4000)
    exact = stats.norm.pdf(1.0, scale=2**0.5)
    for run in (lambda k: m.log_density({}, k), lambda k: m.simulate(k).log_density):
        z = np.exp(jax.jit(jax.vmap(run))(keys))
        assert z.mean() == pytest.approx(exact, abs=6 * float(z.std()) / 4000**0.5)
    assert m.simulate(KEY).choices == {}


def test_evidence_is_exact_by_enumeration_also_of_branches_that_observe():
    @ppl.gen
    def g():
        c = ppl.sample("c", dist.Bernoulli(0.3))
        ppl.factor("f", jnp.where(c == 1, 2.0, -1.0))
        arm = lambda m: lambda: ppl.observe("y", dist.Normal(m, 1.0), 0.5)
        jax.lax.cond(c == 1, arm(2.0), arm(0.0))

    exact = np.log(0.3 * np.exp(2 + normal(2.0, 0.5)) + 0.7 * np.exp(-1 + normal(0.0, 0.5)))
    m = ppl.marginal(g(), [], ppl.enumeration())
    found = jax.jit(lambda: [m.log_density({}, KEY), m.simulate(KEY).log_density])()
    np.testing.assert_allclose(found, [exact] * 2, rtol=1e-5)


def test_evidence_is_a_factor_of_the_program_around_it():
    @ppl.gen
    def inner(s, y):
        z = ppl.sample("z", dist.Bernoulli(s))
        ppl.observe("y", dist.Normal(1.0 * z, 1.0), y)

    data = np.array([0.3, -1.0])

    @ppl.gen
    def outer():
        s = ppl.sample("s", dist.Beta(2.0, 1.0))
        one = lambda y: ppl.sample("e", ppl.marginal(inner(s, y), [], ppl.enumeration()))
        jax.vmap(one)(data)

    s = 0.4
    each = (1 - s) * np.exp(normal(0.0, data)) + s * np.exp(normal(1.0, data))
    exact = np.log(each).sum()
    both = jax.jit(lambda: (outer().generate({}, KEY), outer().log_density({"s": s}, KEY)))
    (trace, weight), at = jax.device_get(both())
    prior = lambda s: stats.beta.logpdf(s, 2.0, 1.0)
    assert at == pytest.approx(exact + prior(s), rel=1e-5)
    assert weight == pytest.approx(trace.log_density - prior(trace["s"]), rel=1e-4)


# --- types of draws ----------------------------------------------------------------------------


def test_floats_drawn_for_an_integer_are_refused():
    class Straight(ppl.InPlace):
        name = "straight"

        def unsuitable(self, d):
            return None

        def draw(self, d, key, sample_shape):
            return d.sample(key, sample_shape) + d.probs - jax.lax.stop_gradient(d.probs)

    @ppl.expectation
    def f(p):
        b = ppl.sample("b", dist.Bernoulli(p), Straight())
        return 2.0 * b[0] + 3.0 * b[1]

    match = "straight of 'b' at .*test_branches.py.*float32, and .* int32.*straight-through"
    for run in (f.grad, lambda key, p: f.value(key, p), lambda key, p: f.explain(p)):
        with pytest.raises(ppl.UnsupportedError, match=match):
            run(KEY, jnp.array([0.3, 0.6]))


# --- numbers that tracing freezes --------------------------------------------------------------


def helper():
    return np.random.rand()


def from_numpy():
    ppl.sample("x", dist.Normal(np.random.normal(), 1.0))


def from_python():
    ppl.sample("x", dist.Normal(random.gauss(0.0, 1.0), 1.0))


def from_a_helper():
    ppl.sample("x", dist.Normal(helper(), 1.0))


@pytest.mark.parametrize(
    ("f", "where"),
    [
        (from_numpy, from_numpy.__code__.co_firstlineno + 1),
        (from_python, from_python.__code__.co_firstlineno + 1),
        (from_a_helper, from_a_helper.__code__.co_firstlineno),
    ],
)
def test_global_generators_are_named_with_the_line(f, where):
    place = rf"test_branches\.py:{where}\D.*constants of the program.*ppl\.sample"
    nested = ppl.gen(lambda: ppl.sample("in", ppl.gen(f)()))
    objective = ppl.expectation(lambda m: m + ppl.gen(f)().simulate().log_density)
    runs = [
        lambda: ppl.gen(f)().simulate(KEY),
        lambda: nested().simulate(KEY),
        lambda: objective.surrogate(KEY, 1.0),
    ]
    for run in runs:
        with pytest.warns(ppl.RandomnessWarning, match=place) as caught:
            run()
        assert len(caught) == 1


def test_generators_that_stay_where_they_are():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ppl.gen(lambda: branching(jax.random.normal(KEY)))().simulate(KEY)


def test_the_score_of_a_branch_that_is_not_taken_is_none():
    """Under vmap all branches run; that score would have mean 0, and be noise alone."""

    @ppl.expectation
    def f(t, which):
        def one(taken):
            x = lambda: ppl.sample("x", dist.Normal(t, 1.0), ppl.reinforce())
            return jax.lax.cond(taken, x, lambda: 2.0) ** 2

        return jax.vmap(one)(which).sum()

    assert f.grad(jax.random.key(0), 0.3, jnp.array([False, False])) == 0.0
