"""Draws of a guide with their importance ratios, and predictions from them."""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transforms.runs.addresses import flatten, nest

from ..programs.generative import Generative
from ..programs.given import Choices, merge, seed

TOGETHER = 100
"""Draws that are made side by side; more are made in turn, which bounds the memory."""


@functools.partial(jax.jit, static_argnums=0)
def _together(f: Any, keys: jax.Array, given: Any) -> Any:
    return jax.vmap(f)(keys, given)


def in_turn(f: Any, key: jax.Array, n: int, given: Any = None) -> Any:
    """``f(key, row)`` for n keys and the n rows of ``given``, stacked: ``[n, ...]``.

    What is compiled makes TOGETHER draws and is called as often as it takes, so that it serves
    every ``n``.
    """
    filled = -(-n // TOGETHER) * TOGETHER
    rows = np.arange(filled) % n
    keys = jax.random.split(key, filled).reshape(-1, TOGETHER)
    given = jax.tree.map(lambda a: jnp.asarray(a)[rows.reshape(-1, TOGETHER)], given)
    parts = [
        _together(f, each, jax.tree.map(operator.itemgetter(i), given))
        for i, each in enumerate(keys)
    ]
    return jax.tree.map(lambda *a: jnp.concatenate(a)[:n], *parts)


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
