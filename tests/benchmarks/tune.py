"""Does ``ppl.tune`` find the best estimators? Its choice against an exhaustive measurement.

    python tests/benchmarks/tune.py [--budget=5] [--blocks=8] [--seconds=0.1] [--out=DIR]

The exhaustive measurement knows nothing of ``ppl.tune``: the estimators are written at the choices,
the variance is that of 20,000 independent gradients, the seconds are those of a step of ascent in a
compiled loop, the least of many turns, since whatever else the machine does only adds to them. A
combination of which the checker finds the gradient biased does not count.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import measure
import numpy as np

import ppl
from ppl import dist

KEY = jax.random.key(0)
SAMPLES, STEPS, GRADIENTS = 4, 100, 20_000
DISCRETE = ppl.enum(), ppl.mvd(), ppl.reinforce(), ppl.reinforce("loo")
CONTINUOUS = ppl.reparam(), *DISCRETE[1:]


class Problem(NamedTuple):
    """An objective as a function of the estimators at its addresses; its parameters."""

    make: Callable[..., ppl.Expectation]
    params: Any
    options: dict[str, tuple[ppl.Estimator, ...]]


def mixture(k_by: Any = None, m_by: Any = None) -> ppl.Expectation:
    """An ELBO with a discrete and a continuous choice."""

    @ppl.gen
    def model():
        k = ppl.sample("k", dist.CategoricalProbs(jnp.array([0.2, 0.3, 0.5])))
        m = ppl.sample("m", dist.Normal(jnp.array([-2.0, 0.0, 3.0])[k], 1.0))
        ppl.sample("y", dist.Normal(m, 0.5).expand((5,)))

    @ppl.gen
    def guide(phi: Any):
        k = ppl.sample("k", dist.CategoricalLogits(phi["logits"]), k_by)
        ppl.sample("m", dist.Normal(phi["m"][k], jnp.exp(phi["s"])), m_by)

    @ppl.expectation
    def elbo(phi: Any) -> Any:
        return ppl.elbo(model(), guide(phi), {"y": jnp.linspace(0.5, 1.5, 5)})

    return elbo


def jump(x_by: Any = None) -> ppl.Expectation:
    """A discontinuous cost."""

    @ppl.expectation
    def cost(phi: Any) -> Any:
        x = ppl.sample("x", dist.Normal(phi["m"], jnp.exp(phi["s"])).expand((4,)), x_by)
        return jnp.sum(jnp.where(x > 0.5, 2.0, 0.1 * x)) ** 2

    return cost


def network(z_by: Any = None, c_by: Any = None) -> ppl.Expectation:
    """The ELBO of a small VAE: 6 binary and 2 continuous latent units, 40 pixels."""
    x = jax.random.bernoulli(jax.random.key(1), 0.4, (40,)).astype(float)

    @ppl.gen
    def model(theta: Any):
        z = ppl.sample("z", dist.BernoulliLogits(jnp.zeros(6)).to_event(1))
        c = ppl.sample("c", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        hidden = jnp.tanh(theta["a"] @ z + theta["b"] @ c)
        ppl.sample("x", dist.BernoulliLogits(theta["out"] @ hidden).to_event(1))

    @ppl.gen
    def guide(phi: Any):
        ppl.sample("z", dist.BernoulliLogits(phi["d"] @ x).to_event(1), z_by)
        ppl.sample("c", dist.Normal(phi["e"] @ x, 0.5).to_event(1), c_by)

    @ppl.expectation
    def elbo(params: Any) -> Any:
        return ppl.elbo(model(params), guide(params), {"x": x})

    return elbo


def weights() -> dict[str, jax.Array]:
    shapes = {"a": (20, 6), "b": (20, 2), "out": (40, 20), "d": (6, 40), "e": (2, 40)}
    keys = dict(zip(shapes, jax.random.split(KEY, len(shapes)), strict=True))
    return {name: 0.3 * jax.random.normal(keys[name], shape) for name, shape in shapes.items()}


PROBLEMS = {
    "mixture": Problem(
        mixture,
        {"logits": jnp.array([0.1, 0.4, -0.3]), "m": jnp.array([-1.0, 0.5, 2.0]), "s": -0.3},
        {"k": DISCRETE, "m": CONTINUOUS},
    ),
    "jump": Problem(jump, {"m": 0.2, "s": 0.1}, {"x": CONTINUOUS}),
    "network": Problem(network, weights(), {"z": DISCRETE, "c": CONTINUOUS}),
}


def variance(gradient: Callable[..., Any], params: Any) -> float:
    """Of the gradient, over all parameters."""
    few = jax.jit(jax.vmap(lambda key: jax.tree.leaves(gradient(key, params)[1])))
    chunks = [few(keys) for keys in jax.random.split(jax.random.key(5), (GRADIENTS // 500, 500))]
    columns = zip(*chunks, strict=True)
    return sum(float(np.concatenate(c, dtype=float).var(0, ddof=1).sum()) for c in columns)


def exhaustive(problem: Problem, blocks: int, seconds: float) -> dict[tuple[Any, ...], float]:
    """variance x seconds of every combination whose gradient is right."""
    params = jax.tree.map(jnp.asarray, problem.params)
    variances, contenders = {}, []
    for estimators in itertools.product(*problem.options.values()):
        objective = problem.make(*estimators)
        if objective.explain(params, samples=SAMPLES).findings:
            continue

        def gradient(key: jax.Array, params: Any, objective: ppl.Expectation = objective) -> Any:
            return objective.value_and_grad(key, params, samples=SAMPLES)

        variances[estimators] = variance(gradient, params)
        run = measure.looped(gradient, STEPS)
        contenders.append(measure.compiled(str(len(contenders)), run, KEY, params, repeats=1))
    times = [[least(c, seconds) for c in contenders] for _ in range(blocks)]
    merits = np.array([*variances.values()]) * np.min(times, axis=0) / STEPS
    return dict(zip(variances, merits.tolist(), strict=True))


def least(contender: measure.Contender, seconds: float) -> float:
    """The least seconds of a run, of the runs in so many seconds."""
    contender.run()
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        contender.run()
        times.append(time.perf_counter() - start)
    return min(times)


def rows(blocks: int, seconds: float, budget: float) -> Iterator[measure.Row]:
    for name, problem in PROBLEMS.items():
        tuned = ppl.tune(problem.make(), KEY, problem.params, samples=SAMPLES, budget=budget)
        print(f"{name}\n{tuned}\n", flush=True)
        merits = exhaustive(problem, blocks, seconds)
        first = min(merits, key=lambda estimators: merits[estimators])
        chosen, before = (tuple(t.assignment.values()) for t in (tuned.tried[0], tuned.before))
        yield {
            "problem": name,
            "combinations": len(tuned.tried),
            "right": len(merits),
            "ppl.tune": _text(chosen),
            "exhaustive": _text(first),
            "× best": merits[chosen] / merits[first],
            "second best": sorted(merits.values())[1] / merits[first],
            "automatic, × best": merits[before] / merits[first],
        }


def _text(estimators: tuple[Any, ...]) -> str:
    return ", ".join(e.name + " loo" * (e == DISCRETE[-1]) for e in estimators)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=5.0)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--out", type=pathlib.Path, help="folder for a table as text and JSON")
    args = parser.parse_args(argv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ppl.SoundnessWarning)
        table = list(rows(args.blocks, args.seconds, args.budget))
    print(measure.table(table))
    print(", ".join(f"{k} {v}" for k, v in measure.environment().items()))
    if args.out:
        title = "The estimators that ppl.tune returns: variance × seconds, × the exhaustive best"
        measure.save(args.out, "tune", title, table)


if __name__ == "__main__":
    main()
