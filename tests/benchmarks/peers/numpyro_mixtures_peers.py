"""The mixture and the hidden Markov model of ``mixtures.py`` in NumPyro; needs funsor.

A loop over time: enumeration through ``control_flow.scan`` returns a wrong loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import funsor  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from mixtures import KEY, NOISE, Arrays, Form
from numpyro.contrib.control_flow import scan
from numpyro.contrib.funsor import markov
from numpyro.handlers import substitute
from numpyro.infer import TraceEnum_ELBO

funsor.set_backend("jax")


def sample(name: str, d: Any, **more: Any) -> Any:
    """``numpyro.sample``, whose result has many types."""
    return numpyro.sample(name, d, **more)


def categorical(name: str, probs: jax.Array) -> jax.Array:
    """An enumerated choice. (NumPyro writes into ``infer``: sites must not share it.)"""
    return sample(name, dist.Categorical(probs), infer={"enumerate": "parallel"})


def gmm_model(params: Arrays, x: jax.Array) -> None:
    k, d = params["loc"].shape
    w = sample("w", dist.Dirichlet(jnp.ones(k)))
    with numpyro.plate("components", k):
        mu = sample("mu", dist.Normal(0.0, 5.0).expand([d]).to_event(1))
        scale = sample("scale", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("points", len(x)):
        z = categorical("z", w)
        sample("x", dist.Normal(mu[z], scale[z][..., None]).to_event(1), obs=x)


def gmm_guide(params: Arrays, x: jax.Array) -> None:
    sample("w", dist.Dirichlet(jnp.exp(params["a"])))
    with numpyro.plate("components", len(params["a"])):
        sample("mu", dist.Normal(params["loc"], jnp.exp(params["log_s"])).to_event(1))
        scale = dist.LogNormal(params["scale_loc"], jnp.exp(params["scale_log_s"]))
        sample("scale", scale)


def hmm_model(params: Arrays, y: jax.Array) -> None:
    s = len(params["loc"])
    with numpyro.plate("states", s):
        transitions = sample("P", dist.Dirichlet(jnp.ones(s)))
        mu = sample("mu", dist.Normal(0.0, 5.0))
    z: Any = 0
    for t in markov(range(len(y))):
        z = categorical(f"z_{t}", transitions[z])
        sample(f"y_{t}", dist.Normal(mu[z], NOISE), obs=y[t])


def hmm_model_in_a_scan(params: Arrays, y: jax.Array) -> None:
    s = len(params["loc"])
    with numpyro.plate("states", s):
        transitions = sample("P", dist.Dirichlet(jnp.ones(s)))
        mu = sample("mu", dist.Normal(0.0, 5.0))

    def step(z: Any, y: jax.Array) -> Any:
        z = categorical("z", transitions[z])
        sample("y", dist.Normal(mu[z], NOISE), obs=y)
        return z, None

    scan(step, 0, y)


def hmm_guide(params: Arrays, y: jax.Array) -> None:
    with numpyro.plate("states", len(params["loc"])):
        sample("P", dist.Dirichlet(jnp.exp(params["a"])))
        sample("mu", dist.Normal(params["loc"], jnp.exp(params["log_s"])))


def _form(model: Callable[..., None], guide: Callable[..., None]) -> Form:
    def estimate(key: jax.Array, params: Arrays, data: jax.Array) -> jax.Array:
        return -TraceEnum_ELBO(max_plate_nesting=1).loss(key, {}, model, guide, params, data)

    def exact(choices: Arrays, params: Arrays, data: jax.Array) -> jax.Array:
        given = substitute(guide, data=choices)
        return -TraceEnum_ELBO(max_plate_nesting=1).loss(KEY, {}, model, given, params, data)

    return Form(estimate, exact)


GMM = {"NumPyro": _form(gmm_model, gmm_guide)}
HMM = {
    "NumPyro": _form(hmm_model, hmm_guide),
    "NumPyro, scan": _form(hmm_model_in_a_scan, hmm_guide),
}
