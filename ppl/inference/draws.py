"""Draws of a guide with their importance ratios, and predictions from them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from transforms.runs.addresses import flatten, nest

from ..programs.generative import Generative
from ..programs.given import Choices, merge, seed

TOGETHER = 100
"""Draws that are made side by side; more are made in turn, which bounds the memory."""


@functools.partial(jax.jit, static_argnums=(0, 3))
def _in_turn(f: Any, key: jax.Array, given: Any, n: int) -> Any:
    """``f(key, given)`` for n keys and the rows of ``given``, a multiple of TOGETHER."""
    keys = jax.random.split(key, n)
    return lax.map(lambda x: f(*x), (keys, given), batch_size=min(n, TOGETHER))


def in_turn(f: Any, key: jax.Array, n: int, given: Any = None) -> Any:
    """``f(key, row)`` for n keys and the n rows of ``given``, stacked: ``[n, ...]``."""
    filled = n if n < TOGETHER else -(-n // TOGETHER) * TOGETHER
    rows = np.arange(filled) % n
    given = jax.tree.map(lambda a: jnp.asarray(a)[rows], given)
    return jax.tree.map(lambda a: a[:n], _in_turn(f, key, given, filled))


def drawing(model: Generative, guide: Generative, data: Choices) -> Any:
    """A function from a key to the choices of one draw of the guide, log p and log q."""

    def draw() -> tuple[dict[str, Any], jax.Array, jax.Array]:
        q = guide.simulate()
        return q.choices, model.log_density(merge(q.choices, data)), q.log_density

    return lambda key, _: seed(draw)(key)


def predicting(program: Generative) -> Any:
    """A function from a key and choices to those that the program draws beside them."""

    def predict(key: jax.Array, fixed: Any) -> dict[str, Any]:
        found = flatten(program.generate(fixed, key)[0].choices)
        known = set(flatten(fixed))
        return nest((a, v) for a, v in found.items() if a not in known)

    return predict


def resample(key: jax.Array, log_weights: np.ndarray, n: int) -> np.ndarray:
    """Indices int[n] in proportion to the weights: systematic resampling, in random order."""
    place, order = jax.random.split(key)
    points = (np.arange(n) + float(jax.random.uniform(place))) / n
    ends = np.cumsum(np.exp(log_weights))
    found = np.searchsorted(ends / ends[-1], points, side="right")
    return np.minimum(found, log_weights.size - 1)[np.asarray(jax.random.permutation(order, n))]
