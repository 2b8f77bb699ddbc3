"""Choices that stand in one branch, and so may be absent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from transforms import _jax
from transforms.errors import Address, UnsupportedError, show
from transforms.program.choices import is_random

from .generative import Generative
from .given import Choices


def made_of(
    g: Generative, kept: Choices, is_kept: Callable[[Address], bool]
) -> dict[Address, jax.Array]:
    """Whether the choices that are kept are in a branch that is taken, which they must decide.

    Raises:
        UnsupportedError: others decide it.
    """
    out: dict[Address, jax.Array] = {}
    for address in sorted(filter(is_kept, g.in_a_branch)):

        def made(choices: Any, address: Address = address) -> Any:
            return g.execute(choices).made[address]

        closed, consts, _ = _jax.trace(made, kept)
        live = _jax.live(closed)
        if any(map(is_random, live.jaxpr.eqns)):
            raise UnsupportedError(
                f"the choice {show(address)} of {g.name} stands in one branch, and choices decide "
                f"whether that is taken which ppl.marginal at {_jax.user_line()} integrates out. "
                "Where it is absent it has no value, and so no density by itself. Keep what "
                "decides too, ppl.marginal(g, ['c', 'x']); or make the choice in every branch, "
                "under the same address."
            )
        (out[address],) = _jax.evaluate(live, *consts, *jax.tree.leaves(kept))
    return out
