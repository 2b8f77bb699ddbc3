"""Count accuracy against time: AIR trained by each strategy on the same canvases (Figure 7)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import air
import jax
import jax.numpy as jnp
import numpy as np
import optax

import ppl

BATCH = 64


def count_accuracy(key: jax.Array, params: Any, images: jax.Array, counts: np.ndarray) -> float:
    """How often the guide draws as many objects as there are."""
    return float(np.mean(np.asarray(_counts(key, params, images)) == counts))


@jax.jit
def _counts(key: jax.Array, params: Any, images: jax.Array) -> jax.Array:
    keys = jax.random.split(key, len(images))
    return jax.vmap(lambda k, x: air.guide(params, x).simulate(k).retval)(keys, images)


def train(
    strategy: air.Strategy,
    training: np.ndarray,
    held_out: np.ndarray,
    counts: np.ndarray,
    *,
    epochs: float,
    rate: float = 1e-4,
    every: int = 200,
    seed: int = 0,
) -> Iterator[dict[str, float]]:
    """After every ``every`` steps: steps, epochs, seconds of training, objective, accuracy.

    The seconds leave out compilation and the evaluation of the accuracy.
    """
    objective, optimizer = strategy.expectation(), optax.adam(rate)
    params = air.init(jax.random.key(seed), training.shape[-1])
    batches = ppl.minibatches(jnp.asarray(training), BATCH)
    held_out = jnp.asarray(held_out)
    steps = int(epochs * len(training) / BATCH)
    found: list[dict[str, float]] = []
    clock = {"spent": 0.0, "since": 0.0}

    def visit(step: int, params: Any, history: np.ndarray) -> None:
        if step % every == 0 or step >= steps:
            jax.block_until_ready(params)
            clock["spent"] += time.perf_counter() - clock["since"]
            accuracy = count_accuracy(jax.random.key(1), params, held_out, counts)
            found.append(
                {
                    "steps": step,
                    "epochs": step * BATCH / len(training),
                    "seconds": clock["spent"],
                    "objective": float(history[-every:].mean()),
                    "accuracy": accuracy,
                }
            )
            clock["since"] = time.perf_counter()

    def fit(steps: int, callback: Any = None) -> Any:
        key = jax.random.key(seed + 1)
        return ppl.maximize(
            objective, params, optimizer, key=key, steps=steps, batches=batches,
            callback=callback, progress=False,
        )  # fmt: skip

    fit(100)
    count_accuracy(jax.random.key(1), params, held_out, counts)
    clock["since"] = time.perf_counter()
    fit(steps, visit)
    yield from found
