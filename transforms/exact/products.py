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
from typing import Any, NamedTuple

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


class Watch(NamedTuple):
    """What shows whether a sum is lost: where one is small, and where small factors are.

    A factor that is small may make a product that is 0, or one with few digits. So much is lost in
    a sum only if that is small too; without such factors, 0 is 0.
    """

    sums: jax.Array
    factors: list[jax.Array]

    def is_fine(self) -> jax.Array:
        """Of a watch of several steps, which are the first axes."""
        some = lambda x: jnp.any(x.reshape(x.shape[0], -1), axis=1)
        lost = functools.reduce(jnp.logical_or, map(some, self.factors))
        return ~jnp.any(some(self.sums) & lost)


def log_sum(xs: Sequence[jax.Array], once: Sequence[bool]) -> tuple[jax.Array, Watch]:
    """The log of the sum, over the first axis, of exp of the sum of arrays that are broadcast; some
    of these are the same in all steps."""
    with marks.mark(marks.EXACT):
        shifted = list(map(_shifted, xs))
        total = _multiplied([e for e, _ in shifted])
        empty = total == 0
        log = jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, total)))
        value = functools.reduce(jnp.add, [top for _, top in shifted], log)
        numbers = jnp.finfo(total.dtype)
        small = float(numbers.tiny) ** (1 / len(xs))
        lost = [(e < small) & (x > -jnp.inf) for x, (e, _) in zip(xs, shifted, strict=True)]
        # numbers of a step are looked at with those of all others, after the loop
        lost = [jnp.any(x) if o else x for x, o in zip(lost, once, strict=True)]
        return value, Watch(~(total > numbers.tiny / numbers.eps**2), lost)


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


# --- where something is lost ----------------------------------------------------------------------


def unless_lost(
    watches: Sequence[Watch],
    found: Sequence[jax.Array],
    again: Callable[[list[jax.Array]], list[jax.Array]],
    xs: Sequence[jax.Array],
) -> list[jax.Array]:
    """What was ``found`` if nothing was lost, else ``again(xs)``, of which nothing is kept for a
    derivative but ``xs``."""
    with marks.mark(marks.EXACT):
        fine = functools.reduce(jnp.logical_and, [w.is_fine() for w in watches])
        (everywhere,) = everywhere_p.bind(fine)
        keep = lambda found, xs: found
        redo = lambda found, xs: jax.checkpoint(again)(xs)
        return lax.cond(everywhere, keep, redo, list(found), list(xs))


def _batch(size: int, args: Any, dims: Any) -> Any:
    """One branch is taken for all, since to take both would cost both."""
    return everywhere_p.bind(jnp.all(args[0], axis=dims[0])), [None]


everywhere_p = _jax.define_function(
    "everywhere", lambda x: [x], abstract=lambda x: [_jax.ShapedArray((), bool)], batch=_batch
)
register("everywhere", chooses=True)

__all__ = ["Watch", "everywhere_p", "log_sum", "pays", "unless_lost"]
