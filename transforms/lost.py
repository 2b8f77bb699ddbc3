"""Choices whose draws are lost (``rounding.py``), where that matters.

With numbers for the arguments of an objective its concentrations are known. Where one is so small
that draws are lost, the program is run with all other draws well inside their supports: once with
this one inside too, and once at the end. If the payoff is finite in the first run only, then it
depends on the logarithm that is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _jax
from .contained import resolve
from .findings import Finding, of_lost
from .interpret import Choice, Path, abstract_distribution, choices, entering, interpret
from .rounding import ends, is_lost, rounding_parts, sample, smallest_lost
from .seed import draw_rule, vectorised_draw
from .site import Call, Densities, Site


def lost_draws(closed: _jax.ClosedJaxpr, args: Sequence[Any]) -> list[Finding]:
    """What there is to say of a program at ``args``, which are numbers."""
    program = [c for c in choices(closed, densities=True) if isinstance(c.random, Site)]
    program = [c for c in program if rounding_parts(abstract_distribution(c))]
    if not program:
        return []
    resolved, _ = resolve(closed, args)
    run = lambda args, which: _run(resolved, program, args, which)
    smallest = np.asarray(jax.jit(lambda args: run(args, -1)[1])(args))
    lost = [i for i, (c, _) in enumerate(smallest) if np.isfinite(c)]
    is_finite = jax.jit(lambda args, which: jnp.isfinite(run(args, which)[0]))
    if not lost or not is_finite(args, -1):
        return []
    return [of_lost(program[i], *smallest[i]) for i in lost if not is_finite(args, i)]


def _run(
    closed: _jax.ClosedJaxpr, program: Sequence[Choice], args: Sequence[Any], which: Any
) -> tuple[jax.Array, jax.Array]:
    """The payoff where the draws that choice number ``which`` would lose are at the end, and the
    smallest concentrations that lose draws, by choice, with their limits."""
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
        stand_in = lambda part, x: _stand_in(part, x, which == number)
        placed = lambda d, key, shape: sample(d, key, shape, stand_in)
        return [vectorised_draw(choice, operands, key, placed)], acc, {}

    start = jnp.full((len(program), 2), jnp.inf, jnp.float32)
    outs, acc, _ = interpret(closed, args, rule, key=jax.random.key(0), acc=start)
    return outs[0], acc


def _stand_in(part: Any, x: jax.Array, at_end: Any) -> jax.Array:
    """A value well inside the support, or at the end where draws are lost."""
    places = [(e, at_end & is_lost(c, reach)) for e, _, c, reach in ends(part, x.dtype)]
    if part.event_shape:
        lost = jnp.broadcast_to(places[0][1], x.shape)
        first = jnp.arange(x.shape[-1]) == 0
        left = jnp.where(jnp.all(lost, axis=-1, keepdims=True), first, ~lost).astype(x.dtype)
        return left / jnp.sum(left, axis=-1, keepdims=True)
    y = jnp.full(x.shape, 0.5, x.dtype)
    for end, lost in places:
        y = jnp.where(lost & (y == 0.5), end, y).astype(x.dtype)
    return y
