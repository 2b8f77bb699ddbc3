"""Independent runs of a piece of a program, side by side or a few at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transforms import _jax

from .given import as_count


def particles(f: Callable[[], Any], n: int, chunk: int | None = None) -> Any:
    """``f()`` for ``n`` particles: its results with an axis of them in front.

    With ``chunk`` they are the steps of a loop over chunks, each under ``jax.checkpoint``: what a
    derivative needs of a chunk is computed again, and is gone with it.
    """
    if chunk is None:
        return jax.vmap(f, axis_size=n)()
    chunk = as_chunk(chunk, n, "particles")
    together = jax.checkpoint(lambda: jax.vmap(f, axis_size=chunk)())
    _, found = jax.lax.scan(lambda _, __: (None, together()), None, None, length=n // chunk)
    return jax.tree.map(lambda a: jnp.reshape(a, (n, *a.shape[2:])), found)


def as_chunk(chunk: int, n: int, what: str) -> int:
    """How many of ``n`` particles (``what`` they are) are computed at a time, checked."""
    chunk = as_count(chunk, "chunk")
    if n % chunk:
        raise ValueError(
            f"chunk at {_jax.user_line()} is {chunk}, and the {n} {what} are no whole number of "
            f"chunks. Give a divisor of {n}."
        )
    return chunk
