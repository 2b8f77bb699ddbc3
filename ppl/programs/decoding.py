"""``ppl.most_likely`` and ``ppl.marginals``: what discrete choices probably were.

Exact over finite supports, by the elimination that ``ppl.enumeration()`` sums with, through
plates, chains and mixtures, at about the cost of one pass of it: the most probable values with the
maximum in place of the sum (max-product; for a chain, Viterbi 1967), the probability of each value
as the derivative of the log evidence in a weight on it (Darwiche 2003; for a chain, forward and
backward).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from transforms import _jax
from transforms.errors import Address, SupportError
from transforms.exact.classes import Who
from transforms.exact.elimination import best
from transforms.exact.elimination import marginals as probabilities
from transforms.program.compiled import at_once
from transforms.runs.addresses import flatten, match_shapes, nest
from transforms.runs.execute import Execution

from .enumeration import Free, free_choices, log_integrand, run_at, variables_of
from .generative import Generative
from .given import Choices
from .program import check_generative
from .target import Target

_INSTEAD = "give its value in the data, or use ppl.normalize(g, data), which draws"


def most_likely(g: Generative, data: Choices) -> dict[str, Any]:
    """The most probable choices of ``g`` together, given ``data``.

    Args:
        g: a generative function that was called, whose choices not in ``data`` have finite
            supports.
        data: nested dict of observed choices.

    Returns:
        Nested dict of the choices not in ``data``, as ``ppl.normalize(g, data)`` has them: axes of
        ``vmap`` and ``scan`` in front. Of several that are as probable, the first. A choice in a
        branch that is not taken is the first of its support.

    Raises:
        UnsupportedError: a support is not finite, or too many joint values meet.
        SupportError: the data has probability 0 (found where it is no tracer).

    Example:
        >>> @ppl.gen
        ... def coin():
        ...     z = ppl.sample("z", dist.Bernoulli(0.3))
        ...     ppl.sample("x", dist.Normal(2.0 * z, 1.0))
        >>> int(ppl.most_likely(coin(), {"x": 1.9})["z"])
        1
    """
    who: Who = "ppl.most_likely", _INSTEAD
    target, free = _target(g, data, who)
    run = run_at(target, free)

    def found() -> tuple[Choices, jax.Array]:
        digits, value = best(lambda *ds: run(*ds).log_integrand, variables_of(free), who)
        return target.free(run(*digits).choices), value

    choices, value = at_once(found)
    _check_possible(g, value)
    return choices


def marginals(g: Generative, data: Choices) -> dict[str, Any]:
    """How probable each value of each choice of ``g`` by itself is, given ``data``.

    Args:
        g, data: as for :func:`most_likely`.

    Returns:
        Nested dict of the choices not in ``data``, f32[*shape, K]: the axes of the choice, then an
        axis for its K values, in the order of its support (joint values of an event, in order).
        They add up to 1; those of a choice in a branch to the probability of the branch.

    Raises:
        UnsupportedError: a support is not finite, or too many joint values meet.
        SupportError: the data has probability 0 (found where it is no tracer).

    Example:
        >>> @ppl.gen
        ... def coin():
        ...     z = ppl.sample("z", dist.Bernoulli(0.3))
        ...     ppl.sample("x", dist.Normal(2.0 * z, 1.0))
        >>> round(float(ppl.marginals(coin(), {"x": 1.0})["z"][1]), 3)
        0.3
    """
    who: Who = "ppl.marginals", _INSTEAD
    target, free = _target(g, data, who)
    run = run_at(target, free)

    def log_of(weights: list[jax.Array], *digits: jax.Array) -> jax.Array:
        out = run(*digits)
        total = log_integrand(lambda *_: out, free)(*digits)
        for w, d, address in zip(weights, digits, free, strict=True):
            total = total + jnp.sum(jnp.where(_present(out, address, d, w), w, 0.0))
        return total

    found, value = at_once(lambda: probabilities(log_of, variables_of(free), who))
    _check_possible(g, value)
    return nest(zip(free, found, strict=True))


def _present(out: Execution, address: Address, digits: jax.Array, weights: jax.Array) -> jax.Array:
    """Which value each element has, if it is made at all."""
    here = digits[..., None] == jnp.arange(weights.shape[-1])
    if address not in out.made:
        return here
    made = out.made[address]
    return here & made.reshape(*made.shape, *[1] * (here.ndim - made.ndim))


def _target(g: Generative, data: Choices, who: Who) -> tuple[Target, Mapping[Address, Free]]:
    check_generative(g, who[0])
    target = Target(g, data)
    instead = _INSTEAD[0].upper() + _INSTEAD[1:]
    free = free_choices(target, who[0], f"{instead}.")
    match_shapes(data, flatten(g.choices_like), g.name, exact=False)
    return target, free


def _check_possible(g: Generative, value: Any) -> None:
    if not isinstance(value, _jax.Tracer) and value == -jnp.inf:
        raise SupportError(
            f"the data given to {g.name} at {_jax.user_line()} has probability 0 for every value "
            "of its other choices. Look for a value outside of its support, or a probability that "
            "is 0."
        )


__all__ = ["marginals", "most_likely"]
