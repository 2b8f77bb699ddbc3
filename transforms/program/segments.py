"""A program in segments: its choices, and the equations between two of them as one program each.

A run of the program goes through all of them; one that resumes at a choice (``interpret.py``) only
through what depends on it.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
from collections.abc import Mapping, Sequence
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

    @property
    def open(self) -> Run:
        """The same, with all variables."""
        jaxpr = self.jaxpr.jaxpr
        return run_of(jaxpr, jaxpr.eqns, {v for eqn in jaxpr.eqns for v in eqn.outvars})


Segment = Run | tuple[int, _jax.JaxprEqn]
"""A choice, or what hides one, is an equation with its number."""


class Segments:
    """The segments of a program, which may be run many times.

    Of what is ``differentiated`` the expressions that are the same are one; those that stand
    ``alone`` make all variables, from which a run can resume.
    """

    def __init__(
        self, closed: _jax.ClosedJaxpr, differentiated: bool = False, alone: bool = False
    ) -> None:
        self.closed = closed
        self.all = _segments(closed.jaxpr)
        if differentiated:
            runs = [s for s in self.all if isinstance(s, Run)]
            programs = iter(shared([run.jaxpr for run in runs], alone))
            new = lambda run: dataclasses.replace(run, jaxpr=next(programs))
            self.all = [new(s) if isinstance(s, Run) else s for s in self.all]

    @property
    def choices(self) -> int:
        """How many segments are choices, or hide some."""
        return sum(not isinstance(s, Run) for s in self.all)

    def again(self, n: int, only: bool) -> dict[int, Segment]:
        """What is computed anew where segment ``n`` has other results, by its number: if ``only``
        what depends on them, else all that comes after."""
        if not only:
            return dict(enumerate(self.all[n:], n))
        first: Any = self.all[n]
        found, left = [], list(map(self._users.get, first[1].outvars))
        waiting = sorted({place for places in left for place in places or ()})
        known = set(waiting)
        while waiting:
            m, i = place = heapq.heappop(waiting)
            found.append(place)
            for v in self._equations(m)[i].outvars:
                for user in self._users.get(v, ()):
                    if user not in known:
                        known.add(user)
                        heapq.heappush(waiting, user)
        segments: dict[int, Segment] = {n: first}
        for m, places in itertools.groupby(found, key=lambda place: place[0]):
            segment = self.all[m]
            if isinstance(segment, Run):
                eqns = [segment.jaxpr.jaxpr.eqns[i] for _, i in places]
                segment = run_of(segment.jaxpr.jaxpr, eqns, set(segment.outvars))
            segments[m] = segment
        return segments

    def _equations(self, m: int) -> Sequence[_jax.JaxprEqn]:
        segment = self.all[m]
        return segment.jaxpr.jaxpr.eqns if isinstance(segment, Run) else [segment[1]]

    @functools.cached_property
    def _users(self) -> dict[Any, list[tuple[int, int]]]:
        """Where each variable is read: the segment, and which of its equations."""
        users: dict[Any, list[tuple[int, int]]] = {}
        for m in range(len(self.all)):
            for i, eqn in enumerate(self._equations(m)):
                for v in eqn.invars:
                    if isinstance(v, _jax.Var):
                        users.setdefault(v, []).append((m, i))
        return users


def _segments(jaxpr: _jax.Jaxpr) -> list[Segment]:
    parts: list[list[_jax.JaxprEqn] | tuple[int, _jax.JaxprEqn]] = []
    for i, eqn in enumerate(jaxpr.eqns):
        if is_random(eqn):
            parts.append((i, eqn))
        elif parts and isinstance(parts[-1], list):
            parts[-1].append(eqn)
        else:
            parts.append([eqn])
    needed = {v for v in jaxpr.outvars if isinstance(v, _jax.Var)}
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


def read_again(segments: Mapping[int, Segment], outvars: Sequence[Any]) -> list[_jax.Var]:
    """The variables that segments read, and that are there before them; and of those that are
    returned the ones that no segment makes."""
    made: set[Any] = set()
    found: dict[Any, None] = {}
    for segment in segments.values():
        at = segment if isinstance(segment, Run) else segment[1]
        found.update((v, None) for v in at.invars if isinstance(v, _jax.Var) and v not in made)
        made.update(at.outvars)
    outs = (v for v in outvars if isinstance(v, _jax.Var))
    found.update((v, None) for v in outs if v not in made)
    return list(found)


def _is_dropped(v: Any) -> bool:
    return type(v).__name__ == "DropVar"
