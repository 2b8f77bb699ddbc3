"""An objective as a function of numbers, and its derivatives along directions.

A *row* is a direction of unit length: a coordinate of a small parameter, or a random direction in
a large one.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from transforms import _jax
from transforms.errors import Address, UnsupportedError
from transforms.estimation.estimator import Estimator
from transforms.program.compiled import computed
from transforms.runs.retarget import retarget

from .scopes import scopes_of

COORDINATES, DIRECTIONS = 8, 2
"""Parameters of at most so many elements are taken one by one, others in random directions."""
TOGETHER = 2
"""Samples side by side, the fewest with which baselines of the other samples do anything."""
Table = Mapping[Address, Estimator]


class Program:
    """An objective as a function of the floating-point leaves of some of its arguments."""

    def __init__(self, objective: Any, args: tuple[Any, ...], wanted: Sequence[int]):
        leaves, tree = jax.tree.flatten(args)
        names = _names(objective, args, wanted)
        chosen = [i for i, name in enumerate(names) if name and is_floating(leaves[i])]
        if not chosen:
            raise UnsupportedError(
                f"there is nothing to audit: the arguments {list(wanted)} of {objective.name} hold "
                "no floating-point numbers. Name those that do, audit(key, ..., argnums=(0, 1)), "
                "and write 1.0 for 1."
            )
        self.name: str = objective.name
        self.params = [jnp.asarray(leaves[i]) for i in chosen]
        self.directions = list(_directions([names[i] for i in chosen], self.params))
        self._objective, self._leaves, self._tree, self._chosen = objective, leaves, tree, chosen
        closed, _, _ = objective.trace(*args)
        self.eps = float(jnp.finfo(closed.out_avals[0].dtype).eps)
        self.scopes = list(scopes_of(closed))

    def arguments(self, params: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments of the objective, with these parameters."""
        leaves = list(self._leaves)
        for i, value in zip(self._chosen, params, strict=True):
            leaves[i] = value
        return jax.tree.unflatten(self._tree, leaves)

    def trace(self, params: Sequence[Any]) -> tuple[_jax.ClosedJaxpr, list[Any]]:
        closed, consts, _ = self._objective.trace(*self.arguments(params))
        return closed, consts

    def value(self, params: Sequence[Any], key: jax.Array, table: Table | None = None) -> jax.Array:
        """The surrogate, with other estimators where the table has some: f[]."""

        def replaced(*args: Any) -> jax.Array:
            closed, consts, _ = self._objective.trace(*args)
            return retarget(closed, consts, table or {})[0]

        objective = self._objective if table is None else type(self._objective)(replaced)
        out = objective.surrogate(key, *self.arguments(params), samples=TOGETHER)
        return jax.tree.leaves(out)[0]

    def derivatives(
        self, params: Sequence[Any], key: jax.Array, table: Table | None = None
    ) -> jax.Array:
        """The estimate of every derivative: f[rows]."""
        grads = jax.grad(self.value)(list(params), key, table)
        return self.each(
            lambda v: sum(jnp.vdot(g, a) for g, a in zip(grads, v(grads), strict=True))
        )

    def each(self, f: Callable[..., Any], *xs: Any) -> Any:
        """``f(direction, *xs)`` for every row, one after the other.

        ``direction(params)`` is the unit vector, as arrays like the parameters.
        """
        *columns, _ = zip(*self.directions, strict=True)

        def row(x: Any) -> Any:
            (leaf, index, seed), *rest = x
            return f(lambda like: _unit(like, leaf, index, seed), *rest)

        return lax.map(row, ([jnp.asarray(c) for c in columns], *xs))


class _Direction(NamedTuple):
    """A coordinate of a leaf, or (index -1) a random direction in it."""

    leaf: int
    index: int
    seed: int
    label: str


def _names(objective: Any, args: tuple[Any, ...], wanted: Sequence[int]) -> list[str]:
    """The leaves of the arguments as a user would write them; empty for those not wanted."""
    try:
        arguments = list(inspect.signature(objective).bind(*args).arguments.items())
    except (TypeError, ValueError):
        arguments = []
    simple = len(arguments) == len(args)
    named = [arguments[i][0] if simple else f"args[{i}]" for i in range(len(args))]
    return [
        named[i] + jax.tree_util.keystr(path) if i in wanted else ""
        for i, arg in enumerate(args)
        for path, _ in jax.tree_util.tree_leaves_with_path(arg)
    ]


def is_floating(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return isinstance(leaf, float) if dtype is None else jnp.issubdtype(dtype, jnp.floating)


def _directions(names: Sequence[str], params: Sequence[jax.Array]) -> Iterator[_Direction]:
    for i, (name, p) in enumerate(zip(names, params, strict=True)):
        if p.size <= COORDINATES:
            for j, at in enumerate(np.ndindex(p.shape)):
                yield _Direction(i, j, 0, name + str(list(at)) * bool(at))
        else:
            for j in range(DIRECTIONS):
                yield _Direction(i, -1, j, f"{name} direction {j + 1}")


def _unit(like: Sequence[jax.Array], leaf: Any, index: Any, seed: Any) -> list[jax.Array]:
    out = []
    for i, a in enumerate(like):
        if a.size <= COORDINATES:
            v = (jnp.arange(a.size) == index).astype(a.dtype)
        else:
            key = jax.random.fold_in(jax.random.key(i), seed)
            v = jax.random.rademacher(key, (a.size,), a.dtype) / math.sqrt(a.size)
        out.append(jnp.where(leaf == i, v, 0.0).reshape(a.shape))
    return out


def moved(params: Sequence[jax.Array], v: Sequence[jax.Array], by: Any) -> list[jax.Array]:
    return [p + jnp.asarray(by * d, p.dtype) for p, d in zip(params, v, strict=True)]


def means_and_errors(
    f: Callable[..., Any], args: Any, key: jax.Array, n: int, chunk: int
) -> np.ndarray:
    """The mean over n keys of k arrays ``f(args, key)``, and its standard error: f64[k, 2, ...]."""
    chunks = -(-n // chunk)

    def run(args: Any, key: jax.Array) -> Any:
        def one(key: jax.Array) -> Any:
            drawn = jax.vmap(lambda key: f(args, key))(jax.random.split(key, chunk))
            return [(a.mean(0), a.var(0)) for a in drawn]

        return lax.map(one, jax.random.split(key, chunks))

    out = []
    for of_chunks in jax.device_get(computed(run, args, key)):
        mean, var = (np.asarray(a, np.float64) for a in of_chunks)
        error = np.sqrt((mean.var(0) + var.mean(0)) / max(1, chunks * chunk - 1))
        out.append((mean.mean(0), error))
    return np.array(out)
