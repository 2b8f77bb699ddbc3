"""What NumPy evaluates in the place of XLA has the same results."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from soundness_alarms import fixed_point

from transforms.numeric import run as numeric

REAL = np.array([-3.7, -1.0, -0.5, -0.0, 0.3, 0.5, 1.0, 2.5, np.inf, -np.inf, np.nan], np.float32)
OTHER = np.roll(REAL, 4)
UNIT = np.linspace(-0.99, 0.99, 11, dtype=np.float32)
WHOLE = np.array([-7, -3, -1, 0, 1, 2, 3, 4, 5, 7, 9], np.int32)
WHOLE2 = np.array([2, -2, 3, 5, -4, 7, 3, -3, 2, 4, -2], np.int32)
TRUE = WHOLE > 0
TABLE = np.sin(np.arange(24.0, dtype=np.float32)).reshape(2, 3, 4)
SQUARE = TABLE[:, :, :3]

UNARY = [
    *(lax.neg, lax.abs, lax.sign, lax.floor, lax.ceil, lax.exp, lax.exp2, lax.expm1, lax.log),
    *(lax.log1p, lax.sqrt, lax.rsqrt, lax.cbrt, lax.square, lax.sin, lax.cos, lax.tan, lax.asin),
    *(lax.acos, lax.atan, lax.sinh, lax.cosh, lax.tanh, lax.asinh, lax.acosh, lax.atanh),
    *(lax.logistic, lax.erf, lax.erfc, lax.erf_inv, lax.is_finite, lax.round),
    lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN),
    lambda x: lax.integer_pow(x, 3),
    lambda x: lax.integer_pow(x, -2),
    lambda x: lax.pow(x, 2),
    lambda x: lax.clamp(np.float32(-1.0), x, np.float32(2.0)),
    lambda x: x != 0.5,
    lambda x: x.astype(bool),
]
BINARY = [
    *(lax.add, lax.sub, lax.mul, lax.div, lax.rem, lax.max, lax.min, lax.pow, lax.atan2),
    *(lax.eq, lax.ne, lax.lt, lax.le, lax.gt, lax.ge, lax.nextafter),
    lambda x, y: lax.select_n(x > 0, x, y),
]
INTEGER = [
    *(lax.add, lax.sub, lax.mul, lax.div, lax.rem, lax.max, lax.min, lax.eq, lax.lt),
    *(lax.bitwise_and, lax.bitwise_or, lax.bitwise_xor),
    lambda x, y: lax.bitwise_not(x) + lax.abs(y) + lax.sign(x),
    lambda x, y: lax.select_n(x % 3, x, y, x + y),
    lambda x, y: lax.integer_pow(x, 3),
    lambda x, y: x.astype(jnp.uint8) // jnp.uint8(3),
    lambda x, y: x.astype(float) / 3.0,
]
ARRAYS = {
    "transpose": lambda x: x.transpose(2, 0, 1),
    "broadcast": lambda x: jnp.broadcast_to(x[:, None], (2, 5, 3, 4)),
    "slice": lambda x: lax.slice(x, (0, 1, 0), (2, 3, 4), (1, 1, 2)),
    "dynamic slice": lambda x: lax.dynamic_slice(x, (1, jnp.int32(x[0, 0, 1] * 9), -7), (1, 2, 2)),
    "rev": lambda x: lax.rev(x, (0, 2)),
    "concatenate": lambda x: jnp.concatenate([x, 2 * x], 1),
    "stack": lambda x: jnp.stack([x[0], 2 * x[1]], 1),
    "unstack": lambda x: sum(jnp.unstack(x, axis=1), x[:, 0]),
    "tile": lambda x: jnp.tile(x, (2, 1, 3)),
    "split": lambda x: jnp.split(x, [1, 2], 2)[1],
    "iota": lambda x: lax.broadcasted_iota(jnp.float32, (3, 4), 1) + x,
    "pad": lambda x: lax.pad(x, np.float32(7.0), ((0, 1, 0), (2, 0, 1), (1, 1, 2))),
    "negative pad": lambda x: lax.pad(x, np.float32(7.0), ((0, 0, 0), (-1, 0, 0), (0, -2, 0))),
    "sum": lambda x: x.sum((0, 2)),
    "prod": lambda x: x.prod(1),
    "max": lambda x: x.max((1, 2)),
    "min": lambda x: x.min(),
    "largest whole": lambda x: (9 * x).astype(int).max(0) - (9 * x).astype(int).min(1).sum(),
    "all, any": lambda x: jnp.all(x > 0, 0) | jnp.any(x > 0.9, 1, keepdims=True)[:, :, 0].any(),
    "argmax": lambda x: x.argmax(1),
    "argmin": lambda x: x.argmin(2),
    "inner product": lambda x: jnp.dot(x[0, 0], x[1, 2]),
    "cumulative": lambda x: [lax.cumsum(x, 1), lax.cumprod(x, 2), lax.cummax(x, 1, reverse=True)],
    "least so far": lambda x: lax.cummin(x, 2),
    "sort": lambda x: lax.sort(x, 1),
    "sort of two": lambda x: lax.sort((jnp.round(x), x), 2, num_keys=1),
    "sort by two": lambda x: lax.sort((jnp.round(x), -x, x), 2, num_keys=2),
    "gather": lambda x: x[:, jnp.array([2, 0]), 1],
    "scatter": lambda x: x.at[:, 1].add(x[:, 0]),
    "product": lambda x: jnp.einsum("aij,ajk->aik", x, x.transpose(0, 2, 1)),
    "products over two": lambda x: jnp.einsum("aij,bij->ba", x, x),
    "outer product": lambda x: jnp.einsum("aij,k->aijk", x, x[0, 0]),
    "scan": lambda x: lax.scan(lambda c, x: (c + x, c * x), jnp.ones(4), x[0], reverse=True),
    "scan of none": lambda x: lax.scan(lambda c, x: (c, x), x, jnp.zeros((0, 2))),
    "while": lambda x: lax.while_loop(lambda c: c.sum() < 9.0, lambda c: c + 1.0, x),
    "whiles": jax.vmap(
        lambda x: lax.while_loop(lambda c: c[0].sum() < 9.0, lambda c: (c[0] + 1.0, x), (x, x))
    ),
    "cond": lambda x: lax.cond(x[0, 0, 1] > 0, jnp.sin, jnp.cos, x),
    "jit": lambda x: jax.jit(jnp.sin)(x),
    "rule": lambda x: jax.nn.relu(x) + jax.nn.silu(x),
    "checkpoint": lambda x: jax.checkpoint(jnp.sin)(x),
    "complex": lambda x: jnp.imag(jnp.log(lax.complex(x, -x))) + jnp.abs(lax.complex(x, x)),
    "saturated": lambda x: (1e11 * x).astype(jnp.int32),
    "truncated": lambda x: (9.5 * x).astype(jnp.int32),
    "random numbers": lambda x: x + jax.random.normal(jax.random.key(0), (4,)),
    "keys": lambda x: jax.random.key_data(jax.random.split(jax.random.key(0), 2)[::-1]),
    "factors": lambda x: jnp.linalg.cholesky(x[0] @ x[0].T + 3 * jnp.eye(3)),
}


def check(f, *args):
    closed = jax.make_jaxpr(f)(*args)
    expected = jax.tree.leaves(jax.jit(f)(*args))
    compare(numeric.evaluate(closed, args), expected)


def compare(results, expected):
    for got, want in zip(results, expected, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=3e-5, atol=1e-6)


def on_lines(f, *args):
    """With 3 lines and 2 points, of the first argument on the lines only."""
    scale = np.linspace(0.5, 1.5, 6, dtype=np.float32).reshape(3, 2)
    closed = jax.make_jaxpr(f)(*args)
    grids = [np.multiply.outer(scale[:, :1] if i == 0 else scale, a) for i, a in enumerate(args)]
    grids = [g.astype(a.dtype) for g, a in zip(grids, args, strict=True)]
    every = [np.broadcast_to(g, (3, 2, *a.shape)) for g, a in zip(grids, args, strict=True)]
    expected = jax.tree.leaves(jax.jit(jax.vmap(jax.vmap(f)))(*every))
    results = numeric.evaluate(closed, grids)
    shown = zip(results, expected, strict=True)
    compare([whole(x, e) for x, e in shown], expected)


def whole(x, like):
    x = x if x.ndim == like.ndim else x[None, None]
    return np.broadcast_to(x, like.shape)


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name):
    check(ARRAYS[name], TABLE)
    on_lines(ARRAYS[name], TABLE)


@pytest.mark.parametrize("group", [UNARY, BINARY, INTEGER], ids=["unary", "binary", "integer"])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_elements(group):
    """Of all kinds, ends and NaN included."""
    args = {id(UNARY): [REAL], id(BINARY): [REAL, OTHER], id(INTEGER): [WHOLE, WHOLE2]}[id(group)]
    every = lambda *xs: [f(*map(jnp.asarray, xs)) for f in group]
    check(every, *args)
    on_lines(every, *args)
    if group is UNARY:
        check(lambda x: [f(x) for f in (lax.lgamma, lax.digamma)], np.abs(UNIT) + 0.1)
        check(lambda b: [~b, b & ~b, b ^ True, b.astype(float)], TRUE)


def test_numbers_and_arrays():
    """A number beside an array: one for all elements."""
    x = np.float32(0.7)
    f = lambda x, y: [lax.select_n(x > 0.5, y, -y), lax.clamp(x, y, 2 * x), x * y, y.at[0].add(x)]
    on_lines(f, x, TABLE[0])
    on_lines(f, *(TABLE[0, 0, 1], TABLE[0]))
    table = lambda i, y: [y[i.astype(int)], lax.dynamic_slice(y, (i.astype(int), 1), (1, 2)), y[0]]
    on_lines(table, np.float32(1.9), TABLE[0])
    loop = lambda x, y: lax.while_loop(lambda c: c[1] < x, lambda c: (c[0] + y, c[1] + 1), (y, 0.0))
    on_lines(loop, np.float32(3.3), TABLE[0])
    step = lambda x, y: lax.scan(lambda c, y: (c + x, c * y), 0.0, y)
    on_lines(step, x, TABLE[0])
    branch = lambda x, y: lax.cond(x > 0.6, lambda: y.sum(0), lambda: y[0] * x)
    on_lines(branch, x, TABLE[0])


def test_loops_end():
    """A solver that does not converge returns NaN, the others what they return otherwise."""
    solve = jax.make_jaxpr(fixed_point)(0.5)
    a = np.array([[0.5], [0.3], [-9.0]], np.float32)
    (out,) = numeric.evaluate(solve, [a])
    np.testing.assert_allclose(out[:2], a[:2] * np.tanh(out[:2]) + 1, rtol=1e-5)
    assert np.isnan(out[2])
