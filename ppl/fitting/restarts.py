"""Several starts of one fit, side by side in one compiled loop; the best is kept.

All restarts use the same keys and batches, so that what tells them apart is where they began, and
the state of the best is that of a fit of its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transforms import _jax
from transforms.errors import UnsupportedError, describe

from ..programs.given import as_count, is_array
from .keys import one_of
from .steps import Loop, State, run_chunk

STARTS = np.uint32(2**32 - 2)
"""What is folded into the key of a fit for the keys of its starts."""


def starts(params: Any, restarts: int, key: jax.Array) -> list[Any]:
    """The parameters of each restart, from a function of a key or arrays ``[restarts, ...]``."""
    n = as_count(restarts, "restarts")
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if callable(params) and not any(is_array(v) for _, v in leaves):
        return [params(k) for k in jax.random.split(jax.random.fold_in(one_of(key), STARTS), n)]
    for path, v in leaves:
        if is_array(v) and jnp.shape(v)[:1] != (n,):
            raise UnsupportedError(
                f"the parameter {jax.tree_util.keystr(path) or 'params'} of the fit at "
                f"{_jax.user_line()} is {describe(v)}, and with restarts={n} every array of the "
                f"parameters has the shape [{n}, ...], one row for each start. Give such arrays, "
                "or a function from a key to parameters."
            )
    return [jax.tree.map(lambda a, i=i: a[i] if is_array(a) else a, params) for i in range(n)]


def stack(trees: list[Any]) -> Any:
    """One tree with a leading axis on its arrays."""
    return jax.tree.map(lambda *a: jnp.stack(a) if is_array(a[0]) else a[0], *trees)


def run_side_by_side(
    loop: Loop, state: State, fixed: list[Any], key: Any, n: Any, rows: Any, starts: Any
) -> Any:
    """:func:`run_chunk` for a state with a leading axis."""
    return jax.vmap(lambda s: run_chunk(loop, s, fixed, key, n, rows, starts))(state)


def pick(tree: Any, i: int) -> Any:
    """One restart."""
    return jax.tree.map(lambda a: a[i], tree)


def one(state: State, i: int) -> State:
    """The state of one restart, as that of a fit of its own."""
    return dataclasses.replace(pick(state, i), step=int(state.step[i]))


def best(state: State, values: np.ndarray, direction: int) -> tuple[int, np.ndarray]:
    """The best restart, and the objective of each, NaN where a restart failed: f32[restarts]."""
    steps = np.asarray(state.step)
    means = np.where(steps == steps.max(), values.mean(-1), np.nan)
    return int(np.nan_to_num(direction * means, nan=-np.inf).argmax()), means
