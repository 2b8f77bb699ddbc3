"""The VAE of the paper's Table 1: 784-200-10-200-784, Bernoulli likelihood, and by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import ppl
from ppl import dist

PIXELS, HIDDEN, LATENT = 784, 200, 10


@jax.jit
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
