"""Choices whose draws are lost (``rounding.py``), where that matters.

With numbers for the arguments of an objective its concentrations are known. Where one is so small
that draws are lost, the program is run with all other draws well inside their supports, and this
one inside too, halfway to an end (on a logarithmic scale), and at the end. A payoff that is not
finite at the end, or moves on the second half of the way, depends on the logarithm that is lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from ..analyses.contained import resolve
from ..checker.findings import Finding, of_lost
from ..estimation.draws import vectorised_draw
from ..estimation.rounding import ends, is_lost, rounding_parts, sample, smallest_lost
from ..program.choices import Choice, Path, abstract_distribution, choices
from ..program.interpret import entering, interpret
from ..program.site import Call, Densities, Site
from .seed import draw_rule

NOTICED = 0.01
"""By how much of itself a payoff may move unnoticed."""


def lost_draws(closed: _jax.ClosedJaxpr, args: Sequence[Any]) -> list[Finding]:
    """What there is to say of a program at ``args``, which are numbers."""
    program = [c for c in choices(closed, densities=True) if isinstance(c.random, Site)]
    program = [c for c in program if rounding_parts(abstract_distribution(c))]
    if not program:
        return []
    resolved, _ = resolve(closed, args)
    run = lambda args, *where: _run(resolved, program, args, where)
    smallest = np.asarray(jax.jit(lambda args: run(args, -1, 0, False)[1])(args))
    lost = [i for i, (c, _) in enumerate(smallest) if np.isfinite(c)]
    payoff = jax.jit(lambda args, *where: run(args, *where)[0])
    if not lost or not np.isfinite(inside := payoff(args, -1, 0, False)):
        return []

    def matters(i: int, side: int) -> bool:
        halfway, end = (payoff(args, i, side, at_end) for at_end in (False, True))
        size = max(abs(inside), abs(halfway))
        return not abs(end - halfway) <= NOTICED * size

    return [of_lost(program[i], *smallest[i]) for i in lost if matters(i, 0) or matters(i, 1)]


def _run(
    closed: _jax.ClosedJaxpr, program: Sequence[Choice], args: Sequence[Any], where: Sequence[Any]
) -> tuple[jax.Array, jax.Array]:
    """The payoff, and the smallest concentrations that lose draws, by choice, with their limits.

    ``where``: the number of a choice, and of an end of its support: the draws that it would lose
    are halfway there, or there.
    """
    which, side, at_end = where
    numbers = {c.path: i for i, c in enumerate(program)}

    @entering
    def rule(
        choice: Any, operands: list[Any], *, path: Path, key: Any, given: Any, acc: Any
    ) -> Any:
        if isinstance(choice, Call):
            assert isinstance(choice.program, Densities)
            outs, acc, _ = interpret(
                choice.program.simulate, operands, rule, key=key, acc=acc, path=path
            )
            return outs[: choice.program.n_retval], acc, {}
        if path not in numbers:
            return draw_rule(choice, operands, path=path, key=key, given=given, acc=acc)
        number, dtype = numbers[path], choice.dtype
        told = vectorised_draw(choice, operands, key, lambda d, *_: smallest_lost(d, dtype))
        told = told.reshape(-1, 2)
        least = told[jnp.argmin(told[:, 0])]
        acc = acc.at[number].set(jnp.where(least[0] < acc[number, 0], least, acc[number]))
        stand_in = lambda part, x: _stand_in(part, x, jnp.where(which == number, side, -1), at_end)
        placed = lambda d, key, shape: sample(d, key, shape, stand_in)
        return [vectorised_draw(choice, operands, key, placed)], acc, {}

    start = jnp.full((len(program), 2), jnp.inf, jnp.float32)
    outs, acc, _ = interpret(closed, args, rule, key=jax.random.key(0), acc=start)
    return outs[0], acc


def _stand_in(part: Any, x: jax.Array, side: Any, at_end: Any) -> jax.Array:
    """A value well inside the support; one that would be lost at the end ``side``, there."""
    y = jnp.full(x.shape, 0.5, x.dtype)
    for i, (end, inside, concentration, reach) in enumerate(ends(part, x.dtype)):
        lost = is_lost(concentration, reach) & (side == i)
        halfway = 1 - math.sqrt(1 - inside) if end == 1 else math.sqrt(inside)
        y = jnp.where(lost, jnp.where(at_end, end, halfway), y).astype(x.dtype)
    if not part.event_shape:
        return y
    all_lost = jnp.all(y < 0.5, axis=-1, keepdims=True)
    y = jnp.where(all_lost & (jnp.arange(x.shape[-1]) == 0), 0.5, y)
    return y / jnp.sum(y, axis=-1, keepdims=True)
