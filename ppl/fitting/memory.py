"""Memory for arrays of the host that are made again and again, such as stacks of batches."""

from __future__ import annotations

import math
import weakref
from typing import Any, final

import numpy as np

ALIGNED = 64
"""Where an array starts at a multiple of this many bytes, JAX reads it on a CPU without a copy."""


@final
class Memory:
    """The memory of arrays is used again once they are gone: new pages can cost a thread more time
    than what is written to them."""

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """As ``np.empty``."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if not size:
            return np.empty(shape, dtype)
        free = self._free.setdefault(size, [])
        try:
            block = free.pop()
        except IndexError:  # not asked before: other threads take some too
            block = _block(size)
        # to NumPy no view of the block, so that what reads a view of it keeps it, not the block
        whole = np.frombuffer(block.data, np.uint8)
        weakref.finalize(whole, free.append, block)
        return whole.view(dtype).reshape(shape)


def _block(size: int) -> np.ndarray:
    """So many bytes."""
    found = np.empty(size + ALIGNED, np.uint8)
    start = -found.ctypes.data % ALIGNED
    return found[start : start + size]
