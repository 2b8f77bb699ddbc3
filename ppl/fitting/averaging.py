"""Means of the iterates of a fit, over windows of its last steps.

The last iterate of a stochastic optimizer is as far from the optimum as its rate makes it; the mean
of the second half of the iterates is not (Polyak & Juditsky 1992). A window is known by the step
before its first iterate. Its mean is part of what the compiled loop carries, so it is the same
however the loop is cut into chunks.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

FINAL, CHECK = "final", "check"
"""The windows: the last part of all steps, and that of the next check for convergence."""


def window(steps: int, average: float) -> int:
    """The number of steps before the window of the last ``average`` of ``steps``."""
    return steps - max(1, round(average * steps))


def wide(values: Any) -> Any:
    """Values in at least 32 bits, in which means are kept."""
    wider = lambda a: jnp.asarray(a, jnp.promote_types(jnp.result_type(a), jnp.float32))
    return jax.tree.map(wider, values)


def include(means: dict[str, Any], starts: dict[str, Any], step: Any, values: Any) -> dict:
    """The means with the iterate after ``step`` steps; before a window begins, that iterate."""

    def one(mean: Any, a: Any, start: Any) -> Any:
        a = jnp.asarray(a, mean.dtype)
        count = step - start
        share = 1.0 / jnp.maximum(count, 1).astype(a.dtype)
        return jnp.where(count <= 1, a, mean + (a - mean) * share)

    return {
        name: jax.tree.map(lambda m, a, start=starts[name]: one(m, a, start), mean, values)
        for name, mean in means.items()
    }


def narrow(mean: Any, like: Any) -> Any:
    """A mean with the types of the values."""
    return jax.tree.map(lambda m, a: jnp.asarray(m, jnp.result_type(a)), mean, like)
