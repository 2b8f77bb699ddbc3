"""Compiled code is shared by functions that compute the same, and by no others."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppl
from ppl import dist
from transforms.program.compiled import compiled, computed

KEY = jax.random.key(0)
COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, _, **more: COMPILED.append(more) if "backend_compile" in name else None
)


@contextlib.contextmanager
def no_compilation():
    before = len(COMPILED)
    yield
    assert not COMPILED[before:]


def cell(scale=1.0):
    """What a cell of a notebook makes anew each time it runs."""

    @ppl.gen
    def model():
        x = ppl.sample("x", dist.Normal(0.0, scale))
        t = ppl.sample("t", dist.HalfNormal(1.0))
        ppl.sample("y", dist.Normal(x, 1.0 + 0.1 * t))

    @ppl.gen
    def guide(phi):
        ppl.sample("x", dist.Normal(phi["m"], jax.nn.softplus(phi["s"])))
        ppl.sample("t", dist.LogNormal(phi["t"], 0.5))

    @ppl.expectation
    def elbo(phi, y):
        return ppl.elbo(model(), guide(phi), {"y": y})

    return model, elbo


PHI = {"m": 0.0, "s": 0.0, "t": 0.0}


def fit(elbo, optimizer):
    return ppl.maximize(elbo, PHI, optimizer, key=KEY, steps=5, args=(0.7,), progress=False)


OPTIMIZERS = {
    "adam": lambda rate: optax.adam(rate),
    "a schedule": lambda rate: optax.sgd(optax.exponential_decay(rate, 3, 0.5)),
    "a chain": lambda rate: optax.chain(optax.clip(7 * rate), optax.adamw(rate, b1=1 - rate)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_another_rate_and_a_cell_that_runs_again_compile_nothing(name):
    make = OPTIMIZERS[name]
    first = fit(cell()[1], make(0.1)).params
    with no_compilation():
        again = fit(cell()[1], make(0.1)).params
        other = fit(cell()[1], make(0.03)).params
    assert first == again
    # inside jit a fit is compiled by itself, with its numbers in the code
    right = jax.jit(lambda: fit(cell()[1], make(0.03)).params)()
    for k in PHI:
        assert other[k] == pytest.approx(float(right[k]), rel=1e-5)
        assert abs(other[k] - first[k]) > 1e-3


def test_a_model_with_another_number_in_it_is_another_one():
    one, two = (fit(cell(scale)[1], optax.adam(0.1)).params for scale in (1.0, 0.2))
    assert one["m"] != two["m"]


def test_a_density_at_other_parameters_compiles_nothing():
    """Outside of jit, where a parameter is a number in the program."""

    @ppl.gen
    def model(mean):
        x = ppl.sample("x", dist.Normal(mean, 2.0))
        ppl.sample("y", dist.Normal(x * mean, 1.0))

    def density(mean):
        return float(model(mean).log_density({"x": 1.0, "y": 0.5}))

    density(0.3)
    with no_compilation():
        found = density(0.7)
    right = dist.Normal(0.7, 2.0).log_prob(1.0) + dist.Normal(0.7, 1.0).log_prob(0.5)
    assert found == pytest.approx(float(right), rel=1e-6)


SEEN = {"x": np.linspace(-1.0, 2.0, 13)}
OUTSIDE_OF_JIT = {
    "a trace": lambda p: coins(p).simulate(KEY)["x"],
    "a weight": lambda p: coins(p).generate(SEEN, KEY)[1],
    "a posterior": lambda p: ppl.normalize(coins(p), SEEN).simulate(KEY)["z"],
    "the most probable values": lambda p: ppl.most_likely(coins(p), SEEN)["z"],
    "probabilities": lambda p: ppl.marginals(coins(p), SEEN)["z"],
}


@ppl.gen
def coins(p):
    """Thirteen: of that shape nothing is compiled yet."""

    def one():
        z = ppl.sample("z", dist.Bernoulli(p))
        ppl.sample("x", dist.Normal(jnp.sin(2.0 * z), 1.0 + p))

    jax.vmap(one, axis_size=13)()


@pytest.mark.parametrize("name", OUTSIDE_OF_JIT)
def test_what_is_asked_outside_of_jit_is_one_program(name):
    ask, before = OUTSIDE_OF_JIT[name], len(COMPILED)
    ask(0.3)
    names = [more["fun_name"] for more in COMPILED[before:]]
    assert names.count("jit(evaluate)") == 1 and len(names) <= 6, names
    with no_compilation():
        found = ask(0.6)
    np.testing.assert_allclose(found, jax.jit(ask)(0.6), rtol=1e-6)


def test_infer_on_other_data_compiles_nothing():
    """x ~ N(0, 1), y ~ N(x, 1): the posterior is N(y / 2, 1 / 2)."""

    def posterior(y):
        @ppl.gen
        def model():
            x = ppl.sample("x", dist.Normal(0.0, 1.0))
            ppl.sample("y", dist.Normal(x, 1.0))

        found = ppl.infer(model(), {"y": y}, key=KEY, steps=600, optimizer=optax.adam(0.03))
        draws = found.sample(KEY, 100)["x"]
        found.predict(KEY, model(), 50)
        return np.asarray(draws), found.elbo

    first, bound = posterior(1.0)
    with no_compilation():
        second, other = posterior(3.0)
    # the guide can be exact, and then the bound is the evidence, up to noise of the fit
    evidence = lambda y: -(y**2) / 4 - 0.5 * np.log(4 * np.pi)
    assert bound == pytest.approx(evidence(1.0), abs=0.02)
    assert other == pytest.approx(evidence(3.0), abs=0.02)
    np.testing.assert_allclose((second - first).mean(), 1.0, atol=0.1)


def own(factor, rule):
    @jax.custom_jvp
    def f(x):
        return factor * x

    f.defjvp(lambda primals, tangents: (f(*primals), rule * tangents[0]))
    return f


A, B = np.arange(4.0, dtype=np.float32).reshape(2, 2), np.ones((2, 2), np.float32)
ALIKE = {
    "a number": (lambda x: 2.0 * x, lambda x: 3.0 * x),
    "the sign of zero": (lambda x: 1.0 / (x * 0.0), lambda x: 1.0 / (x * -0.0)),
    "an axis": (lambda x: x.sum(0), lambda x: x.sum(1)),
    "an array": (lambda x: x + A, lambda x: x + B),
    "the order of operands": (lambda x: x - A, lambda x: A - x),
    "a type": (lambda x: (x + 0.7).astype(int), lambda x: (x + 0.7).astype(float)),
    "a body": (
        lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x + i, x),
        lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x * i, x),
    ),
    "a length": (
        lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x + i, x),
        lambda x: jax.lax.fori_loop(0, 4, lambda i, x: x + i, x),
    ),
    "a branch": (
        lambda x: jax.lax.cond(x[0, 0] > 2, lambda: x, lambda: 2 * x),
        lambda x: jax.lax.cond(x[0, 0] > 2, lambda: x, lambda: -x),
    ),
    "the value of a custom function": (own(2.0, 1.0), own(3.0, 1.0)),
    "the rule of a custom function": (
        jax.grad(lambda x: own(2.0, 1.0)(x).sum()),
        jax.grad(lambda x: own(2.0, 5.0)(x).sum()),
    ),
    "which input": (lambda x: (x[0], x[1]), lambda x: (x[1], x[0])),
}


@pytest.mark.parametrize("name", ALIKE)
def test_code_is_not_taken_for_that_of_a_program_that_is_alike(name):
    x = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32)
    one, two = ALIKE[name]
    for f in (one, two, one):
        jax.tree.map(np.testing.assert_array_equal, computed(f, x), jax.jit(f)(x))
    assert str(computed(one, x)) != str(computed(two, x))


def test_the_same_program_with_other_arrays_is_compiled_once():
    x = np.ones((2, 2), np.float32)
    computed(lambda x: own(7.0, 1.0)(x) + A, x)
    with no_compilation():
        found = computed(lambda x: own(7.0, 5.0)(x) + 2 * A, x)
    np.testing.assert_array_equal(found, 7 * x + 2 * A)


def test_a_callback_writes_where_it_should():
    def telling(told):
        return lambda x: jax.debug.callback(lambda v: told.append(float(v)), x) or x + 1

    one, two = [], []
    for told in (one, two):
        computed(telling(told), jnp.float32(3.0))
        jax.effects_barrier()
    assert one == two == [3.0]


def test_without_jit_nothing_is_compiled():
    seen = []
    with jax.disable_jit():
        run = compiled(lambda x: seen.append(float(x)) or x, 1.0)
        assert run(2.0) == 2.0
    assert seen == [2.0]
