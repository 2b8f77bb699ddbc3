"""One continued choice as its estimator sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..estimation.draws import Context
from ..estimation.estimator import Continued, LocalSite, refuse_rounding
from ..plan.layout import Elements
from ..program.site import Axis


@dataclasses.dataclass(frozen=True)
class Term:
    """The surrogate of a choice, from the continuation k and ``args``: its operands, its value, its
    key, the payoff of the value, and the key of the program."""

    s: Elements
    context: Context

    def __call__(self, k: Callable[[jax.Array], jax.Array], *args: Any) -> jax.Array:
        parameters, value, own_key, payoff, key = args
        site, estimator = self.s.chosen.choice.site, self.s.chosen.estimator
        assert isinstance(estimator, Continued)

        def checked(x: jax.Array) -> jax.Array:
            x = jnp.asarray(x)
            refuse_rounding(site, estimator.name, "gives k", x.dtype)
            return k(x.astype(value.dtype))

        local = self._site(parameters, value, payoff)
        own = site.rebuild_estimator(parameters) if site.estimator is not None else estimator
        return own.surrogate(local, _key_of(own_key, key), checked)

    def _site(self, parameters: list[Any], value: jax.Array, payoff: jax.Array) -> LocalSite:
        s, site, estimator = self.s, self.s.chosen.choice.site, self.s.chosen.estimator
        assert isinstance(estimator, Continued)
        axes, skip = site.axes, s.loops
        if in_step(s) or across_steps(s):
            mapped = (True,) * len(parameters)
            axes, skip = (*(Axis(n, mapped) for n in s.shape[: s.loops]), *axes), 0
        apart = s.apart[skip:] if estimator.elementwise else (False,) * (len(s.apart) - skip)
        events = (False,) * (value.ndim - len(apart))
        return LocalSite(
            dataclasses.replace(site, axes=axes),
            parameters,
            value,
            payoff,
            (*apart, *events),
            self.context.direction,
            self.context.others,
        )

    def of_several(self, k: Callable[[jax.Array], jax.Array], *args: Any) -> jax.Array:
        """The sum over choices that are alike, of which the arguments (all but the key of the
        program) are stacked."""
        *own, key = args
        each: Any = jax.vmap(lambda *one: self(k, *(*one, key)))
        return jnp.sum(each(*own))

    def like(self, args: Any) -> Any:
        """What choices have in common that are alike."""
        site, estimator = self.s.chosen.choice.site, self.s.chosen.estimator
        own = None if site.estimator is None else site.estimator.value
        about = site.static, site.n_estimator, site.axes, site.masked, site.shape, site.dtype
        types = tuple(jax.typeof(a) for a in jax.tree.leaves(args))
        return (site.distribution.value, own, estimator, *about, self.s.apart, *types)


def elementwise(s: Elements) -> bool:
    """Whether the estimator makes use of elements that are apart."""
    return isinstance(s.chosen.estimator, Continued) and s.chosen.estimator.elementwise


def in_step(s: Elements) -> bool:
    """Whether the steps of loops are elements like others."""
    return elementwise(s) and not s.stepwise


def across_steps(s: Elements) -> bool:
    """Whether the estimator has the steps of loops all at once though they meet."""
    return isinstance(s.chosen.estimator, Continued) and s.chosen.estimator.across_steps


def _key_of(data: jax.Array, like: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))


__all__ = ["Term", "across_steps", "elementwise", "in_step"]
