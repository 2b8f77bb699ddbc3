"""Cost of the gradient of the VAE of the paper's Table 1 against a hand-written one.

784-200-10-200-784, Bernoulli likelihood. Prints, for each batch size, ours over hand-written:
XLA's FLOPs and bytes accessed, trace plus lower, compile, and step time (both compiled in one
process, timed in alternating blocks, median of the blocks' medians).

    python tests/benchmarks/vae_cost.py [--batches 64,128,256,512,1024] [--blocks 15]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import jax
import jax.numpy as jnp

import ppl
from ppl import dist

PIXELS, HIDDEN, LATENT = 784, 200, 10


def init(key):
    def dense(key, n, m):
        return {"w": jax.random.normal(key, (n, m)) / n**0.5, "b": jnp.zeros(m)}

    k = jax.random.split(key, 5)
    return {
        "hidden": dense(k[0], PIXELS, HIDDEN),
        "loc": dense(k[1], HIDDEN, LATENT),
        "scale": dense(k[2], HIDDEN, LATENT),
        "decoder": dense(k[3], LATENT, HIDDEN),
        "pixels": dense(k[4], HIDDEN, PIXELS),
    }


def apply(layer, x):
    return x @ layer["w"] + layer["b"]


def encode(params, x):
    h = jax.nn.softplus(apply(params["hidden"], x))
    return apply(params["loc"], h), jnp.exp(apply(params["scale"], h))


def decode(params, z):
    return apply(params["pixels"], jax.nn.softplus(apply(params["decoder"], z)))


# --- ours: a batch as one value, and an image at a time under vmap --------------------------------


@ppl.gen
def model(params, n):
    z = ppl.sample("z", dist.Normal(jnp.zeros((*n, LATENT)), 1.0))
    ppl.sample("x", dist.Bernoulli(logits=decode(params, z)))


@ppl.gen
def guide(params, x):
    ppl.sample("z", dist.Normal(*encode(params, x)))


@ppl.expectation
def batched(params, x):
    return ppl.elbo(model(params, x.shape[:-1]), guide(params, x), {"x": x})


@ppl.expectation
def mapped(params, xs):
    return jax.vmap(lambda x: ppl.elbo(model(params, ()), guide(params, x), {"x": x}))(xs).sum()


# --- by hand --------------------------------------------------------------------------------------


def normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)


def elbo_given(params, x, loc, scale, z):
    logits = decode(params, z)
    likelihood = x * logits - jax.nn.softplus(logits)
    return likelihood.sum() + (normal(z, 0.0, 1.0) - normal(z, loc, scale)).sum()


def batched_by_hand(key, params, x):
    loc, scale = encode(params, x)
    return elbo_given(params, x, loc, scale, loc + scale * jax.random.normal(key, loc.shape))


def mapped_by_hand(key, params, xs):
    def one(key, x):
        loc, scale = encode(params, x)
        return elbo_given(params, x, loc, scale, loc + scale * jax.random.normal(key, loc.shape))

    return jax.vmap(one)(jax.random.split(key, xs.shape[0]), xs).sum()


# --- measurement ----------------------------------------------------------------------------------


def compile_gradient(f, *args, repeats=3):
    """The compiled value-and-gradient, with the best of a few trace and compile times."""
    lower, build = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        lowered = jax.jit(lambda key, params, x: jax.value_and_grad(f, 1)(key, params, x)).lower(
            *args
        )
        middle = time.perf_counter()
        compiled = lowered.compile()
        lower.append(middle - start)
        build.append(time.perf_counter() - middle)
    cost = compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return compiled, min(lower), min(build), cost["flops"], cost["bytes accessed"]


def interleaved(ours, hand, args, blocks, seconds=0.3):
    """Median over blocks of the ratio of median step times."""
    ratios, steps = [], []
    for f in (ours, hand):
        for _ in range(3):
            jax.block_until_ready(f(*args))
    start = time.perf_counter()
    jax.block_until_ready(hand(*args))
    n = max(5, int(seconds / (time.perf_counter() - start)))
    for block in range(blocks):
        medians = {}
        for f in (ours, hand) if block % 2 else (hand, ours):
            times = []
            for _ in range(n):
                start = time.perf_counter()
                jax.block_until_ready(f(*args))
                times.append(time.perf_counter() - start)
            medians[f] = statistics.median(times)
        ratios.append(medians[ours] / medians[hand])
        steps.append(medians[hand])
    return statistics.median(ratios), statistics.median(steps)


def compare(batch, blocks):
    """Rows (form, ratios ...) for one batch size."""
    key = jax.random.key(0)
    params = init(key)
    x = (jax.random.uniform(key, (batch, PIXELS)) < 0.3).astype(jnp.float32)
    forms = [("batched", batched, batched_by_hand), ("vmapped", mapped, mapped_by_hand)]
    for name, objective, by_hand in forms:
        ours = compile_gradient(objective.surrogate, key, params, x)
        hand = compile_gradient(by_hand, key, params, x)
        ratio, step = interleaved(ours[0], hand[0], (key, params, x), blocks)
        yield (
            name,
            ours[3] / hand[3],
            ours[4] / hand[4],
            ours[1] / hand[1],
            (ours[1] + ours[2]) / (hand[1] + hand[2]),
            ratio,
            step * 1e3,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", default="64,128,256,512,1024")
    parser.add_argument("--blocks", type=int, default=15)
    options = parser.parse_args()
    print(
        f"jax {jax.__version__}, {jax.devices()[0]}, {platform.processor() or platform.machine()}"
    )
    print("batch  form      flops  bytes  trace  trace+compile  step   (by hand, ms)")
    for batch in map(int, options.batches.split(",")):
        for name, *r, step in compare(batch, options.blocks):
            print(
                f"{batch:5d}  {name:8s}  {r[0]:.3f}  {r[1]:.3f}  {r[2]:.2f}   {r[3]:.2f}"
                f"           {r[4]:.3f}  {step:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
