"""Draws of a guide with their importance ratios, and predictions from them."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transforms.program.compiled import compiled
from transforms.runs.addresses import flatten, nest

from ..programs.forecast import forecast
from ..programs.generative import Generative
from ..programs.given import Choices, merge, seed

TOGETHER = 100
"""Draws that are made side by side; more are made in turn, which bounds the memory."""


def together(f: Any, fixed: Any, given: Any = None) -> Any:
    """``f(key, fixed, row)`` compiled for TOGETHER keys and rows like those of ``given``."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), TOGETHER))
    row = lambda a: jax.ShapeDtypeStruct((TOGETHER, *jnp.shape(a)[1:]), jnp.result_type(a))
    code = compiled(jax.vmap(f, (0, None, 0)), keys, fixed, jax.tree.map(row, given))
    return lambda keys, given: code(keys, fixed, given)


def in_turn(run: Any, key: jax.Array, n: int, given: Any = None) -> Any:
    """What :func:`together` makes, for n keys and the n rows of ``given``: ``[n, ...]``.

    It is called as often as it takes, so that what is compiled serves every ``n``.
    """
    filled = -(-n // TOGETHER) * TOGETHER
    rows = np.arange(filled) % n
    keys = jax.random.split(key, filled).reshape(-1, TOGETHER)
    given = jax.tree.map(lambda a: jnp.asarray(a)[rows.reshape(-1, TOGETHER)], given)
    parts = [run(each, jax.tree.map(operator.itemgetter(i), given)) for i, each in enumerate(keys)]
    return jax.tree.map(lambda *a: jnp.concatenate(a)[:n], *parts)


def drawing(model: Generative, guide: Generative) -> Any:
    """A function from a key and data to choices of a draw of the guide, log p and log q."""

    def draw(data: Choices) -> tuple[dict[str, Any], jax.Array, jax.Array]:
        q = guide.simulate()
        return q.choices, model.log_density(merge(q.choices, data)), q.log_density

    return lambda key, data, _: seed(draw)(key, data)


def predicting(program: Generative) -> Any:
    """A function from a key and choices to those that the program draws beside them."""

    def predict(key: jax.Array, _: Any, fixed: Any) -> dict[str, Any]:
        found = flatten(program.generate(fixed, key)[0].choices)
        known = set(flatten(fixed))
        return nest((a, v) for a, v in found.items() if a not in known)

    return predict


def forecasting(program: Generative) -> Any:
    """A function from a key, data and choices to the steps of the program after those."""
    return lambda key, data, row: forecast(program, merge(row, data), key)


def resample(key: jax.Array, log_weights: np.ndarray, n: int) -> np.ndarray:
    """Indices int[n] in proportion to the weights: systematic resampling, in random order."""
    place, order = jax.random.split(key)
    points = (np.arange(n) + float(jax.random.uniform(place))) / n
    ends = np.cumsum(np.exp(log_weights))
    found = np.searchsorted(ends / ends[-1], points, side="right")
    return np.minimum(found, log_weights.size - 1)[np.asarray(jax.random.permutation(order, n))]
