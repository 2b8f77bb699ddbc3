"""The VAE, the cone and Attend, Infer, Repeat in NumPyro: networks, sizes and weights are ours.

Each ``*_gradient`` is the loss (to be minimised, summed over a batch) and its gradient, of a key,
our parameters and the data; it can be compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import air
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import vae
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO

from ppl.demo.cone import FIELD

# --- the VAE --------------------------------------------------------------------------------------


def vae_model(x: jax.Array) -> None:
    params = numpyro.param("vae", vae.init)
    with numpyro.plate("batch", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(vae.LATENT), 1.0).to_event(1))
        numpyro.sample("x", dist.Bernoulli(logits=vae.decode(params, z)).to_event(1), obs=x)


def vae_guide(x: jax.Array) -> None:
    params = numpyro.param("vae", vae.init)
    with numpyro.plate("batch", len(x)):
        numpyro.sample("z", dist.Normal(*vae.encode(params, x)).to_event(1))


def vae_gradient(key: jax.Array, params: Any, x: jax.Array) -> Any:
    """``params`` as of ``vae.init``."""
    loss = lambda params: Trace_ELBO().loss(key, {"vae": params}, vae_model, vae_guide, x)
    return jax.value_and_grad(loss)(params)


def vae_update(x: jax.Array) -> tuple[SVI, Any]:
    """What ``svi.update(state, x)`` needs."""
    svi = SVI(vae_model, vae_guide, optax.adam(1e-3), Trace_ELBO())
    return svi, svi.init(jax.random.key(0), x)


# --- the cone -------------------------------------------------------------------------------------

CONE = {"ELBO": Trace_ELBO(num_particles=64), "IWELBO(5)": RenyiELBO(alpha=0, num_particles=5)}


def cone_model() -> None:
    x = numpyro.sample("x", dist.Normal(0.0, 10.0))
    y = numpyro.sample("y", dist.Normal(0.0, 10.0))
    r = x**2 + y**2
    numpyro.sample("z", dist.Normal(r, 0.1 + r / 100), obs=5.0)


def cone_guide() -> None:
    phi = numpyro.param("phi", lambda key: FIELD)
    numpyro.sample("x", dist.Normal(phi["x"], jnp.exp(phi["log_sx"])))
    numpyro.sample("y", dist.Normal(phi["y"], jnp.exp(phi["log_sy"])))


def cone_gradient(objective: str) -> Callable[[jax.Array, Any], Any]:
    """Of ``CONE``; ``f(key, phi)`` with ``phi`` as of ``ppl.demo.cone.FIELD``."""
    elbo = CONE[objective]

    def gradient(key: jax.Array, phi: Any) -> Any:
        loss = lambda phi: elbo.loss(key, {"phi": phi}, cone_model, cone_guide)
        return jax.value_and_grad(loss)(phi)

    return gradient


# --- Attend, Infer, Repeat ------------------------------------------------------------------------


def over_images(f: Callable[..., Any], *shared: Any) -> Callable[..., Any]:
    """``f`` with ``shared`` first, for an image at a time of what follows."""
    return jax.vmap(lambda *args: f(*shared, *args))


def air_model(params: air.Params, images: jax.Array) -> None:
    n, size, _ = images.shape
    onto_canvas = over_images(lambda where, window: air.onto_canvas(where, window, size))
    with numpyro.plate("images", n):
        canvas = jnp.zeros_like(images)
        for t in range(air.STEPS):
            pres = numpyro.sample(f"pres{t}", dist.Bernoulli(air.PRES_PRIOR[t]))
            where = numpyro.sample(f"where{t}", dist.Normal(*air.WHERE_PRIOR).to_event(1))
            what = numpyro.sample(f"what{t}", dist.Normal(jnp.zeros(air.WHAT), 1.0).to_event(1))
            part = onto_canvas(where, over_images(air.decode, params)(what))
            canvas += pres[:, None, None] * part
        numpyro.sample("image", dist.Normal(canvas, air.NOISE).to_event(2), obs=images)


def air_guide(params: air.Params, images: jax.Array) -> None:
    n = len(images)
    last, state = jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), air.START)
    with numpyro.plate("images", n):
        for t in range(air.STEPS):
            state, p, law = over_images(air.look, params)(images, last, state)
            pres = numpyro.sample(f"pres{t}", dist.Bernoulli(p))
            where = numpyro.sample(f"where{t}", dist.Normal(*law).to_event(1))
            window = over_images(air.out_of_canvas)(where, images)
            code = over_images(air.encode, params)(window)
            what = numpyro.sample(f"what{t}", dist.Normal(*code).to_event(1))
            last = pres, where, what


def air_gradient(key: jax.Array, params: air.Params, images: jax.Array) -> Any:
    """REINFORCE with what NumPyro tracks of dependencies; ``params`` as of ``air.init``."""
    loss = lambda params: TraceGraph_ELBO().loss(key, {}, air_model, air_guide, params, images)
    return jax.value_and_grad(loss)(params)
