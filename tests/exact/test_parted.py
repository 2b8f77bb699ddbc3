"""Products with arrays that are partly the same for all enumerated values."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ztest

import ppl
from ppl import dist
from transforms import _jax
from transforms.exact.parted import parted

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(5, 6)), RNG.normal(size=(4, 5, 2))
W, V = RNG.normal(size=(8, 3)), RNG.normal(size=(4, 8, 3))
joined = lambda x, y: jnp.concatenate([x, y], -1)

PROGRAMS: dict[str, tuple[Callable[..., jax.Array], int]] = {
    "on the left": (lambda x, y, w, v: jax.vmap(lambda y: joined(x, y) @ w)(y), 2),
    "on the right": (lambda x, y, w, v: jax.vmap(lambda y: w.T @ joined(x, y).T)(y), 1),
    "the same in the middle": (
        lambda x, y, w, v: jax.vmap(lambda y: jnp.concatenate([y[:, :1], x, y[:, 1:]], -1) @ w)(y),
        3,
    ),
    "a row for all": (
        lambda x, y, w, v: jax.vmap(lambda y: joined(jnp.broadcast_to(x[0], (5, 6)), y) @ w)(y),
        2,
    ),
    "all the same": (
        lambda x, y, w, v: jax.vmap(lambda y: joined(x, x[:, :2]) @ w + y[0, 0])(y),
        1,
    ),
    "matrices that differ": (lambda x, y, w, v: jax.vmap(lambda y, v: joined(x, y) @ v)(y, v), 1),
    "hardly anything the same": (
        lambda x, y, w, v: jax.vmap(lambda y: jnp.concatenate([x[:, :2], y, y, y], -1) @ w)(y),
        1,
    ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", PROGRAMS)
def test_numbers_and_derivatives_stay(name: str) -> None:
    f, products = PROGRAMS[name]
    args = tuple(map(jnp.asarray, (X, Y, W, V)))
    closed = parted(jax.make_jaxpr(f)(*args))
    assert str(closed.jaxpr).count("dot_general") == products
    (new,) = ztest.compiled(lambda *xs: _jax.evaluate(closed, *xs))(*args)
    np.testing.assert_allclose(new, ztest.compiled(f)(*args), rtol=1e-12, atol=1e-13)
    loss = lambda f: ztest.compiled(jax.grad(lambda *xs: jnp.sum(jnp.sin(f(*xs))), (0, 1, 2, 3)))
    slopes = loss(lambda *xs: _jax.evaluate(closed, *xs)[0])(*args)
    for a, b in zip(slopes, loss(f)(*args), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("exactly", [True, False])
def test_a_layer_that_reads_data_and_a_choice(exactly: bool) -> None:
    """Logits that are a product, read by ``x * logits`` and by ``softplus(logits)``: enumerated, or
    by scores (28 numbers by the two stages of ``ztest``: false alarms below 1e-6)."""
    by = ppl.enum() if exactly else ppl.reinforce("loo")
    x, seen = jnp.asarray(RNG.normal(size=6)), jnp.asarray(RNG.random(3) > 0.5, float)

    def hidden(y: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.concatenate([x, jax.nn.one_hot(y, 2)]) @ w)

    def payoff(y: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
        logits = hidden(y, w) @ w[:3] + b
        return jnp.sum(seen * logits - jax.nn.softplus(logits))

    @ppl.expectation
    def f(args: tuple[jax.Array, jax.Array]) -> jax.Array:
        w, b = args
        return payoff(ppl.sample("y", dist.CategoricalLogits(logits=b[:2]), by), w, b)

    def exact(w: jax.Array, b: jax.Array) -> jax.Array:
        return jax.nn.softmax(b[:2]) @ jnp.stack([payoff(jnp.asarray(y), w, b) for y in range(2)])

    args = jnp.asarray(W), jnp.asarray([0.3, -0.4, 0.5])
    right = ztest.compiled(jax.value_and_grad(exact, (0, 1)))(*args)
    estimate = lambda key: f.value_and_grad(key, args, samples=1 if exactly else 4)
    if exactly:
        ztest.check_exact(estimate, (jax.random.key(0),), right, rtol=1e-9, atol=1e-12)
    else:
        ztest.check(estimate, right)


@pytest.mark.usefixtures("x64")
def test_elements_stay_apart_where_their_sum_is_read_by_what_is_no_payoff() -> None:
    """40 flips, of which no two meet in the payoff; all do in auxiliary data."""

    @ppl.expectation(has_aux=True)
    def f(p: jax.Array) -> tuple[jax.Array, jax.Array]:
        law = lambda p: ppl.sample("z", dist.BernoulliProbs(p), ppl.enum())
        total = 3.0 + jnp.sum(jnp.arange(40.0) * jax.vmap(law)(p))
        return total, jnp.cos(total)

    estimate = lambda p: f.value_and_grad(jax.random.key(0), p)
    ((value, _), grad) = ztest.compiled(estimate)(jnp.full(40, 0.3))
    np.testing.assert_allclose(value, 3.0 + 0.3 * 780.0, rtol=1e-12)
    np.testing.assert_allclose(grad, np.arange(40.0), rtol=1e-12)
