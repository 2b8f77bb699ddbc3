"""Which parameters move the support of a random choice.

REINFORCE and enumeration do not see a support move: d/dt E_p[f(x)] has a term from its end. The
ends of a support are those that the distribution declares, taken through its transforms; an
operand moves them if they are elsewhere for another value of it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..program.choices import Choice
from .chosen import Chosen
from .estimator import Enumerated
from .kinds import by_kind

_WRAPPERS = {"Independent", "ExpandedDistribution", "MaskedDistribution"}


def support_operands(s: Chosen) -> tuple[int, ...]:
    """The operands of a site that its support (or its enumerated values) depends on."""
    return _support_operands(s.choice, s.estimator)


@by_kind
def _support_operands(choice: Choice, estimator: Any) -> tuple[int, ...]:
    site, avals = choice.site, choice.own_avals
    rng = np.random.default_rng(0)
    operands = [
        np.asarray(rng.uniform(0.2, 0.8, a.shape), a.dtype)
        if jnp.issubdtype(a.dtype, jnp.inexact)
        else np.zeros(a.shape, a.dtype)
        for a in avals
    ]

    def marks(j: int, x: Any) -> list[jax.Array]:
        d = site.rebuild([*operands[:j], x, *operands[j + 1 :]])
        if isinstance(estimator, Enumerated):
            return [jnp.asarray(estimator.support(d), float)]
        return _ends(d)

    def moves(j: int) -> bool:
        x = operands[j]
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return False
        try:
            pairs = zip(marks(j, x), marks(j, (1.1 * x).astype(x.dtype)), strict=True)
            return any(not np.array_equal(a, b, equal_nan=True) for a, b in pairs)
        except Exception:  # the distribution does not say
            return False

    with jax.ensure_compile_time_eval():
        return tuple(j for j in range(len(avals)) if moves(j))


def _ends(d: Any) -> list[jax.Array]:
    """Where the support of a distribution begins and ends, if it does."""
    if hasattr(d, "transforms"):
        ends = _ends(d.base_dist)
        for transform in d.transforms:
            ends = [transform(x) for x in ends]
        return ends
    if type(d).__name__ in _WRAPPERS:
        return _ends(d.base_dist)
    constraint = d.support
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    bounds = [getattr(constraint, name, None) for name in ("lower_bound", "upper_bound")]
    return [jnp.asarray(b, float) for b in bounds if b is not None]
