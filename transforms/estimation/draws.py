"""The samples of one objective, side by side.

They are a named ``vmap`` axis, and share one random key: to a choice they are one more ``vmap``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..program.improper import undrawn
from ..program.site import Axis, Site
from . import noise, rounding

SAMPLES = "ppl.samples"
Watch = Callable[[Site, Sequence[Any], Any], None]


@dataclasses.dataclass(frozen=True)
class Context:
    """What the scopes of one objective share: the number of samples drawn side by side, the
    running averages of payoffs that baselines asked for, whether the surrogate is ascended (1) or
    descended (-1), for baselines that learn, how a scope (a program, and how its estimators are
    chosen) is laid out, and what is told of each choice: the site, its operands and its value.

    ``given`` is the number of the sample where JAX does not know the name of their axis: inside
    ``jax.shard_map``, and in a derivative that is traced later."""

    samples: int = 1
    averages: Mapping[float, Any] = dataclasses.field(default_factory=dict)
    direction: int = 1
    layout: Callable[..., Any] | None = None
    watch: Watch | None = None
    given: Any = None

    @property
    def number(self) -> Any:
        """Which of the samples it is, where there are several."""
        if self.samples == 1:
            return None
        return lax.axis_index(SAMPLES) if self.given is None else self.given

    def numbered(self, i: jax.Array) -> Context:
        """For sample ``i``: inside ``jax.shard_map`` by its number, since the check of what varies
        does not know the name of their axis."""
        inside = jax.sharding.get_abstract_mesh().manual_axes
        return dataclasses.replace(self, given=i) if inside else self

    def watching(self, rule: Any) -> Any:
        """A rule of an interpreter that tells ``watch`` of every choice."""
        watch = self.watch
        if watch is None:
            return rule

        def watched(choice: Any, operands: list[Any], **state: Any) -> Any:
            outs, acc, made = rule(choice, operands, **state)
            if isinstance(choice, Site):
                watch(choice, operands, outs[0])
            return outs, acc, made

        return watched

    def others(self, payoff: jax.Array) -> jax.Array:
        """The mean payoff of the other samples; 0 where there are none."""
        if self.samples == 1:
            return jnp.zeros_like(payoff)
        return (self._sum(payoff) - payoff) / (self.samples - 1)

    def _sum(self, x: jax.Array) -> jax.Array:
        """``lax.psum``, which JAX 0.10 cannot over the axis of a ``vmap`` inside
        ``jax.shard_map``, nor over one whose name is forgotten."""
        if self.given is None and not jax.sharding.get_abstract_mesh().manual_axes:
            return lax.psum(x, SAMPLES)
        return _total(self.number, x)


@jax.custom_batching.custom_vmap
def _total(i: jax.Array, x: jax.Array) -> jax.Array:
    return x


@_total.def_vmap
def _(size: int, batched: Any, i: Any, x: Any) -> Any:
    of_sum, mapped = batched
    if not of_sum:
        return _total(i, x), mapped
    return jnp.sum(x, 0) if mapped else size * x, False


def sampled(d: Any, key: jax.Array, sample_shape: tuple[int, ...]) -> jax.Array:
    """How distributions draw by themselves."""
    return rounding.sample(d, key, sample_shape)


def vectorised_draw(
    site: Site, operands: Sequence[Any], key: jax.Array, sample: Callable[..., Any]
) -> jax.Array:
    """Draw by ``sample(distribution, key, sample_shape)`` for each element of the site."""
    try:
        return _drawn(site, operands, key, sample)
    except NotImplementedError as error:
        raise undrawn(site.address, site.source, site.rebuild(operands)) from error


def _drawn(
    site: Site, operands: Sequence[Any], key: jax.Array, sample: Callable[..., Any]
) -> jax.Array:
    parameters = len(operands) - site.masked
    if not any(any(a.mapped[:parameters]) for a in site.axes):
        return sample(site.rebuild(operands), key, site.sizes)

    def one(operands: list[Any], key: jax.Array) -> jax.Array:
        return sample(site.rebuild(site.live(operands)), key, ())

    return noise.drawn(site.axes, one, list(operands), key)


def draw(
    site: Site, operands: Sequence[Any], key: jax.Array, sample: Any, context: Context
) -> jax.Array:
    """A draw, independent for each of the samples.

    They share the key: to the site they are one more ``vmap``, and where its parameters are the
    same in all of them their draws are made by one call.
    """
    if context.samples == 1:
        return vectorised_draw(site, operands, key, sample)
    return _among_samples(site, sample, [])(context.number, key, list(operands))


def own_key(key: jax.Array, context: Context) -> jax.Array:
    """A key of its own for each of the samples."""
    return key if context.samples == 1 else jax.random.fold_in(key, context.number)


def _among_samples(site: Site, sample: Any, shared: list[Any]) -> Callable[..., jax.Array]:
    """A draw as a function of the number of the sample, the key and the operands.

    ``shared`` are the ``vmap``\\ s met before that over the samples (of enumerated values and
    alternatives), outermost first, each by what it maps: they do not make draws independent.
    """

    def evaluate(draw: Any, key: Any, operands: list[Any], of_samples: Any = None) -> Any:
        """``of_samples``: which operands have the axis of the samples in front, if there is one."""
        places = [0] * len(operands) if of_samples is None else [int(m) for m in of_samples]
        for mapped_key, mapped in reversed(shared):
            axes = [n if m else None for n, m in zip(places, mapped, strict=True)]
            in_axes = (0 if mapped_key else None, axes)
            draw = jax.vmap(draw, in_axes=in_axes, out_axes=int(of_samples is not None))
        return draw(key, operands)

    def drawing(site: Site, own: Callable[[jax.Array], jax.Array] = lambda key: key) -> Any:
        return lambda key, operands: vectorised_draw(site, operands, own(key), sample)

    @jax.custom_batching.custom_vmap
    def drawn(i: jax.Array, key: jax.Array, operands: list[Any]) -> jax.Array:
        return evaluate(drawing(site), key, operands)

    @drawn.def_vmap
    def _(size: int, batched: Any, i: Any, key: Any, operands: list[Any]) -> Any:
        over_samples, mapped_key, mapped = batched
        if not over_samples:
            more = [(mapped_key, mapped), *shared]
            return _among_samples(site, sample, more)(i, key, operands), True
        if mapped_key:  # to one value, maybe, by a branch with a mapped predicate

            def one(i: jax.Array, key: jax.Array, operands: list[Any]) -> jax.Array:
                own = lambda key: jax.random.fold_in(key, i)
                return evaluate(drawing(site, own), key, operands)

            in_axes = (0, 0, [0 if m else None for m in mapped])
            return jax.vmap(one, in_axes=in_axes)(i, key, operands), True
        wider = dataclasses.replace(site, axes=(Axis(size, tuple(mapped)), *site.axes))
        return evaluate(drawing(wider), key, operands, mapped), True

    return drawn
