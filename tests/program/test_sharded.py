"""Objectives inside ``jax.shard_map`` with its check, on one device: the types are the same.

What it does on eight is in ``tests/cost/test_devices.py``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import ppl
from ppl import dist

KEY, X = jax.random.key(0), jnp.linspace(-1.0, 1.0, 4)
NAMES = ["reparam", "reinforce", "loo", "mvd", "enum", "disarm", "rebar", "implicit", "mixture"]
NAMES += [
    "matrix",
    "importance",
    "scan",
    "cond",
    "remat",
    "while",
    "rules",
    "inner",
    "mvd beside enum",
]


@jax.custom_vjp
def twice(x):
    return x * 2


twice.defvjp(lambda x: (x * 2, x), lambda x, c: (c * 2 + 0 * x,))


def normal(estimator, payoff=lambda z, x, m: -((z - x) ** 2)):
    one = lambda x, m: payoff(ppl.sample("z", dist.Normal(m, 1.0), estimator), x, m)
    return lambda m, x: jax.vmap(one, (0, None))(x, m).sum()


def binary(estimator):
    def one(x, m):
        z = ppl.sample("z", dist.Bernoulli(logits=m + x), estimator)
        return -((2.0 * z - x - m) ** 2)

    return lambda m, x: jax.vmap(one, (0, None))(x, m).sum()


def replayed(m, x):
    """At each value of an enumerated choice."""
    c = ppl.sample("c", dist.Bernoulli(logits=m), ppl.enum())
    return (1.0 + c) * normal(ppl.mvd())(m, x)


@ppl.gen
def clusters(m, x):
    def one(x):
        k = ppl.sample("k", dist.Categorical(logits=jnp.zeros(3)))
        ppl.sample("x", dist.Normal(m * k, 1.0))

    jax.vmap(one)(x)


@ppl.gen
def assigned(m, x):
    logits = jax.vmap(lambda x: jnp.stack([0 * m, m * x, -m * x]))(x)
    jax.vmap(lambda one: ppl.sample("k", dist.Categorical(logits=one)))(logits)


@ppl.gen
def linear(m, x):
    z = ppl.sample("z", dist.Normal(jnp.zeros((len(x), 2)), 1.0).to_event(2))
    w = m * jnp.ones((2, 1))
    ppl.sample("x", dist.Normal(z @ w, 1.0).to_event(2))


@ppl.gen
def encoded(m, x):
    ppl.sample("z", dist.Normal(x @ (m * jnp.ones((1, 2))), 1.0).to_event(2))


def of_scan(z, x, m):
    return jax.lax.scan(lambda c, _: (c * m + z, c * x), 0.0, None, length=3)[1].sum()


def of_cond(z, x, m):
    far = lambda: -((ppl.sample("w", dist.Normal(z, 1.0)) - x) ** 2)
    return jax.lax.cond(x > 0, far, lambda: z * m)


def of_inner(m, x):
    @ppl.expectation
    def inner(m, x):
        return -((ppl.sample("k", dist.Bernoulli(logits=m), ppl.enum()) - x) ** 2)

    return jax.vmap(lambda x: inner(m, x))(x).sum()


def of_gamma(m, x):
    draw = lambda x: ppl.sample("g", dist.Gamma(jnp.exp(m), 1.0)) - x
    return -(jax.vmap(draw)(x) ** 2).sum()


def evidence(m, x):
    data = {"x": x[:, None]}
    by = ppl.importance(3)
    return ppl.marginal(linear(m, x[:, None]), ["x"], by=by).log_density(data)


RULES = lambda z, x, m: -jax.nn.softplus(z - x) - jax.nn.relu(z) + twice(z) * twice(x)
FUNCTIONS = {
    "reparam": normal(ppl.reparam()),
    "reinforce": normal(ppl.reinforce(0.5)),
    "loo": normal(ppl.reinforce("loo")),
    "mvd": normal(ppl.mvd()),
    "mvd beside enum": replayed,
    "enum": binary(ppl.enum()),
    "disarm": binary(ppl.disarm()),
    "rebar": binary(ppl.rebar(lambda s: -((2.0 * s - 0.5) ** 2))),
    "implicit": of_gamma,
    "mixture": lambda m, x: ppl.elbo(clusters(m, x), assigned(m, x), {"x": x}),
    "matrix": lambda m, x: ppl.iwelbo(
        linear(m, x[:, None]), encoded(m, x[:, None]), {"x": x[:, None]}, 3
    ),
    "importance": evidence,
    "scan": normal(None, of_scan),
    "cond": normal(None, of_cond),
    "remat": normal(None, lambda z, x, m: jax.checkpoint(lambda z: -(jnp.sin(z - x) ** 2))(z)),
    "while": normal(None, lambda z, x, m: jax.lax.fori_loop(0, 3, lambda i, c: c / 2 + z, 0.0) * x),
    "rules": normal(None, RULES),
    "inner": of_inner,
}
CLOSED = ["reinforce", "enum", "mixture", "importance", "inner", "while"]
SAMPLES = 3


def gradients(key, m, x):
    """Value and gradient of every objective."""
    run = lambda f: ppl.expectation(f).value_and_grad(key, m, x, samples=SAMPLES)
    return {name: run(f) for name, f in FUNCTIONS.items()}


def closed(key, m, x):
    """The same of objectives that close over the data."""
    run = lambda f: ppl.expectation(lambda m: f(m, x)).value_and_grad(key, m, samples=SAMPLES)
    return {name: run(FUNCTIONS[name]) for name in CLOSED}


def a_mesh(kind):
    return Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(kind,))


def in_shard_map(f, m=0.3):
    body = lambda key, m, x: jax.lax.psum(f(key, m, x), "data")
    specs = {"in_specs": (P(), P(), P("data")), "out_specs": P()}
    return jax.jit(jax.shard_map(body, mesh=a_mesh(AxisType.Auto), **specs))(KEY, jnp.float32(m), X)


@pytest.fixture(scope="module")
def found():
    """Everything compiled once: alone, inside shard_map, and of objectives that close over data."""
    jax.config.update("jax_disable_most_optimizations", True)
    alone = jax.jit(gradients)(KEY, jnp.float32(0.3), X)
    return alone, in_shard_map(gradients), in_shard_map(closed)


@pytest.mark.filterwarnings("ignore::ppl.SoundnessWarning")
@pytest.mark.parametrize("name", NAMES)
def test_in_shard_map(found, name):
    alone, inside, over = found
    np.testing.assert_allclose(inside[name], alone[name], rtol=1e-5, atol=1e-5)
    if name in CLOSED:
        np.testing.assert_allclose(over[name], alone[name], rtol=1e-5, atol=1e-5)


def test_what_it_cannot_follow_says_what_to_type():
    over = lambda key, m, x: ppl.expectation(lambda m: FUNCTIONS["cond"](m, x)).grad(key, m)
    with pytest.raises(ppl.UnsupportedError, match="give them as arguments") as raised:
        in_shard_map(over)
    assert f"{__file__}:" in str(raised.value) and "check_vma=False" in str(raised.value)


@pytest.mark.parametrize("is_set", [True, False])
def test_under_explicit_sharding(found, is_set):
    mesh = a_mesh(AxisType.Explicit)
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    run = lambda key, m, x: ppl.expectation(FUNCTIONS["mixture"]).value_and_grad(
        key, m, x, samples=SAMPLES
    )
    if is_set:
        with jax.set_mesh(mesh):
            got = jax.jit(run)(KEY, jnp.float32(0.3), x)
    else:
        got = jax.jit(run)(KEY, jnp.float32(0.3), x)
    np.testing.assert_allclose(got, found[0]["mixture"], rtol=1e-5)


def test_explicit_arrays_that_are_closed_over_are_refused():
    mesh = a_mesh(AxisType.Explicit)
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    with (
        jax.set_mesh(mesh),
        pytest.raises(ppl.UnsupportedError, match="must be its arguments") as raised,
    ):
        ppl.expectation(lambda m: FUNCTIONS["reparam"](m, x)).grad(KEY, jnp.float32(0.3))
    assert f"{__file__}:" in str(raised.value)
