"""Which faults are none: gone where their paths meet again, or suspects that nothing convicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..program.flat import Flat
from ..smoothness.continuity import convicted, gone
from ..smoothness.domains import NOT_NEGATIVE, Domain
from ..smoothness.slices import Budget, Place
from .traits import Fault, Source, Value

SUSPECTS = 16
"""Most suspects of an objective that are evaluated; the others are believed."""


class Known(NamedTuple):
    """What a sweep told of the values of each program: the parameters of sites, and draws too."""

    values: Mapping[Flat, Mapping[int, Value]]
    sunk: Mapping[Flat, set[int]]
    domains: Mapping[Flat, dict[int, Domain]]


class Cures:
    """The faults of one objective that were asked about; each is asked about once."""

    def __init__(self) -> None:
        self._cured: dict[tuple[Flat, int], set[tuple[Flat, int, str]]] = {}
        self._tried: set[tuple[Flat, int, str]] = set()
        self._undecided: set[tuple[Flat, int, str]] = set()
        self._trials = SUSPECTS
        self._guilty: set[Source] = set()
        self._budget = Budget()
        self._given: dict[Flat, dict[int, Any]] = {}
        self._around: dict[Flat, tuple[Flat, int]] = {}

    def give(self, flat: Flat, values: Sequence[Any]) -> None:
        """Note the values of the first inputs of a program, None where they are not known."""
        pairs = zip(flat.inputs[: len(values)], values, strict=True)
        self._given[flat] = {v: x for v, x in pairs if x is not None}

    def pass_on(self, flat: Flat, ins: Sequence[Any], body: Flat) -> None:
        """Note which of the first inputs of ``body``, that ``ins`` are passed to, are known."""
        given = self._given.get(flat, {})
        self.give(body, [given.get(v) if isinstance(v, int) else v.val for v in ins])

    def enclose(self, bodies: Sequence[Flat], flat: Flat, index: int) -> None:
        """Note that equation ``index`` of ``flat`` runs ``bodies``."""
        self._around.update(dict.fromkeys(bodies, (flat, index)))

    def healed(self, flat: Flat, v: int, value: Value) -> Value:
        """A value without the faults that are gone in it."""
        cured = self._cured.get((flat, v))
        if cured is None:
            return value
        gone = {f for f in value.faults if f.at in cured}
        sources = value.sources.union(*(f.sources for f in gone))
        return value._replace(sources=sources, faults=value.faults - gone)

    def is_tried(self, f: Fault) -> bool:
        return f.at in self._tried

    def is_undecided(self, f: Fault) -> bool:
        """Whether a fault was looked at from nearby only."""
        return f.at in self._undecided

    def cure(self, f: Fault, known: Known) -> bool:
        """Whether a fault turns out to be none."""
        self._tried.add(f.at)
        return self._acquitted(f, known) if f.suspect else self._cure(f, known)

    def _cure(self, f: Fault, known: Known) -> bool:
        """Whether a fault is gone where its paths meet: there, or outside of loops around it."""
        flat, index, tap = f.flat, f.index, ()
        while True:
            varied = {v for v, a in known.values[flat].items() if a.sources}
            domains = known.domains.get(flat, {})
            found = gone(self._place(f, flat, index, tap, varied, domains, known), self._budget)
            if found is not None:
                self._cured.setdefault((flat, found), set()).add(f.at)
                return True
            if flat not in self._around:
                if self._budget.exhausted:
                    self._undecided.add(f.at)
                return False
            (flat, around), inner = self._around[flat], (flat, index)
            body = flat.ops[around].bodies.index(inner[0])
            index, tap = around, ((body, inner[1]), *tap)

    def _acquitted(self, f: Fault, known: Known) -> bool:
        """Whether a suspect is not seen to jump: then it is no fault any more."""
        if not f.sources <= self._guilty and self._trials > 0:
            self._trials -= 1
            varied = {v for v, a in known.values[f.flat].items() if a.drawn}
            sizes = {op.outs[0]: NOT_NEGATIVE for op in f.flat.ops if op.name == "svd"}
            domains = {**known.domains.get(f.flat, {}), **sizes}
            place = self._place(f, f.flat, f.index, (), varied, domains, known)
            if convicted(place, self._budget):
                self._guilty |= f.sources
                return False
        for v in f.op.outs:
            self._cured.setdefault((f.flat, v), set()).add(f.at)
        return True

    def _place(
        self,
        f: Fault,
        flat: Flat,
        index: int,
        tap: Any,
        varied: set[int],
        domains: Mapping[int, Domain],
        known: Known,
    ) -> Place:
        carrying = {v for v, a in known.values[flat].items() if f in a.faults}
        kind, sunk = "suspect" if f.suspect else f.kind, known.sunk.get(flat, set())
        given = self._given.get(flat, {})
        return Place(flat, index, kind, tap, carrying, varied, sunk, given, domains)
