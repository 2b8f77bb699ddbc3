"""Programs whose cost is kept in ``fingerprints.txt``: small ones of each mechanism, and the VAE,
AIR, the Gaussian mixture and the hidden Markov model of the benchmarks.

``PROGRAMS`` has an objective, its arguments and a number of samples for each name.
"""

from __future__ import annotations

from typing import Any

import air
import jax
import jax.numpy as jnp
import mixtures
import numpy as np
import vae
from jax import lax

import ppl
from ppl import dist

PROGRAMS: dict[str, tuple[ppl.Expectation, tuple[Any, ...], int]] = {}


def program(name: str, *args: Any, samples: int = 1) -> Any:
    def add(f: Any) -> Any:
        PROGRAMS[name] = f if isinstance(f, ppl.Expectation) else ppl.expectation(f), args, samples
        return f

    return add


# --- one choice for each estimator, and control flow ----------------------------------------------


@program("pathwise", 0.3)
def _(m):
    return ppl.sample("x", dist.Normal(m, 1.0)) ** 2


@program("implicit", np.float32([0.5, 1.5, 3.0]))
def _(a):
    return (ppl.sample("x", dist.Dirichlet(a)) ** 2).sum() + ppl.sample("g", dist.Gamma(a[0], 1.0))


@program("score, plate", np.zeros(5, np.float32), samples=4)
def _(m):
    x = ppl.sample("x", dist.Poisson(jnp.exp(m)), ppl.reinforce("loo"))
    return (x * 1.0 * jnp.arange(5)).sum()


@program("score, baseline", 0.3)
def _(m):
    return ppl.sample("x", dist.Normal(m, 1.0), ppl.reinforce(0.5)) ** 2


@program("measure-valued, scan", 0.2)
def _(m):
    def step(c, _):
        k = ppl.sample("k", dist.Bernoulli(logits=m + c), ppl.mvd())
        return 0.5 * k, k * 1.0

    return (lax.scan(step, 0.0, None, length=5)[1] ** 2).sum()


@program("enumerated, joint", 0.2)
def _(t):
    k = ppl.sample("k", dist.Categorical(logits=t * jnp.arange(3.0)), ppl.enum())
    j = ppl.sample("j", dist.Categorical(logits=t * k * jnp.arange(4.0)), ppl.enum())
    return jnp.sin(k * j * 1.0)


@program("enumerated, plate and score", 0.2)
def _(t):
    k = ppl.sample("k", dist.Categorical(logits=t * jnp.ones((50, 3))))
    x = ppl.sample("x", dist.Normal(t * k, 1.0), ppl.reinforce())
    return (x**2 * k).sum()


@program("enumerated, guarded", 0.2, np.arange(4.0, dtype=np.float32))
def _(t, n):
    z = ppl.sample("z", dist.Bernoulli(jax.nn.sigmoid(t * jnp.ones(4))), ppl.enum())
    return jnp.where(n > 0, z / n, 0.0).sum()


@program("chain", 0.3)
def _(t):
    def step(c, _):
        k = ppl.sample("k", dist.Categorical(logits=t * jnp.cos(jnp.arange(3) * (c + 1.0))))
        return k, jnp.sin(k * 1.0) * jnp.cos(c * 1.0)

    return lax.scan(step, 0, None, length=6)[1].sum()


@program("cond", 0.3, samples=2)
def _(p):
    b = ppl.sample("b", dist.Bernoulli(p), ppl.enum())
    drawn = lambda: ppl.sample("x", dist.Normal(p, 1.0), ppl.mvd()) ** 2
    return lax.cond(b == 1, drawn, lambda: jnp.asarray(1.0))


@program("switch under vmap", 0.3)
def _(p):
    def one(i):
        branches = [
            lambda: ppl.sample("x", dist.Normal(p, 1.0)) ** 2,
            lambda: ppl.sample("k", dist.Bernoulli(p), ppl.reinforce()) * 1.0,
        ]
        return lax.switch(i, branches)

    return jax.vmap(one)(jnp.arange(3) % 2).sum()


@program("fori_loop", 0.3)
def _(m):
    x = ppl.sample("x", dist.Normal(m, 1.0))
    return lax.fori_loop(0, 3, lambda i, s: 0.5 * s, m) * x


@program("checkpoint", 0.3)
def _(m):
    @jax.checkpoint
    def g(m):
        return ppl.sample("x", dist.Normal(m, 1.0), ppl.reinforce()) ** 2

    return g(m)


@program("mask", 0.3)
def _(m):
    observed = jnp.array([True, False, True])
    k = ppl.sample("k", dist.Bernoulli(jax.nn.sigmoid(m * jnp.ones(3))).mask(observed), ppl.enum())
    return (k * jnp.arange(3.0)).sum() * m


@ppl.expectation
def inner(m):
    x = ppl.sample("x", dist.Normal(m, 1.0), ppl.reinforce())
    return jnp.where(x > 0, x, -1.0)


@program("expectations inside, vmapped", np.arange(3.0, dtype=np.float32))
def _(ms):
    return jax.vmap(inner)(ms).sum()


@program("gradient inside", 0.4)
def _(m):
    return jax.grad(inner)(m) * 2.0


# --- generative programs ----------------------------------------------------------------------


@ppl.gen
def mixture():
    each = lambda i: ppl.sample("z", dist.Categorical(logits=i * jnp.arange(3.0)))
    z = jax.vmap(each)(jnp.arange(4.0))
    ppl.sample("y", dist.Normal(z * 1.0, 1.0))


@ppl.gen
def states(m):
    def step(c, _):
        k = ppl.sample("k", dist.Categorical(logits=m * jnp.cos(jnp.arange(3) * (c + 1.0))))
        ppl.sample("y", dist.Normal(k * 1.0, 1.0))
        return k, None

    lax.scan(step, 0, None, length=5)


@ppl.gen
def model():
    z = ppl.sample("z", dist.Categorical(logits=jnp.ones((4, 3))))
    ppl.sample("y", dist.Normal(z * 1.0, 1.0))


@ppl.gen
def guide(p):
    ppl.sample("z", dist.Categorical(logits=p * jnp.ones((4, 3))))


@ppl.gen
def regression():
    w = ppl.sample("w", dist.Normal(jnp.zeros(3), 1.0))
    s = ppl.sample("s", dist.HalfNormal(1.0))
    ppl.sample("y", dist.Normal(jnp.arange(12.0).reshape(4, 3) @ w, s))


@ppl.gen
def regression_guide(p):
    ppl.sample("w", dist.Normal(p["w"], jnp.exp(p["u"])))
    ppl.sample("s", dist.LogNormal(p["s"], 0.1))


REGRESSION = {"w": np.zeros(3, np.float32), "u": np.zeros(3, np.float32), "s": np.float32(0.0)}
Y = {"y": np.ones(4, np.float32)}


@program("posterior by enumeration", 0.1)
def _(m):
    q = ppl.normalize(mixture(), {"y": m * jnp.ones(4)}, by=ppl.enumeration())
    return q.simulate().log_density


@program("marginal by enumeration", 0.1)
def _(m):
    q = ppl.marginal(mixture(), keep=["y"], by=ppl.enumeration())
    return q.log_density({"y": m * jnp.ones(4)})


@program("marginal of a chain", 0.1)
def _(m):
    q = ppl.marginal(states(m), keep=["y"], by=ppl.enumeration())
    return q.log_density({"y": jnp.ones(5)})


@program("marginal by importance", 0.1, samples=3)
def _(m):
    q = ppl.marginal(states(m), keep=["y"], by=ppl.importance(4))
    return q.log_density({"y": jnp.ones(5)})


@program("elbo, discrete", 0.3, samples=2)
def _(p):
    return ppl.elbo(model(), guide(p), Y)


@program("elbo, regression", REGRESSION)
def _(p):
    return ppl.elbo(regression(), regression_guide(p), Y)


@program("iwelbo, regression", REGRESSION)
def _(p):
    return ppl.iwelbo(regression(), regression_guide(p), Y, n=5)


@program("wake-sleep", REGRESSION)
def _(p):
    return ppl.wake_phi(regression(), regression_guide(p), Y, n=5)


# --- benchmarks -------------------------------------------------------------------------------

_params = vae.init(jax.random.key(0))
_pixels = np.zeros((8, 784), np.float32)
_canvases = np.zeros((2, air.CANVAS, air.CANVAS), np.float32)
program("VAE", _params, _pixels)(vae.batched)
program("VAE under vmap", _params, _pixels)(vae.mapped)
program("AIR", air.init(jax.random.key(0)), _canvases)(air.STRATEGIES["ENUM"].expectation())
_gmm, _hmm = mixtures.gmm(100), mixtures.hmm(20, 4)
program("GMM", _gmm.params, _gmm.data)(mixtures.gmm_elbo)
program("HMM", _hmm.params, _hmm.data)(mixtures.hmm_elbo)
program("GMM, guide", mixtures.gmm_guided(100).params, _gmm.data)(mixtures.gmm_guided_elbo)
program("HMM, guide", mixtures.hmm_guided(20, 4).params, _hmm.data)(mixtures.hmm_guided_elbo)
