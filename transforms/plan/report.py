"""How the choices of a scope are treated, for people to read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..errors import Address
from ..estimation.chosen import Chosen, support_size
from ..estimation.estimator import Enumerated
from ..program.choices import Path
from .layout import Layout


@dataclasses.dataclass(frozen=True)
class Use:
    """What depends on a choice.

    ``terms`` are the lines of the terms of the payoff that do, ``total`` how many terms there are.
    ``values`` is how many joint values are enumerated: ``at`` each step of a chain, or each number
    of a term that elements are read for.
    """

    terms: tuple[str, ...]
    total: int
    values: int = 1
    at: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What depends on each choice (by its path), and which enumerated choices meet in a term, with
    the number of their joint values."""

    uses: dict[Path, Use]
    groups: tuple[tuple[tuple[Address, ...], int], ...]


def plan(layout: Layout, chosen: Sequence[Chosen]) -> Plan:
    """The plan of a scope with these choices."""
    summed = {id(s.chosen.choice.random) for s in layout.summed}
    uses: dict[Path, Use] = {}
    rest = [s for s in chosen if id(s.choice.random) not in summed]
    for s, chain, largest in layout.summed:
        if not isinstance(s.estimator, Enumerated):  # nothing reads it
            continue
        values = support_size(s.choice, s.estimator) ** 2 if chain else largest
        uses[s.choice.path] = Use((), len(layout.terms), values, "step" if chain else "number")
    for s, path in zip(rest, layout.chosen, strict=True):
        if path not in layout.sites:
            continue
        lines = tuple(line for line, d in zip(layout.lines, layout.terms, strict=True) if path in d)
        enumerated = isinstance(s.estimator, Enumerated)
        values = layout.joint(frozenset({path})) if enumerated else 1
        uses[s.choice.path] = Use(lines, len(layout.terms), values)
    return Plan(uses, _groups(layout))


def _groups(layout: Layout) -> tuple[tuple[tuple[Address, ...], int], ...]:
    grids = {layout.together(d) for d in layout.terms}
    largest = [g for g in grids if len(g) > 1 and not any(g < other for other in grids)]
    return tuple(
        (
            tuple(layout.sites[p].chosen.choice.address for p in sorted(g)),
            layout.joint(g),
        )
        for g in sorted(largest, key=sorted)
    )
