"""Large programs beside hand-written code: ``python scaling.py``.

FLOPs, bytes and memory are XLA's counts; times are medians of alternating blocks, hand-written = 1.
Value and gradient of a topic model (words' topics summed out given theta; with a Dirichlet guide;
topics enumerated in the guide), of a mixture with its assignments in the guide, of the objectives
of ``particles.py``, the networks of ``networks.py``, the sums of ``sums.py``, and how long chains
of scores take to trace.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import measure
import networks
import numpy as np
import particles
import sums

import ppl
from ppl import dist

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
DOCUMENTS, LENGTH, TOPICS, TERMS = 100, 50, 20, 200
WORDS = jnp.asarray(RNG.integers(0, TERMS, (DOCUMENTS, LENGTH)))
THETA = jnp.asarray(RNG.dirichlet(np.ones(TOPICS), DOCUMENTS), jnp.float32)
LOGITS = jnp.asarray(RNG.normal(size=(TOPICS, TERMS)), jnp.float32)
OWN = jnp.asarray(RNG.normal(size=(DOCUMENTS, LENGTH, TOPICS)), jnp.float32)
PRIOR = dist.Dirichlet(jnp.full(TOPICS, 0.5))

Pair = tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]
"""By hand, and ours: functions of a key and arrays; and the arrays."""

# --- topic models -------------------------------------------------------------------------------


def documents(theta: jax.Array, logits: jax.Array) -> None:
    def word(row: jax.Array) -> None:
        topic = ppl.sample("topic", dist.CategoricalProbs(row))
        ppl.sample("word", dist.CategoricalLogits(logits=logits[topic]))

    each = lambda row: jax.vmap(lambda _: word(row))(jnp.arange(LENGTH))
    jax.vmap(each)(theta)


given = ppl.gen(lambda logits: documents(THETA, logits))


@ppl.gen
def whole(logits: jax.Array) -> None:
    theta = jax.vmap(lambda _: ppl.sample("theta", PRIOR))(jnp.arange(DOCUMENTS))
    documents(theta, logits)


def log_words(theta: jax.Array, logits: jax.Array) -> jax.Array:
    """log theta + log p(word), f32[DOCUMENTS, LENGTH, TOPICS]."""
    return jnp.log(theta)[:, None] + jax.nn.log_softmax(logits).T[WORDS]


def summed_out() -> Pair:
    def by_hand(key: jax.Array, logits: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(log_words(THETA, logits), -1).sum()

    def ours(key: jax.Array, logits: jax.Array) -> jax.Array:
        sums = ppl.marginal(given(logits), ["word"], ppl.enumeration())
        return sums.log_density({"word": WORDS})

    return by_hand, ours, (LOGITS,)


def with_fitted() -> Pair:
    def by_hand(key: jax.Array, theta: jax.Array, logits: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(log_words(theta, logits), -1).sum()

    def ours(key: jax.Array, theta: jax.Array, logits: jax.Array) -> jax.Array:
        model = ppl.gen(documents)
        sums = ppl.marginal(model(theta, logits), ["word"], ppl.enumeration())
        return sums.log_density({"word": WORDS})

    return by_hand, ours, (THETA, LOGITS)


def with_dirichlet() -> Pair:
    def by_hand(key: jax.Array, logits: jax.Array, raw: jax.Array) -> jax.Array:
        q = dist.Dirichlet(jax.nn.softplus(raw))
        theta = q.sample(key)
        words = jax.nn.logsumexp(log_words(theta, logits), -1).sum()
        return words + (PRIOR.log_prob(theta) - q.log_prob(theta)).sum()

    @ppl.gen
    def guide(raw: jax.Array) -> None:
        jax.vmap(lambda r: ppl.sample("theta", dist.Dirichlet(jax.nn.softplus(r))))(raw)

    @ppl.expectation
    def elbo(logits: jax.Array, raw: jax.Array) -> jax.Array:
        model = ppl.marginal(whole(logits), ["theta", "word"], ppl.enumeration())
        return ppl.elbo(model, guide(raw), {"word": WORDS})

    return by_hand, elbo.surrogate, (LOGITS, jnp.zeros((DOCUMENTS, TOPICS)))


def in_the_guide() -> Pair:
    def by_hand(key: jax.Array, logits: jax.Array, own: jax.Array) -> jax.Array:
        log_q = jax.nn.log_softmax(own)
        return jnp.sum(jnp.exp(log_q) * (log_words(THETA, logits) - log_q))

    @ppl.gen
    def guide(own: jax.Array) -> None:
        one = lambda row: ppl.sample("topic", dist.CategoricalLogits(logits=row), ppl.enum())
        jax.vmap(jax.vmap(one))(own)

    @ppl.expectation
    def elbo(logits: jax.Array, own: jax.Array) -> jax.Array:
        return ppl.elbo(given(logits), guide(own), {"word": WORDS})

    return by_hand, elbo.surrogate, (LOGITS, OWN)


# --- a mixture, and particles -------------------------------------------------------------------


def mixture(n: int = 10_000, k: int = 50) -> Pair:
    x = jnp.asarray(RNG.normal(size=n), jnp.float32)

    def by_hand(key: jax.Array, mu: jax.Array, own: jax.Array) -> jax.Array:
        log_q = jax.nn.log_softmax(own)
        log_p = dist.Normal(mu, 1.0).log_prob(x[:, None]) - jnp.log(k)
        return jnp.sum(jnp.exp(log_q) * (log_p - log_q))

    @ppl.gen
    def model(mu: jax.Array) -> None:
        def one(_: Any) -> None:
            z = ppl.sample("z", dist.CategoricalLogits(logits=jnp.zeros(k)))
            ppl.sample("x", dist.Normal(mu[z], 1.0))

        jax.vmap(one)(jnp.arange(n))

    @ppl.gen
    def guide(own: jax.Array) -> None:
        one = lambda row: ppl.sample("z", dist.CategoricalLogits(logits=row), ppl.enum())
        jax.vmap(one)(own)

    @ppl.expectation
    def elbo(mu: jax.Array, own: jax.Array) -> jax.Array:
        return ppl.elbo(model(mu), guide(own), {"x": x})

    draw = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)
    return by_hand, elbo.surrogate, (draw(k), draw(n, k))


PAIRS: dict[str, tuple[Callable[[], Pair], bool]] = {
    "topics summed out, given theta": (summed_out, True),
    "topics summed out, theta fitted": (with_fitted, True),
    "topics summed out, Dirichlet guide": (with_dirichlet, False),
    "topics enumerated in the guide": (in_the_guide, True),
    "mixture, assignments in the guide": (mixture, True),
    **{name: (make, False) for name, make in (particles.PAIRS | networks.PAIRS).items()},
    **{name: (make, True) for name, make in sums.PAIRS.items()},
}
"""Each with whether both have the same value: those that draw do not."""


def compare(name: str, blocks: int, seconds: float) -> list[measure.Row]:
    make, exact = PAIRS[name]
    by_hand, ours, args = make()
    numbers = tuple(range(1, 1 + len(args)))
    f, g = (jax.value_and_grad(h, numbers) for h in (by_hand, ours))
    contenders = [measure.compiled(n, h, KEY, *args) for n, h in (("by hand", f), ("ours", g))]
    if exact:
        (value, slopes), (wanted, exact_slopes) = jax.jit(g)(KEY, *args), jax.jit(f)(KEY, *args)
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
        for a, b in zip(slopes, exact_slopes, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * float(jnp.abs(b).max()))
    return list(measure.rows(contenders, blocks, seconds, problem=name))


# --- tracing ------------------------------------------------------------------------------------


def chain(n: int) -> float:
    """CPU seconds to trace value and gradient of a chain of ``n`` REINFORCE sites."""

    @ppl.gen
    def model() -> None:
        z = 0.0
        for i in range(n):
            z = ppl.sample(f"z{i}", dist.Normal(z, 1.0))
        ppl.sample("y", dist.Normal(z, 1.0))

    @ppl.gen
    def guide(m: jax.Array) -> None:
        z = 0.0
        for i in range(n):
            z = ppl.sample(f"z{i}", dist.Normal(m[i] + 0.5 * z, 1.0), ppl.reinforce())

    elbo = ppl.expectation(lambda m: ppl.elbo(model(), guide(m), {"y": 1.0}))
    start = time.process_time()
    jax.jit(elbo.value_and_grad).trace(KEY, jnp.zeros(n))
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a block")
    parser.add_argument("--only", default="", help="a part of the names of the rows to measure")
    asked = parser.parse_args()
    warnings.simplefilter("ignore", ppl.SoundnessWarning)
    rows = [
        r
        for name in PAIRS
        if asked.only in name
        for r in compare(name, asked.blocks, asked.seconds)
    ]
    print(measure.table(rows))
    if asked.only:
        return
    chain(5)
    for n in (25, 50, 100):
        print(f"chain of {n} scores: {chain(n):.2f} CPU s to trace")


if __name__ == "__main__":
    main()
