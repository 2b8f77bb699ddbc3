"""Time of the soundness checker as a share of trace plus compile: cone, VAE, a recurrent model.

Each objective is traced and compiled anew several times in one process, after a first time that
is not counted; medians.

    python tests/benchmarks/checker_time.py [--repeats 7]
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import vae

import ppl
from ppl import dist
from ppl.demo import cone
from transforms.checker.soundness import Soundness
from transforms.gradient import surrogate
from transforms.smoothness import continuity

HIDDEN, OBSERVED = 64, 32
spent = [0.0]


class Timed(Soundness):
    """The checker, with a clock."""

    def __init__(self, *args, **kwargs):
        start = time.perf_counter()
        super().__init__(*args, **kwargs)
        spent[0] += time.perf_counter() - start

    def findings(self, *args, **kwargs):
        start = time.perf_counter()
        found = super().findings(*args, **kwargs)
        spent[0] += time.perf_counter() - start
        return found


def cell(params, h, x):
    gates = jnp.concatenate([h, x]) @ params["cell"]
    i, f, o, g = jnp.split(gates, 4)
    c = jax.nn.sigmoid(f) * h + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c)


@ppl.gen
def recurrent_model(params):
    def step(state, _):
        h, alive = state
        alive = ppl.sample("alive", dist.Bernoulli(0.5 * alive + 0.1))
        z = ppl.sample("z", dist.Normal(jnp.zeros(4), 1.0))
        h = h + alive * jnp.tanh(params["decoder"].T @ z)
        return (h, alive), None

    (h, _), _ = jax.lax.scan(step, (jnp.zeros(OBSERVED), 1), length=3)
    ppl.sample("x", dist.Normal(h, 0.3))


@ppl.gen
def recurrent_guide(params, x):
    def step(h, _):
        h = cell(params, h, x)
        p = jax.nn.sigmoid(h @ params["alive"])
        ppl.sample("alive", dist.Bernoulli(p), ppl.enum())
        ppl.sample("z", dist.Normal(h @ params["loc"], jnp.exp(h @ params["scale"])))
        return h, None

    jax.lax.scan(step, jnp.zeros(HIDDEN), length=3)


@ppl.expectation
def recurrent(params, xs):
    one = lambda x: ppl.elbo(recurrent_model(params), recurrent_guide(params, x), {"x": x})
    return jax.vmap(ppl.expectation(one))(xs).mean()


def recurrent_params(key):
    shapes = {
        "cell": (HIDDEN + OBSERVED, 4 * HIDDEN),
        "alive": (HIDDEN,),
        "loc": (HIDDEN, 4),
        "scale": (HIDDEN, 4),
        "decoder": (4, OBSERVED),
    }
    keys = jax.random.split(key, len(shapes))
    return {
        name: 0.1 * jax.random.normal(k, shape)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


CASES = {
    "cone, ELBO": (cone.elbo, (cone.FIELD,)),
    "cone, learned kernel": (cone.learned_hvi, ({**cone.RING, "log_kappa": 0.0},)),
    "VAE, batch 64": (vae.batched, (vae.init(jax.random.key(1)), jnp.ones((64, 784)))),
    "recurrent, 3 steps": (
        recurrent,
        (recurrent_params(jax.random.key(2)), jnp.ones((16, OBSERVED))),
    ),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    surrogate.Soundness = Timed
    print("objective             checker, ms   trace + compile, ms   share")
    for name, (objective, args) in CASES.items():
        shares, times, checks = [], [], []
        for i in range(repeats + 1):
            fresh = ppl.expectation(objective._f)
            f = jax.jit(lambda key, *args, fresh=fresh: fresh.value_and_grad(key, *args))
            continuity._passed.cache_clear()
            spent[0] = 0.0
            start = time.perf_counter()
            f.lower(jax.random.key(0), *args).compile()
            total = time.perf_counter() - start
            if i:
                shares.append(spent[0] / total)
                times.append(total)
                checks.append(spent[0])
        ms = [1e3 * statistics.median(v) for v in (checks, times)]
        share = statistics.median(shares)
        print(f"{name:20}  {ms[0]:11.1f}   {ms[1]:19.0f}   {share:.1%}")


if __name__ == "__main__":
    main()
