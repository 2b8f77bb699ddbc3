r"""Draws without replacement: the unordered-set estimator, for finite supports.

With the draw x as the first of m values S that are drawn without replacement,

    d/dθ E[f(x)] = E[ sum_{s in S} R(S, s) (f(s) - b_s) d p_s/dθ ],  R(S, s) = p^s(S - s) / p(S),
    b_s = sum_{s' in S} p_s' R^s(S, s') f(s'),  R^s(S, s') = p^{s s'}(S - s - s') / p^s(S - s)

where p(S) is the probability that S is drawn, in whatever order, p^s that of draws among the
values that are not s, and R^s(S, s) = 1. It is the estimator of one draw averaged over the order in
which S was drawn, and its baseline costs nothing more. Each element of a choice has a set of its
own while the others stay. With m = K it is the sum over all values, without variance of its own.

Conditions: a finite support; f may be discontinuous. First derivatives only. m - 1 more runs of
what follows for each element that meets others, 1 where only the value is wanted. Source: Kool, van
Hoof & Welling, "Estimating gradients for discrete random variables by sampling without
replacement", 2020, equations 12 and 16.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp
from jax import lax

from transforms import _jax
from transforms.errors import describe
from transforms.estimation.elements import apart
from transforms.estimation.estimator import Continued, LocalSite

from .alternatives import met_first, payoffs
from .enumeration import Enum, mass, support

MOST = 8
"""Most values in a set: the probability of one takes 2^m sums."""


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unordered(Continued):
    """Sets of ``m`` values; see the module docstring."""

    m: int = dataclasses.field(default=2, metadata={"static": True})

    name = "unordered"
    elementwise = True

    def unsuitable(self, d: Any) -> str | None:
        d = apart(d)
        if (why := Enum().unsuitable(d)) is not None:
            return why.replace("Use ppl.reinforce(), ppl.mvd()", "Use ppl.reinforce()")
        if d.event_shape:
            return "its values are arrays. Use ppl.enum() or ppl.reinforce()."
        return None

    def surrogate(
        self, site: LocalSite, key: jax.Array, k: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        def one(d: Any, key: jax.Array, x: jax.Array) -> tuple[jax.Array, ...]:
            return _drawn(apart(d), key, x, self.m)

        *drawn, outside = site.per_element(one, site.keys(key), site.value)
        masses, own, log_p, values = (jnp.moveaxis(a, -1, 0) for a in drawn)
        others = payoffs(site, values[1:].astype(site.value.dtype), k)
        known = jnp.broadcast_to(lax.stop_gradient(site.payoff), others.shape[1:])
        f = jnp.concatenate([known[None], others])
        place = functools.partial(met_first, site)
        of_set = jax.vmap(place)
        ratios, baselines = _ratios(of_set(log_p), place(outside), f)
        return jnp.sum(of_set(masses) * ratios * f - of_set(own) * ratios * baselines)


def _drawn(d: Any, key: jax.Array, x: jax.Array, m: int) -> tuple[jax.Array, ...]:
    """Of a set for each element of x, which is its first value: the mass of each value, as the
    density has it and normalised; its log; the values: ``[*x.shape, m]``. Last: the log of the mass
    of all others, ``x.shape``."""
    listed = support(d)
    each = jnp.stack([jnp.broadcast_to(mass(d, v), x.shape) for v in listed], axis=-1)
    log_p = jnp.log(jnp.maximum(each, jnp.finfo(each.dtype).tiny))
    log_p = log_p - jax.nn.logsumexp(log_p, axis=-1, keepdims=True)
    fixed = lax.stop_gradient(log_p)
    keys = fixed + jax.random.gumbel(key, fixed.shape, fixed.dtype)
    order = jnp.argsort(-jnp.where(x[..., None] == listed, jnp.inf, keys), axis=-1)
    at = lambda a, n: jnp.take_along_axis(a, order, axis=-1)[..., n]
    chosen = slice(None, min(m, len(listed)))
    left = jnp.concatenate([at(fixed, slice(m, None)), jnp.full((*x.shape, 1), -jnp.inf)], -1)
    outside = jax.nn.logsumexp(left, axis=-1)
    values = listed[order][..., chosen]
    return at(each, chosen), jnp.exp(at(log_p, chosen)), at(fixed, chosen), values, outside


def _ratios(log_p: jax.Array, outside: jax.Array, f: jax.Array) -> tuple[jax.Array, jax.Array]:
    """R(S, s) and b_s of each value s of a set, ``[m, ...]``."""
    m = len(log_p)
    everything = frozenset(range(m))

    @functools.cache
    def remaining(gone: frozenset[int]) -> jax.Array:
        """The log probability that the next draws, without the values ``gone``, are the others."""
        left = sorted(everything - gone)
        if not left:
            return jnp.zeros(f.shape[1:], log_p.dtype)
        rest = jax.nn.logsumexp(jnp.stack([outside, *(log_p[i] for i in left)]), axis=0)
        paths = [log_p[i] + remaining(gone | {i}) for i in left]
        return jax.nn.logsumexp(jnp.stack(paths), axis=0) - rest

    whole = remaining(frozenset())
    without = [remaining(frozenset({s})) for s in range(m)]
    both = lambda s, t: without[s] if s == t else remaining(frozenset({s, t}))
    ratios = jnp.stack([jnp.exp(w - whole) for w in without])
    baselines = [
        sum(jnp.exp(log_p[t] + both(s, t) - without[s]) * f[t] for t in range(m)) for s in range(m)
    ]
    return lax.stop_gradient((ratios, jnp.stack(baselines)))


def unordered(m: int = 2) -> Unordered:
    """Draws without replacement, of which the order is averaged out: any finite support.

    Of lower variance than ``ppl.reinforce("loo")`` with m samples, which costs the same for a
    choice of one element. A choice of several that meet takes m - 1 runs more for each of them.

    Args:
        m: how many different values of each element are tried, 2 to 8.

    Raises:
        ValueError: another number.

    Example:
        >>> @ppl.expectation
        ... def loss(logits):
        ...     k = ppl.sample("k", dist.Categorical(logits=logits), ppl.unordered(3))
        ...     return (k - 1.7) ** 2
        >>> grad = loss.grad(key, jnp.zeros(10))
    """
    if not isinstance(m, int) or not 2 <= m <= MOST:
        raise ValueError(
            f"ppl.unordered at {_jax.user_line()} gets {describe(m)}, and the number of different "
            f"values is 2 to {MOST}. Type ppl.unordered(2)."
        )
    return Unordered(m)
