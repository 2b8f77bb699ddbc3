"""A value times how probable it is, where a value that is not finite and has no weight is 0.

Where the weight is the exponential of a logarithm, that is known better: its slope is that of the
logarithm times what the product is.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from .. import _jax


def times(weight: Any, f: jax.Array) -> jax.Array:
    """``weight * f``, where an f that is not finite does not count if it has no weight.

    None weighs nothing; sizes of 1 are broadcast.
    """
    return f if weight is None else times_p.bind(weight, f)[0]


def _counted(weight: jax.Array, f: jax.Array) -> jax.Array:
    return jnp.where((weight != 0) | jnp.isfinite(f), f, 0.0)


def _times(weight: jax.Array, f: jax.Array) -> list[jax.Array]:
    return [weight * _counted(weight, f)]


def _abstract(weight: Any, f: Any) -> list[Any]:
    shape = jnp.broadcast_shapes(weight.shape, f.shape)
    return [_jax.ShapedArray(shape, jnp.result_type(weight.dtype, f.dtype))]


def _batch(axis_size: int, args: Any, dims: Any, bind: Any = None) -> Any:
    rank = max(x.ndim - (d is not None) for x, d in zip(args, dims, strict=True))
    out = []
    for x, d in zip(args, dims, strict=True):
        x = jnp.expand_dims(x, 0) if d is None else jnp.moveaxis(x, d, 0)
        out.append(x.reshape(x.shape[0], *[1] * (rank + 1 - x.ndim), *x.shape[1:]))
    return (bind or times_p.bind)(*out), [0]


def _jvp(primals: Any, tangents: Any) -> Any:
    """The slope of f is multiplied by the weight alone: XLA repeats the factor in every loop over
    the numbers that f is made of, and would repeat f with it."""
    weight, f = primals
    moves = [not isinstance(t, _jax.ad.Zero) for t in tangents]
    (value,) = times_p.bind(weight, f)
    slope = jnp.zeros_like(value)
    if moves[0]:
        slope = tangents[0] * _counted(weight, f)
    if moves[1]:
        slope = slope + weight * tangents[1] if moves[0] else weight * tangents[1]
    return [value], [jnp.broadcast_to(slope, value.shape).astype(value.dtype)]


def _times_exp(log_weight: jax.Array, f: jax.Array) -> list[jax.Array]:
    weight = jnp.exp(log_weight)
    return [jnp.where(weight == 0, 0.0, weight * f)]


def _jvp_exp(primals: Any, tangents: Any) -> Any:
    log_weight, f = primals
    moves = [not isinstance(t, _jax.ad.Zero) for t in tangents]
    (value,) = times_exp_p.bind(log_weight, f)
    slope = jnp.zeros_like(value)
    if moves[0]:
        slope = value * tangents[0]
    if moves[1]:
        more = jnp.exp(log_weight) * tangents[1]
        slope = slope + more if moves[0] else more
    return [value], [jnp.broadcast_to(slope, value.shape).astype(value.dtype)]


times_p = _jax.define_function("times", _times, abstract=_abstract, batch=_batch)
times_exp_p = _jax.define_function(
    "times_exp",
    _times_exp,
    abstract=_abstract,
    batch=functools.partial(_batch, bind=lambda *xs: times_exp_p.bind(*xs)),
)
_jax.differentiate(times_p, _jvp)
_jax.differentiate(times_exp_p, _jvp_exp)

__all__ = ["times", "times_exp_p", "times_p"]
