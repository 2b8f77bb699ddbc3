"""The flips, the VAE and the chain of ``variance.py`` in NumPyro."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpyro
import numpyro.distributions as dist
import variance as ours
from numpyro.infer import TraceGraph_ELBO


def sample(name: str, d: Any, **more: Any) -> Any:
    """``numpyro.sample``, whose result has many types."""
    return numpyro.sample(name, d, **more)


def flips_model(logits: jax.Array, y: jax.Array) -> None:
    with numpyro.plate("flips", len(y)):
        b = sample("b", dist.Bernoulli(logits=ours.PRIOR))
        sample("y", dist.Normal(ours.SHIFT * b, 1.0), obs=y)


def flips_guide(logits: jax.Array, y: jax.Array) -> None:
    with numpyro.plate("flips", len(y)):
        sample("b", dist.Bernoulli(logits=logits))


def vae_model(params: Any, xs: jax.Array) -> None:
    with numpyro.plate("images", len(xs), dim=-2):
        with numpyro.plate("latent", ours.LATENT, dim=-1):
            z = sample("z", dist.Bernoulli(0.5))
        logits = ours.decode(params, z)[:, None]
        sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=xs[:, None])


def vae_guide(params: Any, xs: jax.Array) -> None:
    logits = ours.encode(params, xs)
    with numpyro.plate("images", len(xs), dim=-2), numpyro.plate("latent", ours.LATENT, dim=-1):
        sample("z", dist.Bernoulli(logits=logits))


def chain_model(params: Any, y: jax.Array) -> None:
    z: Any = 0
    for t in range(len(y)):
        z = sample(f"z_{t}", dist.Bernoulli(logits=ours.next_logits(z)))
        sample(f"y_{t}", dist.Normal(ours.SHIFT * z, 1.0), obs=y[t])


def chain_guide(params: Any, y: jax.Array) -> None:
    z: Any = 0
    for t, logit in enumerate(params["logits"]):
        logits = logit + params["weight"] * z
        z = sample(f"z_{t}", dist.Bernoulli(logits=logits))


def _elbo(model: Callable[..., None], guide: Callable[..., None]) -> ours.Estimate:
    return lambda key, params, data: -TraceGraph_ELBO().loss(key, {}, model, guide, params, data)


ESTIMATES = {
    "flips": _elbo(flips_model, flips_guide),
    "vae": _elbo(vae_model, vae_guide),
    "chain": _elbo(chain_model, chain_guide),
}
