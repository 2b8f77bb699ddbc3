"""The variance of every estimator on problems of the literature: ``python estimator_table.py``.

The trace of the covariance of one gradient, from 20,000 of them, beside how often what follows a
choice is evaluated. ``ten``: the logarithm of a sum of exponentials of ten Bernoulli choices that
meet. ``bound``: an IWELBO with ten particles of three Bernoulli choices. ``four``: as ``ten``, of
four categorical choices of five values. ``poisson``: (k - 3)^2 at a rate of 1.7. ``walk``: the
square of where a walk of 100 steps ends, each of them up with probability exp(-x / 200); there the
standard deviation is told (Arya et al. 2022).
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ppl
from ppl import dist

WEIGHTS = np.random.default_rng(0).normal(size=(10, 10)) * 0.4
TEN = jnp.array([0.35, 0.82, 0.33, -1.3, 0.91, 0.45, -0.54, 0.58, 0.36, 0.29])
FIVE = np.random.default_rng(1).normal(size=(10, 4, 5)) * 0.8
LOGITS = jnp.asarray(np.random.default_rng(2).normal(size=(4, 5)) * 0.7)
THREE = jnp.array([0.4, -0.6, 0.3])


def energy(b: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(WEIGHTS @ b)


def ten(estimator: Any) -> ppl.Expectation:
    @ppl.expectation
    def objective(phi: jax.Array) -> jax.Array:
        return energy(ppl.sample("b", dist.Bernoulli(logits=phi), estimator))

    return objective


def bound(estimator: Any) -> ppl.Expectation:
    @ppl.gen
    def model() -> None:
        b = ppl.sample("b", dist.Bernoulli(jnp.array([0.3, 0.6, 0.5])))
        ppl.sample("x", dist.Normal(b[0] * b[1] - b[2], 0.6))

    @ppl.gen
    def guide(phi: jax.Array) -> None:
        ppl.sample("b", dist.Bernoulli(logits=phi), estimator)

    @ppl.expectation
    def objective(phi: jax.Array) -> jax.Array:
        return ppl.iwelbo(model(), guide(phi), {"x": 0.7}, 10)

    return objective


def energy_of_four(s: jax.Array) -> jax.Array:
    """Of indicators, or of what is like them: f32[4, 5]."""
    return jax.nn.logsumexp(jnp.einsum("ijk,jk->i", FIVE, s))


def four(estimator: Any) -> ppl.Expectation:
    @ppl.expectation
    def objective(phi: jax.Array) -> jax.Array:
        k = ppl.sample("k", dist.Categorical(logits=phi).to_event(1), estimator)
        return energy_of_four(jax.nn.one_hot(k, 5))

    return objective


def poisson(estimator: Any) -> ppl.Expectation:
    @ppl.expectation
    def objective(rate: jax.Array) -> jax.Array:
        return (ppl.sample("k", dist.Poisson(rate), estimator) - 3.0) ** 2

    return objective


def walk(estimator: Any) -> ppl.Expectation:
    @ppl.expectation
    def objective(p: jax.Array) -> jax.Array:
        def step(x: Any, _: None) -> Any:
            up = ppl.sample("up", dist.Bernoulli(jnp.exp(-jnp.maximum(x, 0.0) / p)), estimator)
            return x + 2.0 * up - 1.0, None

        return jax.lax.scan(step, 0.0, length=100)[0] ** 2

    return objective


Rows = Mapping[str, tuple[Any, int, int]]
"""By what is typed: the estimator, samples, evaluations of what follows for each gradient."""
SCORES: Rows = {
    "reinforce()": (ppl.reinforce(), 1, 1),
    'reinforce("loo"), 2 samples': (ppl.reinforce("loo"), 2, 2),
}
COMMON: Rows = {**SCORES, "disarm()": (ppl.disarm(), 1, 2)}
PROBLEMS: Mapping[str, tuple[Callable[[Any], ppl.Expectation], jax.Array, Rows]] = {
    "ten": (
        ten,
        TEN,
        {
            **COMMON,
            "rebar(f)": (ppl.rebar(energy), 1, 1),
            "stein(f), 2 samples": (ppl.stein(energy), 2, 2),
            "mvd()": (ppl.mvd(), 1, 11),
            "enum()": (ppl.enum(), 1, 1024),
        },
    ),
    "bound": (bound, THREE, {**COMMON, 'reinforce("within")': (ppl.reinforce("within"), 1, 1)}),
    "four": (
        four,
        LOGITS,
        {
            **SCORES,
            "rebar(f)": (ppl.rebar(energy_of_four), 1, 1),
            "stein(f), 2 samples": (ppl.stein(energy_of_four), 2, 2),
            "spa()": (ppl.spa(), 1, 2),
            "spa(4)": (ppl.spa(4), 1, 5),
            "unordered()": (ppl.unordered(), 1, 5),
            "unordered(3)": (ppl.unordered(3), 1, 9),
            "mvd()": (ppl.mvd(), 1, 17),
            "enum()": (ppl.enum(), 1, 625),
        },
    ),
    "poisson": (
        poisson,
        jnp.asarray(1.7),
        {**SCORES, "mvd()": (ppl.mvd(), 1, 2), "spa()": (ppl.spa(), 1, 2)},
    ),
    "walk": (
        walk,
        jnp.asarray(200.0),
        {
            **SCORES,
            "spa()": (ppl.spa(), 1, 2),
            "spa(2)": (ppl.spa(2), 1, 3),
            "spa(4)": (ppl.spa(4), 1, 5),
            "mvd()": (ppl.mvd(), 1, 101),
        },
    ),
}


def variance(objective: ppl.Expectation, phi: jax.Array, samples: int, n: int = 20_000) -> float:
    """The trace of the covariance of one gradient."""
    one = lambda key: objective.grad(key, phi, samples=samples)
    grads = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=500))(
        jax.random.split(jax.random.key(0), n)
    )
    return float(jnp.sum(jnp.var(grads, axis=0)))


def main() -> None:
    print(f"({pathlib.Path(__file__).name})\n")
    for name, (make, phi, rows) in PROBLEMS.items():
        root = name == "walk"
        print(f"| {name} | evaluations | {'deviation' if root else 'variance'} |\n|---|---|---|")
        for typed, (estimator, samples, evaluations) in rows.items():
            found = variance(make(estimator), phi, samples) ** (0.5 if root else 1.0)
            print(f"| `{typed}` | {evaluations} | {found:.3g} |")
        print()


if __name__ == "__main__":
    main()
