"""Terms over discrete variables, as tables.

A program is evaluated for all values of its discrete variables that each of its outputs depends
on; along plates and chains (``classes.py``) the elements take their values in step, and all steps
of a ``scan`` are evaluated side by side, for all values of neighbours.

The first steps of a chain, before which there are fewer elements, are tables of their own, *pinned*
to their step; so is what depends on the last step alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _jax
from ..analyses.alike import NO, Axes, compress
from ..analyses.dependence import LAST, Dependence
from ..program.choices import is_random
from .classes import Class, Digit, Plan
from .grid import over_axes
from .side_by_side import Stacked, Worlds

END = -1
"""Where a table of the last step of a chain is pinned."""


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """An array with an axis for each digit, and then for each class (of size 1 where it is the same
    in all steps of a chain). ``pins`` are the steps of chains that it stands at; ``owner`` is the
    variable whose probability it is, if it is one; ``same`` says that a step of a chain has it of
    all steps."""

    digits: tuple[Digit, ...]
    classes: tuple[Class, ...]
    value: Any = None
    pins: Mapping[Class, int] = dataclasses.field(default_factory=dict)
    owner: int | None = None
    same: bool = False

    def laid_out(self, digits: Sequence[Digit], classes: Sequence[Class]) -> jax.Array:
        """The value with these axes, of size 1 where it has none."""
        have = [("digit", d) for d in self.digits] + [("class", c) for c in self.classes]
        want = [("digit", d) for d in digits] + [("class", c) for c in classes]
        order = [have.index(a) for a in want if a in have]
        sizes = iter(self.value.shape[a] for a in order)
        x = self.value if order == sorted(order) else self.value.transpose(order)
        shape = [next(sizes) if a in have else 1 for a in want]
        return x if list(x.shape) == shape else x.reshape(shape)


@dataclasses.dataclass(frozen=True)
class Part:
    """An output at all values of its digits, which are axes in front, or one or all but the first
    steps of it (``at``)."""

    digits: tuple[Digit, ...]
    value: jax.Array
    at: int | None = None
    steps: int = 1
    """How many steps it stands for, if it is one of several."""


def tables(plan: Plan, d: Dependence, parts: Sequence[Part], same: Axes = NO) -> list[Table]:
    """A term as tables: other axes than those of classes are summed up. Along the axes ``same`` all
    its numbers are: of the plates of a chain, whose steps read it again and again, one is kept."""
    axis_of: dict[Class, int] = {}
    for i, along in d.items():
        for a, c in zip(along, plan.classes[i], strict=True):
            if a is not None and c is not None and a.axis != LAST:
                axis_of[c] = a.axis
    ends = dict.fromkeys(plan.ends(d), END)
    chain = next((c for c in axis_of if c in plan.chains), None)
    stepped = chain is not None and axis_of[chain] == 0
    if not stepped and any(p.at is not None for p in parts):
        parts = [joined(parts)]
    out: list[Table] = []
    for p in parts:
        n = len(p.digits)
        at = axis_of if p.at is None else {c: a - 1 for c, a in axis_of.items() if a}
        kept = sorted(at.items(), key=lambda item: item[1])
        others = set(range(p.value.ndim - n)).difference(at.values())
        value = jnp.sum(p.value, axis=tuple(n + a for a in others)) if others else p.value
        for k, (c, _) in enumerate(kept):
            if chain is not None and c != chain and axis_of[c] in same:
                value = lax.slice_in_dim(value, 0, 1, axis=n + k)
        pins = ends if p.at is None else {**ends, chain: p.at}
        t = Table(p.digits, tuple(c for c, _ in kept), value, pins)
        if chain is not None and p.at is None and len(parts) == 1:
            out += steps_apart(plan, t, chain)
        else:
            out.append(t)
    return out


def joined(parts: Sequence[Part]) -> Part:
    """All steps of an output."""
    if len(parts) == 1 and parts[0].at is None:
        return parts[0]
    digits = tuple(sorted(frozenset[Digit]().union(*(p.digits for p in parts))))
    sizes = {d: n for p in parts for d, n in zip(p.digits, p.value.shape, strict=False)}
    front = [sizes[d] for d in digits]
    steps = []
    for p in parts:
        k, later = len(p.digits), p.at is None
        own = p.value.shape[k:] if later else (1, *p.value.shape[k:])
        x = p.value.reshape([sizes[d] if d in p.digits else 1 for d in digits] + list(own))
        steps.append(jnp.broadcast_to(x, (*front, p.steps, *own[1:])))
    return Part(digits, jnp.concatenate(steps, axis=len(digits)))


def steps_apart(plan: Plan, t: Table, chain: Class) -> list[Table]:
    """A table of all steps as those of the first ones, and of the others."""
    axis, out = len(t.digits) + t.classes.index(chain), []
    fewer = tuple(c for c in t.classes if c != chain)
    for at in range(plan.starts(chain)):
        early = [k for k, (i, lag) in enumerate(t.digits) if lag > at and chain in plan.of(i)]
        index = tuple(
            at if k == axis else 0 if k in early else slice(None) for k in range(t.value.ndim)
        )
        digits = tuple(d for k, d in enumerate(t.digits) if k not in early)
        pins = {**t.pins, chain: at}
        out.append(Table(digits, fewer, t.value[index], pins, t.owner))
    later = lax.slice_in_dim(t.value, plan.starts(chain), None, axis=axis)
    return [*out, dataclasses.replace(t, value=later)] if later.size else out


def evaluate(
    program: _jax.ClosedJaxpr, consts: Sequence[Any], plan: Plan, outs: Sequence[Dependence]
) -> list[list[Part]]:
    """The outputs for all values of the digits that they depend on, which are axes in front.

    ``outs`` is what they depend on; the variables are the last inputs, after ``consts``. What
    depends on no variable (choices among it) is evaluated once. Digits that meet in no output share
    an axis of the grid.
    """
    m = len(plan.variables)
    program, consts = _drawn(program, consts)
    same = [*[NO] * len(consts), *plan.in_step]
    program = compress(program, same) if any(plan.in_step) else program
    meeting = [plan.signature(d)[0] for d in outs]
    every: list[Digit] = sorted(frozenset[Digit]().union(*meeting))
    none = jnp.zeros((), jnp.result_type(int))
    lags = {i: lag for i, lag in every}

    def world(at: Mapping[Digit, jax.Array], w: int) -> list[jax.Array]:
        return [digits(plan, i, at.get((i, min(w, lags.get(i, 0))), none)) for i in range(m)]

    if not plan.depth:
        plain = lambda at: _jax.evaluate(program, *consts, *world(at, 0))
        found = _over_grid(plan, plain, every, meeting)
        return [[Part(*x)] for x in zip(map(_in_order, meeting), found, strict=True)]
    worlds = Worlds(program, consts, list(map(plan.in_chain, range(m))), same)

    def point(*numbers: jax.Array) -> list[Any]:
        at = dict(zip(every, numbers, strict=True))
        return worlds.run([world(at, w) for w in range(plan.depth + 1)])

    closed, held, shapes = _jax.trace(point, *[none] * len(every))
    reach = iter(_reached(closed, len(held), every))
    owner = [on for on, x in zip(meeting, shapes, strict=True) for _ in jax.tree.leaves(x)]
    read = [on & r for on, r in zip(owner, reach, strict=True)]
    run = lambda at: _jax.evaluate(closed, *held, *(at[d] for d in every))
    found = _over_grid(plan, run, every, read)
    left = iter(zip(map(_in_order, read), found, strict=True))
    return [_parts(x, left) for x in shapes]


def _drawn(
    program: _jax.ClosedJaxpr, consts: Sequence[Any]
) -> tuple[_jax.ClosedJaxpr, Sequence[Any]]:
    """The program with the draws that depend on no variable, which would be others at each value
    of it, as inputs too."""
    jaxpr, known = program.jaxpr, [*program.consts, *consts]
    givens = [*jaxpr.constvars, *jaxpr.invars]
    reached, drawn = set(givens[len(known) :]), list[_jax.JaxprEqn]()
    for eqn in jaxpr.eqns:
        if not reached.isdisjoint(v for v in eqn.invars if isinstance(v, _jax.Var)):
            reached.update(eqn.outvars)
        elif is_random(eqn):
            drawn.append(eqn)
    if not drawn:
        return program, consts
    made = [v for eqn in drawn for v in eqn.outvars]
    before = [eqn for eqn in jaxpr.eqns if reached.isdisjoint(eqn.outvars)]
    first = _jax.live(_jax.open_jaxpr(jaxpr, givens[: len(known)], made, before))
    ids = set(map(id, drawn))
    after = [eqn for eqn in jaxpr.eqns if id(eqn) not in ids]
    inputs = [*givens[: len(known)], *made, *givens[len(known) :]]
    rest = _jax.open_jaxpr(jaxpr, inputs, jaxpr.outvars, after)
    return rest, [*known, *_jax.evaluate(first, *known)]


def _in_order(on: Iterable[Digit]) -> tuple[Digit, ...]:
    return tuple(sorted(on))


def _over_grid(
    plan: Plan,
    f: Callable[[Mapping[Digit, jax.Array]], list[jax.Array]],
    every: Sequence[Digit],
    meeting: Sequence[frozenset[Digit]],
) -> list[jax.Array]:
    """The results at all values of those digits that each depends on, which are axes in front."""
    axis, sizes = _axes(plan, every, meeting)
    spec = [frozenset(axis[d] for d in on) for on in meeting]
    run = lambda *at: f({d: at[axis[d]] for d in every})
    out = []
    for on, x in zip(meeting, over_axes(run, sizes, spec), strict=True):
        front = sorted(axis[d] for d in on)
        order = [front.index(axis[d]) for d in sorted(on)]
        moved = order != sorted(order)
        out.append(jnp.transpose(x, [*order, *range(len(on), x.ndim)]) if moved else x)
    return out


def _parts(shape: Any, left: Iterator[tuple[tuple[Digit, ...], jax.Array]]) -> list[Part]:
    if not isinstance(shape, Stacked):
        return [Part(*next(left))]
    first = [Part(*next(left), at) for at in range(len(shape.first))]
    rest = Part(*next(left), steps=shape.length - len(first))
    return [*first, rest] if rest.steps else first


def _reached(closed: _jax.ClosedJaxpr, n: int, every: Sequence[Digit]) -> list[frozenset[Digit]]:
    """The digits that each output is computed from; they come after ``n`` other inputs."""
    none = frozenset[Digit]()
    env: dict[Any, frozenset[Digit]] = {
        v: frozenset({d}) for v, d in zip(closed.jaxpr.invars[n:], every, strict=True)
    }
    read = lambda v: env.get(v, none) if isinstance(v, _jax.Var) else none
    for eqn in closed.jaxpr.eqns:
        found = none.union(*map(read, eqn.invars))
        env.update(dict.fromkeys(eqn.outvars, found))
    return list(map(read, closed.jaxpr.outvars))


def _axes(
    plan: Plan, every: Sequence[Digit], meeting: Sequence[frozenset[Digit]]
) -> tuple[dict[Digit, int], list[int]]:
    """An axis of the grid for each digit, and their sizes: those that meet have different ones."""
    met: dict[Digit, set[Digit]] = {d: set() for d in every}
    for on in set(meeting):
        for d in on:
            met[d] |= on
    sizes: list[int] = []
    axis: dict[Digit, int] = {}
    for d in every:
        taken = {axis[e] for e in met[d] if e in axis}
        n = plan.values(d[0])
        free = (a for a, size in enumerate(sizes) if size == n and a not in taken)
        axis[d] = next(free, len(sizes))
        if axis[d] == len(sizes):
            sizes.append(n)
    return axis, sizes


def digits(plan: Plan, i: int, number: jax.Array) -> jax.Array:
    """The digits of each element, from the number of a joint value: one for each element of the
    classes, which are axes in order, or the same for all."""
    v, classes = plan.variables[i], plan.classes[i]
    if not v.shape:
        return number
    if number.ndim:
        order = sorted(plan.of(i))
        number = jnp.transpose(number, [order.index(c) for c in classes if c is not None])
        shape = [1 if c is None else n for n, c in zip(v.shape, classes, strict=True)]
        number = number.reshape(shape)
    joint = [1 if c is not None else n for n, c in zip(v.shape, classes, strict=True)]
    places = np.array([v.n**k for k in range(math.prod(joint))][::-1], dtype=np.int32)
    return jnp.broadcast_to(number // jnp.asarray(places.reshape(joint)) % v.n, v.shape)


__all__ = ["END", "Part", "Table", "digits", "evaluate", "joined", "steps_apart", "tables"]
