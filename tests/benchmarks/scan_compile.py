"""A choice in a scan of length 10 and of length 10,000: equations, trace and compile times.

python tests/benchmarks/scan_compile.py
"""

from __future__ import annotations

import time

import jax
import jax.extend
import jax.numpy as jnp

import ppl
from ppl import dist

ESTIMATORS = {
    "reparam": ppl.reparam(),
    "reinforce": ppl.reinforce(),
    "reinforce, loo": ppl.reinforce("loo"),
    "mvd": ppl.mvd(),
}


def objective(estimator, length):
    @ppl.expectation
    def walk(t):
        def step(x, _):
            x = 0.9 * x + 0.1 * ppl.sample("x", dist.Normal(t, 1.0), estimator)
            return x, None

        return jnp.sin(jax.lax.scan(step, 0.0, length=length)[0])

    return walk


def equations(jaxpr):
    """Equations of a jaxpr, those inside its equations included."""
    subs = [s for e in jaxpr.eqns for s in jax.extend.core.jaxprs_in_params(e.params)]
    return len(jaxpr.eqns) + sum(equations(getattr(s, "jaxpr", s)) for s in subs)


def measure(estimator, length, repeats=5):
    walk = objective(estimator, length)
    key = jax.random.key(0)

    def gradient(key, t):
        return jax.value_and_grad(lambda t: walk.surrogate(key, t, samples=2))(t)

    count = equations(jax.make_jaxpr(gradient)(key, 0.3).jaxpr)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.jit(lambda key, t: gradient(key, t)).lower(key, 0.3).compile()
        times.append(time.perf_counter() - start)
    return count, min(times)


def main():
    print(f"jax {jax.__version__}, {jax.devices()[0]}")
    print("estimator        equations 10 / 10,000   trace + compile 10 / 10,000 (s)   ratio")
    for name, estimator in ESTIMATORS.items():
        short, long = measure(estimator, 10), measure(estimator, 10_000)
        print(
            f"{name:16s} {short[0]:9d} / {long[0]:<12d} {short[1]:14.3f} / {long[1]:<16.3f}"
            f" {long[1] / short[1]:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
