"""Leaves of a loop that are added up within a step.

A loop stacks its leaves (``terms.py``). Of one that the tail multiplies by constants and adds up
along some of its axes, no element of a choice being told apart along these, it stacks the sums: one
number a step for the log density of an image. The tail is linear, so it may be given the sum in one
place, and 0 in the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from ..estimation.weighted import times
from ..program.choices import Path
from ..program.control import is_loop
from ..program.sums import sum_over
from .tail import Level, Sum, as_float, is_var, read

Axes = frozenset[int]
ToldApart = Callable[[Any, Path], Axes]
"""Along which axes of a variable, of the program at a path, elements of choices are told apart."""
ADDING = frozenset({"add", "add_any", "convert_element_type", "copy", "name", "neg", "sub"})
"""Number by number; of numbers that are added up afterwards the sum is enough."""


def sum_in_loops(level: Level, told_apart: ToldApart) -> None:
    """Say which leaves of a level, and of those in it, are summed along which axes."""
    _Summing(level, (), False, lambda n: frozenset()).run(told_apart)


@dataclasses.dataclass(frozen=True)
class _Summing:
    """A level at a path, maybe ``inside`` a loop; ``beyond`` says along which axes its results are
    added up by the levels around it."""

    level: Level
    path: Path
    inside: bool
    beyond: Callable[[int], Axes]

    def run(self, told_apart: ToldApart) -> None:
        for i, inner in self.level.inner.items():
            outs = [self._eqn(i).outvars[n] for n in self.level.outs[i]]
            loop = is_loop(self._eqn(i))
            beyond = (lambda n: frozenset[int]()) if loop else lambda n: self._added_up(outs[n])
            _Summing(inner, (*self.path, i), self.inside or loop, beyond).run(told_apart)
        if self.inside:
            for v in list(self.level.leaves):
                self._sum(v, told_apart(v, self.path))

    def _sum(self, v: Any, own: Axes) -> None:
        """Say so of a leaf, or of its product with constants, which is the leaf then."""
        level, total, through, factors = self.level, v, list[int](), list[Any]()
        while not (axes := self._added_up(total) - own) and (i := self._scaling(total)) is not None:
            through.append(i)
            factors += [u for u in self._eqn(i).invars if u is not total]
            (total,) = self._eqn(i).outvars
        if not axes:
            return
        level.summed[total] = Sum(v, factors, tuple(sorted(axes)))
        level.leaves[level.leaves.index(v)] = total
        level.tail.difference_update(through)
        used = {v for i in level.tail for v in self._eqn(i).invars if is_var(v)}
        level.constants = [v for v in level.constants if v in used]

    def _scaling(self, v: Any) -> int | None:
        """The equation that multiplies a variable by constants, if nothing else reads it."""
        users = self._users(v)
        alone = len(users) == 1 and users[0] not in self.level.inner and v not in self.level.wanted
        return users[0] if alone and self._eqn(users[0]).primitive.name == "mul" else None

    def _added_up(self, v: Any) -> Axes:
        """The axes along which no more becomes of a variable than that it is added up."""
        parts = [self._by(i, v) for i in self._users(v)]
        parts += [self.beyond(n) for n, w in enumerate(self.level.wanted) if w is v]
        return frozenset(a for a, n in enumerate(v.aval.shape) if n > 1).intersection(*parts)

    def _by(self, i: int, v: Any) -> Axes:
        """As :meth:`_added_up`, if one equation alone reads the variable."""
        eqn = self._eqn(i)
        name, every = eqn.primitive.name, range(v.aval.ndim)
        if name == "reduce_sum":
            here = eqn.params["axes"]
            kept = [a for a in every if a not in here]
            return frozenset(here) | {kept[a] for a in self._added_up(eqn.outvars[0])}
        if name in ADDING:
            return self._added_up(eqn.outvars[0])
        if name not in ("mul", "div"):
            return frozenset()
        (factor,) = (u.aval.shape for u in eqn.invars if u is not v)
        return self._added_up(eqn.outvars[0]) & {a for a in every if not factor or factor[a] == 1}

    def _users(self, v: Any) -> list[int]:
        """The equations of the tail that are linear in a variable."""
        inner = self.level.inner
        enters = lambda i, n: i not in inner or n in inner[i].passed.values()
        reads = lambda i: any(u is v and enters(i, n) for n, u in enumerate(self._eqn(i).invars))
        return [i for i in sorted(self.level.tail) if reads(i)]

    def _eqn(self, i: int) -> Any:
        return self.level.closed.jaxpr.eqns[i]


def sums(level: Level, env: dict[Any, Any]) -> list[jax.Array]:
    """The leaves of a level, those that are summed with axes of size 1."""

    def of(v: Any) -> jax.Array:
        if v not in level.summed:
            return env[v]
        total = level.summed[v]
        x = as_float(env[total.of])
        for c in total.factors:
            x = times(read(env, c), x)
        return lax.expand_dims(sum_over(x, total.axes), total.axes)

    return list(map(of, level.leaves))


__all__ = ["sum_in_loops", "sums"]
