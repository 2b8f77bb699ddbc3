"""Networks with discrete choices beside hand-written code.

A VAE and a belief network of two layers with latent bits, and a sequence, by scores; a
semi-supervised VAE with its labels enumerated. ``scaling.py`` compares value and gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jax.nn import log_softmax, softplus

import ppl
from ppl import dist

Pair = tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]
"""By hand, and ours: functions of a key and arrays; and the arrays."""
RNG = np.random.default_rng(0)
PIXELS, HIDDEN, LATENT, BITS, LABELS = 784, 200, 10, 20, 10
Layer = dict[str, jax.Array]


def _layer(n: int, m: int) -> Layer:
    return {"w": jnp.asarray(RNG.normal(size=(n, m)) / n**0.5, jnp.float32), "b": jnp.zeros(m)}


def _layers(**sizes: tuple[int, int]) -> tuple[dict[str, Layer]]:
    return ({name: _layer(*s) for name, s in sizes.items()},)


def _apply(layer: Layer, x: jax.Array) -> jax.Array:
    return x @ layer["w"] + layer["b"]


def _two(first: Layer, second: Layer, x: jax.Array) -> jax.Array:
    return _apply(second, softplus(_apply(first, x)))


def _images(batch: int) -> jax.Array:
    return jnp.asarray(RNG.random((batch, PIXELS)) > 0.5, jnp.float32)


# --- latent bits ----------------------------------------------------------------------------------


def _log_mass(x: jax.Array, logits: jax.Array) -> jax.Array:
    return jnp.sum(x * logits - softplus(logits), -1)


def _flips(key: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws, their log mass, and 0 with its derivative: the score."""
    z = jax.random.uniform(key, logits.shape) < jax.nn.sigmoid(logits)
    log_q = _log_mass(x := z.astype(jnp.float32), logits)
    return x, log_q, log_q - stop_gradient(log_q)


def _bits(name: str, logits: jax.Array, by: ppl.Estimator | None = None) -> jax.Array:
    return ppl.sample(name, dist.BernoulliLogits(logits), by).astype(jnp.float32)


def latent_bits(batch: int = 64) -> Pair:
    x = _images(batch)

    def by_hand(key: jax.Array, p: dict[str, Layer]) -> jax.Array:
        z, log_q, score = _flips(key, _two(p["encoder"], p["logits"], x))
        value = _log_mass(x, _two(p["decoder"], p["pixels"], z)) - BITS * jnp.log(2.0) - log_q
        return jnp.sum(value + stop_gradient(value) * score)

    @ppl.gen
    def model(p: dict[str, Layer]) -> None:
        def one(_: Any) -> None:
            z = _bits("z", jnp.zeros(BITS))
            _bits("x", _two(p["decoder"], p["pixels"], z))

        jax.vmap(one)(jnp.arange(batch))

    @ppl.gen
    def guide(p: dict[str, Layer]) -> None:
        jax.vmap(lambda x: _bits("z", _two(p["encoder"], p["logits"], x), ppl.reinforce()))(x)

    ours = ppl.expectation(lambda p: ppl.elbo(model(p), guide(p), {"x": x}))
    args = _layers(
        encoder=(PIXELS, HIDDEN),
        logits=(HIDDEN, BITS),
        decoder=(BITS, HIDDEN),
        pixels=(HIDDEN, PIXELS),
    )
    return by_hand, ours.surrogate, args


def belief_network(batch: int = 64) -> Pair:
    """The score of each layer multiplies what depends on it."""
    x = _images(batch)

    def by_hand(key: jax.Array, p: dict[str, Layer]) -> jax.Array:
        first, second = jax.random.split(key)
        z, log_z, score_z = _flips(first, _two(p["encoder"], p["low"], x))
        t, log_t, score_t = _flips(second, _two(p["middle"], p["high"], z))
        above = _log_mass(z, _apply(p["down"], t)) - BITS * jnp.log(2.0) - log_t
        value = _log_mass(x, _apply(p["pixels"], z)) - log_z + above
        scores = stop_gradient(value) * score_z + stop_gradient(above) * score_t
        return jnp.sum(value + scores)

    @ppl.gen
    def model(p: dict[str, Layer]) -> None:
        def one(_: Any) -> None:
            z = _bits("z", _apply(p["down"], _bits("t", jnp.zeros(BITS))))
            _bits("x", _apply(p["pixels"], z))

        jax.vmap(one)(jnp.arange(batch))

    @ppl.gen
    def guide(p: dict[str, Layer]) -> None:
        def one(x: jax.Array) -> None:
            z = _bits("z", _two(p["encoder"], p["low"], x), ppl.reinforce())
            _bits("t", _two(p["middle"], p["high"], z), ppl.reinforce())

        jax.vmap(one)(x)

    ours = ppl.expectation(lambda p: ppl.elbo(model(p), guide(p), {"x": x}))
    args = _layers(
        encoder=(PIXELS, HIDDEN),
        low=(HIDDEN, BITS),
        middle=(BITS, HIDDEN),
        high=(HIDDEN, BITS),
        down=(BITS, BITS),
        pixels=(BITS, PIXELS),
    )
    return by_hand, ours.surrogate, args


def sequence(length: int = 200, states: int = 8, width: int = 256) -> Pair:
    """A state that moves, seen as bits in each step; the scores of a step, one for each number of
    the state, multiply what follows."""
    x = jnp.asarray(RNG.random((length, width)) > 0.5, jnp.float32)
    log_prob = lambda z, loc, scale: dist.Normal(loc, scale).log_prob(z)

    def by_hand(key: jax.Array, p: dict[str, Layer], drift: jax.Array) -> jax.Array:
        def step(z: jax.Array, given: Any) -> Any:
            key, drift, x = given
            loc = 0.5 * z + drift
            z = stop_gradient(loc + jax.random.normal(key, loc.shape))
            log_q = log_prob(z, loc, 1.0)
            return z, (log_q, log_prob(z, 0.0, 1.0) - log_q, _log_mass(x, _apply(p["bits"], z)))

        given = jax.random.split(key, length), drift, x
        _, (log_q, own, bits) = jax.lax.scan(step, jnp.zeros(states), given)
        scores, own, seen = log_q - stop_gradient(log_q), stop_gradient(own), stop_gradient(bits)
        after = jnp.cumsum((own + seen[:, None])[::-1], 0)[::-1]
        return jnp.sum(own) + jnp.sum(bits) + jnp.sum(after * scores)

    @ppl.gen
    def model(p: dict[str, Layer]) -> None:
        def step(z: jax.Array, _: Any) -> Any:
            z = ppl.sample("z", dist.Normal(jnp.zeros(states), 1.0))
            _bits("x", _apply(p["bits"], z))
            return z, None

        jax.lax.scan(step, jnp.zeros(states), length=length)

    @ppl.gen
    def guide(drift: jax.Array) -> None:
        def step(z: jax.Array, drift: jax.Array) -> Any:
            return ppl.sample("z", dist.Normal(0.5 * z + drift, 1.0), ppl.reinforce()), None

        jax.lax.scan(step, jnp.zeros(states), drift)

    ours = ppl.expectation(lambda p, drift: ppl.elbo(model(p), guide(drift), {"x": x}))
    drift = jnp.asarray(RNG.normal(size=(length, states)), jnp.float32)
    return by_hand, ours.surrogate, (*_layers(bits=(states, width)), drift)


# --- labels ---------------------------------------------------------------------------------------


def semi_supervised(batch: int = 64, once: bool = False) -> Pair:
    """Images without labels (Kingma, Mohamed, Rezende & Welling 2014, M2): all labels of each.

    By hand for all pairs of an image and a label; *once*: the image's part of the first layer is
    computed once for all labels.
    """
    x = _images(batch)
    every = jnp.broadcast_to(jnp.eye(LABELS)[:, None], (LABELS, batch, LABELS))

    def hidden(layer: Layer, x: jax.Array) -> jax.Array:
        if once:
            ours, labels = jnp.split(layer["w"], [PIXELS])
            return softplus(x @ ours + layer["b"] + labels[:, None])
        x = jnp.broadcast_to(x, (LABELS, *x.shape))
        return softplus(_apply(layer, jnp.concatenate([x, every], -1)))

    def by_hand(key: jax.Array, p: dict[str, Layer]) -> jax.Array:
        log_q = log_softmax(_two(p["label"], p["logits"], x)).T
        h = hidden(p["hidden"], x)
        q = dist.Normal(_apply(p["loc"], h), jnp.exp(_apply(p["scale"], h)))
        z = q.loc + q.scale * jax.random.normal(key, (LABELS, batch, LATENT))
        logits = _two(p["decoder"], p["pixels"], jnp.concatenate([z, every], -1))
        value = _log_mass(x, logits) - jnp.log(LABELS)
        value += jnp.sum(dist.Normal(0.0, 1.0).log_prob(z) - q.log_prob(z), -1)
        return jnp.sum(jnp.exp(log_q) * (value - log_q))

    @ppl.gen
    def images(p: dict[str, Layer]) -> None:
        def one(_: Any) -> None:
            y = ppl.sample("y", dist.CategoricalLogits(logits=jnp.zeros(LABELS)))
            z = ppl.sample("z", dist.Normal(jnp.zeros(LATENT), 1.0))
            code = jnp.concatenate([z, jax.nn.one_hot(y, LABELS)])
            ppl.sample("x", dist.BernoulliLogits(logits=_two(p["decoder"], p["pixels"], code)))

        jax.vmap(one)(jnp.arange(batch))

    @ppl.gen
    def codes(p: dict[str, Layer]) -> None:
        def one(x: jax.Array) -> None:
            law = dist.CategoricalLogits(logits=_two(p["label"], p["logits"], x))
            y = ppl.sample("y", law, ppl.enum())
            h = jnp.concatenate([x, jax.nn.one_hot(y, LABELS)])
            h = softplus(_apply(p["hidden"], h))
            loc, scale = _apply(p["loc"], h), jnp.exp(_apply(p["scale"], h))
            ppl.sample("z", dist.Normal(loc, scale))

        jax.vmap(one)(x)

    ours = ppl.expectation(lambda p: ppl.elbo(images(p), codes(p), {"x": x}))
    args = _layers(
        label=(PIXELS, HIDDEN),
        logits=(HIDDEN, LABELS),
        hidden=(PIXELS + LABELS, HIDDEN),
        loc=(HIDDEN, LATENT),
        scale=(HIDDEN, LATENT),
        decoder=(LATENT + LABELS, HIDDEN),
        pixels=(HIDDEN, PIXELS),
    )
    return by_hand, ours.surrogate, args


PAIRS: dict[str, Callable[[], Pair]] = {
    "VAE of 20 bits, REINFORCE": latent_bits,
    "belief network, REINFORCE": belief_network,
    "sequence of 256 bits, REINFORCE": sequence,
    "semi-supervised VAE, 10 labels": semi_supervised,
    "semi-supervised VAE, by hand once": lambda: semi_supervised(once=True),
}
