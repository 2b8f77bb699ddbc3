"""Log densities by choice: they add up, in every construct and every kind of program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm, poisson

import ppl
from ppl import dist

KEY = jax.random.key(0)


@ppl.gen
def inner(m):
    a = ppl.sample("a", dist.Normal(m, 1.0))
    b = ppl.sample("b", dist.Normal(a * jnp.ones(2), 0.5))
    return b.sum()


@ppl.gen
def everything(scale):
    s = ppl.sample("s", dist.Gamma(2.0, scale))
    t = ppl.sample("in", inner(s))
    ppl.sample("known", ppl.marginal(inner(t), "b"))
    ppl.observe("seen", dist.Normal(s, 1.0), 0.3)
    x = jax.vmap(lambda i: ppl.sample("x", dist.Normal(i * s, jnp.ones(2))))(jnp.arange(3.0))

    def step(c, v):
        z = ppl.sample("z", dist.Normal(c, 1.0))
        jax.vmap(lambda u: ppl.sample("w", dist.Poisson(jnp.exp(0.1 * u * z))))(v)
        ppl.factor("pull", -(z**2))
        return z, None

    jax.lax.scan(step, 0.0, x)
    k = ppl.sample("k", dist.Bernoulli(0.4))
    one = lambda k: jax.lax.cond(
        k > 0,
        lambda: ppl.sample("c", dist.Normal(2.0, 1.0)),
        lambda: ppl.sample("c", dist.Normal(0.0, 3.0)),
    )
    one(k)
    ks = jax.vmap(lambda: ppl.sample("ks", dist.Bernoulli(0.5)), axis_size=4)()
    many = lambda k: jax.lax.cond(
        k > 0, lambda: ppl.sample("d", dist.Normal(2.0, 1.0)), lambda: 0.0
    )
    jax.vmap(many)(ks)
    jax.lax.map(lambda v: ppl.sample("m", dist.Normal(v, 1.0)), jnp.arange(5.0), batch_size=2)
    ppl.sample("hidden", dist.Normal(jnp.zeros(3), 1.0).mask(jnp.array([True, False, True])))


@pytest.fixture(scope="module")
def run():
    g = everything(1.5)
    trace = jax.jit(g.simulate)(KEY)
    both = jax.jit(lambda c, k: (g.log_density(c, k), g.log_densities(c, k)))
    each = jax.jit(lambda c, k: g.log_densities(c, k, plates=True))
    return trace, both(trace.choices, KEY), each(trace.choices, KEY)


def test_they_add_up_less_factors(run):
    trace, (whole, parts), _ = run
    s, z = trace["s"], trace["z"]
    factors = norm.logpdf(0.3, s) - np.sum(np.square(z))
    for found, total in ((parts, whole), (trace.log_densities, trace.log_density)):
        np.testing.assert_allclose(sum(jax.tree.leaves(found)) + factors, total, rtol=1e-5)


def test_each_is_that_of_its_choice(run):
    trace, (_, parts), each = run
    c = jax.device_get(trace.choices)
    s, x, z = c["s"], c["x"], c["z"]
    exact = {
        "x": norm.logpdf(x, np.arange(3.0)[:, None] * s).sum(1),
        "z": norm.logpdf(z, [0.0, *z[:-1]]),
        "w": poisson.logpmf(c["w"], np.exp(0.1 * x * z[:, None])),
        "c": norm.logpdf(c["c"], *((2.0, 1.0) if c["k"] else (0.0, 3.0))),
        "d": np.where(c["ks"] > 0, norm.logpdf(c["d"], 2.0), 0.0),
        "m": norm.logpdf(c["m"], np.arange(5.0)),
        "hidden": norm.logpdf(c["hidden"][[0, 2]]).sum(),
    }
    for name, value in exact.items():
        np.testing.assert_allclose(each[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(parts[name], value.sum(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(trace.log_densities[name], value.sum(), rtol=1e-5, atol=1e-5)
    a, b = c["in"]["a"], c["in"]["b"]
    np.testing.assert_allclose(parts["in"]["a"], norm.logpdf(a, s), rtol=1e-5)
    np.testing.assert_allclose(parts["in"]["b"], norm.logpdf(b, a, 0.5).sum(), rtol=1e-5)


def test_a_batch_of_traces_keeps_its_axis():
    traces = jax.jit(jax.vmap(inner(0.0).simulate))(jax.random.split(KEY, 3))
    parts = jax.device_get(traces.log_densities)
    assert parts["a"].shape == parts["b"].shape == (3,)
    np.testing.assert_allclose(parts["a"] + parts["b"], traces.log_density, rtol=1e-6)


@ppl.gen
def latent():
    s = ppl.sample("s", dist.Gamma(2.0, 1.0))
    z = jax.vmap(lambda: ppl.sample("z", dist.Normal(0.0, s)), axis_size=3)()
    k = ppl.sample("k", dist.Categorical(jnp.ones(3) / 3))
    ppl.sample("y", dist.Normal(z.sum() + k, 1.0))


@pytest.mark.parametrize("family", ["mean_field", "structured"])
def test_those_of_guides_add_up(family):
    guide, params = getattr(ppl.guides, family)(latent(), {"y": 1.0}, key=KEY)

    @jax.jit
    def both(params):
        trace = guide(params).simulate(KEY)
        return trace, ppl.detach(guide(params)).log_densities(trace.choices)

    trace, found = jax.device_get(both(params))
    np.testing.assert_allclose(sum(trace.log_densities.values()), trace.log_density, rtol=1e-5)
    assert set(found) == {"s", "z", "k"}
    np.testing.assert_allclose(sum(found.values()), trace.log_density, rtol=1e-4)


def test_a_joint_density_stands_where_it_is_held():
    g = ppl.marginal(inner(0.0), ["a", "b"])
    trace = jax.eval_shape(g.simulate, KEY)
    with pytest.raises(ppl.UnsupportedError, match=r"choices .a., .b. of the trace have one"):
        trace.log_densities  # noqa: B018
    outer = ppl.gen(lambda: ppl.sample("in", g))
    assert jax.eval_shape(outer().simulate, KEY).log_densities["in"].shape == ()
    y = ppl.marginal(latent(), "y")
    both = jax.jit(lambda c: (y.log_densities(c, KEY), y.log_density(c, KEY)))
    one, whole = both({"y": 0.3})
    np.testing.assert_allclose(one["y"], whole)


def test_inside_a_program_they_are_refused():
    @ppl.gen
    def wrong():
        x = ppl.sample("x", dist.Normal())
        inner(0.0).log_densities({"a": x, "b": x * jnp.ones(2)})

    with pytest.raises(ppl.UnsupportedError, match="is taken inside wrong"):
        wrong().simulate(KEY)
