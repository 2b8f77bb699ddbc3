"""The batches of a fit from the host, read ahead of the steps in a thread."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, final

import jax

from transforms import _jax

from .batches import cycle, stack
from .epochs import Epochs


@final
class Feed:
    """Batches in order, taken in stacks ``[length, ...]``.

    While a stack is used the next one is read and put on the device. So at most three are in
    memory: that, the one in use, and the rows it is made of.
    """

    def __init__(self, batches: Any):
        self._batches = batches
        self._left: Iterator[Any] = iter([]) if batches is None else cycle(batches)
        self._ahead: _Ahead | None = None

    def __bool__(self) -> bool:
        return self._batches is not None

    def first(self, n: int) -> list[Any]:
        """The next batches, which stay."""
        found = list(itertools.islice(self._left, n))
        self._left = itertools.chain(found, self._left)
        return found

    def skip(self, n: int) -> None:
        """Leave out the first ``n`` batches."""
        if isinstance(self._batches, Epochs):
            self._left = self._batches.after(n)
        elif self:
            next(itertools.islice(self._left, n, n), None)

    def take(self, n: int, length: int, then: int = 0) -> Any:
        """The next ``n`` batches; the ``then`` after them are read ahead. None without batches."""
        if not self:
            return None
        ahead, self._ahead = self._ahead, None
        rows = self._next(n, length) if ahead is None else ahead.result()
        if then:
            self._ahead = _Ahead(lambda: jax.device_put(self._next(then, length)))
        return stack(rows, length) if isinstance(rows, list) else rows[0]

    def _next(self, n: int, length: int) -> Any:
        """The next batches; a stack of them, where that takes no part of the thread's context."""
        rows = list(itertools.islice(self._left, n))
        own = any(isinstance(a, jax.Array) for a in jax.tree.leaves(rows))
        return rows if own else (stack(rows, length),)


class _Ahead:
    """A function that runs in a thread, and its result."""

    def __init__(self, f: Callable[[], Any]):
        self._f, self._wide = f, _jax.is_wide()
        self._found: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with jax.enable_x64(self._wide):  # JAX keeps it by thread
                self._found = self._f()
        except BaseException as error:  # raised where the result is asked for
            self._error = error

    def result(self) -> Any:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found
