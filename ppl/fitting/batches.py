"""Batches of data for a fit, from the host or drawn on the device."""

from __future__ import annotations

import dataclasses
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


@final
class Stack:
    """Batches ``[length, ...]`` from at most that many, the last one repeated.

    Arrays of the host are copied as they come: a source may write the next ones over them.
    """

    def __init__(self, batches: Iterable[Any], length: int, line: str, memory: Memory):
        form: Any = None
        for i, batch in enumerate(batches):
            leaves, self._tree = jax.tree.flatten(batch)
            own = self._tree, list(map(np.shape, leaves))
            if i == 0:
                form, self._rows = own, [_Rows(length, memory) for _ in leaves]
            elif own != form:
                shapes = (str(jax.tree.unflatten(tree, sizes)) for tree, sizes in (form, own))
                raise ValueError(
                    f"the batches ({line}) have different shapes, "
                    f"{' and '.join(sorted(shapes))}, and every step of a "
                    "compiled loop takes the same. Leave out the last, smaller one "
                    "(drop_last=True of a data loader), or use ppl.minibatches(data, size)."
                )
            for row, a in zip(self._rows, leaves, strict=True):
                row.add(a)

    @property
    def on_devices(self) -> bool:
        """Whether they hold arrays of JAX."""
        return any(isinstance(a, jax.Array) for row in self._rows for a in row.given)

    def whole(self) -> Any:
        return jax.tree.unflatten(self._tree, [row.whole() for row in self._rows])


@final
class _Rows:
    """An array of each batch: ``given`` are those of JAX, None where one is in ``host``."""

    def __init__(self, length: int, memory: Memory):
        self.given: list[Any] = []
        self._host: np.ndarray | None = None
        self._length, self._memory = length, memory

    def add(self, a: Any) -> None:
        self.given.append(a if isinstance(a, jax.Array) else None)
        if isinstance(a, jax.Array):
            return
        a = np.asarray(a)
        if self._host is None:
            self._host = self._memory.empty((self._length, *a.shape), a.dtype)
        elif (dtype := np.result_type(self._host, a)) != self._host.dtype:
            self._host = self._host.astype(dtype)
        self._host[len(self.given) - 1] = a

    def whole(self) -> Any:
        last = len(self.given) - 1
        if self._host is not None and not any(a is not None for a in self.given):
            self._host[last + 1 :] = self._host[last]
            return self._host
        host: Any = self._host
        each = [host[i] if a is None else a for i, a in enumerate(self.given)]
        each += [each[-1]] * (self._length - len(each))
        return (jnp if any(map(_stays, each)) else np).stack(each)


def _stays(a: Any) -> bool:
    """Whether an array is none of the host: traced, on several devices, or of random keys."""
    if isinstance(a, _jax.Tracer):
        return True
    key = isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    return key or (isinstance(a, jax.Array) and len(a.devices()) > 1)


def owned(batch: Any) -> Any:
    """A batch that no source writes over."""
    theirs = lambda a: hasattr(a, "__array__") and not isinstance(a, jax.Array)
    return jax.tree.map(lambda a: np.array(a) if theirs(a) else a, batch)


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
