"""What the examples in docstrings share, as on the first page of the reference."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from numpyro.infer import MCMC, NUTS

import ppl
from ppl import dist

key = jax.random.key(0)
data, phi = {"y": 1.0}, {"m": 0.5, "s": 0.0}


@ppl.gen
def model():
    x = ppl.sample("x", dist.Normal(0.0, 1.0))
    ppl.sample("y", dist.Normal(x, 1.0))


@ppl.gen
def guide(phi):
    ppl.sample("x", dist.Normal(phi["m"], jnp.exp(phi["s"])))


@ppl.expectation
def elbo(phi):
    return ppl.elbo(model(), guide(phi), data)


posterior = ppl.infer(model(), data, key=key, steps=500)
