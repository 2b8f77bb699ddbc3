"""The layout of a scope, found once for each choice of its estimators.

Estimators are chosen by what a choice would cost, so layouts are asked for while the checker
decides, again when the surrogate runs, and again when it is explained: :class:`Layouts` keeps them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import _jax
from ..analyses.alike import NO, compress
from ..analyses.dependence import NONE, Along, Dependence, Dependences
from ..analyses.terms import split
from ..errors import UnsupportedError, show
from ..estimation.chosen import MAX_JOINT, Chosen, support_size
from ..estimation.elements import apart, element_shape
from ..estimation.estimator import Enumerated, InPlace
from ..estimation.kinds import by_kind
from ..exact.chains import SummedOut, sum_out
from ..program.choices import Choice, Path, choices
from ..program.site import Site, own_density
from .layout import Elements, Layout, Summed


class Layouts:
    """The layouts of the scopes of an objective. ``constants`` are those of their inputs that are
    none of its arguments."""

    def __init__(self, constants: Mapping[Any, Any] | None = None) -> None:
        self._constants = constants or {}
        self._known: dict[Any, _Analysed] = {}

    def of(self, closed: _jax.ClosedJaxpr, chosen: Sequence[Chosen]) -> Layout:
        """The layout of a scope, ready to run.

        Raises:
            UnsupportedError: too many joint values would be enumerated.
        """
        return self._analysed(closed, chosen).ready

    def largest(self, closed: _jax.ClosedJaxpr, chosen: Sequence[Chosen]) -> dict[Path, int]:
        """How many joint values an enumerated choice is a part of, in the term where that is
        most."""
        return self._analysed(closed, chosen).largest()

    def _analysed(self, closed: _jax.ClosedJaxpr, chosen: Sequence[Chosen]) -> _Analysed:
        name = id(closed), tuple((s.choice.path, _name(s.estimator)) for s in chosen)
        if name not in self._known:
            known = [self._constants.get(v) for v in closed.jaxpr.invars]
            self._known[name] = _Analysed(closed, chosen, known)
        return self._known[name]


def _name(estimator: Any) -> Any:
    try:
        hash(estimator)
    except TypeError:  # a user's, maybe: itself, which is kept
        return id(estimator)
    return estimator


class _Analysed:
    """A scope as it is, and without its chains. ``known`` are its inputs, None where they are not
    known."""

    def __init__(
        self, closed: _jax.ClosedJaxpr, chosen: Sequence[Chosen], known: Sequence[Any]
    ) -> None:
        self.closed, self.chosen, self._known = closed, chosen, known
        self.layout = analyse(closed, chosen)

    @functools.cached_property
    def rest(self) -> tuple[SummedOut, _Analysed] | None:
        """The scope without enumerated choices whose elements meet, where they are chains, or read
        at static places."""
        meeting = {
            old.choice.path: self.layout.sites[new]
            for old, new in zip(self.chosen, self.layout.chosen, strict=True)
            if new in self.layout.sites
            and not all(self.layout.sites[new].apart)
            and isinstance(old.estimator, Enumerated)
        }
        stepwise = [path for path, s in meeting.items() if s.stepwise]
        rest = None
        if len(stepwise) < len(meeting):  # neighbours in a term, maybe
            with contextlib.suppress(UnsupportedError):
                rest = self._without(list(meeting))
            if rest is not None and not stepwise and rest.largest >= self._most(meeting.values()):
                rest = None
        if rest is None and stepwise:
            rest = self._without(stepwise)
        return rest and (rest, _Analysed(rest.closed, rest.chosen, self._known))

    def _without(self, paths: Sequence[Path]) -> SummedOut | None:
        return sum_out(self.closed, self.chosen, paths, self._known)

    def _most(self, meeting: Iterable[Elements]) -> int:
        """How many joint values choices have in a term, at most."""
        layout, mine = self.layout, frozenset(s.path for s in meeting)
        return max((layout.joint(layout.together(d) & mine) for d in layout.terms), default=1)

    @functools.cached_property
    def ready(self) -> Layout:
        """The layout without chains, checked and compressed."""
        if self.rest is not None:
            summed_out, inner = self.rest
            kept = {id(s.choice.random) for s in summed_out.chosen}
            gone = [s for s in self.chosen if id(s.choice.random) not in kept]
            chain, largest = summed_out.chain, summed_out.largest
            summed = [Summed(s, chain, largest) for s in gone]
            return dataclasses.replace(inner.ready, summed=(*summed, *inner.ready.summed))
        layout = self.layout
        for d in layout.terms:
            _check_size(layout, d)
        return _compressed(layout) if all(map(layout.is_apart, layout.others)) else layout

    def largest(self) -> dict[Path, int]:
        enumerated = [s for s in self.chosen if isinstance(s.estimator, Enumerated)]
        try:
            rest = self.rest
        except UnsupportedError:  # chains of too many values
            rest = None
        if rest is not None:
            summed_out, within = rest[0], rest[1].largest()
            left = {id(s.choice.random): within.get(s.choice.path) for s in summed_out.chosen}
            most = summed_out.largest
            return {s.choice.path: left.get(id(s.choice.random), most) or 1 for s in enumerated}
        layout = self.layout
        sizes = [(d, layout.joint(layout.together(d))) for d in layout.terms]
        to = dict(zip((s.choice.path for s in self.chosen), layout.chosen, strict=True))
        return {
            s.choice.path: max((n for d, n in sizes if to[s.choice.path] in d), default=1)
            for s in enumerated
        }


def is_told_apart(s: Chosen) -> bool:
    """Whether an estimator asks which terms depend on its choice."""
    if isinstance(s.estimator, Enumerated):
        return support_size(s.choice, s.estimator) > 1
    return not isinstance(s.estimator, InPlace) or s.estimator.score


def analyse(closed: _jax.ClosedJaxpr, chosen: Sequence[Chosen]) -> Layout:
    """The layout of a scope as it is."""
    if not any(map(is_told_apart, chosen)):
        rest = tuple(NONE for _ in closed.jaxpr.outvars[1:])
        return Layout(closed, (NONE,), rest, {s.choice.path: s for s in chosen}, {})
    told = {s.choice.path for s in chosen if is_told_apart(s)}
    enumerated = {s.choice.path for s in chosen if isinstance(s.estimator, Enumerated)}
    terms = split(closed, told.__contains__, is_enumerated=(told & enumerated).__contains__)
    program, n, own = terms.program, terms.n, terms.own
    new = [c for c in choices(program, densities=True) if isinstance(c.random, Site)]
    moved = [
        dataclasses.replace(s, choice=dataclasses.replace(s.choice, path=c.path))
        for s, c in zip(chosen, new, strict=True)
    ]
    paths = {s.choice.path for s in moved if is_told_apart(s)}
    analysis = Dependences(paths.__contains__)
    outs = [_distinct(d) for d in analysis.run(program, [NONE] * len(program.in_avals))]
    sites = {}
    names = [own_density(s.choice.site) for s in moved]
    for s in moved:
        path, loops = s.choice.path, len(s.choice.lengths)
        if path not in paths:
            continue
        shape = (
            *s.choice.lengths,
            *s.choice.site.sizes,
            *element_shape(s.choice.site, s.choice.avals),
        )
        meets = [d[path] for d in outs[:n] if path in d]
        no_meeting = tuple(
            all(d[i] is not None and not d[i].lag for d in meets)  # type: ignore[union-attr]
            for i in range(len(shape))
        )
        if not all(no_meeting[:loops]):
            no_meeting = (*[False] * loops, *no_meeting[loops:])
        parameters = _of_elements(analysis.parameters[path], loops)
        name = own_density(s.choice.site)
        times = own.get(name, 0.0) if names.count(name) == 1 else 0.0
        sites[path] = Elements(s, shape, no_meeting, parameters, times)
    every = {s.choice.path: s for s in moved}
    return Layout(program, tuple(outs[:n]), tuple(outs[n:]), every, sites, terms.lines)


def _compressed(layout: Layout) -> Layout:
    """The layout with what is the same for all elements of enumerated choices computed once."""
    same = {
        s.path: frozenset(i for i, apart in enumerate(s.apart) if apart)
        for s in layout.of(Enumerated)
        if not s.loops
        and not s.chosen.choice.conditional
        and _has_fixed_support(s.chosen.choice, s.chosen.estimator)
    }
    if not any(same.values()):
        return layout
    program = compress(
        layout.program, [NO] * len(layout.program.in_avals), lambda path: same.get(path, NO)
    )
    new = [c.path for c in choices(program, densities=True) if isinstance(c.random, Site)]
    to = dict(zip(layout.chosen, new, strict=True))

    def renamed(d: Dependence) -> Dependence:
        return {to[p]: along for p, along in d.items()}

    def moved(s: Chosen) -> Chosen:
        return dataclasses.replace(s, choice=dataclasses.replace(s.choice, path=to[s.choice.path]))

    sites = {
        to[p]: dataclasses.replace(e, chosen=moved(e.chosen), parameters=renamed(e.parameters))
        for p, e in layout.sites.items()
    }
    return Layout(
        program,
        tuple(map(renamed, layout.terms)),
        tuple(map(renamed, layout.others)),
        {to[p]: moved(s) for p, s in layout.chosen.items()},
        sites,
        layout.lines,
    )


@by_kind
def _has_fixed_support(choice: Choice, estimator: Enumerated) -> bool:
    """Whether the values of an enumerated choice do not depend on its parameters."""
    closed, consts, _ = _jax.trace(
        lambda *ops: estimator.support(apart(choice.site.rebuild(ops))), *choice.own_avals
    )
    read = {v for eqn in closed.jaxpr.eqns for v in eqn.invars if isinstance(v, _jax.Var)}
    read.update(v for v in closed.jaxpr.outvars if isinstance(v, _jax.Var))
    return not read.intersection(closed.jaxpr.invars[len(consts) :])


def _distinct(d: Dependence) -> Dependence:
    """No axis of a value runs along two axes of one choice (a diagonal)."""
    out = {}
    for path, along in d.items():
        seen: set[int] = set()
        new: list[Along | None] = []
        for a in along:
            new.append(None if a is None or a.axis in seen else a)
            seen |= set() if a is None else {a.axis}
        out[path] = tuple(new)
    return out


def _of_elements(d: Dependence, loops: int) -> Dependence:
    """What parameters depend on, by the axes of the elements: steps of loops come first."""

    def move(a: Along | None) -> Along | None:
        if a is None:
            return None
        return Along(-1 - a.axis if a.axis < 0 else a.axis + loops, a.lag)

    return _distinct({path: tuple(map(move, along)) for path, along in d.items()})


def _check_size(layout: Layout, d: Dependence) -> None:
    if layout.joint(layout.together(d)) <= MAX_JOINT:
        return
    parts = []
    for s in layout.of(Enumerated):
        if s.path not in d:
            continue
        c = s.chosen.choice
        met = [n for n, a in zip(s.shape, s.apart, strict=True) if not a]
        joint = f"{s.support}**{math.prod(met)}" if met else str(s.support)
        parts.append(f"{show(c.address)} ({joint} values, {c.source})")
    raise UnsupportedError(
        f"enumeration would run a term of the objective for more than {MAX_JOINT:,} joint values, "
        f"since these meet in it: {', '.join(parts)}. Use ppl.reinforce() or ppl.mvd() for some of "
        "them; or let the elements meet in no term: a sum over the elements of what each of them "
        "touches, or an @ppl.expectation of its own for each, jax.vmap(inner)(xs).sum()."
    )
