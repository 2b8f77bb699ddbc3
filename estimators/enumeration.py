r"""Enumeration: every value of a finite support.

    E_p[f(x)] = sum_k p_k(θ) f(k)

Exact: no variance, right derivatives of every order, also where a probability is 0 or 1 (the
weights are probabilities, or the exponential of logits that are normalised). A choice of several
elements is their joint product, K^D runs of the program (as one ``vmap``), and so is an event
(``to_event``). Source: ADEV, Lew et al. 2023; TraceEnum in Pyro.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from transforms.estimation.estimator import Enumerated

MAX_EVENT = 20
"""Most elements of one event (``d.to_event(n)``) that are enumerated jointly."""


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Enum(Enumerated):
    """All values of a finite support; see the module docstring."""

    name = "enum"

    def unsuitable(self, d: Any) -> str | None:
        if not getattr(d, "has_enumerate_support", False):
            return (
                "its support is not finite. Use ppl.reinforce(), ppl.mvd(), or ppl.reparam() for "
                "a continuous one."
            )
        event = math.prod(d.event_shape) if isinstance(d, dist.Independent) else 1
        if event > MAX_EVENT:
            return (
                f"its event of {event} elements has too many joint values. Use ppl.reinforce(), "
                "ppl.mvd(), or, where each element can be treated by itself, an inner expectation "
                "under jax.vmap."
            )
        try:
            jax.eval_shape(lambda: support(d))
        except Exception:
            return _no_size(d)
        return None

    def support(self, d: Any) -> jax.Array:
        return support(d)

    def mass(self, d: Any, value: jax.Array) -> jax.Array:
        return mass(d, value)


def enum() -> Enum:
    """Enumeration of a finite support: exact value and gradient, K^D runs as one ``vmap``.

    Example:
        >>> f = ppl.expectation(lambda p: 3.0 * ppl.sample("b", dist.Bernoulli(p), ppl.enum()))
        >>> float(f.grad(key, 0.5))
        3.0
    """
    return Enum()


def _no_size(d: Any) -> str:
    """Why the support of a distribution has no size that is known while tracing."""
    while hasattr(d, "base_dist"):
        d = d.base_dist
    if hasattr(d, "total_count"):
        return (
            "its total_count decides how many values it has, and is traced, or not the same for "
            "all elements. Give it one Python integer, like total_count=9; elements of other "
            "counts a choice of their own; or use ppl.reinforce()."
        )
    return (
        "the size of its support is not known while tracing. Give it Python integers rather than "
        "traced or array values."
    )


def support(d: Any) -> jax.Array:
    """All values of one element of ``d``: ``[K, *event_shape]``."""
    if isinstance(d, dist.ExpandedDistribution | dist.MaskedDistribution):
        return support(d.base_dist)
    if isinstance(d, dist.Independent):
        values = support(d.base_dist)
        shape = d.event_shape[: d.reinterpreted_batch_ndims]
        n, elements = values.shape[0], math.prod(shape)
        places = np.array([n**i for i in range(elements)][::-1], dtype=np.int32)
        digits = jnp.arange(n**elements)[:, None] // jnp.asarray(places) % n
        return values[digits.reshape(-1, *shape)]
    values = d.enumerate_support(expand=False)
    return values.reshape(values.shape[0], *d.event_shape)


def mass(d: Any, value: jax.Array) -> jax.Array:
    """Probability of ``value``, ``[*batch_shape]``: differentiable also at 0 and 1."""
    if isinstance(d, dist.Independent):
        masses = mass(d.base_dist, value)
        return jnp.prod(masses, axis=tuple(range(-d.reinterpreted_batch_ndims, 0)))
    if isinstance(d, dist.MaskedDistribution):  # masks its density, not its draws
        return mass(d.base_dist, value)
    if isinstance(d, dist.ExpandedDistribution):
        masses = mass(d.base_dist, value)
        return jnp.broadcast_to(masses, jnp.broadcast_shapes(masses.shape, d.batch_shape))
    if isinstance(d, dist.BernoulliProbs):
        p: Any = d.probs
        return jnp.where(value == 1, p, 1.0 - p)
    if isinstance(d, dist.BernoulliLogits):
        return logistic(jnp.where(value == 1, d.logits, -jnp.asarray(d.logits)))
    if isinstance(d, dist.CategoricalProbs):
        probs: Any = d.probs
        shape = jnp.broadcast_shapes(jnp.shape(value), d.batch_shape)
        probs = jnp.broadcast_to(probs, (*shape, probs.shape[-1]))
        index = jnp.broadcast_to(value, shape)[..., None].astype(int)
        return jnp.take_along_axis(probs, index, axis=-1)[..., 0]
    if isinstance(d, dist.BinomialProbs):
        q = jnp.asarray(d.probs)
        return binomial(_count(d), value, q, 1.0 - q)
    if isinstance(d, dist.BinomialLogits):
        logits = jnp.asarray(d.logits)
        return binomial(_count(d), value, logistic(logits), logistic(-logits))
    if isinstance(d, dist.BetaBinomial):
        return _beta_binomial(_count(d), value, d.concentration1, d.concentration0)
    if isinstance(d, dist.ZeroInflatedProbs):
        zero, other = _gate(d)
        return jnp.where(value == 0, zero, 0.0) + other * mass(d.base_dist, value)
    return jnp.exp(d.log_prob(value))


def success(d: Any) -> Any:
    """The probability of a success, with its derivative also where it rounds to 1."""
    return logistic(d.logits) if type(d).__name__.endswith("Logits") else d.probs


def _count(d: Any) -> int:
    return int(np.max(d.total_count))


def _gate(d: Any) -> tuple[Any, Any]:
    """How probable a zero that was put in is, and that there is none."""
    if isinstance(d, dist.ZeroInflatedLogits):
        logits = jnp.asarray(d.gate_logits)
        return logistic(logits), logistic(-logits)
    return d.gate, 1.0 - d.gate


@functools.partial(jax.jit, inline=True)
def logistic(x: Any) -> jax.Array:
    """1 / (1 + exp(-x)), whose derivative does not vanish where it rounds to 1."""
    return _logistic(x)


@jax.custom_jvp
def _logistic(x: Any) -> jax.Array:
    return jax.nn.sigmoid(x)


@_logistic.defjvp
def _(primals: Any, tangents: Any) -> Any:
    p = logistic(primals[0])
    return p, p * logistic(-primals[0]) * tangents[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def binomial(n: int, k: Any, q: Any, r: Any) -> jax.Array:
    """C(n, k) q^k r^(n - k) for r = 1 - q, of every size and with all its derivatives.

    By Loader's expansion about the most probable k (2000), in which nothing large is subtracted.
    """
    k, q, r = jnp.broadcast_arrays(jnp.asarray(k, jnp.result_type(q)), q, r)
    if n < 1:
        return jnp.where(k == n, 1.0, 0.0).astype(q.dtype)
    inner = (k > 0) & (k < n) & (q > 0) & (r > 0)
    x, p, s = jnp.where(inner, k, n / 2), jnp.where(inner, q, 0.5), jnp.where(inner, r, 0.5)
    excess = jnp.where(p <= s, x - n * p, n * s - (n - x))  # of x over its mean
    error = jnp.asarray(_stirling_error(n), q.dtype)
    index = jnp.clip(k, 0, n).astype(int)
    exponent = error[n] - error[index] - error[n - index]
    exponent -= _deviance(excess, n * p) + _deviance(-excess, n * s)
    middle = jnp.exp(exponent) * jnp.sqrt(n / (2 * math.pi * x * (n - x)))
    ends = jnp.exp(n * jnp.where(k == 0, _log(r, q), _log(q, r)))
    ends = jnp.where((k == 0) | (k == n), ends, 0.0)
    return jnp.where(inner, middle, ends)


@binomial.defjvp
def _(n: int, primals: Any, tangents: Any) -> Any:
    k, q, r = primals
    m = max(n - 1, 0)
    slope = n * binomial(m, k - 1, q, r) * tangents[1] + n * binomial(m, k, q, r) * tangents[2]
    return binomial(n, k, q, r), slope


def _log(p: jax.Array, other: jax.Array) -> jax.Array:
    """log(p), p being 1 - other."""
    return jnp.where(p <= 0.5, jnp.log(p), jnp.log1p(-other))


def _deviance(excess: jax.Array, mean: jax.Array) -> jax.Array:
    """x log(x / mean) + mean - x, at x = mean + excess."""
    t = excess / mean
    return mean * ((1.0 + t) * jnp.log1p(t) - t)


@functools.cache
def _stirling_error(n: int) -> np.ndarray:
    """log k! without Stirling's formula for it, of k = 0, ..., n."""
    k = np.arange(1, n + 1, dtype=float)
    log_factorial = np.array([math.lgamma(i + 1) for i in k])
    series = 1 / (12 * k) - 1 / (360 * k**3) + 1 / (1260 * k**5) - 1 / (1680 * k**7)
    exact = log_factorial - (k + 0.5) * np.log(k) + k - 0.5 * math.log(2 * math.pi)
    return np.concatenate([[0.0], np.where(k < 16, exact, series)])


def _beta_binomial(n: int, value: Any, a: Any, b: Any) -> jax.Array:
    """Normalised products of the ratios of one probability to the one before it."""
    k = np.arange(n)
    a, b = jnp.broadcast_arrays(a, b)
    ratio = jnp.log(a[..., None] + k) - jnp.log(b[..., None] + (n - 1 - k))
    ratio += jnp.asarray(np.log((n - k) / (k + 1.0)), ratio.dtype)
    first = jnp.zeros((*a.shape, 1), ratio.dtype)
    probs = jax.nn.softmax(jnp.concatenate([first, jnp.cumsum(ratio, -1)], -1), axis=-1)
    return mass(dist.CategoricalProbs(probs), value)
