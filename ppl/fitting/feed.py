"""The batches of a fit from the host, read ahead of the steps by a thread.

The thread stacks a few batches at a time, up to 8 MB, puts them on the device, and stays a stack
ahead. So what is in memory does not depend on how many batches there are.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp

from transforms import _jax

from .batches import Stack, cycle, owned
from .epochs import Epochs
from .memory import Memory

BYTES, AHEAD = 2**23, 1
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
        self._left: Iterator[Any] = iter([])  # the batches, or the numbers of their rows
        if self:
            self._left = batches.rows(0) if self._by_rows else cycle(batches, self._line)
        self._stacks: Iterator[Any] = itertools.repeat(None)
        self._stopped, self._memory = threading.Event(), Memory()

    def __bool__(self) -> bool:
        return self._batches is not None

    def first(self, n: int) -> list[Any]:
        """The next batches, which stay."""
        found = list(map(self._own, itertools.islice(self._left, n)))
        self._left = itertools.chain(found, self._left)
        return list(map(self._batches.read, found)) if self._by_rows else found

    def _own(self, left: Any) -> Any:
        return left if self._by_rows else owned(left)

    def skip(self, n: int) -> None:
        """Leave out the first ``n`` batches."""
        if isinstance(self._batches, Epochs):
            self._left = (self._batches.rows if self._by_rows else self._batches.after)(n)
        elif self:
            next(itertools.islice(self._left, n, n), None)

    def stacked(self, n: int, length: int) -> Any:
        """The next ``n`` batches ``[length, ...]``; None without batches."""
        return self._next(n, length)[0]() if self else None

    def stack(self, batches: Iterable[Any], length: int) -> Any:
        """Batches ``[length, ...]`` from at most that many."""
        return Stack(batches, length, self._line, self._memory).whole()

    def _next(self, n: int, length: int) -> tuple[Callable[[], Any], bool]:
        """What stacks the next ``n`` batches; whether they hold arrays of JAX."""
        left = itertools.islice(self._left, n)
        if self._by_rows:
            rows = list(left)
            return lambda: self._batches.stack(rows, length, self._memory), False
        found = Stack(left, length, self._line, self._memory)
        return found.whole, found.on_devices

    def read_ahead(self, counts: Sequence[int], length: int) -> None:
        """Read stacks ``[length, ...]`` of so many batches in a thread."""
        if not self:
            return
        ready: queue.Queue[Callable[[], Any]] = queue.Queue(AHEAD)
        work = _Reading(lambda n: self._next(n, length), counts, ready, self._stopped)
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
        read: Callable[[int], tuple[Callable[[], Any], bool]],
        counts: Sequence[int],
        ready: queue.Queue[Callable[[], Any]],
        stopped: threading.Event,
    ):
        self._read, self._counts, self._ready, self._stopped = read, counts, ready, stopped
        self._wide = jnp.zeros(()).dtype.itemsize == 8

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
        stack, on_devices = self._read(n)
        if on_devices:
            return stack  # by the thread that knows the mesh
        stacked = jax.device_put(stack())
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
