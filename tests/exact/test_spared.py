"""What is spared where values are enumerated side by side: reads of whole tables, transposes,
what is computed twice, guards. Each is compared with a loop over the values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transforms import _jax
from transforms.estimation.weighted import times
from transforms.exact.grid import over_axes
from transforms.exact.spared import spared
from transforms.program.computed_once import computed_once

K, N = 5, 210
TABLE = jnp.asarray(np.random.default_rng(0).normal(size=(K, N)), jnp.float32)
PLACES = jnp.asarray(np.random.default_rng(1).integers(0, K, 7))

Read = Callable[[jax.Array, Any, Any], jax.Array]
READS: dict[str, tuple[Read, int]] = {
    "a row": (lambda a, z, w: a[z], 0),
    "a column": (lambda a, z, w: jnp.sin(a[:, z]) * a[:, 0], 0),
    "a number": (lambda a, z, w: a[z, w], 0),
    "two rows": (lambda a, z, w: a[z] - a[w] * jnp.arange(N), 0),
    "every other column": (lambda a, z, w: jnp.cos(a[:, 2 * z + 1]), 0),
    "rows that follow, the last one twice": (lambda a, z, w: a[jnp.minimum(z + 1, K - 1)], 1),
    "the diagonal": (lambda a, z, w: a[z, z], 1),
    "rows too far": (lambda a, z, w: a[2 * z], 1),
    "backwards": (lambda a, z, w: a[K - 1 - z], 1),
    "beyond the end": (lambda a, z, w: a.at[z + 1].get(mode="fill", fill_value=3.0), 1),
    "some columns of a row": (lambda a, z, w: a[z][PLACES], 1),
    "a plate of columns": (lambda a, z, w: jax.vmap(lambda r: r[z] + r[w])(a.T), 0),
}
"""Of a table, and how many gathers are left at most."""


@pytest.mark.parametrize("name", READS)
def test_a_table_read_at_all_places_is_the_table(name: str) -> None:
    read, gathers = READS[name]
    both = frozenset({0, 1})

    def grid(a: jax.Array) -> jax.Array:
        return over_axes(lambda z, w: read(a, z, w), [K, K], both)

    def loop(a: jax.Array) -> jax.Array:
        row = lambda z: jax.lax.map(lambda w: read(a, z, w), jnp.arange(K))
        return jax.lax.map(row, jnp.arange(K))

    def weighed(f: Any) -> Any:
        both = lambda a: (jnp.sum(jnp.cos(x := f(a))), x)
        return jax.jit(jax.value_and_grad(both, has_aux=True))(TABLE)

    ((_, found), slope), ((_, wanted), right) = map(weighed, (grid, loop))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_allclose(slope, right, rtol=1e-5, atol=1e-4)
    names = [e.primitive.name for e in jax.make_jaxpr(grid)(TABLE).eqns]
    assert names.count("gather") <= gathers


def test_large_tables_are_not_turned() -> None:
    """Transposes of the table, and of what is computed of it, are none until the end."""

    def f(a: jax.Array) -> jax.Array:
        one = lambda z: jnp.sum(jnp.exp(a[:, z]) * a[:, 0] - a[:, z])
        return over_axes(one, [N], frozenset({0}))

    big = np.concatenate([TABLE] * 8)
    wanted = np.sum(np.exp(big) * big[:, :1] - big, 0)
    np.testing.assert_allclose(jax.jit(f)(big), wanted, rtol=2e-5, atol=1e-4)
    turned = [e for e in jax.make_jaxpr(f)(big).eqns if e.primitive.name == "transpose"]
    assert all(e.outvars[0].aval.size < big.size or e.invars[0].aval.ndim < 2 for e in turned)


def test_what_meets_a_table_is_made_in_its_order() -> None:
    """Of an array for each row and a number for each value, in the derivative too."""

    def f(a: jax.Array, m: jax.Array, x: jax.Array) -> jax.Array:
        seen = lambda z: -0.5 * (x - m[z]) ** 2
        one = lambda z: jnp.sum(jnp.exp(a[:, z]) * (seen(z) - a[:, z]))
        return jnp.sum(over_axes(one, [N], frozenset({0})))

    big = np.concatenate([TABLE] * 8)
    args = big, TABLE[0], np.arange(len(big), dtype=np.float32) / len(big)
    value, slope = jax.jit(jax.value_and_grad(f, 1))(*args)
    seen = args[2][:, None] - args[1]
    np.testing.assert_allclose(value, np.sum(np.exp(big) * (-0.5 * seen**2 - big)), rtol=2e-5)
    np.testing.assert_allclose(slope, np.sum(np.exp(big) * seen, 0), rtol=1e-4, atol=1e-3)
    turned = [
        e for e in jax.make_jaxpr(jax.grad(f, 1))(*args).eqns if e.primitive.name == "transpose"
    ]
    assert all(e.outvars[0].aval.size < big.size for e in turned)


def test_what_is_computed_twice_is_computed_once() -> None:
    def f(x: jax.Array) -> jax.Array:
        return jnp.sin(x + 1.0) * jnp.sin(x + 1.0) + jnp.sin(x + 2.0)

    closed = computed_once(jax.make_jaxpr(f)(1.0))
    names = [e.primitive.name for e in closed.jaxpr.eqns]
    assert names.count("sin") == 2
    np.testing.assert_array_equal(_jax.evaluate(closed, jnp.float32(0.3))[0], f(jnp.float32(0.3)))


@pytest.mark.parametrize("logarithm", [False, True])
def test_what_has_no_weight_does_not_count(logarithm: bool) -> None:
    """Value and first and second derivatives of a weighted sum, at weights of 0 too."""
    f = np.array([1.0, -np.inf, 2.0, np.nan], np.float32)

    def weighted(logits: jax.Array, f: jax.Array) -> jax.Array:
        return jnp.sum(times(jnp.exp(logits), f))

    def total(logits: jax.Array, f: jax.Array) -> jax.Array:
        if not logarithm:
            return weighted(logits, f)
        closed = spared(jax.make_jaxpr(weighted)(logits, f))
        assert "times_exp" in str(closed)
        return _jax.evaluate(closed, logits, f)[0]

    logits = np.array([0.3, -np.inf, -1.0, -np.inf], np.float32)
    value, slope = jax.jit(jax.value_and_grad(total))(logits, f)
    p = np.exp([0.3, -1.0])
    np.testing.assert_allclose(value, p @ [1.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(slope, [p[0], 0.0, 2 * p[1], 0.0], rtol=1e-6)
    finite, x = np.array([1.0, -3.0], np.float32), np.array([0.2, 0.7], np.float32)
    hessian = jax.jit(jax.hessian(total, (0, 1)))(x, finite)
    e = np.exp(x)
    np.testing.assert_allclose(hessian[0][0], np.diag(e * finite), rtol=1e-6)
    np.testing.assert_allclose(hessian[0][1], np.diag(e), rtol=1e-6)
    assert jax.jit(total)(np.zeros(2), np.array([1.0, -np.inf])) == -np.inf


def test_a_probability_of_zero_has_a_slope() -> None:
    f = lambda p: jnp.sum(times(p, jnp.array([2.0, 5.0])))
    slope = jax.jit(jax.grad(f))(np.array([0.0, 1.0], np.float32))
    np.testing.assert_array_equal(slope, [2.0, 5.0])
