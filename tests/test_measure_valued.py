"""Measure-valued derivatives.

Monte Carlo tests compare value and gradient with the exact ones at |z| < 4.75 over 256
independent batches: false alarms 4e-6 for one comparison, under 1e-3 for all the 200 of this
file. Each also asserts its own power: that a gradient wrong by 5% (else as stated) would be seen
with probability .99, 7.08 standard errors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

import ppl
from estimators.measure_valued import MVD, mvd, terms
from ppl import dist
from transforms.errors import UnsupportedError

BATCHES = 256
Z, POWER = 4.75, 7.08


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def estimates(obj: Any, *args: Any, samples: int, argnums: Any = 0) -> tuple[Any, Any]:
    """Values and gradients of independent batches, with a leading axis."""

    def one(key: jax.Array) -> Any:
        return obj.value_and_grad(key, *args, samples=samples // BATCHES, argnums=argnums)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(7), BATCHES))


def close(found: Any, exact: Any, bias: float | None = None) -> None:
    """z-test of batch means against exact numbers, and that a relative bias would be seen."""
    found = np.asarray(found, float)
    exact = np.broadcast_to(np.asarray(exact, float), found.shape[1:])
    mean, error = found.mean(0), found.std(0, ddof=1) / np.sqrt(len(found))
    assert np.all(np.abs(mean - exact) <= Z * error + 1e-9), (mean, exact, (mean - exact) / error)
    if bias is not None:
        assert np.all(error * POWER <= bias * np.abs(exact) + 1e-12), (error * POWER / exact)


def check(
    obj: Any,
    *args: Any,
    value: Any,
    grad: Any,
    samples: int = 50_000,
    bias: float = 0.05,
    argnums: Any = 0,
) -> None:
    values, grads = estimates(obj, *args, samples=samples, argnums=argnums)
    close(values, value)
    assert jax.tree.structure(grads) == jax.tree.structure(grad)
    for found, exact in zip(jax.tree.leaves(grads), jax.tree.leaves(grad), strict=True):
        close(found, exact, bias)


def derivative(f: Callable[[np.ndarray], float], x: Any, h: float = 1e-3) -> np.ndarray:
    """Gradient by five-point differences: error about 1e-10 for the functions here."""
    x = np.asarray(x, float)
    out = np.zeros(x.size)
    for i, e in enumerate(np.eye(x.size) * h):
        e = e.reshape(x.shape)
        out[i] = (f(x - 2 * e) - 8 * f(x - e) + 8 * f(x + e) - f(x + 2 * e)) / (12 * h)
    return out.reshape(x.shape)


# --- every row of the table ---------------------------------------------------------------------

expit, softmax = scipy.special.expit, scipy.special.softmax


def smooth(x: Any) -> Any:
    np_ = jnp if isinstance(x, jax.Array) else np
    return np_.sin(1.3 * x) + 0.2 * x**2


def payoff(x: Any, c: float, a: Any) -> Any:
    """A smooth payoff where a = 1, one with a jump where a = 0."""
    return a * smooth(x) + (1 - a) * (x > c)


def categorical(p: Any) -> Any:
    return scipy.stats.rv_discrete(values=(np.arange(len(p)), np.asarray(p) / np.sum(p)))


def expected(law: Any, c: float, a: float) -> float:
    """The exact expectation of ``payoff``."""
    if hasattr(law, "pmf"):
        x = np.arange(400.0)
        return float(law.pmf(x) @ payoff(x, c, a))
    if a == 0:
        return float(law.sf(c))
    ends = [law.ppf(q) for q in (1e-14, 0.5, 1 - 1e-14)]
    pieces = itertools.pairwise(ends)
    f = lambda x: law.pdf(x) * smooth(x)
    return sum(scipy.integrate.quad(f, *ab, epsabs=1e-13, limit=200)[0] for ab in pieces)


S = scipy.stats
ROWS: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[float], float]] = {
    "Bernoulli(probs)": (lambda t: dist.Bernoulli(t[0]), lambda t: S.bernoulli(t[0]), [0.3], 0.5),
    "Bernoulli(logits)": (
        lambda t: dist.Bernoulli(logits=t[0]),
        lambda t: S.bernoulli(expit(t[0])),
        [-0.8],
        0.5,
    ),
    "Categorical(probs)": (
        lambda t: dist.Categorical(jnp.stack([t[0], t[1], 0.1, 0.9 - t[0] - t[1]])),
        lambda t: categorical([t[0], t[1], 0.1, 0.9 - t[0] - t[1]]),
        [0.2, 0.4],
        1.5,
    ),
    "Categorical(logits)": (
        lambda t: dist.Categorical(logits=t),
        lambda t: categorical(softmax(t)),
        [0.3, -0.5, 0.9],
        1.5,
    ),
    "Binomial(probs)": (
        lambda t: dist.Binomial(9, t[0]),
        lambda t: S.binom(9, t[0]),
        [0.35],
        3.5,
    ),
    "Binomial(logits)": (
        lambda t: dist.Binomial(4, logits=t[0]),
        lambda t: S.binom(4, expit(t[0])),
        [0.4],
        2.5,
    ),
    "Poisson": (lambda t: dist.Poisson(t[0]), lambda t: S.poisson(t[0]), [1.7], 2.5),
    "Geometric(probs)": (
        lambda t: dist.Geometric(t[0]),
        lambda t: S.geom(t[0], loc=-1),
        [0.45],
        1.5,
    ),
    "Geometric(logits)": (
        lambda t: dist.Geometric(logits=t[0]),
        lambda t: S.geom(expit(t[0]), loc=-1),
        [0.2],
        0.5,
    ),
    "NegativeBinomial(probs)": (
        lambda t: dist.NegativeBinomial(t[0], probs=t[1]),
        lambda t: S.nbinom(t[0], 1 - t[1]),
        [2.5, 0.4],
        1.5,
    ),
    "NegativeBinomial(logits)": (
        lambda t: dist.NegativeBinomial(t[0], logits=t[1]),
        lambda t: S.nbinom(t[0], expit(-t[1])),
        [2.5, -0.4],
        1.5,
    ),
    "NegativeBinomial2": (
        lambda t: dist.NegativeBinomial2(t[0], t[1]),
        lambda t: S.nbinom(t[1], t[1] / (t[0] + t[1])),
        [2.0, 0.8],
        1.5,
    ),
    "GammaPoisson": (
        lambda t: dist.GammaPoisson(t[0], t[1]),
        lambda t: S.nbinom(t[0], t[1] / (1 + t[1])),
        [1.5, 0.9],
        1.5,
    ),
    "Normal": (lambda t: dist.Normal(t[0], t[1]), lambda t: S.norm(t[0], t[1]), [0.4, 1.3], 1.2),
    "LogNormal": (
        lambda t: dist.LogNormal(t[0], t[1]),
        lambda t: S.lognorm(t[1], scale=np.exp(t[0])),
        [0.2, 0.4],
        1.5,
    ),
    "HalfNormal": (lambda t: dist.HalfNormal(t[0]), lambda t: S.halfnorm(0, t[0]), [1.6], 1.2),
    "Laplace": (
        lambda t: dist.Laplace(t[0], t[1]),
        lambda t: S.laplace(t[0], t[1]),
        [0.4, 0.9],
        1.2,
    ),
    "Uniform": (
        lambda t: dist.Uniform(t[0], t[1]),
        lambda t: S.uniform(t[0], t[1] - t[0]),
        [-0.6, 1.9],
        0.5,
    ),
    "Exponential": (
        lambda t: dist.Exponential(t[0]),
        lambda t: S.expon(scale=1 / t[0]),
        [0.7],
        1.0,
    ),
    "Gamma": (
        lambda t: dist.Gamma(t[0], t[1]),
        lambda t: S.gamma(t[0], scale=1 / t[1]),
        [2.3, 1.6],
        1.0,
    ),
    "Gamma(concentration < 1)": (
        lambda t: dist.Gamma(t[0], t[1]),
        lambda t: S.gamma(t[0], scale=1 / t[1]),
        [0.4, 0.6],
        0.5,
    ),
    "Chi2": (lambda t: dist.Chi2(t[0]), lambda t: S.chi2(t[0]), [1.2], 0.8),
    "Weibull": (
        lambda t: dist.Weibull(t[0], t[1]),
        lambda t: S.weibull_min(t[1], scale=t[0]),
        [1.8, 1.3],
        2.5,
    ),
    "Weibull(concentration < 1)": (
        lambda t: dist.Weibull(t[0], t[1]),
        lambda t: S.weibull_min(t[1], scale=t[0]),
        [0.4, 0.8],
        1.1,
    ),
    "Beta": (lambda t: dist.Beta(t[0], t[1]), lambda t: S.beta(t[0], t[1]), [2.3, 0.8], 0.6),
}


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str) -> None:
    make, law, theta, c = ROWS[name]

    @ppl.expectation
    def obj(theta: Any, a: Any) -> Any:
        return payoff(ppl.sample("x", make(theta), mvd()), c, a)

    theta = jnp.asarray(theta)
    smooth_and_jump = jnp.array([1.0, 0.0])
    each = lambda a: estimates(obj, theta, a, samples=80_000)
    values, grads = jax.jit(jax.vmap(each, out_axes=1))(smooth_and_jump)
    for i, a in enumerate(smooth_and_jump):
        exact = lambda t, a=float(a): expected(law(t), c, a)
        close(values[:, i], exact(theta))
        close(grads[:, i], derivative(exact, theta), 0.05)
