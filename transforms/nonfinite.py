"""Where a value that is not finite shows first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from . import _jax
from .assignment import Choose
from .errors import show
from .interpret import Choice, Path, Record, choices, entering, interpret
from .seed import draw_rule
from .site import Call, Densities, Site
from .surrogate import surrogate


def first_nonfinite(
    closed: _jax.ClosedJaxpr,
    args: Sequence[Any],
    key: jax.Array,
    choose: Choose,
    samples: int,
) -> str:
    """A sentence that names the first choice with parameters or a draw that are not finite.

    The program runs with the draws of its surrogate's samples.
    """
    places = {c.path: c for c in choices(closed, densities=True)}

    def run(key: jax.Array) -> Record:
        return _observe(closed, args, key)

    keys = key[None] if samples == 1 else jax.random.split(key, samples)
    bad = {p: jnp.any(b) for p, b in jax.vmap(run)(keys).items()}
    for path in sorted(bad):
        parameters, value = bad[path], bad[path]
        if bool(parameters) or bool(value):
            return _sentence(places[path])
    value = surrogate(closed, args, key, choose, samples=samples)[0]
    what = "the gradient" if bool(jnp.isfinite(value)) else "the value"
    return (
        f"Every random choice has finite parameters and draws; {what} is made not finite by what "
        "is computed from them."
    )


def _observe(closed: _jax.ClosedJaxpr, args: Sequence[Any], key: jax.Array) -> Record:
    """Whether the parameters or the draw of each site are not finite, by path."""

    @entering
    def rule(
        choice: Any, operands: list[Any], *, path: Path, key: Any, given: Record, acc: Any
    ) -> Any:
        if isinstance(choice, Call):
            assert isinstance(choice.program, Densities)
            outs, acc, made = interpret(
                choice.program.simulate, operands, rule, key=key, acc=acc, path=path
            )
            return outs[: choice.program.n_retval], acc, made
        outs, acc, _ = draw_rule(choice, operands, path=path, key=key, given=given, acc=acc)
        if not isinstance(choice, Site):
            return outs, acc, {}
        seen = [*operands[: len(operands) - choice.masked - choice.n_estimator], *outs]
        bad = [jnp.any(~jnp.isfinite(a)) for a in seen if jnp.issubdtype(a.dtype, jnp.inexact)]
        return outs, acc, {path: jnp.any(jnp.stack(bad)) if bad else jnp.asarray(False)}

    return interpret(closed, args, rule, key=key)[2]


def _sentence(choice: Choice) -> str:
    return (
        f"It shows first at the random choice {show(choice.address)} ({choice.source}), whose "
        "parameters or draw are not finite."
    )
