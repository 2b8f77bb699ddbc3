"""The payoffs of continued choices: the sum of the terms that depend on them, by rows of replays.

A term is weighed once for all choices that it depends on, and sums are added up for all of them at
once, so that they are as long as the terms, not as the terms times the choices.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..analyses.dependence import Along, Dependence
from ..estimation.estimator import Enumerated
from ..estimation.weighted import times
from ..plan.layout import Elements, Layout, laws, onto
from ..program.choices import Path
from ..program.interpret import Record
from ..program.sums import sum_over
from .beside import Rows, Sizes, over_rows
from .local import across_steps, elementwise, in_step
from .reach import Replays


@dataclasses.dataclass(frozen=True)
class _Group:
    """Terms that depend on the same, of which some axes are summed up."""

    terms: tuple[int, ...]
    axes: tuple[int, ...]
    dependence: Dependence
    share: float


class Payoffs:
    """The payoff of a choice has an axis for each of its elements that are apart, if the estimator
    can use that: of steps of loops, if it has them as a *whole*."""

    def __init__(self, layout: Layout, sites: Sequence[Elements]) -> None:
        self._layout, self._sites = layout, sites
        self._groups = list(_groups(layout))
        self.points = layout.points(layout.everywhere)
        """How many joint values of enumerated choices all of it is computed for."""
        self._keep = [_kept(s) for s in sites]
        self.shapes = [
            tuple(n for n, k in zip(s.shape, keep, strict=True) if k)
            for s, keep in zip(sites, self._keep, strict=True)
        ]
        self.enumerated = [s.path for s in layout.of(Enumerated)]
        paths = {p for g in self._groups for p in g.dependence}
        self.counted = [i for i, s in enumerate(sites) if s.path in paths and math.prod(s.shape)]
        """The choices that a term depends on, without those of no elements."""

    def of(
        self,
        sizes: Sizes,
        terms: Sequence[jax.Array],
        common: Record,
        replayed: Sequence[Rows | None],
        made: Mapping[Path, Rows],
    ) -> dict[int, jax.Array]:
        """``[rows, ...]`` of each replay, from the terms and what is recorded of enumerated choices
        in the first run and in the replays."""
        parts: dict[tuple[int, ...], list[Rows]] = {}
        for group in self._groups:
            for alike in self._alike(group, sizes.all):
                part = self._part(group, alike, sizes, terms, common, replayed, made)
                parts.setdefault(self.shapes[alike[0]], []).append(part)
        sums = {shape: _added(found, sizes) for shape, found in parts.items()}
        return {
            i: sizes.onto(next(r for r in sums[self.shapes[i]] if r.replays >> i & 1), 1 << i, 0.0)
            for i in self.counted
            if sizes.all >> i & 1
        }

    def of_first_run(self, terms: Sequence[jax.Array], made: Record) -> dict[int, jax.Array]:
        """Of the values that were drawn."""
        sizes = Sizes(dict.fromkeys(self.counted, 1))
        found = self.of(sizes, terms, made, [None] * len(terms), {})
        return {i: jnp.squeeze(p, 0) for i, p in found.items()}

    def _alike(self, group: _Group, among: Replays) -> list[list[int]]:
        """The choices that terms depend on, those together that do alike."""
        found: dict[Any, list[int]] = {}
        for i in self.counted:
            along = group.dependence.get(self._sites[i].path)
            if along is None or not among >> i & 1:
                continue
            kept = tuple(a for a, k in zip(along, self._keep[i], strict=True) if k)
            found.setdefault((self._keep[i], self.shapes[i], kept), []).append(i)
        return list(found.values())

    def _part(
        self,
        group: _Group,
        alike: Sequence[int],
        sizes: Sizes,
        terms: Sequence[jax.Array],
        common: Record,
        replayed: Sequence[Rows | None],
        made: Mapping[Path, Rows],
    ) -> Rows:
        """What terms add to the payoffs of choices that they depend on alike."""
        replays = sum(1 << i for i in alike)
        enumerated = [p for p in self.enumerated if p in group.dependence]
        known = [*(terms[i] for i in group.terms), *(common[p] for p in enumerated)]
        rows = [*(replayed[i] for i in group.terms), *map(made.get, enumerated)]
        has = [r is not None and bool(r.replays & replays) for r in rows]

        def spread(r: Rows | None, x: Any) -> Any:
            if r is None or not r.replays & replays:
                return x
            rows_of = lambda a, b: sizes.onto(Rows(r.replays, a), replays, b)
            return jax.tree.map(rows_of, r.values, x)

        args = list(map(spread, rows, known))
        first, n = alike[0], sizes.of(replays)

        def weighted(*args: Any) -> jax.Array:
            parts = [sum_over(t, group.axes) for t in args[: len(group.terms)]]
            t = sum(parts[1:], parts[0])
            factors = laws(self._layout, dict(zip(enumerated, args[len(parts) :], strict=True)))
            t = times(self._layout.law(group.dependence, t.ndim, factors), t)
            t = t if group.share == 1.0 else group.share * t
            along = group.dependence[self._sites[first].path]
            return onto(t, along, self._keep[first]).reshape(self.shapes[first])

        if not any(has):
            part = weighted(*args)
            return Rows(replays, jnp.broadcast_to(part, (n, *part.shape)))
        return Rows(replays, over_rows(weighted, n, args, has))


def _groups(layout: Layout) -> list[_Group]:
    found: dict[Any, list[int]] = {}
    for i, (d, out) in enumerate(zip(layout.terms, layout.program.out_avals, strict=False)):
        used = sorted({a.axis for along in d.values() for a in along if a is not None})
        axes = tuple(a for a in range(len(out.shape)) if a not in used)
        shape = tuple(out.shape[a] for a in used)
        found.setdefault((tuple(sorted(d.items())), axes, shape), []).append(i)
    groups = []
    for (_, axes, _), terms in found.items():
        d = layout.terms[terms[0]]
        used = sorted({a.axis for along in d.values() for a in along if a is not None})
        placed = {p: tuple(a and Along(used.index(a.axis), a.lag) for a in e) for p, e in d.items()}
        share = layout.points(layout.on_grid(d)) / layout.points(layout.everywhere)
        groups.append(_Group(tuple(terms), axes, placed, share))
    return groups


def _kept(s: Elements) -> tuple[bool, ...]:
    whole = in_step(s) or across_steps(s)
    return tuple(elementwise(s) and a and (whole or i >= s.loops) for i, a in enumerate(s.apart))


def _added(parts: Sequence[Rows], sizes: Sizes) -> list[Rows]:
    """Their sums: of parts that share replays one, with the replays of all of them."""
    found: list[Rows] = []
    for part in sorted(parts, key=lambda part: part.replays.bit_count()):
        meeting = [r for r in found if r.replays & part.replays]
        found = [r for r in found if not r.replays & part.replays]
        for other in meeting:
            union = part.replays | other.replays
            one, two = (
                sizes.onto(r, union, jnp.zeros(r.values.shape[1:], r.values.dtype))
                for r in (part, other)
            )
            part = Rows(union, one + two)
        found.append(part)
    return found


__all__ = ["Payoffs"]
