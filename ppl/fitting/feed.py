"""The batches of a fit from the host, read ahead of the steps by a thread.

The thread stacks a few batches at a time, up to 16 MB, puts them on the device, and stays a stack
ahead. So what is in memory does not depend on how many batches there are.
"""

from __future__ import annotations

import functools
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from transforms import _jax

from .batches import cycle, owned, stack
from .epochs import Epochs
from .memory import Memory

BYTES, AHEAD = 2**24, 1
"""How large a stack is, if it has more than one batch, and how many are waiting."""


def length(batch: Any, longest: int) -> int:
    """How many batches a stack has: a divisor of ``longest``."""
    size = sum(a.nbytes for a in jax.tree.leaves(batch) if hasattr(a, "nbytes"))
    divisors = [d for d in range(1, longest + 1) if longest % d == 0]
    return max(d for d in divisors if d == 1 or d * size <= BYTES)


@final
class Feed:
    """Batches in order."""

    def __init__(self, batches: Any):
        self._batches, self._line = batches, _jax.user_line()
        self._by_rows = isinstance(batches, Epochs) and batches.sharding is None
        self._stopped, self._memory = threading.Event(), Memory()
        self._left: Iterator[Any] = iter([])  # the batches, or the numbers of their rows
        if self._by_rows:
            self._left = batches.rows(0)
        elif self:
            self._left = cycle(batches, self._line)
            if not isinstance(batches, Sequence | np.ndarray | jax.Array | Epochs):
                self._left = map(functools.partial(owned, self._memory), self._left)
        self._stacks: Iterator[Any] = itertools.repeat(None)

    def __bool__(self) -> bool:
        return self._batches is not None

    def first(self, n: int) -> list[Any]:
        """The next batches, which stay."""
        found = list(itertools.islice(self._left, n))
        self._left = itertools.chain(found, self._left)
        return list(map(self._batches.read, found)) if self._by_rows else found

    def skip(self, n: int) -> None:
        """Leave out the first ``n`` batches."""
        if isinstance(self._batches, Epochs):
            self._left = (self._batches.rows if self._by_rows else self._batches.after)(n)
        elif self:
            next(itertools.islice(self._left, n, n), None)

    def stacked(self, n: int, length: int) -> Any:
        """The next ``n`` batches ``[length, ...]``; None without batches."""
        return self._join(list(itertools.islice(self._left, n)), length) if self else None

    def stack(self, batches: list[Any], length: int) -> Any:
        """Batches ``[length, ...]`` from at most that many."""
        return stack(batches, length, self._line, self._memory)

    def _join(self, left: list[Any], length: int) -> Any:
        if self._by_rows:
            return self._batches.stack(left, length, self._memory)
        return self.stack(left, length)

    def read_ahead(self, counts: Sequence[int], length: int) -> None:
        """Read stacks ``[length, ...]`` of so many batches in a thread."""
        if not self:
            return
        ready: queue.Queue[Callable[[], Any]] = queue.Queue(AHEAD)
        stacked = lambda left: self._join(left, length)
        work = _Reading(self._left, counts, stacked, ready, self._stopped)
        threading.Thread(target=work.run, daemon=True).start()
        self._stacks = (ready.get()() for _ in counts)

    def take(self) -> Any:
        """The next stack; None without batches."""
        return next(self._stacks)

    def close(self) -> None:
        """Read no more."""
        self._stopped.set()


@final
class _Reading:
    """What the thread does; what it puts into the queue returns a stack, or raises."""

    def __init__(
        self,
        batches: Iterator[Any],
        counts: Sequence[int],
        stack: Callable[[list[Any]], Any],
        ready: queue.Queue[Callable[[], Any]],
        stopped: threading.Event,
    ):
        self._batches, self._counts, self._stacked = batches, counts, stack
        self._ready, self._stopped, self._wide = ready, stopped, jnp.zeros(()).dtype.itemsize == 8

    def run(self) -> None:
        try:
            with jax.enable_x64(self._wide):  # JAX keeps it by thread
                for n in self._counts:
                    self._put(self._stack(n))
                    if self._stopped.is_set():
                        return
        except BaseException as error:  # raised where the stack is asked for
            self._put(_raising(error))

    def _stack(self, n: int) -> Callable[[], Any]:
        rows = list(itertools.islice(self._batches, n))
        if any(isinstance(a, jax.Array) for a in jax.tree.leaves(rows)):
            return lambda: self._stacked(rows)  # by the thread that knows the mesh
        stacked = jax.device_put(self._stacked(rows))
        return lambda: stacked

    def _put(self, found: Callable[[], Any]) -> None:
        while not self._stopped.is_set():
            try:
                return self._ready.put(found, timeout=0.1)
            except queue.Full:
                continue


def _raising(error: BaseException) -> Callable[[], Any]:
    def f() -> Any:
        raise error

    return f
