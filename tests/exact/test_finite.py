"""Finite supports: arrays of counts, integer payoffs, and masses that round to 1."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ppl
from ppl import dist

KEY = jax.random.key(0)
P = jnp.array([0.2, 0.3, 0.5])


def objective(make: Any, payoff: Any, estimator: Any = None) -> Any:
    return ppl.expectation(lambda t: payoff(ppl.sample("x", make(t), estimator or ppl.enum())))


# --- arrays of counts -----------------------------------------------------------------------------

FIVES = jnp.array([5, 5, 5])
COUNTS = {
    "number": lambda p: dist.Binomial(5, p),
    "numpy": lambda p: dist.Binomial(np.array([5, 5, 5]), p),
    "jax": lambda p: dist.Binomial(FIVES, p).to_event(1),
    "logits": lambda p: dist.Binomial(5, logits=jnp.log(p) - jnp.log1p(-p)).expand((2, 3)),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_many_elements(name: str) -> None:
    found = objective(COUNTS[name], lambda x: jnp.sum(x**2.0)).value_and_grad(KEY, P)
    n, times = 5, 2 if name == "logits" else 1
    p = np.asarray(P)
    exact = np.sum(n * p * (1 - p) + n**2 * p**2), n * (1 - 2 * p) + 2 * n**2 * p
    for a, b in zip(found, exact, strict=True):
        np.testing.assert_allclose(a, times * b, rtol=2e-6)


def test_counts_that_are_summed_out() -> None:
    y = np.array([1.0, 2.0])

    @ppl.gen
    def model() -> None:
        ppl.sample("y", dist.Normal(1.0 * ppl.sample("x", dist.Binomial(4, P[:2])), 1.0))

    k = np.arange(5.0)[:, None]
    p = stats.binom.pmf(k, 4, np.asarray(P)[:2]) * stats.norm.pdf(y, k)
    found = jax.jit(ppl.marginal(model(), "y", ppl.enumeration()).log_density)({"y": y})
    np.testing.assert_allclose(found, np.log(p.sum(0)).sum(), rtol=1e-6)


@pytest.mark.parametrize("n", [(5, 4, 5), None], ids=["unequal", "traced"])
def test_counts_that_are_not_one_number_are_refused(n: Any) -> None:
    f = ppl.expectation(
        lambda t: jnp.sum(
            1.0 * ppl.sample("x", dist.Binomial(t if n is None else np.array(n), P), ppl.enum())
        )
    )
    match = r"'x' ~ BinomialProbs at .*test_finite.py.*its total_count .*not the same for all"
    with pytest.raises(ppl.UnsupportedError, match=match):
        f.value(KEY, 5)


# --- sums of integers -----------------------------------------------------------------------------

W = jnp.arange(1, 31)
INTEGER = {
    "dot": lambda z: z @ W,
    "einsum": lambda z: jnp.einsum("ij,j->", jnp.ones((2, 30), int), z),
    "cumsum": lambda z: (1 + jnp.cumsum(z)) @ W,
    "gather": lambda z: z[::-1][jnp.array([3, 3, 1])] @ W[:3],
    "dynamic_slice": lambda z: jax.lax.dynamic_slice(z, (3,), (20,)).sum(),
    "dynamic_update_slice": lambda z: jax.lax.dynamic_update_slice(z, 2 * z[:5], (3,)) @ W,
    "select": lambda z: jnp.where(W[2] > 1, jnp.where(W > 3, z, 0) @ W, 3),
    "pad": lambda z: jnp.pad(z, (1, 0)) @ jnp.append(W, 31),
}


@pytest.mark.parametrize("name", INTEGER)
def test_sums_of_integers(name: str) -> None:
    """Linear in z: the mean is that at the mean; more than 2**20 joint values were refused."""
    p = jnp.asarray(np.linspace(0.1, 0.9, 30, dtype=np.float32))
    exact = jax.jit(INTEGER[name])(p)
    f = objective(dist.Bernoulli, lambda z: 1.0 * INTEGER[name](z))
    np.testing.assert_allclose(f.value(KEY, p), exact, rtol=1e-6)


def test_inner_products_of_integers_that_wrap_around() -> None:
    w = np.array([200, 100, 90], np.uint8)
    payoff = lambda z: 1.0 * (z.astype(jnp.uint8) @ w)
    found = objective(dist.Bernoulli, payoff).value(KEY, P)
    masses, values, p = [], [], np.asarray(P)
    for z in map(np.array, itertools.product([0, 1], repeat=3)):
        masses.append(np.prod(np.where(z == 1, p, 1 - p)))
        values.append(int(z @ w.astype(int)) % 256)
    np.testing.assert_allclose(found, np.dot(masses, values), rtol=1e-6)


# --- masses that round to 1 -----------------------------------------------------------------------

RARE = 1e13 / (1 + np.exp(30.0))


def repeated(logits: Any, estimator: Any = None) -> Any:
    def step(total: Any, _: Any) -> Any:
        x = ppl.sample("x", dist.Bernoulli(logits=logits), ppl.enum())
        return total + 1e13 * (1 - x), None

    return jax.lax.scan(step, 0.0, None, length=3)[0]


def bernoulli(t: Any) -> Any:
    return dist.Bernoulli(logits=t)


ROUNDED = {
    "bernoulli": (bernoulli, lambda x: 1e13 * (1 - x), 30.0, 1, -1),
    "offset last": (bernoulli, lambda x: 1e13 - 1e13 * x, 30.0, 1, -1),
    "square": (bernoulli, lambda x: 1e13 - 1e13 * x**2, 30.0, 1, -1),
    "nonlinear": (bernoulli, lambda x: jnp.where(x == 0, 1e13, 0.0), 30.0, 1, -1),
    "plate": (bernoulli, lambda x: jnp.sum(1e13 * (1 - x)), np.full(4, 30.0), 4, np.full(4, -1)),
    "categorical": (
        lambda t: dist.Categorical(logits=t),
        lambda x: 1e13 * (2 - x),
        np.array([0.0, 0.0, 30.0]),
        3,
        np.array([2, 1, -3]),
    ),
    "binomial": (
        lambda t: dist.Binomial(3, logits=t), lambda x: 1e13 * (3 - x), 30.0, 3, -3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUNDED)
def test_what_is_rare_is_not_rounded_away(name: str) -> None:
    make, payoff, t, value, slope = ROUNDED[name]
    found = objective(make, payoff).value_and_grad(KEY, t)
    np.testing.assert_allclose(found[0], value * RARE, rtol=1e-5)
    np.testing.assert_allclose(found[1], slope * RARE, rtol=1e-5)


def test_what_is_rare_in_a_loop() -> None:
    found = ppl.expectation(repeated).value_and_grad(KEY, 30.0)
    np.testing.assert_allclose(found, [3 * RARE, -3 * RARE], rtol=1e-5)


@pytest.mark.parametrize("make", [bernoulli, lambda t: dist.Binomial(1, logits=t)])
def test_measure_valued_derivatives_of_what_is_rare(make: Any) -> None:
    slope = objective(make, lambda x: 1e13 * (1 - x), ppl.mvd()).grad(KEY, 30.0)
    np.testing.assert_allclose(slope, -RARE, rtol=1e-5)


def test_a_constant_is_no_part_of_what_a_score_multiplies() -> None:
    """1e6 - x: the variance of the score is that of x alone, which is 0 or 1."""
    f = objective(lambda p: dist.Bernoulli(p), lambda x: 1e6 - x, ppl.reinforce())
    slopes = jax.vmap(lambda key: f.grad(key, 0.5))(jax.random.split(KEY, 8))
    assert set(np.asarray(slopes).tolist()) <= {0.0, -2.0}
