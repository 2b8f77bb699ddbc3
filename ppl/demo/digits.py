"""A variational autoencoder of handwritten digits (Kingma & Welling 2014).

A pixel of scikit-learn's digits counts the black dots in a 4×4 block of the scanned image, so it
is binomial. The networks are plain ``jax.numpy``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import ppl
from ppl import dist

Params = Any

PIXELS, DOTS = 64, 16
LATENT, HIDDEN = 12, 128


def network(key: jax.Array, sizes: list[int]) -> Params:
    """Weights and biases of a multilayer perceptron."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (jax.random.normal(k, (m, n)) / jnp.sqrt(m), jnp.zeros(n))
        for k, (m, n) in zip(keys, itertools.pairwise(sizes), strict=True)
    ]


def apply(layers: Params, x: jax.Array) -> jax.Array:
    """The perceptron at one input, ``f32[inputs] -> f32[outputs]``."""
    for w, b in layers[:-1]:
        x = jax.nn.gelu(x @ w + b)
    w, b = layers[-1]
    return x @ w + b


# --- model, guide, objective --------------------------------------------------------------------


@ppl.gen
def image(decoder: Params) -> None:
    z = ppl.sample("z", dist.Normal(jnp.zeros(LATENT), 1.0))
    ppl.sample("pixels", dist.Binomial(DOTS, logits=apply(decoder, z)))


@ppl.gen
def code(encoder: Params, pixels: jax.Array) -> None:
    mean, log_sd = jnp.split(apply(encoder, pixels / DOTS), 2)
    ppl.sample("z", dist.Normal(mean, jnp.exp(log_sd)))


@ppl.expectation
def elbo(params: Params, pixels: jax.Array) -> jax.Array:
    """Of one image, ``f32[64]``."""
    return ppl.elbo(image(params["decoder"]), code(params["encoder"], pixels), {"pixels": pixels})


@ppl.expectation
def mean_elbo(params: Params, batch: jax.Array) -> jax.Array:
    """Of a batch, ``f32[n, 64]``."""
    return jax.vmap(lambda pixels: elbo(params, pixels))(batch).mean()


# --- data, fit, evaluation ----------------------------------------------------------------------


def data() -> tuple[jax.Array, jax.Array]:
    """A random 80% and 20% of the digits, ``f32[n, 64]`` each."""
    digits = np.random.default_rng(0).permutation(load_digits().data.astype(np.float32))
    held_out = len(digits) // 5
    return jnp.asarray(digits[held_out:]), jnp.asarray(digits[:held_out])


def start() -> Params:
    """Networks with random weights."""
    encoder, decoder = jax.random.split(jax.random.key(0))
    return {
        "encoder": network(encoder, [PIXELS, HIDDEN, 2 * LATENT]),
        "decoder": network(decoder, [LATENT, HIDDEN, PIXELS]),
    }


def evaluate(params: Params, images: jax.Array) -> tuple[float, float]:
    """The mean ELBO per image in nats, and its standard error over images."""
    keys = jax.random.split(jax.random.key(1), len(images))
    values = np.asarray(jax.vmap(lambda k, x: elbo.value(k, params, x, samples=16))(keys, images))
    return values.mean(), values.std() / np.sqrt(len(values))


# --- the picture --------------------------------------------------------------------------------


def draw(params: Params, images: jax.Array, file: Path) -> None:
    """Images, their reconstructions, and images of codes drawn from the prior."""

    def paint(z: jax.Array) -> jax.Array:
        return DOTS * jax.nn.sigmoid(apply(params["decoder"], z))

    @jax.jit
    @jax.vmap
    def rows(key: jax.Array, pixels: jax.Array) -> tuple[jax.Array, ...]:
        posterior, prior = code(params["encoder"], pixels), image(params["decoder"])
        return pixels, paint(posterior.simulate(key)["z"]), paint(prior.simulate(key)["z"])

    pictures = jnp.stack(rows(jax.random.split(jax.random.key(2), len(images)), images))
    tiles = jnp.pad(pictures.reshape(3, -1, 8, 8), ((0, 0), (0, 0), (1, 1), (1, 1)))
    figure = Figure(figsize=(0.6 * len(images) + 1.4, 2.0), layout="constrained")
    panel = figure.subplots()
    panel.imshow(tiles.swapaxes(1, 2).reshape(30, -1), cmap="Greys", vmin=0, vmax=DOTS)
    panel.set_yticks((4.5, 14.5, 24.5), ("held out", "reconstructed", "from the prior"))
    panel.set_xticks(())
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    figure.savefig(file, dpi=130)


def main(out: Path, say: Callable[[str], Any], *, steps: int = 2500) -> None:
    """Fit, say the held-out ELBO before and after, save ``digits.png``."""
    training, held_out = data()
    params = start()
    say(f"A VAE of {len(training)} handwritten digits; ELBO of {len(held_out)} others, nats/image")
    say("before {:9.2f} ± {:.2f}".format(*evaluate(params, held_out)))
    began = time.perf_counter()
    params = ppl.maximize(
        mean_elbo,
        params,
        optax.adam(optax.cosine_decay_schedule(4e-3, steps)),
        key=jax.random.key(3),
        steps=steps,
        batches=ppl.minibatches(training, 128),
        progress=False,
    ).params
    seconds = time.perf_counter() - began
    say("after  {:9.2f} ± {:.2f}  ({:.1f} s)".format(*evaluate(params, held_out), seconds))
    draw(params, held_out[:14], out / "digits.png")
    say(f"images: {out / 'digits.png'}")
