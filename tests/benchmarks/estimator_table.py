"""The variance of every estimator on problems of the literature: ``python estimator_table.py``.

The trace of the covariance of one gradient, from 20,000 of them, beside how often what follows a
choice is evaluated. ``ten``: the logarithm of a sum of exponentials of ten Bernoulli choices that
meet. ``bound``: an IWELBO with ten particles of three Bernoulli choices.
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


Rows = Mapping[str, tuple[Any, int, int]]
"""By what is typed: the estimator, samples, evaluations of what follows for each gradient."""
COMMON: Rows = {
    "reinforce()": (ppl.reinforce(), 1, 1),
    'reinforce("loo"), 2 samples': (ppl.reinforce("loo"), 2, 2),
    "disarm()": (ppl.disarm(), 1, 2),
}
PROBLEMS: Mapping[str, tuple[Callable[[Any], ppl.Expectation], jax.Array, Rows]] = {
    "ten": (
        ten,
        TEN,
        {
            **COMMON,
            "rebar(f)": (ppl.rebar(energy), 1, 1),
            "mvd()": (ppl.mvd(), 1, 11),
            "enum()": (ppl.enum(), 1, 1024),
        },
    ),
    "bound": (bound, THREE, {**COMMON, 'reinforce("within")': (ppl.reinforce("within"), 1, 1)}),
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
        print(f"| {name} | evaluations | variance |\n|---|---|---|")
        for typed, (estimator, samples, evaluations) in rows.items():
            print(f"| `{typed}` | {evaluations} | {variance(make(estimator), phi, samples):.3g} |")
        print()


if __name__ == "__main__":
    main()
