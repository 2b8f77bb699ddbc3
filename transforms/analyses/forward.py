"""Abstract interpretation: what is known of the values of a program, from inputs to outputs.

An :class:`Analysis` says what an equation makes of what is known of its operands. How programs are
run inside of others is known here, once for all analyses: an analysis of counts, say, is

    class Counts(Analysis[int]):
        nothing = 0
        def equation(self, eqn, ins, at): return [max(ins, default=0) + 1] * len(eqn.outvars)
        def join(self, values): return max(values)

which goes into functions and branches, and around loops until nothing changes.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from .. import _jax
from ..program.choices import Path
from ..program.control import Branches, Control, Loop, Until, Whole, control
from ..program.site import Site

V = TypeVar("V")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an equation stands: its path, how many loops are around it, and whether those are loops
    of the program itself (not within other loops, branches, or functions but ``jit``)."""

    path: Path = ()
    loops: int = 0
    own: bool = True

    def below(self, *path: int, loops: int = 0, own: bool = True) -> Place:
        return Place((*self.path, *path), self.loops + loops, self.own and own)


class Analysis(abc.ABC, Generic[V]):
    """What is known of values. ``seen`` has that of the variables of each program, by its path, as
    it was when the program was gone through last."""

    nothing: V
    """Known of what nothing is known of."""

    def __init__(self) -> None:
        self.seen: dict[Path, Mapping[Any, V]] = {}

    @abc.abstractmethod
    def equation(self, eqn: _jax.JaxprEqn, ins: list[V], at: Place) -> Sequence[V]:
        """Of the results of an equation."""

    @abc.abstractmethod
    def join(self, values: Sequence[V]) -> V:
        """Of a value that is one of several."""

    def draw(self, site: Site, eqn: _jax.JaxprEqn, ins: list[V], at: Place) -> V:
        """Of the draws of a choice."""
        return self.equation(eqn, ins, at)[0]

    def constant(self, x: Any) -> V:
        return self.nothing

    def enters(self, inside: Control) -> bool:
        """Whether a program is looked into; else an equation that runs it is as any other."""
        return not isinstance(inside, Until)

    def branches(self, index: V, cases: list[list[V]], at: Place) -> list[V]:
        """Of the results of one of several programs."""
        return [self.join([index, *outs]) for outs in zip(*cases, strict=True)]

    def row(self, x: V, at: Place) -> V:
        """Of the part of an operand that one step of a loop has."""
        return x

    def carried(self, loop: Loop, first: list[V], carry: list[V], late: list[V], n: int) -> list[V]:
        """Of carries in any step, if it was ``carry`` and a step has made that ``late``, the n-th
        time; it is ``first`` when the loop begins."""
        return [self.join([c, o]) for c, o in zip(carry, late, strict=True)]

    def late(self, loop: Loop, carry: V, at: Place) -> V:
        """Of the carry that a step returns, in the next step."""
        return carry

    def last(self, loop: Loop, first: list[V], late: list[V], at: Place) -> list[V]:
        """Of the carries that a loop returns."""
        return late

    def stacked(self, y: V, at: Place) -> V:
        """Of the outputs of all steps."""
        return y

    # --- the engine ---------------------------------------------------------------------------

    def run(self, closed: _jax.ClosedJaxpr, ins: Sequence[V], at: Place = Place()) -> list[V]:
        """What is known of the outputs of a program, given what is of its inputs."""
        env = self.variables(closed, ins, at)
        return [self.read(env, v) for v in closed.jaxpr.outvars]

    def variables(
        self, closed: _jax.ClosedJaxpr, ins: Sequence[V], at: Place = Place()
    ) -> dict[Any, V]:
        """What is known of each variable."""
        jaxpr = closed.jaxpr
        env: dict[Any, V] = dict(zip(jaxpr.invars, ins, strict=True))
        env.update(zip(jaxpr.constvars, map(self.constant, closed.consts), strict=True))
        for i, eqn in enumerate(jaxpr.eqns):
            given = [self.read(env, v) for v in eqn.invars]
            env.update(zip(eqn.outvars, self._results(eqn, given, at.below(i)), strict=True))
        self.seen[at.path] = env
        return env

    def read(self, env: Mapping[Any, V], v: Any) -> V:
        return env[v] if isinstance(v, _jax.Var) else self.constant(v.val)

    def _results(self, eqn: _jax.JaxprEqn, ins: list[V], at: Place) -> Sequence[V]:
        site = eqn.params.get("site")
        if isinstance(site, Site):
            return [self.draw(site, eqn, ins, at)]
        inside = control(eqn)
        if inside is None or not self.enters(inside):
            return self.equation(eqn, ins, at)
        if isinstance(inside, Whole):
            own = inside.call is not None or eqn.primitive is _jax.jit_p
            return inside.results(self.run(inside.program, ins, at.below(own=own)))
        if isinstance(inside, Branches):
            programs = enumerate(inside.programs)
            cases = [self.run(p, ins[1:], at.below(b, own=False)) for b, p in programs]
            return self.branches(ins[0], cases, at)
        assert isinstance(inside, Loop), f"{eqn.primitive} is not looked into"
        return self._loop(inside, ins, at)

    def _loop(self, loop: Loop, ins: list[V], at: Place) -> list[V]:
        consts, first, rows = loop.operands(ins)
        rows = [self.row(x, at) for x in rows]
        carry = first
        for n in itertools.count():
            inside = at.below(loops=1, own=False)
            carries, ys = loop.results(self.run(loop.body, [*consts, *carry, *rows], inside))
            new = self.carried(loop, first, carry, [self.late(loop, c, at) for c in carries], n)
            if new == carry:
                break
            carry = new
        return [*self.last(loop, first, carries, at), *(self.stacked(y, at) for y in ys)]
