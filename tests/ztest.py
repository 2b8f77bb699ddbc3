"""Is an estimate unbiased? A z-test of each of its numbers, in two stages.

An estimate of exact value μ is drawn ``n`` times; z = (mean - μ) / standard error. It passes with
|z| <= 3.3; otherwise it is drawn 8 n more times, with fresh keys, and passes with |z| <= 4.3.
A right number fails both with probability 9.7e-4 * 1.7e-5 = 1.7e-8 (normal approximation): 2e-5
for a suite of 1,000 numbers. The common bound for one stage at a level of 1e-3 for the suite is
4.75 (Šidák); two stages leave that much room for tails heavier than normal. A bias of b standard
deviations is found with probability .99 where n >= (3.3 + 2.33)² / b²: at n = 20,000 a bias of
4 % of the standard deviation of an estimate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import kept
import numpy as np

FIRST, MORE, SECOND = 3.3, 8, 4.3
CHUNK = 10_000
QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_cpu_use_fusion_emitters": False,
}


def _known(option: str) -> bool:
    """Whether the installed XLA has an option."""
    try:
        jax.jit(lambda: 0, compiler_options={option: QUICKLY[option]}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


compiled = functools.partial(
    jax.jit, compiler_options={o: QUICKLY[o] for o in filter(_known, QUICKLY)}
)
"""The tests compile for longer than they run, so they compile quickly."""

ROUNDING = 1e-10
"""Relative; less than this is no bias. Estimates without variance are held to it alone."""


def z_scores(
    estimate: Callable[[jax.Array], Any],
    exact: Any,
    n: int,
    key: jax.Array,
    error: float = 0.0,
    chunk: int = CHUNK,
) -> dict[str, float]:
    """z of every number that ``estimate(key)`` returns, by its place in the pytree.

    Args:
        estimate: a pytree like ``exact``, from a key.
        exact: the expected values.
        n: number of draws, rounded up to whole chunks.
        key: random key.
        error: standard error of ``exact``, where it is itself an estimate, in standard
            deviations of ``estimate(key)``.
    """
    draw = compiled(jax.vmap(estimate))
    return _scores(_sums(draw, exact, min(chunk, n)), exact, n, key, error, min(chunk, n))


def check(
    estimate: Callable[[jax.Array], Any],
    exact: Any,
    n: int = 20_000,
    error: float = 0.0,
    chunk: int = CHUNK,
) -> None:
    """Assert that ``exact`` is the expected value of ``estimate(key)``: see above."""
    chunk = min(chunk, n)
    draw = compiled(jax.vmap(estimate))  # no more than that: what is compiled costs, not what runs
    first, second = jax.random.split(jax.random.key(0))

    def test() -> None:
        sums = _sums(draw, exact, chunk)
        if worst(_scores(sums, exact, n, first, error, chunk)) <= FIRST:
            return
        z = _scores(sums, exact, MORE * n, second, error, chunk)
        assert worst(z) <= SECOND, f"biased: z = {z}"

    keys = jax.eval_shape(functools.partial(jax.random.split, num=chunk), first)
    kept.passed(draw, [keys], [exact, n, error, FIRST, MORE, SECOND], test)


def check_exact(
    f: Callable[..., Any], args: Any, exact: Any, claim: Any = None, **tolerance: float
) -> None:
    """Assert that ``f(*args)``, compiled, is ``exact``: a pytree, or a function that returns it.

    ``claim`` stands for what the function computes, where it is one.
    """
    run = compiled(f)

    def test() -> None:
        right = jax.device_get(exact() if callable(exact) else exact)
        close = functools.partial(np.testing.assert_allclose, **tolerance)
        jax.tree.map(close, jax.device_get(run(*args)), right)

    kept.passed(run, args, [args, claim or exact, tolerance], test)


def worst(z: dict[str, float]) -> float:
    """The largest |z|; infinite if one is not a number."""
    return max(abs(v) if np.isfinite(v) else np.inf for v in z.values())


def _sums(draw: Callable[[jax.Array], Any], exact: Any, chunk: int) -> Callable[..., Any]:
    def sums(key: jax.Array) -> Any:
        drawn = jax.device_get(draw(_split(key, chunk)))
        off = jax.tree.map(lambda a, e: np.asarray(a, float) - np.asarray(e), drawn, exact)
        return jax.tree.map(lambda a: (a.sum(0), (a**2).sum(0)), off)

    return sums


_split = jax.jit(jax.random.split, static_argnums=1)


def _scores(
    sums: Callable[..., Any], exact: Any, n: int, key: jax.Array, error: float, chunk: int
) -> dict[str, float]:
    chunks = -(-n // chunk)
    n = chunks * chunk
    drawn = [sums(jax.random.fold_in(key, i)) for i in range(chunks)]
    total = functools.reduce(lambda a, b: jax.tree.map(np.add, a, b), drawn)

    def z(exact: Any, sums: Any) -> Any:
        mean, square = (s / n for s in sums)
        se = np.sqrt(np.maximum(square - mean**2, 0.0) * (1 / n + error**2))
        excess = np.maximum(np.abs(mean) - ROUNDING * (1.0 + np.abs(exact)), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(excess == 0.0, 0.0, np.sign(mean) * excess / se)

    scores = jax.tree.map(z, exact, total)
    return {
        jax.tree_util.keystr(path) + str(list(index)) * bool(index): float(v)
        for path, leaf in jax.tree_util.tree_leaves_with_path(scores)
        for index, v in np.ndenumerate(leaf)
    }
