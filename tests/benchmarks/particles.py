"""Objectives of many particles and of enumerated labels beside hand-written code.

A multi-sample bound over local latents, pathwise and by scores; an ELBO whose guide is a posterior
by importance sampling; a semi-supervised VAE with its labels enumerated. ``scaling.py`` compares
value and gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_softmax, logsumexp, softplus

import ppl
from ppl import dist

Pair = tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]
"""By hand, and ours: functions of a key and arrays; and the arrays."""
RNG = np.random.default_rng(0)


# --- local latents ------------------------------------------------------------------------------


@ppl.gen
def model(w: jax.Array, n: int) -> None:
    def one(_: Any) -> None:
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(w * z, 1.0))

    jax.vmap(one)(jnp.arange(n))


@ppl.gen
def guide(m: jax.Array, s: jax.Array, by: ppl.Estimator | None = None) -> None:
    jax.vmap(lambda m, s: ppl.sample("z", dist.Normal(m, jnp.exp(s)), by))(m, s)


def _log_joint(z: jax.Array, w: jax.Array, x: jax.Array) -> jax.Array:
    """Of each element."""
    return dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(w * z, 1.0).log_prob(x)


def _start(latents: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    return jnp.float32(0.5), jnp.zeros(latents), jnp.zeros(latents)


def bound(n: int = 64, latents: int = 1_000, scores: bool = False) -> Pair:
    """``scores``: by REINFORCE; the score of a particle multiplies the whole bound."""
    x = jnp.asarray(RNG.normal(size=latents), jnp.float32)

    def by_hand(key: jax.Array, w: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
        q = dist.Normal(m, jnp.exp(s))
        z = m + jnp.exp(s) * jax.random.normal(key, (n, latents))
        z = jax.lax.stop_gradient(z) if scores else z
        log_q = q.log_prob(z)
        value = logsumexp(jnp.sum(_log_joint(z, w, x) - log_q, -1)) - jnp.log(n)
        score = jnp.sum(log_q)
        score = jax.lax.stop_gradient(value) * (score - jax.lax.stop_gradient(score))
        return value + score if scores else value

    @ppl.expectation
    def ours(w: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
        q = guide(m, s, ppl.reinforce() if scores else None)
        return ppl.iwelbo(model(w, latents), q, {"x": x}, n)

    return by_hand, ours.surrogate, _start(latents)


def resampled(n: int = 100, latents: int = 200) -> Pair:
    """One of ``n`` particles is kept, by its weight: the guide."""
    x = jnp.asarray(RNG.normal(size=latents), jnp.float32)

    def by_hand(key: jax.Array, w: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
        ours, other = jax.random.split(key)
        q = dist.Normal(m, jnp.exp(s))
        z = m + jnp.exp(s) * jax.random.normal(ours, (n, latents))
        weights = jnp.sum(_log_joint(z, w, x) - q.log_prob(z), -1)
        kept = jax.random.categorical(other, weights)
        log_joint = jnp.sum(_log_joint(z[kept], w, x))
        value = log_joint - (log_joint - logsumexp(weights) + jnp.log(n))
        score = log_softmax(weights)[kept]
        return value + jax.lax.stop_gradient(value) * (score - jax.lax.stop_gradient(score))

    @ppl.expectation
    def ours(w: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
        p = model(w, latents)
        q = ppl.normalize(p, {"x": x}, by=ppl.importance(n, guide(m, s)))
        return ppl.elbo(p, q, {"x": x})

    return by_hand, ours.surrogate, _start(latents)


# --- a semi-supervised VAE ----------------------------------------------------------------------

PIXELS, HIDDEN, LATENT, LABELS = 784, 200, 10, 10
Layer = dict[str, jax.Array]


def _layer(n: int, m: int) -> Layer:
    return {"w": jnp.asarray(RNG.normal(size=(n, m)) / n**0.5, jnp.float32), "b": jnp.zeros(m)}


def _apply(layer: Layer, x: jax.Array) -> jax.Array:
    return x @ layer["w"] + layer["b"]


def _two(first: Layer, second: Layer, x: jax.Array) -> jax.Array:
    return _apply(second, softplus(_apply(first, x)))


def semi_supervised(batch: int = 64, once: bool = False) -> Pair:
    """Images without labels (Kingma, Mohamed, Rezende & Welling 2014, M2): all labels of each.

    By hand for all pairs of an image and a label; *once*: the image's part of the first layer is
    computed once for all labels.
    """
    x = jnp.asarray(RNG.random((batch, PIXELS)) > 0.5, jnp.float32)
    sizes = {
        "label": (PIXELS, HIDDEN),
        "logits": (HIDDEN, LABELS),
        "hidden": (PIXELS + LABELS, HIDDEN),
        "loc": (HIDDEN, LATENT),
        "scale": (HIDDEN, LATENT),
        "decoder": (LATENT + LABELS, HIDDEN),
        "pixels": (HIDDEN, PIXELS),
    }
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
        value = jnp.sum(x * logits - softplus(logits), -1) - jnp.log(LABELS)
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
    return by_hand, ours.surrogate, ({name: _layer(*s) for name, s in sizes.items()},)


PAIRS: dict[str, Callable[[], Pair]] = {
    "IWELBO of local latents": bound,
    "IWELBO of local latents, REINFORCE": lambda: bound(16, 200, scores=True),
    "ELBO of a posterior by importance": resampled,
    "semi-supervised VAE, 10 labels": semi_supervised,
    "semi-supervised VAE, by hand once": lambda: semi_supervised(once=True),
}
