"""``python tests/benchmarks/random_bits.py``: what random bits cost, by hand and ours.

Of value and gradient: how many keys are split or folded, how many numbers are drawn as bits, and
the share of both in FLOPs and bytes: what XLA counts of these equations alone, of what it counts of
all (one turn of a loop). By hand each draw is one call, from one key.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import networks
import particles
import vae
from measure import cost_of

import ppl
from ppl import dist

KEY = jax.random.key(0)
KEYS = frozenset({"random_split", "random_fold_in", "random_seed"})


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations that make keys or bits, also those of loops and functions."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in KEYS or eqn.primitive.name == "random_bits":
            yield eqn
        for inside in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from equations(inside)


def row(f: Callable[..., Any], args: tuple[Any, ...]) -> str:
    numbers = tuple(range(1, 1 + len(args)))
    traced = jax.jit(jax.value_and_grad(f, numbers)).trace(KEY, *args)
    found = list(equations(traced.jaxpr.jaxpr))
    avals = [[v.aval for v in e.invars] for e in found]

    def alone(operands: Any) -> Any:
        return [e.primitive.bind(*x, **e.params) for e, x in zip(found, operands, strict=True)]

    part = cost_of(jax.jit(alone).lower(avals).compile())
    whole = cost_of(traced.lower().compile())
    made = lambda names: sum(e.outvars[0].aval.size for e in found if e.primitive.name in names)
    shares = [f"{part.get(k, 0) / whole[k]:9.3f}" for k in ("flops", "bytes accessed")]
    return f"{made(KEYS):6d}{made({'random_bits'}):9d}" + "".join(shares)


def plate(n: int = 1_000) -> particles.Pair:
    """``n`` choices under ``vmap``."""

    def by_hand(key: jax.Array, m: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(m + jax.random.normal(key, (n,))))

    def one(m: jax.Array) -> jax.Array:
        return jnp.sin(ppl.sample("z", dist.Normal(m, 1.0)))

    ours = ppl.expectation(lambda m: jnp.sum(jax.vmap(one)(m)))
    return by_hand, ours.surrogate, (jnp.zeros(n),)


def steps(n: int = 100, wide: int = 10) -> particles.Pair:
    """Choices in a loop, of ``wide`` numbers each."""

    def by_hand(key: jax.Array, m: jax.Array) -> jax.Array:
        def step(x: jax.Array, key: jax.Array) -> Any:
            return jnp.tanh(x + m + jax.random.normal(key, (wide,))), None

        return jnp.sum(jax.lax.scan(step, jnp.zeros(wide), jax.random.split(key, n))[0])

    def step(x: jax.Array, m: jax.Array) -> Any:
        return jnp.tanh(x + ppl.sample("z", dist.Normal(m, 1.0))), None

    def program(m: jax.Array) -> jax.Array:
        rows = jnp.broadcast_to(m, (n, wide))
        return jnp.sum(jax.lax.scan(step, jnp.zeros(wide), rows)[0])

    return by_hand, ppl.expectation(program).surrogate, (jnp.zeros(wide),)


def images() -> particles.Pair:
    params, x = vae.init(KEY), jnp.ones((64, vae.PIXELS))
    by_hand = lambda key, p: vae.batched_by_hand(key, p, x)
    return by_hand, lambda key, p: vae.mapped.surrogate(key, p, x), (params,)


PAIRS: dict[str, Callable[[], particles.Pair]] = {
    "plate of 1,000 choices": plate,
    "loop of 100 steps of 10": steps,
    "VAE, 64 images one by one": images,
    **{n: make for n, make in (particles.PAIRS | networks.PAIRS).items() if "by hand" not in n},
}


def main() -> None:
    say = lambda line: sys.stdout.write(line + "\n")
    say(f"{'':36s}{'':9s}{'keys':>6s}{'bits':>9s}{'FLOPs':>9s}{'bytes':>9s}")
    for name, make in PAIRS.items():
        by_hand, ours, args = make()
        for program, f in (("by hand", by_hand), ("ours", ours)):
            say(f"{name:36s}{program:9s}{row(f, args)}")


if __name__ == "__main__":
    main()
