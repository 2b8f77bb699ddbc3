"""How much gradient estimates vary: REINFORCE without baselines, by us, by hand and by peers.

``flips``: an ELBO, and a sum of losses, of many independent flips. ``vae``: a VAE with a plate of
Bernoulli choices for each image. ``chain``: Bernoulli choices in a ``scan``. By hand, naively: one
score, of all choices, times the whole objective.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from measure import gradient

import ppl
from ppl import dist

KEY = jax.random.key(0)

Params = Any
Estimate = Callable[[jax.Array, Params, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Estimates of an objective by name, each differentiable, and the objective where known."""

    estimates: Mapping[str, Estimate]
    params: Params
    data: jax.Array
    exact: Callable[[Params, jax.Array], jax.Array] | None = None


def naive(value: jax.Array, log_q: jax.Array) -> jax.Array:
    """``value``, with the derivative of REINFORCE; ``log_q`` is the log density of all choices."""
    return value + jax.lax.stop_gradient(value) * (log_q - jax.lax.stop_gradient(log_q))


def bernoulli(x: Any, logits: Any) -> jax.Array:
    """The log density."""
    return x * logits - jax.nn.softplus(logits)


def normal(x: Any, loc: Any, scale: float) -> jax.Array:
    return -0.5 * ((x - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)


def draw(key: jax.Array, logits: jax.Array) -> jax.Array:
    return jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(float)


# --- independent flips ----------------------------------------------------------------------------

PRIOR, SHIFT = -0.5, 1.5


@ppl.gen
def flips_model(n: int) -> None:
    def flip() -> None:
        b = ppl.sample("b", dist.Bernoulli(logits=PRIOR))
        ppl.sample("y", dist.Normal(SHIFT * b, 1.0))

    jax.vmap(flip, axis_size=n)()


@ppl.gen
def flips_guide(logits: jax.Array) -> None:
    jax.vmap(lambda l: ppl.sample("b", dist.Bernoulli(logits=l), ppl.reinforce()))(logits)


@ppl.expectation
def flips_elbo(logits: jax.Array, y: jax.Array) -> jax.Array:
    return ppl.elbo(flips_model(len(y)), flips_guide(logits), {"y": y})


def flips_terms(b: Any, logits: jax.Array, y: jax.Array) -> jax.Array:
    """log p - log q of each flip."""
    return bernoulli(b, PRIOR) + normal(y, SHIFT * b, 1.0) - bernoulli(b, logits)


def summed(estimator: ppl.Estimator) -> ppl.Expectation:
    """A sum of losses, one for each flip."""

    @ppl.expectation
    def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
        def flip(logit: jax.Array, target: jax.Array) -> jax.Array:
            b = ppl.sample("b", dist.Bernoulli(logits=logit), estimator)
            return (b - target) ** 2

        return jax.vmap(flip)(logits, targets).sum()

    return loss


def summed_terms(b: Any, logits: jax.Array, targets: jax.Array) -> jax.Array:
    return (b - targets) ** 2


def flips(n: int, terms: Callable[..., jax.Array], ours: ppl.Expectation) -> Problem:
    """``n`` flips whose objective is the sum of ``terms(b, logits, data)``, one for each.

    By hand, each its own: a flip's score multiplies its own term only. The derivative of a term
    that holds its log q has a mean of 0, and is left out, as NumPyro does.
    """

    def whole(key: jax.Array, logits: jax.Array, data: jax.Array) -> jax.Array:
        b = draw(key, logits)
        return naive(terms(b, logits, data).sum(), bernoulli(b, logits).sum())

    def own(key: jax.Array, logits: jax.Array, data: jax.Array) -> jax.Array:
        b = draw(key, logits)
        held = jax.lax.stop_gradient(logits)
        return naive(terms(b, held, data), bernoulli(b, logits)).sum()

    def exact(logits: jax.Array, data: jax.Array) -> jax.Array:
        p = jax.nn.sigmoid(logits)
        return (p * terms(1.0, logits, data) + (1 - p) * terms(0.0, logits, data)).sum()

    a, b = jax.random.split(KEY)
    estimates = {"by hand, naive": whole, "by hand, each its own": own, "ours": ours.surrogate}
    return Problem(estimates, jax.random.normal(a, (n,)), jax.random.normal(b, (n,)), exact)


# --- a VAE of Bernoulli choices -------------------------------------------------------------------

HIDDEN, LATENT = 64, 16


def vae_params(pixels: int) -> Params:
    def dense(key: jax.Array, n: int, m: int) -> Params:
        return {"w": jax.random.normal(key, (n, m)) / n**0.5, "b": jnp.zeros(m)}

    sizes = {"hidden": (pixels, HIDDEN), "latent": (HIDDEN, LATENT)}
    sizes |= {"decoder": (LATENT, HIDDEN), "pixels": (HIDDEN, pixels)}
    keys = jax.random.split(KEY, len(sizes))
    return {name: dense(key, *size) for key, (name, size) in zip(keys, sizes.items(), strict=True)}


def apply(layer: Params, x: jax.Array) -> jax.Array:
    return x @ layer["w"] + layer["b"]


def encode(params: Params, x: jax.Array) -> jax.Array:
    return apply(params["latent"], jax.nn.softplus(apply(params["hidden"], x)))


def decode(params: Params, z: jax.Array) -> jax.Array:
    return apply(params["pixels"], jax.nn.softplus(apply(params["decoder"], z)))


@ppl.gen
def vae_model(params: Params) -> None:
    prior = lambda: ppl.sample("z", dist.Bernoulli(0.5))
    z = jax.vmap(prior, axis_size=LATENT)()
    ppl.sample("x", dist.Bernoulli(logits=decode(params, z)))


@ppl.gen
def vae_guide(params: Params, x: jax.Array) -> None:
    one = lambda l: ppl.sample("z", dist.Bernoulli(logits=l), ppl.reinforce())
    jax.vmap(one)(encode(params, x))


@ppl.expectation
def vae_elbo(params: Params, xs: jax.Array) -> jax.Array:
    return jax.vmap(lambda x: ppl.elbo(vae_model(params), vae_guide(params, x), {"x": x}))(xs).sum()


def vae_by_hand(key: jax.Array, params: Params, xs: jax.Array) -> jax.Array:
    logits = encode(params, xs)
    z = draw(key, logits)
    log_q = bernoulli(z, logits).sum()
    log_p = bernoulli(z, 0.0).sum() + bernoulli(xs, decode(params, z)).sum()
    return naive(log_p - log_q, log_q)


def vae(images: np.ndarray) -> Problem:
    """``images``: bool[n, pixels]."""
    estimates = {"by hand, naive": vae_by_hand, "ours": vae_elbo.surrogate}
    return Problem(estimates, vae_params(images.shape[1]), jnp.asarray(images, float))


# --- a chain --------------------------------------------------------------------------------------


def next_logits(z: Any) -> Any:
    """Of the model's next state."""
    return 2.0 * z - 1.0


@ppl.gen
def chain_model(t: int) -> None:
    def step(z: Any, _: None) -> tuple[jax.Array, None]:
        z = ppl.sample("z", dist.Bernoulli(logits=next_logits(z)))
        ppl.sample("y", dist.Normal(SHIFT * z, 1.0))
        return z, None

    jax.lax.scan(step, 0, length=t)


@ppl.gen
def chain_guide(params: Params) -> None:
    def step(z: Any, logit: jax.Array) -> tuple[jax.Array, None]:
        logits = logit + params["weight"] * z
        return ppl.sample("z", dist.Bernoulli(logits=logits), ppl.reinforce()), None

    jax.lax.scan(step, 0, params["logits"])


@ppl.expectation
def chain_elbo(params: Params, y: jax.Array) -> jax.Array:
    return ppl.elbo(chain_model(len(y)), chain_guide(params), {"y": y})


def chain_terms(before: Any, z: Any, logits: jax.Array, y: jax.Array) -> jax.Array:
    """log p - log q of a step, whose state has ``logits`` in the guide."""
    return bernoulli(z, next_logits(before)) + normal(y, SHIFT * z, 1.0) - bernoulli(z, logits)


def chain_by_hand(key: jax.Array, params: Params, y: jax.Array) -> jax.Array:
    def step(before: jax.Array, given: Any) -> Any:
        key, logit, y = given
        logits = logit + params["weight"] * before
        z = draw(key, logits)
        return z, (chain_terms(before, z, logits, y), bernoulli(z, logits))

    keys = jax.random.split(key, len(y))
    _, (terms, log_q) = jax.lax.scan(step, jnp.asarray(0.0), (keys, params["logits"], y))
    return naive(terms.sum(), log_q.sum())


def chain_exact(params: Params, y: jax.Array) -> jax.Array:
    """A sum over pairs of states, forward in time."""
    states = jnp.arange(2.0)

    def step(q: jax.Array, given: Any) -> Any:
        logit, y = given
        logits = (logit + params["weight"] * states)[:, None]
        pairs = q[:, None] * jnp.exp(bernoulli(states, logits))
        return pairs.sum(0), (pairs * chain_terms(states[:, None], states, logits, y)).sum()

    return jax.lax.scan(step, jnp.array([1.0, 0.0]), (params["logits"], y))[1].sum()


def chain(t: int) -> Problem:
    a, b = jax.random.split(KEY)
    params = {"logits": jax.random.normal(a, (t,)), "weight": jnp.asarray(0.5)}
    estimates = {"by hand, naive": chain_by_hand, "ours": chain_elbo.surrogate}
    return Problem(estimates, params, jax.random.normal(b, (t,)), chain_exact)


# --- what is measured -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Spread:
    """Of a gradient estimate: its mean, the variance of each of its numbers, and their sum."""

    mean: np.ndarray
    each: np.ndarray
    variance: float
    error: float
    """Standard error of ``variance``."""
    pairs: int

    def over(self, other: Spread) -> tuple[float, float]:
        """The ratio of two variances, and its standard error."""
        ratio = self.variance / other.variance
        relative = np.hypot(self.error / self.variance, other.error / other.variance)
        return ratio, float(ratio * relative)

    def z(self, exact: np.ndarray | Spread) -> float:
        """The largest difference from ``exact`` in standard errors, rounding let off."""
        if isinstance(exact, Spread):
            mean, each = exact.mean, self.each + exact.each
        else:
            mean, each = exact, self.each
        off = np.maximum(np.abs(self.mean - mean) - 1e-5 * np.abs(mean).max(), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.where(off > 0, off / np.sqrt(each / (2 * self.pairs)), 0.0).max())


def spread(estimate: Estimate, problem: Problem, pairs: int, chunk: int) -> Spread:
    """From independent pairs: half the square of their difference has the variance as its mean."""
    slope = gradient(estimate)
    flat = lambda key: ravel_pytree(slope(key, problem.params, problem.data)[1])[0]

    def pair(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, b = (flat(k) for k in jax.random.split(key))
        return (a + b) / 2, (a - b) ** 2 / 2

    def step(sums: Any, key: jax.Array) -> Any:
        means, squares = jax.vmap(pair)(jax.random.split(key, chunk))
        sums = jax.tree.map(lambda s, x: s + x.sum(0), sums, (means, squares))
        return sums, squares.sum(1)

    @jax.jit
    def run(key: jax.Array) -> Any:
        zero = jnp.zeros_like(flat(key))
        return jax.lax.scan(step, (zero, zero), jax.random.split(key, pairs // chunk))

    (mean, each), squares = jax.device_get(run(KEY))
    n = squares.size
    variance, error = float(squares.mean()), float(squares.std() / n**0.5)
    return Spread(mean / n, each / n, variance, error, n)


def exact_gradient(problem: Problem) -> np.ndarray | None:
    if problem.exact is None:
        return None
    slope = jax.jit(jax.grad(problem.exact))(problem.params, problem.data)
    return np.asarray(ravel_pytree(slope)[0])
