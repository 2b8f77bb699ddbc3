"""Sums of exponentials as products of matrices.

log sum_d exp(a[d, i] + b[d, j]) is log sum_d A[d, i] B[d, j] + s[i] + t[j], with A = exp(a - s), s
the largest a, and B so too. Where b is the same in all steps of a chain, a step takes exponentials
of a alone, K of them in place of K^2. Only where all that a sum adds up is too small for floating
point numbers is it lost; that shows, and the chain is summed again in logarithms
(:func:`unless_lost`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jax
from ..analyses.primitives import register
from ..program import marks

LEAST, TIMES = 2**9, 8
"""The fewest exponentials that a step must be spared, and how many there must be for each that is
left: few of them are faster one by one than a product and what watches it."""


def pays(shapes: Sequence[Sequence[int]], once: Sequence[bool]) -> bool:
    """Whether to multiply arrays of these shapes, some of them ``once`` for all steps."""
    every = math.prod(jnp.broadcast_shapes(*shapes))
    each = sum(math.prod(s) for s, o in zip(shapes, once, strict=True) if not o)
    return len(shapes) > 1 and every - each >= LEAST and every >= TIMES * each


def log_sum(xs: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The log of the sum, over the first axis, of exp of the sum of arrays that are broadcast, and
    whether no sum is lost."""
    with marks.mark(marks.EXACT):
        shifted = list(map(_shifted, xs))
        total = _multiplied([e for e, _ in shifted])
        return _log(total, shifted, _is_fine(total, xs, shifted))


def _shifted(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    top = lax.stop_gradient(lax.reduce_max(x, (0,)))
    top = lax.select(lax.is_finite(top), top, lax.full_like(top, 0.0))
    return lax.exp(x - top), top


def _multiplied(xs: Sequence[jax.Array]) -> jax.Array:
    """The sum over the first axis of the product."""
    of = lambda x: [a for a, n in enumerate(x.shape) if n > 1 or not a]
    shape = jnp.broadcast_shapes(*(x.shape for x in xs))[1:]
    xs = sorted(xs, key=lambda x: of(x)[1:])  # so that their axes are in order in a product
    axes = list(map(of, xs))
    kept = sorted({a for on in axes for a in on if a})
    operands = [y for x, on in zip(xs, axes, strict=True) for y in (x.reshape(_of(x, on)), on)]
    # by default some devices would round what they multiply to fewer digits
    return jnp.einsum(*operands, kept, precision=lax.Precision.HIGHEST).reshape(shape)


def _of(x: jax.Array, axes: Sequence[int]) -> list[int]:
    return [x.shape[a] for a in axes]


def _is_fine(total: jax.Array, xs: Sequence[jax.Array], shifted: Sequence[Any]) -> jax.Array:
    """Whether all sums are right.

    A factor that is small may make a product that is 0, or one with few digits. So much is lost in
    a sum only if that is small too; without such factors, 0 is 0.
    """
    numbers = jnp.finfo(total.dtype)
    small = float(numbers.tiny) ** (1 / len(xs))
    lost = [jnp.any((e < small) & (x > -jnp.inf)) for x, (e, _) in zip(xs, shifted, strict=True)]
    safe = total > numbers.tiny / numbers.eps**2
    return jnp.all(lax.is_finite(total) & (safe | ~functools.reduce(jnp.logical_or, lost)))


def _log(total: jax.Array, shifted: Sequence[Any], fine: Any) -> tuple[jax.Array, jax.Array]:
    empty = total == 0
    log = jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, total)))
    return functools.reduce(jnp.add, [top for _, top in shifted], log), fine


# --- where something is lost ----------------------------------------------------------------------


def unless_lost(
    fine: Sequence[jax.Array],
    found: Sequence[jax.Array],
    again: Callable[[list[jax.Array]], list[jax.Array]],
    xs: Sequence[jax.Array],
) -> list[jax.Array]:
    """What was ``found`` if all was fine, else ``again(xs)``, of which nothing is kept for a
    derivative but ``xs``."""
    with marks.mark(marks.EXACT):
        (all_fine,) = everywhere_p.bind(functools.reduce(jnp.logical_and, map(jnp.all, fine)))
        keep = lambda found, xs: found
        redo = lambda found, xs: jax.checkpoint(again)(xs)
        return lax.cond(all_fine, keep, redo, list(found), list(xs))


def _batch(size: int, args: Any, dims: Any) -> Any:
    """One branch is taken for all, since to take both would cost both."""
    return everywhere_p.bind(jnp.all(args[0], axis=dims[0])), [None]


everywhere_p = _jax.define_function(
    "everywhere", lambda x: [x], abstract=lambda x: [_jax.ShapedArray((), bool)], batch=_batch
)
register("everywhere", chooses=True)

__all__ = ["everywhere_p", "log_sum", "pays", "unless_lost"]
