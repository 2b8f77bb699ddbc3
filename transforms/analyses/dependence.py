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
from ..program.choices import INLINED, Path, remat_jaxpr
from ..program.site import Body, Call, Densities, Expect, Site, per_element
from .primitives import axes_of

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


class Dependences:
    """The analysis of a program.

    ``is_source`` says whether the draws at a path are a source, known by the path. Draws also
    depend on what the parameters of their distribution depend on; ``parameters`` has that alone.
    ``seen`` has the variables of each program inside, by its path.
    Lags are told apart in loops of the program itself, not within other loops or functions. With
    ``ends`` so is what depends on the last step alone (``LAST``, and ``lag`` steps before it).
    """

    def __init__(self, is_source: Callable[[Path], bool], ends: bool = False):
        self._is_source = is_source
        self._ends = ends
        self._depth = 0
        self.parameters: dict[Path, Dependence] = {}
        self.seen: dict[Path, Mapping[Any, Dependence]] = {}

    def run(
        self,
        closed: _jax.ClosedJaxpr,
        args: Sequence[Dependence],
        path: Path = (),
        loops: int = 0,
    ) -> list[Dependence]:
        """What the outputs depend on, given what the inputs do."""
        env = self.variables(closed, args, path, loops)
        return [NONE if isinstance(v, _jax.Literal) else env[v] for v in closed.jaxpr.outvars]

    def variables(
        self,
        closed: _jax.ClosedJaxpr,
        args: Sequence[Dependence],
        path: Path = (),
        loops: int = 0,
    ) -> dict[Any, Dependence]:
        """What each variable depends on, given what the inputs do."""
        jaxpr = closed.jaxpr
        env: dict[Any, Dependence] = dict.fromkeys(jaxpr.constvars, NONE)
        env.update(zip(jaxpr.invars, args, strict=True))

        def read(v: Any) -> Dependence:
            return NONE if isinstance(v, _jax.Literal) else env[v]

        for i, eqn in enumerate(jaxpr.eqns):
            outs = self._equation(eqn, [read(v) for v in eqn.invars], (*path, i), loops)
            env.update(zip(eqn.outvars, outs, strict=True))
        self.seen[path] = env
        return env

    def _equation(
        self, eqn: _jax.JaxprEqn, ins: list[Dependence], path: Path, loops: int
    ) -> Sequence[Dependence]:
        p = eqn.primitive
        if "site" in eqn.params and isinstance(eqn.params["site"], Site):
            return [self._site(eqn, ins, path, loops)]
        if "call" in eqn.params and isinstance(eqn.params["call"], Call):
            program = eqn.params["call"].program
            if isinstance(program, Body):
                return self.run(program.jaxpr, ins, path, loops)
            assert isinstance(program, Densities)
            return self.run(program.simulate, ins, path, loops)[: program.n_retval]
        if "expect" in eqn.params and isinstance(eqn.params["expect"], Expect):
            return [_expectation(eqn.params["expect"], ins)] * len(eqn.outvars)
        if not any(ins) and p not in _HOLDING:
            return [NONE] * len(eqn.outvars)
        if p is _jax.scan_p:
            return self._scan(eqn, ins, path, loops)
        if p is _jax.cond_p:
            index, *rest = ins
            branches = enumerate(eqn.params["branches"])
            cases = [self._within(b, rest, (*path, n), loops) for n, b in branches]
            index = _moved(index, lambda a: None)
            for at, d in self.parameters.items():
                if at[: len(path)] == path:  # whether it is made at all
                    self.parameters[at] = join([d, index])
            return [join([index, *outs]) for outs in zip(*cases, strict=True)]
        inner = called(eqn)
        if inner is not None:
            run = self.run if p is _jax.jit_p else self._within
            return run(inner, ins, path, loops)
        if not eqn.outvars:  # a callback
            return []
        return [join([_moved(d, to) for d, to in zip(ins, axes_of(eqn), strict=True)])] * len(
            eqn.outvars
        )

    def _within(
        self, closed: _jax.ClosedJaxpr, args: Sequence[Dependence], path: Path, loops: int
    ) -> list[Dependence]:
        self._depth += 1
        outs = self.run(closed, args, path, loops)
        self._depth -= 1
        return outs

    def _site(
        self, eqn: _jax.JaxprEqn, ins: list[Dependence], path: Path, loops: int
    ) -> Dependence:
        site: Site = eqn.params["site"]
        avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]  # type: ignore[attr-defined]
        parameters = NONE
        if any(ins):

            def log_prob(operands: list[Any], value: Any) -> Any:
                operands, mask = site.live(operands), site.mask(operands)
                log_prob = unmasked(apart(site.rebuild(operands))).log_prob(value)
                return jax.numpy.where(mask, log_prob, 0.0) if site.masked else log_prob

            draw = jax.ShapeDtypeStruct((*site.sizes, *site.shape), site.dtype)
            try:
                closed, consts, _ = _jax.trace(per_element(site.axes, log_prob, 1), avals, draw)
                given = [NONE] * len(consts) + ins + [NONE]
                parameters = Dependences(lambda _: False).run(closed, given)[0]
            except Exception:  # it has no density to look at
                parameters = join([_moved(d, lambda a: None) for d in ins])
        if not self._is_source(path):
            return parameters
        self.parameters[path] = parameters
        steps = tuple(Along(-1 - level) for level in range(loops))
        n = len(site.sizes) + len(element_shape(site, avals))
        own: Dependence = {path: (*steps, *(Along(a) for a in range(n)))}
        return join([own, parameters])

    def _scan(
        self, eqn: _jax.JaxprEqn, ins: list[Dependence], path: Path, loops: int
    ) -> Sequence[Dependence]:
        n_consts, n_carry = _jax.scan_layout(eqn)
        step, body = -1 - loops, eqn.params["jaxpr"]
        consts, carry, xs = (
            ins[:n_consts],
            ins[n_consts : n_consts + n_carry],
            ins[n_consts + n_carry :],
        )
        rows = [_moved(x, lambda a: a - 1 if a else step) for x in xs]
        backwards = eqn.params["reverse"]

        def later(along: Along | None) -> Along | None:
            if along is None or along.axis != step:
                return along
            lag = EVER if self._depth else min(along.lag + 1, EVER)
            return None if backwards else Along(step, lag)

        def after(along: Along | None) -> Along | None:
            if along is None or along.axis != step:
                return along
            told = self._ends and not self._depth and not backwards and along.lag < EVER
            return Along(LAST, along.lag) if told else None

        while True:
            outs = self._within(body, [*consts, *carry, *rows], path, loops + 1)
            late = [{s: tuple(map(later, a)) for s, a in o.items()} for o in outs[:n_carry]]
            new = [join([c, o]) for c, o in zip(carry, late, strict=True)]
            if new == list(carry):
                break
            carry = new
        last = [{s: tuple(map(after, a)) for s, a in c.items()} for c in outs[:n_carry]]
        last = [join([c, i]) for c, i in zip(last, ins[n_consts : n_consts + n_carry], strict=True)]

        def stacked(along: Along | None) -> Along | None:
            if along is None or (along.axis < 0 and along.axis != step):
                return along
            return Along(along.axis + 1 if along.axis >= 0 else 0, along.lag)

        ys = [{s: tuple(map(stacked, a)) for s, a in o.items()} for o in outs[n_carry:]]
        return [*last, *ys]


def called(eqn: _jax.JaxprEqn) -> _jax.ClosedJaxpr | None:
    """The program that an equation runs as it is, on its own operands."""
    if eqn.primitive in INLINED:
        return eqn.params[INLINED[eqn.primitive]]
    if eqn.primitive is _jax.remat_p:
        return remat_jaxpr(eqn)
    return None


_HOLDING = {_jax.scan_p, _jax.cond_p, _jax.remat_p, *INLINED}
"""These may hold choices of their own."""


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
