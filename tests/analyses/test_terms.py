"""Sums taken apart: guarded divisions, small masses, small integers, many choices, large grids."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ztest

import ppl
from ppl import dist

KEY = jax.random.key(0)
ESTIMATORS = [ppl.enum, ppl.mvd, ppl.reinforce]


def bernoulli(p, n, estimator=ppl.enum, name="z"):
    return ppl.sample(name, dist.Bernoulli(jnp.full(n, p)), estimator())


# --- guarded divisions ----------------------------------------------------------------------------


def where_divided(z, n):
    return jnp.sum(jnp.where(n > 0, z / n, 0.0))


def where_log(z, n):
    return jnp.sum(jnp.where(n > 0, z * jnp.log(n), 0.0))


def where_power(z, n):
    return jnp.sum(jnp.where(n > 0, z * n**-0.5, 0.0))


def sliced(z, n):
    return jnp.sum((z / n)[1:])


def matrix(z, n):
    return jnp.sum(jnp.where(n > 0, (jnp.ones((3, 3)) / n[:, None]) @ z.astype(float), 0.0))


def matrix_of_integers(z, n):
    return jnp.sum(jnp.where(n > 0, (jnp.ones((3, 3)) / n[:, None]) @ z, 0.0))


def looped(z, n):
    def step(total, x):
        return total + jnp.where(x[1] > 0, x[0] / x[1], 0.0), None

    return jax.lax.scan(step, 0.0, (z.astype(float), n))[0]


def branched(z, n):
    return jnp.sum(jax.vmap(lambda z, n: jax.lax.cond(n > 0, lambda: z / n, lambda: 0.0))(z, n))


GUARDED = [
    where_divided,
    where_log,
    where_power,
    sliced,
    matrix,
    matrix_of_integers,
    looped,
    branched,
]


@pytest.mark.parametrize("payoff", GUARDED, ids=lambda f: f.__name__)
def test_what_a_guard_hides_is_not_multiplied(payoff):
    """The coefficients of z are derivatives of the payoff, as JAX has them elsewhere."""
    n = jnp.array([0.0, 1.0, 2.5])
    for estimator in ESTIMATORS:
        f = ppl.expectation(lambda p, n, e=estimator: payoff(bernoulli(p, 3, e), n))
        value, slope = f.value_and_grad(KEY, 0.3, n)
        each = jax.vmap(lambda z: payoff(z, n))(jnp.eye(3))
        if estimator is ppl.enum:
            np.testing.assert_allclose(value, 0.3 * jnp.sum(each), rtol=1e-5)
        else:  # those that were drawn
            drawn = [jnp.array(z) @ each for z in itertools.product([0, 1], repeat=3)]
            assert np.isclose(value, drawn, rtol=1e-5).any()
        # the score of a 1 is 1/p, and a 0 is worth nothing
        exact = value / 0.3 if estimator is ppl.reinforce else jnp.sum(each)
        np.testing.assert_allclose(slope, exact, rtol=1e-5)


def test_a_guarded_divisor_that_is_differentiated():
    f = ppl.expectation(lambda p, n: where_divided(bernoulli(p, 3), n))
    n = jnp.array([0.0, 1.0, 2.0])
    p_slope, n_slope = jax.jit(lambda p, n: f.grad(KEY, p, n, argnums=(0, 1)))(0.3, n)
    np.testing.assert_allclose(p_slope, 1.5, rtol=1e-6)
    np.testing.assert_allclose(n_slope, [0.0, -0.3, -0.075], rtol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.__name__)
def test_what_is_not_guarded_stays_not_a_number(estimator):
    f = ppl.expectation(lambda p, n: jnp.sum(bernoulli(p, 3, estimator) / n))
    assert jnp.isnan(f.value(KEY, 0.3, jnp.array([0.0, 1.0, 2.0])))


# --- small masses ---------------------------------------------------------------------------------


def in_scan(p):
    def step(total, _):
        return total + ppl.sample("z", dist.Bernoulli(p), ppl.enum()) / p, None

    return jax.lax.scan(step, 0.0, None, length=3)[0]


def in_cond(p):
    draw = lambda: ppl.sample("z", dist.Bernoulli(p), ppl.enum()) * (3.0 / p)
    return jax.lax.cond(p < 0.5, draw, lambda: 0.0)


def in_cond_in_scan(p):
    def step(total, taken):
        draw = lambda: ppl.sample("z", dist.Bernoulli(p), ppl.enum()) / p
        return total + jax.lax.cond(taken, draw, lambda: 0.0), None

    return jax.lax.scan(step, 0.0, jnp.array([True, False, True, True]))[0]


def among_fifty(p):
    logits = jnp.zeros(50).at[0].set(jnp.log(49 * p) - jnp.log1p(-p))
    z = ppl.sample("z", dist.Categorical(logits=logits), ppl.enum())
    return jnp.where(z == 0, 3.0 / p, 0.0)


def improbable_zero(p):
    z = ppl.sample("z", dist.Bernoulli(logits=-jnp.log(p)), ppl.enum())
    return jnp.where(z == 0, 3.0 * (1 + p) / p, 0.0)


SMALL = [in_scan, in_cond, in_cond_in_scan, among_fifty, improbable_zero]


@pytest.mark.parametrize("program", SMALL, ids=lambda f: f.__name__)
def test_small_masses_are_exact(program):
    f = ppl.expectation(program)
    for p in (1e-8, 1e-5):
        np.testing.assert_allclose(jax.jit(lambda p: f.value(KEY, p))(p), 3.0, rtol=3e-5)
    if program is not in_cond_in_scan:
        with jax.disable_jit():
            np.testing.assert_allclose(f.value(KEY, 1e-8), 3.0, rtol=3e-5)


# --- integers that wrap around --------------------------------------------------------------------


def counter(dtype, factor):
    def payoff(z):
        step = lambda total, z: (total + z.astype(dtype) * dtype(factor), None)
        return jax.lax.scan(step, dtype(0), z)[0]

    return payoff


INTEGERS = {
    "u8 sum": lambda z: (lambda u: u * jnp.uint8(200) + u * jnp.uint8(200))(z[0].astype(jnp.uint8)),
    "u8 below 0": lambda z: z[0].astype(jnp.uint8) - jnp.uint8(1),
    "i8": lambda z: (lambda u: u * jnp.int8(100) + u * jnp.int8(100))(z[0].astype(jnp.int8)),
    "i16": lambda z: z[0].astype(jnp.int16) * jnp.int16(30000) + jnp.int16(30000),
    "u16 negative": lambda z: -z[0].astype(jnp.uint16),
    "u32 below 0": lambda z: z[0].astype(jnp.uint32) - jnp.uint32(1),
    "i32": lambda z: z[0] * 2_000_000_000 + z[0] * 2_000_000_000,
    "i32 not exact in floats": lambda z: z[0] * 20_000_001 - 20_000_000 * z[0],
    "promoted": lambda z: jnp.sum(z.astype(jnp.uint8) * jnp.uint8(200)),
    "sum in u8": lambda z: jnp.sum(z.astype(jnp.uint8) * jnp.uint8(200), dtype=jnp.uint8),
    "mean": lambda z: jnp.mean(z.astype(jnp.uint8) * jnp.uint8(200)),
    "inner product": lambda z: (lambda u: u @ u)(z.astype(jnp.uint8) * jnp.uint8(10)),
    "carry": counter(jnp.uint8, 100),
    "wide carry": counter(jnp.int32, 100),
    "booleans": lambda z: jnp.sum(z.astype(bool)),
    "absolute": lambda z: jnp.abs(jnp.sum(z) - 3),
}


@pytest.mark.parametrize("payoff", INTEGERS.values(), ids=INTEGERS)
def test_sums_of_integers_do_what_integers_do(payoff):
    f = ppl.expectation(lambda p: payoff(bernoulli(p, 4)).astype(float))
    values = np.array(list(itertools.product([0, 1], repeat=4)), np.int32)
    masses = np.prod(np.where(values == 1, 0.3, 0.7), axis=1)
    exact = lambda: masses @ np.asarray(jax.vmap(payoff)(values), np.float64)
    claim = [payoff, masses]
    ztest.check_exact(f.value, [KEY, 0.3], exact, claim, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "payoff",
    [
        lambda z, w: jnp.sum(z) + 1,
        lambda z, w: jnp.sum(z * w) + 1,
        lambda z, w: jnp.sum(z * np.arange(30)) + 1,
        lambda z, w: jax.lax.scan(lambda c, x: (c + x[0] * x[1], None), 1, (z, w))[0],
    ],
)
def test_ordinary_sums_of_integers_are_still_taken_apart(payoff):
    """Else the 30 elements would have 2^30 joint values."""
    f = ppl.expectation(lambda p, w: payoff(bernoulli(p, 30), w).astype(float))
    w = jnp.arange(30)
    expected = 0.3 * payoff(jnp.ones(30, int), w) + 0.7 * payoff(jnp.zeros(30, int), w)
    np.testing.assert_allclose(f.value(KEY, 0.3, w), expected, rtol=1e-5)


# --- many choices ---------------------------------------------------------------------------------


def straight(n, estimator=ppl.enum):
    def program(p):
        each = [ppl.sample(f"z{i}", dist.Bernoulli(p), estimator()) for i in range(n)]
        return sum((i + 1.0) * z for i, z in enumerate(each))

    return ppl.expectation(program)


def test_a_hundred_enumerated_choices():
    value, slope = straight(100).value_and_grad(KEY, 0.3)
    np.testing.assert_allclose([value, slope], [0.3 * 5050, 5050], rtol=1e-5)


def test_choices_that_meet_do_not_share_an_axis():
    """Neighbours, a parameter that is a choice, other supports, a plate and a loop between."""

    @ppl.expectation
    def f(p):
        a = ppl.sample("a", dist.Bernoulli(p), ppl.enum())
        b = ppl.sample("b", dist.Bernoulli(jnp.where(a == 1, p, 0.5)), ppl.enum())
        c = ppl.sample("c", dist.Categorical(jnp.array([0.2, 0.3, 0.5])), ppl.enum())
        d = ppl.sample("d", dist.Bernoulli(p), ppl.enum())
        x = ppl.sample("x", dist.Normal(d * 2.0, 1.0), ppl.reparam())
        e = ppl.sample("e", dist.Bernoulli(jnp.array([p, p / 2])), ppl.enum())
        return 3.0 * b + a * c + c * d + (x - x + d) * e[0] + e[1] * b

    def exact(p):
        b = p * p + (1 - p) * 0.5
        return 3 * b + p * 1.3 + 1.3 * p + p * p + p / 2 * b

    value, slope = f.value_and_grad(KEY, 0.3)
    np.testing.assert_allclose(value, exact(0.3), rtol=1e-5)
    np.testing.assert_allclose(slope, jax.grad(exact)(0.3), rtol=1e-5)


def test_measure_valued_derivatives_beside_choices_that_share_an_axis():
    @ppl.expectation
    def f(p):
        a = ppl.sample("a", dist.Bernoulli(p), ppl.enum())
        b = ppl.sample("b", dist.Bernoulli(p), ppl.enum())
        x = ppl.sample("x", dist.Bernoulli(p), ppl.mvd())
        return 2.0 * a + 3.0 * b + 5.0 * x

    np.testing.assert_allclose(f.grad(KEY, 0.3), 10.0, rtol=1e-5)


# --- large grids ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [11, 16])
def test_the_gradient_of_a_large_joint_enumeration(n):
    """``loc[x]`` adds 2^n numbers into two; sequential sums in 32 bits lose 1e-3 at 2^16."""

    @ppl.expectation
    def f(loc):
        return jnp.prod(loc[bernoulli(0.3, n)])

    value, slope = jax.jit(lambda loc: f.value_and_grad(KEY, loc))(jnp.array([0.9, 1.1]))
    mean = 0.7 * 0.9 + 0.3 * 1.1
    np.testing.assert_allclose(value, mean**n, rtol=1e-5)
    np.testing.assert_allclose(slope, n * mean ** (n - 1) * np.array([0.7, 0.3]), rtol=1e-5)


def test_large_grids_of_several_choices_and_of_one():
    @ppl.expectation
    def f(loc, table):
        k = sum(ppl.sample(f"x{i}", dist.Bernoulli(0.3), ppl.enum()) for i in range(11))
        j = ppl.sample("j", dist.Categorical(jnp.full(1009, 1 / 1009)), ppl.enum())
        return loc[k] + table[j % 2]

    def run(loc, table):
        return f.value_and_grad(KEY, loc, table, argnums=(0, 1))

    value, (loc, table) = jax.jit(run)(jnp.arange(12.0), jnp.ones(2))
    masses = [math.comb(11, k) * 0.3**k * 0.7 ** (11 - k) for k in range(12)]
    np.testing.assert_allclose(value, 0.3 * 11 + 1, rtol=1e-5)
    np.testing.assert_allclose(loc, masses, rtol=1e-5)
    np.testing.assert_allclose(table, [505 / 1009, 504 / 1009], rtol=1e-5)


def test_a_branch_in_a_large_grid():
    @ppl.expectation
    def f(t, i):
        k = sum(ppl.sample(f"x{j}", dist.Bernoulli(0.3), ppl.enum()) for j in range(11))
        return jax.lax.cond(i > 0, lambda: t * k**2, lambda: t - k)

    value, slope = f.value_and_grad(KEY, 2.0, jnp.array(1))
    second = 11 * 0.3 * 0.7 + 3.3**2
    np.testing.assert_allclose([value, slope], [2 * second, second], rtol=1e-5)
    np.testing.assert_allclose(f.value_and_grad(KEY, 2.0, jnp.array(0)), [-1.3, 1.0], rtol=1e-5)


WEIGHTS = np.linspace(0.5, 1.5, 24, dtype=np.float32)
ARRANGED = {
    "stack": (lambda z: (jnp.stack([z, 2 * z], 1) @ jnp.array([1.0, 3.0])).sum(), 7 * WEIGHTS),
    "a column set": (lambda z: (jnp.zeros((24, 2)).at[:, 0].set(z) * 7.0).sum(), 7 * WEIGHTS),
    "tile": (lambda z: (jnp.tile(z[:, None], (1, 3)) ** 2).sum(), 3 * WEIGHTS**2),
    "unstack": (lambda z: sum(jnp.unstack(jnp.stack([z, z], 1), axis=1)).sum(), 2 * WEIGHTS),
}


@pytest.mark.parametrize("name", ARRANGED)
def test_arrays_made_of_a_plate_are_sums_over_it(name):
    g, slopes = ARRANGED[name]

    @ppl.expectation
    def f(p):
        return g(ppl.sample("z", dist.Bernoulli(p * jnp.ones(24)), ppl.enum()) * WEIGHTS)

    value, slope = f.value_and_grad(KEY, 0.3)
    np.testing.assert_allclose([value, slope], [0.3 * slopes.sum(), slopes.sum()], rtol=1e-5)
