"""Which other values reach what: the equations that a replay runs again.

A *replay* is a run of a program in which a choice has another value. It shares with the first run
what the choice does not reach. So replays of several choices can go through the program side by
side: each variable has one value for all replays that do not reach it, and a row for each of the
others. A set of replays is an integer with a bit for each.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import _jax
from ..program.choices import Path, random_of
from ..program.control import Whole
from ..program.interpret import handler_of, runs_once
from ..program.segments import Run, Segments, run_of
from ..program.shared import shared
from ..program.site import Body, Call

Replays = int


class Reach:
    """What the replays reach in a program at a path, from what they reach of its operands.

    ``own`` has the replays that replace a choice, by the path of the choice.
    """

    def __init__(
        self,
        program: _jax.ClosedJaxpr,
        own: Mapping[Path, Replays],
        path: Path = (),
        operands: Sequence[Replays] = (),
    ) -> None:
        self.path, self.own, self.segments = path, own, Segments(program)
        self.inputs = [*program.jaxpr.constvars, *program.jaxpr.invars]
        self.outputs = list(program.jaxpr.outvars)
        self.of = dict(zip(program.jaxpr.invars, operands, strict=False))
        """The replays that reach a variable; none reaches those that are not there."""
        self.groups: dict[int, list[tuple[Replays, Run]]] = {}
        """The equations of a segment that replays reach, by these, in an order to run them in."""
        self.inside: dict[int, Reach] = {}
        """Of the programs that choices stand in which are run once, by the segment."""
        self.met: dict[Any, None] = {}
        """The variables that are read where more replays reach: their common value counts too."""
        for m, segment in enumerate(self.segments.all):
            if isinstance(segment, Run):
                self._equations(m, segment)
            else:
                self._choice(m, *segment)
        self._share()

    @property
    def kept(self) -> dict[Path, list[Any]]:
        """The variables of each program whose common value counts."""
        found = {self.path: list(self.met)}
        for inside in self.inside.values():
            found |= inside.kept
        return found

    @property
    def numbers(self) -> dict[Replays, int]:
        """The most numbers of a variable that some replays reach, by these."""
        found: dict[Replays, int] = {}
        for v, replays in self.of.items():
            found[replays] = max(found.get(replays, 0), v.aval.size)
        for inside in self.inside.values():
            for replays, n in inside.numbers.items():
                found[replays] = max(found.get(replays, 0), n)
        return found

    def replays(self, variables: Iterable[Any]) -> Replays:
        """Those that reach one of the variables."""
        found = (self.of.get(v, 0) for v in variables if isinstance(v, _jax.Var))
        return functools.reduce(operator.or_, found, 0)

    def below(self, path: Path) -> dict[Path, Replays]:
        """The choices at a path or inside of it that are replaced, and by which replays."""
        return {p: replays for p, replays in self.own.items() if p[: len(path)] == path}

    def _read(self, variables: Iterable[Any], replays: Replays) -> None:
        names = (v for v in variables if isinstance(v, _jax.Var))
        self.met.update((v, None) for v in names if self.of.get(v, 0) != replays)

    def _equations(self, m: int, segment: Run) -> None:
        jaxpr = segment.jaxpr.jaxpr
        groups: dict[Replays, list[_jax.JaxprEqn]] = {}
        for eqn in jaxpr.eqns:
            replays = self.replays(eqn.invars)
            if not replays:
                continue
            self._read(eqn.invars, replays)
            self.of.update((v, replays) for v in eqn.outvars)
            groups.setdefault(replays, []).append(eqn)
        elsewhere = {v for v in self.met if self.of.get(v, 0)} | set(segment.outvars)
        ordered = sorted(groups.items(), key=lambda group: group[0].bit_count())
        self.groups[m] = [(r, run_of(jaxpr, eqns, elsewhere)) for r, eqns in ordered]

    def _choice(self, m: int, i: int, eqn: _jax.JaxprEqn) -> None:
        path = (*self.path, i)
        before = self.replays(eqn.invars)
        program = run_in_place(eqn)
        if program is not None:
            operands = [self.of.get(v, 0) if isinstance(v, _jax.Var) else 0 for v in eqn.invars]
            self.inside[m] = inside = Reach(program, self.below(path), path, operands)
            outs = [inside.replays([v]) for v in inside.outputs]
            self.of.update((v, r) for v, r in zip(eqn.outvars, outs, strict=False) if r)
            return
        replays = functools.reduce(operator.or_, self.below(path).values(), before)
        if replays:
            self._read(eqn.invars, before if path in self.own else replays)
            self.of.update((v, replays) for v in eqn.outvars)

    def _share(self) -> None:
        """Equations that are there often, and that as many replays reach, share one program."""
        found = [(m, k) for m, groups in self.groups.items() for k in range(len(groups))]
        alike: dict[int, list[tuple[int, int]]] = {}
        for m, k in found:
            alike.setdefault(self.groups[m][k][0].bit_count(), []).append((m, k))
        for places in alike.values():
            runs = [self.groups[m][k] for m, k in places]
            programs = shared([run.jaxpr for _, run in runs])
            for (m, k), (replays, run), new in zip(places, runs, programs, strict=True):
                self.groups[m][k] = replays, Run(new, run.invars, run.outvars)


def run_in_place(eqn: _jax.JaxprEqn) -> _jax.ClosedJaxpr | None:
    """The program inside of an equation, if it is run once, with the equation's operands."""
    call = random_of(eqn)
    if isinstance(call, Call) and isinstance(call.program, Body):
        return call.program.jaxpr
    if call is not None:
        return None
    _, what = handler_of(eqn)
    return what.program if isinstance(what, Whole) and runs_once(what) else None


__all__ = ["Reach", "Replays", "run_in_place"]
