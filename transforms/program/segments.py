"""A program in segments: its choices, and the equations between two of them as one program each.

A run of the program goes through all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .. import _jax
from .choices import is_random
from .shared import shared


@dataclasses.dataclass(frozen=True)
class Run:
    """Consecutive equations without choices, as one jaxpr."""

    jaxpr: _jax.ClosedJaxpr
    invars: list[_jax.Var]
    outvars: list[_jax.Var]


Segment = Run | tuple[int, _jax.JaxprEqn]
"""A choice, or what hides one, is an equation with its number."""


class Segments:
    """The segments of a program, which may be run many times.

    Of what is ``differentiated`` the expressions that are the same are one, of equations with the
    same label (``labels`` has them by their results). ``kept`` variables are there after the run.
    """

    def __init__(
        self,
        closed: _jax.ClosedJaxpr,
        differentiated: bool = False,
        labels: Mapping[Any, int] | None = None,
        kept: Collection[Any] = (),
    ) -> None:
        self.closed = closed
        self.all = _segments(closed.jaxpr, kept)
        if differentiated:
            runs = [s for s in self.all if isinstance(s, Run)]
            programs = iter(shared([run.jaxpr for run in runs], labels or {}))
            new = lambda run: dataclasses.replace(run, jaxpr=next(programs))
            self.all = [new(s) if isinstance(s, Run) else s for s in self.all]

    @property
    def choices(self) -> int:
        """How many segments are choices, or hide some."""
        return sum(not isinstance(s, Run) for s in self.all)


def _segments(jaxpr: _jax.Jaxpr, kept: Collection[Any]) -> list[Segment]:
    parts: list[list[_jax.JaxprEqn] | tuple[int, _jax.JaxprEqn]] = []
    for i, eqn in enumerate(jaxpr.eqns):
        if is_random(eqn):
            parts.append((i, eqn))
        elif parts and isinstance(parts[-1], list):
            parts[-1].append(eqn)
        else:
            parts.append([eqn])
    needed = {*kept, *(v for v in jaxpr.outvars if isinstance(v, _jax.Var))}
    segments: list[Segment] = []
    for part in reversed(parts):
        if isinstance(part, tuple):
            segments.append(part)
            needed |= {v for v in part[1].invars if isinstance(v, _jax.Var)}
            continue
        run = run_of(jaxpr, part, needed)
        segments.append(run)
        needed |= set(run.invars)
    return segments[::-1]


def run_of(jaxpr: _jax.Jaxpr, eqns: Sequence[_jax.JaxprEqn], needed: set[Any]) -> Run:
    """Equations of a program, of which some variables are needed elsewhere."""
    invars = _jax.operands_of(eqns)
    outvars = [v for eqn in eqns for v in eqn.outvars if v in needed and not _is_dropped(v)]
    return Run(_jax.open_jaxpr(jaxpr, invars, outvars, eqns), invars, outvars)


def _is_dropped(v: Any) -> bool:
    return type(v).__name__ == "DropVar"
