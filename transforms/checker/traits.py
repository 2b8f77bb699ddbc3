"""What the soundness checker knows of a value, and how equations pass it on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from ..analyses import primitives
from ..estimation.inside import support_of
from ..program import marks
from ..program.flat import Flat, Op
from .outside import NOWHERE, Outside

Source = tuple[str, Any]
"""``("input", number)`` of the objective, or ``("site", (scope, path))``."""


class Value(NamedTuple):
    """What is known of a value; see the module docstring."""

    sources: frozenset[Source] = frozenset()
    faults: frozenset[Fault] = frozenset()
    drawn: frozenset[Source] = frozenset()
    estimates: frozenset[Estimate] = frozenset()
    outside: Outside = NOWHERE


CONSTANT = Value()


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The mean of ``draws`` draws of an expectation, known by the identity of its program; without
    draws, a density whose value is not known."""

    program: int
    draws: int
    earlier: bool = False


UNSMOOTH = ("nonlinear", "plug-in", "unknown", "unvalued", "score", "through")
"""Kinds of faults that no evaluation takes away."""


def nonlinear(estimates: frozenset[Estimate]) -> str:
    """What a function of estimates is that is not linear: a plug-in, if all of them are means that
    the user asked for."""
    if any(e.draws == 0 for e in estimates):
        return "unknown"
    return "plug-in" if all(e.draws > 1 for e in estimates) else "nonlinear"


@dataclasses.dataclass(eq=False)
class Fault:
    """A place at which smooth dependence is lost; ``sources`` are those that were lost there."""

    kind: str
    flat: Flat
    index: int
    sources: set[Source] = dataclasses.field(default_factory=set)
    drawn: set[Source] = dataclasses.field(default_factory=set)
    suspect: bool = False
    """It is none unless it is seen to jump."""

    @property
    def op(self) -> Op:
        return self.flat.ops[self.index]

    def matters(self, wanted: frozenset[Source], labels: bool) -> bool:
        """Whether it makes the derivative in some sources wrong; or is to be told, with ``labels``,
        since it is no mistake."""
        if self.kind in UNSMOOTH and self.kind not in ("score", "through"):
            return labels or self.kind in ("nonlinear", "unknown")
        return not wanted.isdisjoint(self.sources) and (bool(self.drawn) or self.kind != "jump")

    @property
    def at(self) -> tuple[Flat, int, str]:
        """What stays the same from one sweep to the next."""
        return self.flat, self.index, self.kind


Values = list[Value]


def join(values: Sequence[Value]) -> Value:
    tainted = [v for v in values if v != CONSTANT]
    if not tainted:
        return CONSTANT
    if len(tainted) == 1:
        return tainted[0]
    none: frozenset[Any] = frozenset()
    return Value(*(none.union(*parts) for parts in zip(*tainted, strict=True)))


def drawn_by(op: Op) -> frozenset[Source]:
    return frozenset({("key", None)}) if primitives.named(op.name).random else frozenset()


def of_last_step(value: Value) -> Value:
    """Draws of expectations in the last step of a loop are independent of those in this one."""
    earlier = frozenset(dataclasses.replace(e, earlier=True) for e in value.estimates)
    return value._replace(estimates=earlier)


def is_circular(d: Any) -> bool:
    """Whether the draws of a distribution are angles."""
    return type(support_of(d)).__name__ == "_Circular"


def is_lookup(flat: Flat, op: Op) -> bool:
    """Whether an equation is a loop of a library function with whole results: one jump."""
    whole = all(not jnp.issubdtype(flat.avals[v].dtype, jnp.inexact) for v in op.outs)
    return op.name == "scan" and bool(op.within) and whole


def is_linear(op: Op, args: Sequence[Value]) -> bool:
    """Whether an equation is linear in the draws of expectations among its operands."""
    which = [j for j, a in enumerate(args) if a.estimates]
    of_density = marks.is_smooth(op.stack) and any(
        e.draws for j in which for e in args[j].estimates
    )
    if not primitives.named(op.name).linear or of_density:
        return False
    if op.name == "select_n":
        return 0 not in which
    if op.name == "div":
        return 1 not in which
    if op.name in ("mul", "dot_general", "conv_general_dilated") and len(which) == 2:
        return args[0].estimates.isdisjoint(args[1].estimates)
    return True


def is_smooth(flat: Flat, v: int) -> bool:
    """Whether a variable is of a type that can move a little."""
    return jnp.issubdtype(flat.avals[v].dtype, jnp.inexact)


def jumps_of(flat: Flat, op: Op) -> list[bool]:
    """Of each result, whether it can jump for all that is known of the primitive."""
    jumps = [primitives.named(op.name).jumps or not is_smooth(flat, v) for v in op.outs]
    jumps[1:] = [j or op.name == "sort" for j in jumps[1:]]  # what is sorted along with keys
    return [j or primitives.of(op.eqn).signs for j in jumps]
