"""Elements of a plate are drawn from one key, each by its own law, independently."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from ppl import dist

KEY = jax.random.key(0)
N, WIDE = 4_000, 3
# A test has at most 6 means, 6 variances and 66 correlations, held to 5 standard errors: a false
# alarm in 20,000 of them.
Z = 5.0
M, S = np.array([-1.0, 0.5, 2.0]), np.array([0.5, 1.0, 3.0])

FAMILIES = {
    "normal": (dist.Normal, (M, S)),
    "one parameter mapped": (lambda m: dist.Normal(m, 2.0), (M,)),
    "gumbel": (dist.Gumbel, (M, S)),
    "bernoulli": (dist.BernoulliLogits, (M,)),
    "categorical": (lambda m: dist.Categorical(logits=jnp.stack([m, -m, 0.5 * m])), (M,)),
    "truncated": (lambda m, s: dist.TruncatedNormal(m, s, low=0.0), (M, S)),
    "keys that are split": (
        lambda m, s: dist.MixtureSameFamily(
            dist.Categorical(jnp.array([0.3, 0.7])), dist.Normal(jnp.stack([m, m + 1.0]), s)
        ),
        (M, S),
    ),
    "a sampler in a loop": (dist.Gamma, (S, S + 1.0)),
    "a transformed one": (dist.LogNormal, (M, 0.3 * S)),
    "a vector": (lambda m, s: dist.Normal(m, s).expand((2,)).to_event(1), (M, S)),
}


def plate(make):
    """Draws [N, WIDE, ...], in two ``vmap``s, one of which maps no parameter."""

    @ppl.gen
    def g(*parameters):
        one = lambda *p: ppl.sample("x", make(*p))
        jax.vmap(lambda _: jax.vmap(one)(*parameters))(jnp.arange(N))

    return g


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_have_their_laws_and_are_independent(name):
    make, parameters = FAMILIES[name]
    draws = jax.jit(lambda: plate(make)(*parameters).simulate(KEY).choices["x"])()
    draws = np.asarray(draws, float).reshape(N, WIDE, -1)
    for i, p in enumerate(zip(*parameters, strict=True)):
        d = make(*p)
        if name == "categorical":
            mean = (p_ := np.asarray(d.probs)) @ [0, 1, 2]
            variance = p_ @ np.square([0, 1, 2]) - mean**2
        else:
            mean, variance = np.asarray(d.mean), np.asarray(d.variance)
        error = np.sqrt(variance / N)
        assert np.all(abs(draws[:, i].mean(0) - mean) < Z * error)
        off = np.square(draws[:, i] - mean)
        assert np.all(abs(off.mean(0) - variance) < Z * off.std(0) / np.sqrt(N))
    flat = draws.reshape(N, -1)
    related = np.corrcoef(np.hstack([flat[1:], flat[:-1]]).T)  # with the next row too
    off = related[~np.eye(len(related), dtype=bool)]
    assert np.all(abs(off) < Z / np.sqrt(N - 1))


def keys(name):
    """How many keys there are at once in a program that draws."""
    make, parameters = FAMILIES[name]
    jaxpr = jax.make_jaxpr(lambda key: plate(make)(*parameters).simulate(key).choices)(KEY)
    found = []

    def visit(jaxpr):
        for e in jaxpr.eqns:
            found.extend(
                v.aval.size for v in e.outvars if jnp.issubdtype(v.aval.dtype, jax.dtypes.prng_key)
            )
            list(map(visit, jax.extend.core.jaxprs_in_params(e.params)))

    visit(jaxpr.jaxpr)
    return max(found, default=1)


@pytest.mark.parametrize("name", ["normal", "categorical", "truncated", "keys that are split"])
def test_a_plate_does_not_split_its_key(name):
    assert keys(name) <= 4


def test_a_loop_that_reads_a_key_gets_one_an_element():
    assert keys("a sampler in a loop") >= N * WIDE


def test_gradients_through_wide_noise():
    """E[sum_i (m_i + s_i e)^2 w_i] by the pathwise derivative: 2 m w, 2 s w."""

    @ppl.expectation
    def f(m, s):
        x = jax.vmap(lambda m, s: ppl.sample("x", dist.Normal(m, s), ppl.reparam()))(m, s)
        return jnp.sum(x**2 * jnp.arange(1.0, 4.0))

    one = lambda key: f.grad(key, jnp.asarray(M), jnp.asarray(S), argnums=(0, 1))
    drawn = jax.jit(jax.vmap(one))(jax.random.split(KEY, N))
    for g, exact in zip(drawn, (2 * M * [1, 2, 3], 2 * S * [1, 2, 3]), strict=True):
        g = np.asarray(g)
        assert np.all(abs(g.mean(0) - exact) < Z * g.std(0) / np.sqrt(N))
