"""Objectives of docs/gallery as one writes them in JAX alone, for ``gallery.py --flops``.

Each takes the names of the page's program, and returns the estimate ``f(key, *arguments)`` of the
library, that by hand, and the arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

LOG_2PI = float(jnp.log(2 * jnp.pi))

Names = dict[str, Any]
Pair = tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]


def normal(x: Any, mean: Any, sd: Any) -> jax.Array:
    return -0.5 * ((x - mean) / sd) ** 2 - jnp.log(sd) - 0.5 * LOG_2PI


def divergence(mean: Any, sd: Any) -> jax.Array:
    """From a standard normal."""
    return 0.5 * (mean**2 + sd**2 - 1) - jnp.log(sd)


def infonce(s: Names) -> Pair:
    d, rho, batch = s["d"], s["rho"], s["batch"]

    def by_hand(key, f):
        e = jax.random.normal(key, (2, batch, d))
        x, y = e[0], rho * e[0] + jnp.sqrt(1 - rho**2) * e[1]
        scores = x @ f["cross"] @ y.T - (x**2 @ f["x"])[:, None] - y**2 @ f["y"]
        return jnp.mean(jnp.diag(scores) - jax.nn.logsumexp(scores, 1)) + jnp.log(batch)

    return s["bound"].surrogate, by_hand, (s["fit"].params,)


def posterior_collapse(s: Names) -> Pair:
    n, eta = s["n"], s["eta"]

    def by_hand(key, p, beta, x, y):
        mean, sd = y @ p["V"] + x @ p["B"], jnp.exp(p["log_sd"])
        z = mean + sd * jax.random.normal(key, mean.shape)
        seen = jnp.sum(normal(y, z @ p["U"] + x @ p["A"], eta))
        return (seen - beta * jnp.sum(divergence(mean, sd))) / n

    return s["objective"].surrogate, by_hand, (s["p"], 2.0, *map(jnp.float32, (s["x"], s["y"])))


def unobserved_confounder(s: Names) -> Pair:
    def by_hand(key, params, data):
        p, phi, (x, t, y) = params["p"], params["phi"], (data[k] for k in "xty")
        given = jnp.stack([t, y, t * y, jnp.ones_like(y)], 1)
        mean, sd = jnp.append(x, given, 1) @ phi["w"], jnp.exp(phi["log_sd"])
        u = mean + sd * jax.random.normal(key, mean.shape)
        logits = p["b"] * u + p["c"]
        log_x = jnp.sum(normal(x, p["a"] * u[:, None], jnp.exp(p["log_x"])), 1)
        log_t = t * logits - jax.nn.softplus(logits)
        log_y = normal(y, p["effect"] * t + p["d"] * u + p["e"], jnp.exp(p["log_y"]))
        return jnp.mean(log_x + log_t + log_y - divergence(mean, sd))

    return (
        s["objective"].surrogate,
        by_hand,
        (s["fit"].params, {k: v[:400] for k, v in s["data"].items()}),
    )


def predictive_coding_rnn(s: Names) -> Pair:
    def by_hand(key, p, xs, w):
        n, t, k = len(xs), xs.shape[1], s["wide"]
        noise = jax.random.normal(key, (t, n, k))

        def step(carry, at):
            (h, d), (a, e, x) = carry, at
            mean, log_sd = jnp.split(d @ p["prior"], 2, -1)
            mean, (own, own_log_sd) = jnp.tanh(mean), jnp.split(a, 2, -1)
            own = jnp.tanh(own)
            ratio = jnp.exp(own_log_sd - log_sd)
            off = (own - mean) / jnp.exp(log_sd)
            kl = 0.5 * (ratio**2 + off**2 - 1) - jnp.log(ratio)
            h, d = jax.vmap(lambda h, z: s["cell"](p, h, z))(h, own + jnp.exp(own_log_sd) * e)
            return (h, d), jnp.sum(normal(x, d @ p["out"], 0.1)) - w * jnp.sum(kl)

        zero = jnp.zeros((n, s["units"]))
        swapped = (p["a"].swapaxes(0, 1), noise, xs.swapaxes(0, 1))
        return jnp.sum(jax.lax.scan(step, (zero, zero), swapped)[1]) / n

    return s["objective"].surrogate, by_hand, (s["p"], s["xs"], s["w"])


def crossflow(s: Names) -> Pair:
    def by_hand(key, p, data):
        label, x = data
        k1, k2 = jax.random.split(key)
        mean, sd = p["mean"][label], jnp.exp(p["log_sd"])[label]
        z = mean + sd * jax.random.normal(k1, mean.shape)
        t = jax.random.uniform(k2, (len(x), 1))
        velocity = jax.vmap(lambda x, t: s["velocity"](p, x, t[0]))((1 - t) * z + t * x, t)
        free = s["lam"] / 2 * (sd**2 - 2 * jnp.log(sd) - 1 + (0.3 * mean) ** 6)
        return jnp.mean(jnp.sum((velocity - (x - z)) ** 2 + free, 1))

    return s["objective"].surrogate, by_hand, (s["p"], s["moons"](s["key"], s["batch"]))


PAIRS = {
    "crossflow": crossflow,
    "infonce": infonce,
    "posterior-collapse": posterior_collapse,
    "predictive-coding-rnn": predictive_coding_rnn,
    "unobserved-confounder": unobserved_confounder,
}
