"""Batches of data for a fit, from the host or drawn on the device."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from transforms import _jax

from ..programs.given import as_count
from .memory import Memory


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Minibatches:
    """A function from a key to ``size`` random rows of ``data``; see :func:`minibatches`."""

    data: Any
    size: int = dataclasses.field(metadata={"static": True})

    def __call__(self, key: jax.Array) -> Any:
        rows = jax.random.randint(key, (self.size,), 0, count_rows(self.data))
        return jax.tree.map(lambda a: jnp.asarray(a)[rows], self.data)


def minibatches(data: Any, size: int) -> Minibatches:
    """Batches of ``size`` rows drawn uniformly with replacement, on the device.

    Args:
        data: a pytree of arrays ``[n, ...]`` with the same ``n``.
        size: rows in a batch. For an unbiased sum over the data scale the batch's by n / size.

    Example:
        >>> f = ppl.expectation(lambda m, xs: -jnp.mean((xs - m) ** 2))
        >>> batches = ppl.minibatches(jnp.arange(100.0), 10)
        >>> fit = ppl.maximize(
        ...     f, 0.0, optax.adam(0.1), key=key, steps=10, batches=batches, progress=False
        ... )
    """
    count_rows(data)
    return Minibatches(data, as_count(size, "size"))


def count_rows(data: Any) -> int:
    """The number of rows of all arrays of ``data``."""
    sizes = {jnp.shape(a)[:1] for a in jax.tree.leaves(data)}
    if len(sizes) != 1 or () in sizes:
        rows = ", ".join(str(*s) if s else "a number without rows" for s in sorted(sizes))
        raise ValueError(
            f"the arrays of data ({_jax.user_line()}) have the numbers of rows: {rows or 'none'}. "
            "Give arrays [n, ...] with the same n."
        )
    return sizes.pop()[0]


def stack(rows: list[Any], length: int, line: str, memory: Memory) -> Any:
    """Batches ``[length, ...]`` from at most that many, the last one repeated."""
    shapes = {str(jax.tree.map(np.shape, row)) for row in rows}
    if len(shapes) > 1:
        raise ValueError(
            f"the batches ({line}) have different shapes, "
            f"{' and '.join(sorted(shapes))}, and every step of a compiled loop takes the same. "
            "Leave out the last, smaller one (drop_last=True of a data loader), or use "
            "ppl.minibatches(data, size)."
        )
    rows = [*rows, *[rows[-1]] * (length - len(rows))]
    return jax.tree.map(functools.partial(_stacked, memory), *rows)


def _stacked(memory: Memory, *arrays: Any) -> Any:
    if any(map(_stays, arrays)):
        return jnp.stack(arrays)
    known = [np.asarray(a) for a in arrays]
    made = memory.empty((len(known), *known[0].shape), np.result_type(*known))
    return np.stack(known, out=made)


def _stays(a: Any) -> bool:
    """Whether an array cannot go through NumPy: a tracer, one on several devices, random keys."""
    if isinstance(a, _jax.Tracer) or not isinstance(a, jax.Array):
        return isinstance(a, _jax.Tracer)
    return jnp.issubdtype(a.dtype, jax.dtypes.prng_key) or len(a.devices()) > 1


def owned(memory: Memory, batch: Any) -> Any:
    """A batch whose arrays stay as they are: what makes batches may write the next one over it."""

    def copied(a: Any) -> Any:
        if isinstance(a, jax.Array | np.generic) or not hasattr(a, "__array__"):
            return a
        known = np.asarray(a)
        made = memory.empty(known.shape, known.dtype)
        made[...] = known
        return made

    return jax.tree.map(copied, batch)


def cycle(batches: Iterable[Any], line: str) -> Iterator[Any]:
    """Batches without end, from an iterable that can be started again; ``line`` is whose."""
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError(
                f"batches has no more batches ({line}). Give an iterable that can be "
                "started again (a list, an array, a data loader; not a generator), or one batch "
                "for each step."
            )
