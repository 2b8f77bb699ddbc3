"""The mean of as many draws of an expectation as a number says that is itself drawn.

The loop has no length that is known beforehand, so that it can not be differentiated backwards as
it stands: it runs again for the derivative, draw by draw with the same keys, and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def counted_mean(
    run: Callable[[list[Any], jax.Array], list[Any]], operands: Sequence[Any], key: jax.Array
) -> list[Any]:
    """The mean of ``run(operands, key_i)[0]`` over i below the last operand, which is at least 1.

    Its derivative is the mean of those of the draws, backwards only (``jax.grad``).
    """
    smooth = [jnp.issubdtype(jnp.result_type(v), jnp.floating) for v in operands]
    floats = [v for v, s in zip(operands, smooth, strict=True) if s]
    others = [v for v, s in zip(operands, smooth, strict=True) if not s]

    def draw(floats: Any, others: Any, key: jax.Array, i: Any) -> jax.Array:
        a, b = iter(floats), iter(others)
        ops = [next(a) if s else next(b) for s in smooth]
        (value,) = run(ops, jax.random.fold_in(key, i))
        return value

    like = jax.eval_shape(draw, floats, others, key, 0)

    @jax.custom_vjp
    def mean(floats: Any, others: Any, key: jax.Array) -> jax.Array:
        n = others[-1]
        step = lambda i, total: total + draw(floats, others, key, i)
        return lax.fori_loop(0, n, step, jnp.zeros(like.shape, like.dtype)) / n

    def forward(floats: Any, others: Any, key: jax.Array) -> Any:
        return mean(floats, others, key), (floats, others, key)

    def backward(kept: Any, slope: jax.Array) -> Any:
        floats, others, key = kept
        n = others[-1]

        def step(i: Any, total: Any) -> Any:
            _, pull = jax.vjp(lambda floats: draw(floats, others, key, i), floats)
            return jax.tree.map(jnp.add, total, pull(slope / n)[0])

        return lax.fori_loop(0, n, step, jax.tree.map(jnp.zeros_like, floats)), None, None

    mean.defvjp(forward, backward)
    return [mean(floats, others, key)]
