"""*seed*: a program with random choices becomes a pure function of a key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from .. import _jax
from ..estimation.draws import sampled, vectorised_draw
from ..program.choices import Path
from ..program.interpret import Record, entering, interpret
from ..program.site import Call, Densities, Expect, Factor, Site, refuse_factor
from .surrogate import estimate


def draw(site: Site, operands: Sequence[Any], key: jax.Array) -> jax.Array:
    """A draw of a site with all its ``vmap`` axes: ``[*sizes, *shape]``."""
    return vectorised_draw(site, operands, key, sampled)


@entering
def draw_rule(
    choice: Any, operands: list[Any], *, path: Path, key: Any, given: Record, acc: Any
) -> Any:
    """Draw every choice; no densities, no gradient estimators."""
    if isinstance(choice, Site):
        return [draw(choice, operands, key)], acc, {}
    if isinstance(choice, Call):
        assert isinstance(choice.program, Densities)
        outs, acc, _ = interpret(choice.program.simulate, operands, draw_rule, key=key, acc=acc)
        return outs[: choice.program.n_retval], acc, {}
    if isinstance(choice, Expect):
        return estimate(choice, operands, key), acc, {}
    assert isinstance(choice, Factor)
    return refuse_factor(choice)


def seeded(closed: _jax.ClosedJaxpr, args: Sequence[Any], key: jax.Array) -> list[Any]:
    """Evaluate a program, drawing its choices with ``key``."""
    return interpret(closed, args, draw_rule, key=key)[0]
