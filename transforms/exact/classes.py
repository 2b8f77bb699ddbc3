"""Which axes of discrete variables run along each other.

Axes of variables that run along each other in the outputs of a program are one *class*. Along a
class the elements take their values in step, since no two of them meet in an output:

- a *plate*, where an output depends on its own element only;
- a *chain*, where it depends on its own element and some before it, as through the carry of a
  ``scan``.

Along any other axis elements are treated jointly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from ..analyses.dependence import EVER, LAST, Dependence
from ..errors import UnsupportedError
from ..estimation.chosen import MAX_JOINT

Digit = tuple[int, int]
"""A variable, by its number, here (0) or so many steps before in its chain."""
Class = int
"""Axes of variables that run along each other, by the number of one of them."""
Who = tuple[str, str]
"""Who enumerates, and what to use instead where that is too much: for messages."""


@dataclasses.dataclass(frozen=True)
class Variable:
    """An array of discrete variables with ``n`` values each; ``name`` is for messages."""

    shape: tuple[int, ...]
    n: int
    name: str


@dataclasses.dataclass
class Plan:
    variables: Sequence[Variable]
    classes: list[list[Class | None]]
    """For each axis of each variable; None where elements are joint."""
    chains: set[Class]
    who: Who
    depth: int = 0
    """How many steps of each chain are tables of their own."""
    summed: frozenset[int] = frozenset()
    """The variables that are summed out already."""

    @property
    def in_step(self) -> list[frozenset[int]]:
        """The axes of each variable along which its elements take their values in step."""
        return [frozenset(e for e, c in enumerate(cs) if c is not None) for cs in self.classes]

    def of(self, i: int) -> frozenset[Class]:
        return frozenset(c for c in self.classes[i] if c is not None)

    def in_chain(self, i: int) -> bool:
        return bool(self.of(i) & self.chains)

    def values(self, i: int) -> int:
        """How many joint values a variable takes."""
        v = self.variables[i]
        met = (m for m, c in zip(v.shape, self.classes[i], strict=True) if c is None)
        return v.n ** math.prod(met)

    def size(self, c: Class) -> int:
        """How many elements there are along a class."""
        i = next(i for i, cs in enumerate(self.classes) if c in cs)
        return class_size(self, i, c)

    def starts(self, c: Class) -> int:
        """How many steps of a chain are tables of their own."""
        return min(self.depth, self.size(c)) if c in self.chains else 0

    def length(self, c: Class) -> int:
        """How many elements there are along a class in a table that is not pinned."""
        return self.size(c) - self.starts(c)

    def signature(self, d: Dependence) -> tuple[frozenset[Digit], frozenset[Class]]:
        """The digits and classes of the table of a term."""
        digits = set()
        classes = set()
        for i, along in d.items():
            lag = 0
            for a, c in zip(along, self.classes[i], strict=True):
                if a is not None and c is not None:
                    lag = max(lag, min(a.lag, class_size(self, i, c) - 1))
                    if a.axis != LAST:
                        classes.add(c)
            digits.update((i, n) for n in range(lag + 1))
        return frozenset(digits), frozenset(classes)

    def ends(self, d: Dependence) -> frozenset[Class]:
        """The chains of whose last steps alone a term depends."""
        return frozenset(
            c
            for i, along in d.items()
            for a, c in zip(along, self.classes[i], strict=True)
            if a is not None and c is not None and a.axis == LAST
        )


def _many(n: int) -> str:
    return f"{n:,}" if n < 10**15 else f"about 10^{math.log10(n):.0f}"


def plan_of(
    variables: Sequence[Variable],
    terms: Sequence[Dependence],
    clashes: Callable[[Plan], set[tuple[int, int]]] = lambda _: set(),
    *,
    who: Who,
) -> Plan:
    """The classes of the axes. ``clashes`` says which axes must be joint for what comes next."""
    joint = {
        (i, e)
        for d in terms
        for i, along in d.items()
        for e, a in enumerate(along)
        if a is None or a.lag >= EVER
    }
    while True:
        plan, clash = _classes(variables, terms, joint, who)
        clash = clash or clashes(plan)
        if not clash:
            break
        joint |= clash
    return plan


def check_size(plan: Plan, digits: Iterable[Digit], order: Sequence[int] = ()) -> None:
    """Refuse a table over too many joint values, that arises after ``order`` was summed out."""
    total = math.prod(plan.values(i) for i, _ in digits)
    if total <= MAX_JOINT:
        return
    who, instead = plan.who
    names = [plan.variables[i].name.partition(" at ")[0] for i in order]
    shown = ", ".join(names if len(names) <= 12 else [*names[:6], "...", *names[-3:]])
    found = f" in the best order found ({shown} summed out before)" if order else ""
    raise UnsupportedError(
        f"{who} needs too many joint values ({_many(total)}; at most {MAX_JOINT:,}), since "
        f"these meet{found}: {', '.join(_sizes(plan, digits))}. Let each element touch only "
        "itself (a plate, jax.vmap), a few at places that are constants (z[parents] of a plate), "
        "or the few before it (a chain, jax.lax.scan whose carry is the last choices), or "
        f"{instead}."
    )


def _sizes(plan: Plan, digits: Iterable[Digit]) -> list[str]:
    parts = []
    for i, late in sorted(digits):
        v = plan.variables[i]
        met = [n for n, c in zip(v.shape, plan.classes[i], strict=True) if c is None]
        count = f"{v.n}**{math.prod(met)}" if met else str(v.n)
        before = f", of {late} step{'s' * (late > 1)} before" if late else ""
        parts.append(f"{v.name} ({count} values{before})")
    return parts


def _classes(
    variables: Sequence[Variable],
    terms: Sequence[Dependence],
    joint: set[tuple[int, int]],
    who: Who,
) -> tuple[Plan, set[tuple[int, int]]]:
    """The classes of axes that run along each other; axes that run along in two ways."""
    axes = [(i, e) for i, v in enumerate(variables) for e in range(len(v.shape))]
    parent = {a: a for a in axes if a not in joint}

    def root(a: tuple[int, int]) -> tuple[int, int]:
        while parent[a] != a:
            a = parent[a]
        return a

    for d in terms:
        first: dict[int, tuple[int, int]] = {}
        for i, along in d.items():
            for e, a in enumerate(along):
                if a is not None and (i, e) in parent and a.axis != LAST:
                    at = first.setdefault(a.axis, (i, e))
                    parent[root((i, e))] = root(at)
    clash: set[tuple[int, int]] = set()
    chains = set()
    for d in terms:
        at_axis: dict[tuple[int, int], int] = {}
        for i, along in d.items():
            mine: set[tuple[int, int]] = set()
            for e, a in enumerate(along):
                if a is None or (i, e) not in parent:
                    continue
                if root((i, e)) in mine:  # a diagonal
                    clash.add((i, e))
                mine.add(root((i, e)))
                if at_axis.setdefault(root((i, e)), a.axis) != a.axis:
                    clash |= {x for x in parent if root(x) == root((i, e))}
                if a.lag or a.axis == LAST:
                    chains.add(root((i, e)))
    number = {r: n for n, r in enumerate(sorted({root(a) for a in parent}))}
    classes: list[list[Class | None]] = [
        [number[root((i, e))] if (i, e) in parent else None for e in range(len(v.shape))]
        for i, v in enumerate(variables)
    ]
    plan = Plan(variables, classes, {number[r] for r in chains}, who)
    lags = (lag + bool(plan.ends(d)) for d in terms for _, lag in plan.signature(d)[0])
    plan.depth = max([1, *lags]) if chains else 0
    return plan, clash


def class_size(plan: Plan, i: int, c: Class) -> int:
    return plan.variables[i].shape[plan.classes[i].index(c)]


__all__ = ["Class", "Digit", "Plan", "Variable", "Who", "check_size", "class_size", "plan_of"]
