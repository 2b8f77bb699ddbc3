"""Batches of arrays that need not fit into memory: every row once an epoch, in a new order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, final

import jax
import numpy as np

from transforms import _jax

from ..programs.given import as_count, as_key
from .batches import count_rows
from .memory import Memory


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Epochs:
    """Batches without end; see :func:`epochs`. Its length is the number of batches an epoch."""

    data: Any
    size: int
    block: int
    seed: tuple[int, ...]
    sharding: Any

    def __len__(self) -> int:
        return count_rows(self.data) // self.size

    def __iter__(self) -> Iterator[Any]:
        return self.after(0)

    def after(self, step: int) -> Iterator[Any]:
        """The batches after the first ``step``, which are not read."""
        return map(self.read if self.sharding is None else self._divided, self.rows(step))

    def rows(self, step: int) -> Iterator[np.ndarray]:
        """The numbers of the rows of these batches."""
        epoch, i = divmod(step, len(self))
        while True:
            n = count_rows(self.data) // self.block
            order = np.random.default_rng([*self.seed, epoch]).permutation(n)
            for j in range(i, len(self)):
                per = self.size // self.block
                blocks = np.sort(order[j * per : (j + 1) * per])
                yield (blocks[:, None] * self.block + np.arange(self.block)).ravel()
            epoch, i = epoch + 1, 0

    def stack(self, rows: list[np.ndarray], length: int, memory: Memory) -> Any:
        """Batches ``[length, ...]`` of rows with these numbers, the last one repeated."""
        numbers = np.stack([*rows, *[rows[-1]] * (length - len(rows))])
        return jax.tree.map(lambda a: _read(a, numbers, memory.empty), self.data)

    def read(self, rows: np.ndarray) -> Any:
        """The rows with these numbers."""
        return jax.tree.map(lambda a: _read(a, rows), self.data)

    def _divided(self, rows: np.ndarray) -> Any:
        def divided(a: np.ndarray) -> jax.Array:
            read = lambda where: _read(a, rows[where[0]])[:, *where[1:]]
            shape = (self.size, *a.shape[1:])
            return jax.make_array_from_callback(shape, self.sharding, read)

        return jax.tree.map(divided, self.data)


def _read(a: np.ndarray, rows: np.ndarray, empty: Callable[..., np.ndarray] = np.empty) -> Any:
    """``a[rows]``, by the faster of two ways, which copies what is not contiguous first."""
    out = empty((*rows.shape, *a.shape[1:]), a.dtype.newbyteorder("="))
    if a.flags.c_contiguous and a.flags.aligned and a.dtype.isnative:
        return np.take(np.asarray(a), rows, axis=0, out=out, mode="clip")  # else it makes a copy
    out[...] = a[rows]
    return out


def epochs(data: Any, size: int, *, key: jax.Array, block: int = 1, sharding: Any = None) -> Epochs:
    """Batches of ``size`` rows that take every row once an epoch, in an order of its own.

    Batches are read when they are needed, so ``data`` may be memory-mapped. Their mean over an
    epoch is that over the data, if ``size`` divides the number of rows; otherwise other rows are
    left out in every epoch. A fit that resumes reads no batch twice.

    Args:
        data: a pytree of NumPy arrays ``[n, ...]`` with the same ``n``, ``numpy.memmap`` and the
            like too. For an unbiased sum over the data scale the batch's by n / size.
        size: rows in a batch.
        key: random key of the orders.
        block: rows that follow each other and stay together, so that little else is read from a
            disk. It divides ``size``. Each epoch holds an order of n / block numbers.
        sharding: a ``jax.sharding.Sharding`` of a batch; a process reads the rows of its devices.

    Returns:
        An iterable without end for ``batches=``; ``len`` of it is the number of steps an epoch.

    Raises:
        ValueError: fewer rows than a batch has; a block that does not divide it.

    Example:
        >>> f = ppl.expectation(lambda m, xs: -jnp.mean((xs - m) ** 2))
        >>> batches = ppl.epochs(np.arange(100.0), 10, key=key)
        >>> fit = ppl.maximize(
        ...     f, 0.0, optax.adam(0.1), key=key, steps=2 * len(batches), batches=batches,
        ...     progress=False
        ... )
    """
    n, size, block = count_rows(data), as_count(size, "size"), as_count(block, "block")
    if size > n or size % block:
        raise ValueError(
            f"ppl.epochs at {_jax.user_line()} is given {n} rows, batches of {size} and blocks of "
            f"{block}. Give a size of at most {n}, and a block that divides it."
        )
    data = jax.tree.map(lambda a: a if isinstance(a, np.ndarray) else np.asarray(a), data)
    seed = tuple(np.asarray(jax.random.key_data(as_key(key))).ravel().tolist())
    return Epochs(data, size, block, seed, sharding)
