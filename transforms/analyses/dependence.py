"""What depends on what, element by element.

A *source* is an array of independent elements (the elements of a random choice), known by a key.
What is said about a value is a :data:`Dependence`: for each source that it may depend on, and for
each axis of the source, the :class:`Axis` of the value that runs along with it. ``v[i, j]`` with
``{s: (Along(0), None)}`` depends on ``s[i, :]`` alone. What cannot be shown depends on all: the
answer may be less sharp than the truth, and is never wrong.

Axes survive elementwise operations, broadcasts, reductions over other axes, gathers, batch
dimensions, and ``vmap``\\ ped choices. Inside a ``scan`` the step is an axis as well, numbered from
-1 for the outermost loop; a value that has come through the carry lags behind: it depends on
this step and ``lag`` steps before it (``EVER``: on all of them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from .. import _jax
from ..estimation.elements import apart, element_shape, unmasked
from ..program.choices import Path
from ..program.control import Loop
from ..program.site import Expect, Site, per_element
from .forward import Analysis, Place
from .primitives import axes_of, of

EVER = 8
"""Lags from here on are not told apart: all steps before."""
LAST = -(2**20)
"""In place of an axis: the last element, as of the carry that a loop returns."""


class Along(NamedTuple):
    """An axis of a value, and how many steps before its own the value depends on."""

    axis: int
    lag: int = 0


Dependence = Mapping[Any, tuple[Along | None, ...]]
NONE: Dependence = {}


def join(dependences: Sequence[Dependence]) -> Dependence:
    """The dependence of a value on all that its parts depend on."""
    out: dict[Any, tuple[Along | None, ...]] = {}
    for d in dependences:
        for source, axes in d.items():
            old = out.get(source)
            if old is None or old == axes:
                out[source] = axes
            else:
                out[source] = tuple(map(_meet, old, axes))
    return out


def _meet(a: Along | None, b: Along | None) -> Along | None:
    if a is None or b is None or a.axis != b.axis:
        return None
    return Along(a.axis, max(a.lag, b.lag))


def _moved(d: Dependence, to: Callable[[int], int | None]) -> Dependence:
    """The dependence after axis ``a`` has become axis ``to(a)`` (None: is mixed up)."""

    def move(along: Along | None) -> Along | None:
        if along is None or along.axis < 0:  # the same step
            return along
        axis = to(along.axis)
        return None if axis is None else Along(axis, along.lag)

    return {source: tuple(map(move, axes)) for source, axes in d.items()}


class Dependences(Analysis[Dependence]):
    """The analysis of a program.

    ``is_source`` says whether the draws at a path are a source, known by the path. Draws also
    depend on what the parameters of their distribution depend on; ``parameters`` has that alone.
    Lags are told apart in loops of the program itself, not within other loops or functions. With
    ``ends`` so is what depends on the last step alone (``LAST``, and ``lag`` steps before it).
    """

    nothing = NONE

    def __init__(self, is_source: Callable[[Path], bool], ends: bool = False):
        super().__init__()
        self._is_source = is_source
        self._ends = ends
        self.parameters: dict[Path, Dependence] = {}

    def join(self, values: Sequence[Dependence]) -> Dependence:
        return join(values)

    def equation(
        self, eqn: _jax.JaxprEqn, ins: list[Dependence], at: Place
    ) -> Sequence[Dependence]:
        if isinstance(expect := eqn.params.get("expect"), Expect):
            return [_expectation(expect, ins)] * len(eqn.outvars)
        if not eqn.outvars or not any(ins) or of(eqn).chooses:  # the first: a callback
            return [NONE] * len(eqn.outvars)
        moved = [_moved(d, to) for d, to in zip(ins, axes_of(eqn), strict=True)]
        return [join(moved)] * len(eqn.outvars)

    def branches(
        self, index: Dependence, cases: list[list[Dependence]], at: Place
    ) -> list[Dependence]:
        index = _moved(index, lambda a: None)
        for path, d in self.parameters.items():
            if path[: len(at.path)] == at.path:  # whether it is made at all
                self.parameters[path] = join([d, index])
        return super().branches(index, cases, at)

    def draw(self, site: Site, eqn: _jax.JaxprEqn, ins: list[Dependence], at: Place) -> Dependence:
        avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]  # type: ignore[attr-defined]
        parameters = _of_density(site, avals, ins) if any(ins) else NONE
        if not self._is_source(at.path):
            return parameters
        self.parameters[at.path] = parameters
        steps = tuple(Along(-1 - level) for level in range(at.loops))
        n = len(site.sizes) + len(element_shape(site, avals))
        own: Dependence = {at.path: (*steps, *(Along(a) for a in range(n)))}
        return join([own, parameters])

    def row(self, x: Dependence, at: Place) -> Dependence:
        return _moved(x, lambda a: a - 1 if a else -1 - at.loops)

    def late(self, loop: Loop, carry: Dependence, at: Place) -> Dependence:
        def later(along: Along) -> Along | None:
            lag = min(along.lag + 1, EVER) if at.own else EVER
            return None if loop.reverse else Along(along.axis, lag)

        return _of_step(carry, at, later)

    def last(
        self, loop: Loop, first: list[Dependence], late: list[Dependence], at: Place
    ) -> list[Dependence]:
        def after(along: Along) -> Along | None:
            told = self._ends and at.own and not loop.reverse and along.lag < EVER
            return Along(LAST, along.lag) if told else None

        return [join([_of_step(c, at, after), i]) for c, i in zip(late, first, strict=True)]

    def stacked(self, y: Dependence, at: Place) -> Dependence:
        y = _moved(y, lambda a: a + 1)
        return _of_step(y, at, lambda along: Along(0, along.lag))


def _of_step(d: Dependence, at: Place, to: Callable[[Along], Along | None]) -> Dependence:
    """The dependence with ``to`` what runs along with the steps of a loop."""
    step = -1 - at.loops

    def move(along: Along | None) -> Along | None:
        return along if along is None or along.axis != step else to(along)

    return {source: tuple(map(move, axes)) for source, axes in d.items()}


def _of_density(site: Site, avals: Sequence[Any], ins: list[Dependence]) -> Dependence:
    """What the log densities of the elements of a choice depend on."""

    def log_prob(operands: list[Any], value: Any) -> Any:
        operands, mask = site.live(operands), site.mask(operands)
        log_prob = unmasked(apart(site.rebuild(operands))).log_prob(value)
        return jax.numpy.where(mask, log_prob, 0.0) if site.masked else log_prob

    draw = jax.ShapeDtypeStruct((*site.sizes, *site.shape), site.dtype)
    try:
        closed, consts, _ = _jax.trace(per_element(site.axes, log_prob, 1), avals, draw)
        given = [NONE] * len(consts) + ins + [NONE]
        return Dependences(lambda _: False).run(closed, given)[0]
    except Exception:  # it has no density to look at
        return join([_moved(d, lambda a: None) for d in ins])


def _expectation(expect: Expect, ins: Sequence[Dependence]) -> Dependence:
    """Each element by itself; inside everything meets."""
    parts = []
    for i, d in enumerate(ins):
        place = {}
        for n, axis in enumerate(expect.axes):
            if axis.mapped[i]:
                place[len(place)] = n
        parts.append(_moved(d, lambda a, place=place: place.get(a)))
    return join(parts)
