r"""Resampling of particles: who goes on from whom.

Of n particles with weights W each gets n W_i children in the mean, whatever the scheme:

- *multinomial*: n independent draws;
- *stratified*: one from each n-th part of the cumulative distribution, u_k = (k + U_k) / n;
- *systematic*: the same, with one U for all (Kitagawa 1996; Carpenter, Clifford & Fearnhead 1999).

Stratified and systematic ones look at the order of the particles, which is therefore shuffled: then
the law of the ancestors, given that one particle is kept and has a child, is that in which this
child has a stratum in proportion to its part in the kept particle's interval (Chopin & Singh, "On
particle Gibbs sampling", 2015). So the law of the particles around one that was drawn is that of
conditional SMC, times Z / p.

The densities are continuous in the weights: of strata the product of their parts of the intervals,
of a systematic draw the length of all U that give the same ancestors.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.nn import softmax
from numpyro.distributions import constraints

from transforms.estimation.estimator import Estimator
from transforms.program.marks import hold
from transforms.program.site import FreshKey
from transforms.program.site import sample as _sample

SCHEMES = ("multinomial", "stratified", "systematic")


def ancestors(
    log_weights: jax.Array, kept: bool, scheme: str, estimator: Estimator | None
) -> jax.Array:
    """Which particle each goes on from, i32[n]; the one that is kept, the last, from itself."""
    n = len(log_weights)
    logits = finite(log_weights)
    if scheme == "multinomial":
        d = Among(logits=logits).expand((n - kept,))
        drawn = _sample(("ancestor",), d, estimator, drawn=True)
        return jnp.concatenate([drawn, jnp.full(int(kept), n - 1, drawn.dtype)])
    order = jax.random.permutation(_sample(("order",), FreshKey()), n)
    place = jnp.argmax(order == n - 1)
    d = Strata(logits[order], place, kept, scheme == "systematic")
    drawn = _sample(("ancestor",), d, estimator, drawn=True)
    found = order[drawn[1:]]
    if not kept:
        return found
    return found.at[drawn[0]].set(found[n - 1]).at[n - 1].set(n - 1)


def finite(log_weights: jax.Array) -> jax.Array:
    """The log weights, or equal ones where all runs are impossible."""
    return jnp.where(jnp.any(hold(log_weights) > -jnp.inf), log_weights, 0.0)


class Among(dist.CategoricalLogits):
    """A categorical that draws by its cumulative distribution: n draws among n in n log n."""

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        cdf = jnp.cumsum(softmax(self.logits))
        u = jax.random.uniform(key, sample_shape, cdf.dtype) * cdf[-1]
        below = jnp.minimum(u, jnp.nextafter(cdf[-1], 0.0))
        return jnp.searchsorted(cdf, below, side="right").astype(jnp.result_type(int))


class Strata(dist.Distribution):
    """The ancestors of n strata, i32[n + 1]: first the stratum of the child that is kept (0 where
    none is), whose ancestor is at ``place``."""

    arg_constraints: ClassVar = {"logits": constraints.real_vector}
    support: Any = constraints.independent(constraints.nonnegative_integer, 1)
    pytree_data_fields = ("logits", "place")
    pytree_aux_fields = ("kept", "systematic")

    def __init__(self, logits: Any, place: Any, kept: bool, systematic: bool) -> None:
        self.logits, self.place, self.kept, self.systematic = logits, place, kept, systematic
        super().__init__((), (len(logits) + 1,))

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        draw = self._draw
        for _ in sample_shape:
            draw = jax.vmap(draw)
        keys = jax.random.split(key, sample_shape) if sample_shape else key
        return draw(keys)

    def _draw(self, key: jax.Array) -> jax.Array:
        low, high = self._intervals()
        n, (one, rest) = len(low), jax.random.split(key)
        first = jax.random.uniform(one, (), low.dtype)
        stratum = jnp.zeros((), int)
        if self.kept:  # its child is uniform in its interval
            at = n * (low[self.place] + first * (high[self.place] - low[self.place]))
            stratum = jnp.clip(jnp.floor(at), 0, n - 1).astype(int)
            first = at - stratum
        u = jnp.full(n, first)
        if not self.systematic:
            u = jax.random.uniform(rest, (n,), low.dtype).at[stratum].set(first)
        at = jnp.minimum((jnp.arange(n) + u) / n, jnp.nextafter(high[-1], 0.0))
        places = jnp.searchsorted(high, at, side="right").astype(int)
        if self.kept:
            places = places.at[stratum].set(self.place)
        return jnp.concatenate([stratum[None], places])

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        places = value[1:]
        low, high = self._intervals()
        n, k = len(low), jnp.arange(len(low))
        least = jnp.finfo(low.dtype).tiny
        begin, end = n * low[places] - k, n * high[places] - k
        begin, end = jnp.maximum(begin, 0.0), jnp.minimum(end, 1.0)
        if self.systematic:  # not jnp.max, whose derivative compares values that XLA rounds anew
            begin, end = begin[jnp.argmax(begin)], end[jnp.argmin(end)]
        log_p = jnp.sum(jnp.log(jnp.maximum(end - begin, least)))
        if not self.kept:
            return log_p
        own = high[self.place] - low[self.place]
        return log_p - jnp.log(n * jnp.maximum(own, least))

    def _intervals(self) -> tuple[jax.Array, jax.Array]:
        cdf = jnp.cumsum(softmax(self.logits))
        high = cdf / cdf[-1]
        return jnp.concatenate([jnp.zeros(1, high.dtype), high[:-1]]), high
