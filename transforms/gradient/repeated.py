"""Means of draws that are made one after the other, and again for the derivative.

They keep nothing of a draw but its key, so that the memory is that of one. Of as many as a number
says that is known, a loop does it under ``jax.checkpoint``; of as many as a number says that is
itself drawn, the loop has no length, and its derivative is written out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jax


def mean_in_turn(run: Callable[[jax.Array], list[Any]], key: jax.Array, n: int) -> list[jax.Array]:
    """The mean of ``run(fold_in(key, i))`` over i below ``n``."""
    again = jax.checkpoint(lambda i: run(jax.random.fold_in(key, i)), prevent_cse=False)
    closed, consts, like = _jax.trace(again, jnp.zeros((), jnp.uint32))

    def step(totals: list[jax.Array], i: jax.Array) -> tuple[list[jax.Array], None]:
        outs = _jax.evaluate(closed, *consts, i)
        return [t + o for t, o in zip(totals, outs, strict=True)], None

    zeros = [jnp.zeros(a.shape, jnp.result_type(a.dtype, float)) for a in like]
    totals, _ = lax.scan(step, zeros, jnp.arange(n, dtype=jnp.uint32))
    return [t / n for t in totals]


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
