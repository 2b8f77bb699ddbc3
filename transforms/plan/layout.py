"""Which terms of a scope depend on which elements of which choices, and what follows from it.

The *elements* of a choice are numbered by the axes (steps of the loops around it, ``vmap``\\ s
around it, batch dimensions of its distribution). An axis along which no two elements of a choice
meet in one element of a term is *apart*: there enumerated values are taken in step, and
alternatives of measure-valued derivatives replaced all at once. Along the other axes elements are
treated jointly.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jax
from ..analyses.dependence import Along, Dependence
from ..estimation.chosen import MAX_JOINT, Chosen, support_size
from ..estimation.estimator import Enumerated
from ..exact.grid import over_axes
from ..program.choices import Path
from ..program.interpret import Record
from ..program.sums import sum_over

Grid = frozenset[int]
"""The axes of the enumeration that something depends on."""


@dataclasses.dataclass(frozen=True)
class Elements:
    """A choice whose elements are told apart: the shape of its elements, which of the axes are
    apart, and what its distribution depends on (with axes of the elements)."""

    chosen: Chosen
    shape: tuple[int, ...]
    apart: tuple[bool, ...]
    parameters: Dependence = dataclasses.field(default_factory=dict)
    own: float = 0.0
    """How often the log density of the draw is a term: the derivative of that alone has mean 0."""

    @property
    def path(self) -> Path:
        return self.chosen.choice.path

    @property
    def loops(self) -> int:
        """How many of the axes are steps of loops."""
        return len(self.chosen.choice.lengths)

    @property
    def stepwise(self) -> bool:
        """Whether the steps of the loops around it are enumerated one by one."""
        return not all(self.apart[: self.loops])

    @functools.cached_property
    def support(self) -> int:
        """How many values an element has."""
        assert isinstance(self.chosen.estimator, Enumerated)
        return support_size(self.chosen.choice, self.chosen.estimator)

    @functools.cached_property
    def values(self) -> int:
        """How many joint values are enumerated, in one step of a loop if ``stepwise``."""
        axes = zip(self.shape[self.loops :], self.apart[self.loops :], strict=True)
        return self.support ** math.prod(n for n, apart in axes if not apart)

    @property
    def instances(self) -> int:
        """How many times that: once for each step if ``stepwise``."""
        return math.prod(self.shape[: self.loops]) if self.stepwise else 1

    def only_apart(self, along: Sequence[Along | None]) -> list[Along | None]:
        """Where the axes that are apart run along."""
        return [a if apart else None for a, apart in zip(along, self.apart, strict=True)]

    def met(self, x: jax.Array, reduce: Callable[..., jax.Array]) -> jax.Array:
        """``x``, of an element each, reduced over the axes that are not apart (they stay)."""
        axes = tuple(i for i, a in enumerate(self.apart) if not a)
        return reduce(x, axis=axes, keepdims=True) if axes else x


class Summed(NamedTuple):
    """A choice that was summed out beforehand, along a chain or by what is read of it, and how many
    joint values its elements have in a term, at each step or number."""

    chosen: Chosen
    chain: bool
    values: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """A scope, rewritten to return its terms, and what they depend on."""

    program: _jax.ClosedJaxpr
    terms: tuple[Dependence, ...]
    others: tuple[Dependence, ...]
    """Of the other outputs, which are averaged."""
    chosen: Mapping[Path, Chosen]
    sites: Mapping[Path, Elements]
    """The choices that terms are told apart by: enumerated, scored, or continued."""
    lines: tuple[str, ...] = ()
    """The line of the user's code of each term."""
    summed: tuple[Summed, ...] = ()
    """The choices that were summed out beforehand, and those that nothing read and are gone."""

    @property
    def outputs(self) -> tuple[Dependence, ...]:
        """What all outputs depend on."""
        return (*self.terms, *self.others)

    def of(self, kind: type) -> list[Elements]:
        """The choices with an estimator of a kind."""
        if kind not in self._kinds:
            found = [s for s in self.sites.values() if isinstance(s.chosen.estimator, kind)]
            self._kinds[kind] = found
        return self._kinds[kind]

    @functools.cached_property
    def _kinds(self) -> dict[type, list[Elements]]:
        return {}

    @functools.cached_property
    def _enumerated(self) -> frozenset[Path]:
        return frozenset(s.path for s in self.of(Enumerated))

    @functools.cached_property
    def _axes(self) -> tuple[list[int], dict[Path, tuple[int, ...]]]:
        """The axes of the enumeration, each by how many values it has, and which of them are those
        of a choice: one, or one for each step.

        Choices of as many values share an axis, and take their values in step, where nothing
        depends on both.
        """
        enumerated = {s.path: s for s in self.of(Enumerated)}
        others = [d for d in self.others if self.joint(self.together(d)) <= MAX_JOINT]
        parameters = [s.parameters for s in self.sites.values()]
        meetings = {self.together(d) for d in (*self.terms, *others, *parameters)}
        met: dict[Path, set[Path]] = {p: {p} for p in enumerated}
        for together in meetings:
            for p in together:
                met[p] |= together
        sizes: list[int] = []
        found: dict[Path, tuple[int, ...]] = {}
        for path, s in enumerated.items():
            taken = {axis for p in met[path] if p in found for axis in found[p]}
            free = [i for i, n in enumerate(sizes) if n == s.values and i not in taken]
            more = range(len(sizes), len(sizes) + max(s.instances - len(free), 0))
            sizes += [s.values] * len(more)
            found[path] = tuple([*free, *more][: s.instances])
        return sizes, found

    @property
    def grid(self) -> list[int]:
        """How many values each axis of the enumeration has."""
        return self._axes[0]

    def axes_of(self, path: Path) -> tuple[int, ...]:
        """The axes of a choice: one, or one for each step of the loops around it."""
        return self._axes[1][path]

    def together(self, dependence: Dependence) -> frozenset[Path]:
        """The enumerated choices that something depends on."""
        return frozenset(p for p in dependence if p in self._enumerated)

    def joint(self, choices: frozenset[Path]) -> int:
        """How many joint values enumerated choices have."""
        return math.prod(self.sites[p].values ** self.sites[p].instances for p in choices)

    def on_grid(self, dependence: Dependence) -> Grid:
        return frozenset(axis for p in self.together(dependence) for axis in self.axes_of(p))

    def grids(self, dependences: Sequence[Dependence]) -> list[Grid]:
        """The different ones."""
        return sorted({self.on_grid(d) for d in dependences}, key=sorted)

    @property
    def everywhere(self) -> Grid:
        return frozenset(range(len(self.grid)))

    def is_apart(self, dependence: Dependence) -> bool:
        """Whether elements of a choice that are apart do not meet in something (of few values)."""
        return self.joint(self.together(dependence)) <= MAX_JOINT and all(
            not apart or (along is not None and not along.lag)
            for p in self.together(dependence)
            for apart, along in zip(self.sites[p].apart, dependence[p], strict=True)
        )

    def points(self, grid: Grid) -> int:
        """How many joint values that is."""
        return math.prod(self.grid[axis] for axis in grid)

    def over_grid(self, f: Callable[..., Any], spec: Any) -> Any:
        """``f(*indices)`` for all joint values.

        ``spec`` says on which axes of the grid the parts of the result depend: those they have in
        front, and no others.
        """
        return over_axes(f, self.grid, spec)

    def grouped(self, terms: Sequence[jax.Array]) -> list[tuple[jax.Array, Dependence, Grid]]:
        """The terms, added up where they depend on the same, without axes that do not matter."""
        found: list[tuple[jax.Array, Dependence]] = []
        alone: list[tuple[jax.Array, Dependence]] = []
        for t, d, same in zip(terms, self.terms, self._repeated, strict=True):
            (alone if same else found).append(_without_axes(t, d, 1))
        # terms are added before axes are summed, which reads them once; but not what is repeated
        found = [_without_axes(t, d, math.inf) for t, d in (*_added_up(found), *alone)]
        return [(t, d, self.on_grid(d)) for t, d in _added_up(found)]

    @functools.cached_property
    def _repeated(self) -> list[bool]:
        """Whether a term repeats fewer numbers along an axis."""
        jaxpr = self.program.jaxpr
        repeats = (e for e in jaxpr.eqns if e.primitive is lax.broadcast_in_dim_p)
        made = {v for e in repeats for v in e.outvars}
        return [isinstance(v, _jax.Var) and v in made for v in jaxpr.outvars[: len(self.terms)]]

    def law(self, dependence: Dependence, ndim: int, factors: Mapping[Path, Any]) -> Any:
        """The probability of the enumerated values that something of ``ndim`` axes depends on, None
        if it depends on none. ``factors`` has axes of size 1 for elements that are joint."""
        parts = [
            aligned(f, self.sites[p].only_apart(dependence[p]), ndim)
            for p, f in factors.items()
            if p in dependence
        ]
        return functools.reduce(jnp.multiply, parts) if parts else None


def _added_up(
    terms: Iterable[tuple[jax.Array, Dependence]],
) -> list[tuple[jax.Array, Dependence]]:
    """The sums of those of one shape that depend on the same."""
    found: dict[Any, tuple[jax.Array, Dependence]] = {}
    for t, d in terms:
        name = t.shape, tuple(sorted(d.items()))
        found[name] = (found[name][0] + t, d) if name in found else (t, d)
    return list(found.values())


def _without_axes(t: jax.Array, d: Dependence, most: float) -> tuple[jax.Array, Dependence]:
    """The sum over the axes that do not matter, of at most so many numbers."""
    used = {a.axis for along in d.values() for a in along if a is not None}
    kept = [a for a, n in enumerate(t.shape) if a in used or n > most]
    t = sum_over(t, [a for a in range(t.ndim) if a not in kept])
    return t, {p: tuple(a and Along(kept.index(a.axis), a.lag) for a in e) for p, e in d.items()}


class Scores:
    """The scores of a scope's choices, by their elements, and their sums.

    Sums share what they begin with: in a chain each term depends on all choices before it, and the
    sums together are as long as the chain.
    """

    def __init__(self, scores: Mapping[Path, Any]) -> None:
        self.of = scores
        self._begun: dict[int, Any] = {}

    def sum(self, dependence: Dependence, ndim: int) -> Any:
        """Of those that something of ``ndim`` axes depends on, None if on none."""
        total, begun = None, self._begun.setdefault(ndim, {})
        for path in self.of:
            if path in dependence:
                along = dependence[path]
                if (path, along) not in begun:
                    part = self._part(path, along, ndim)
                    begun[path, along] = (part if total is None else total + part), {}
                total, begun = begun[path, along]
        return total

    def _part(self, path: Path, along: Sequence[Along | None], ndim: int) -> jax.Array:
        score = self.of[path]
        for axis, a in enumerate(along):
            if a is None:
                score = jnp.sum(score, axis=axis, keepdims=True)
            elif a.lag:
                score = jnp.cumsum(score, axis=axis)
        return aligned(score, along, ndim)


class Mass(NamedTuple):
    """How probable the value of each element is, and whether the choice was made at all (in each
    step of the loops around it), if it stands in a branch."""

    mass: jax.Array
    made: jax.Array | None

    def among(self, support: int) -> jax.Array:
        """The probability; where the choice was not made all values are as probable."""
        if self.made is None:
            return self.mass
        made = self.made.reshape(*self.made.shape, *[1] * (self.mass.ndim - self.made.ndim))
        return jnp.where(made, self.mass, 1.0 / support)


def laws(layout: Layout, made: Record) -> dict[Path, jax.Array]:
    """The probability of the values of enumerated choices, from what a run has recorded of them."""
    recorded = (s for s in layout.of(Enumerated) if s.path in made)
    return {s.path: s.met(made[s.path].among(s.support), jnp.prod) for s in recorded}


def aligned(x: jax.Array, along: Sequence[Along | None], ndim: int) -> jax.Array:
    """``x`` with its axes where they run along, among ``ndim`` axes; the others have size 1."""
    places = [-1 if a is None else a.axis for a in along]
    kept = sorted((i for i, a in enumerate(places) if a >= 0), key=lambda i: places[i])
    out = lax.squeeze(x, [i for i, a in enumerate(places) if a < 0])
    ranks = sorted(kept)
    out = jnp.transpose(out, [ranks.index(i) for i in kept])
    shape = [1] * ndim
    for i in kept:
        shape[places[i]] = x.shape[i]
    return out.reshape(shape)


def onto(x: jax.Array, along: Sequence[Along | None], keep: Sequence[bool]) -> jax.Array:
    """``x`` summed up for each element that it depends on: the axes that are kept, others 1."""
    kept = [(a.axis, a.lag) for a, k in zip(along, keep, strict=True) if a is not None and k]
    for axis, lag in kept:
        if lag:
            x = jnp.flip(jnp.cumsum(jnp.flip(x, axis), axis), axis)
    axes = [a for a, _ in kept]
    x = sum_over(x, [a for a in range(x.ndim) if a not in axes])
    ranks = sorted(axes)
    x = jnp.transpose(x, [ranks.index(a) for a in axes])
    sizes = iter(x.shape)
    return x.reshape(
        [next(sizes) if a is not None and k else 1 for a, k in zip(along, keep, strict=True)]
    )
