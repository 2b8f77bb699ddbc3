"""Terms as tables over single elements of discrete variables.

Where the elements of an array meet because it is read at places known beforehand
(``static_reads.py``), each of them is a variable of its own: the table of ``z[1:] * z[:-1]`` over
two neighbours is one for each pair of them. Axes of the array along which no elements meet, its
plates, stay as they were.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _jax
from ..analyses.alike import NO, Axes, UniformInLoops
from ..analyses.dependence import Dependence
from ..program.choices import is_random
from .classes import Class, Plan, Variable
from .rounds import Stack, in_order, rows_of
from .static_reads import Read, ReadApart, read_apart
from .tables import Part, evaluate

Element = tuple[int, int | None]
"""A variable, and which element of it (None: all of them, apart or not)."""
Form = tuple[int, ...]
"""For each digit the first one that is of the same element, -1 if it is of none."""


class ByElement:
    """The terms of a plan by elements: ``plan`` has a variable for each of ``elements``."""

    def __init__(
        self,
        old: Plan,
        outs: Sequence[Dependence],
        consts: Sequence[Any],
        found: ReadApart,
    ) -> None:
        self._old, self._outs, self._consts, self._found = old, outs, consts, found
        self.elements: list[Element] = []
        for i, v in enumerate(old.variables):
            joint = joint_axes(old, i)
            n = int(np.prod([v.shape[a] for a in joint]))
            self.elements += [(i, e) for e in range(n)] if joint else [(i, None)]
        self._number = {e: k for k, e in enumerate(self.elements)}
        self.plan = Plan(
            [_variable(old, *e) for e in self.elements],
            [[c for c in old.classes[i] if c is not None] for i, _ in self.elements],
            set(),
            old.who,
        )
        copies = [frozenset(range(len(old.variables[i].shape))) for i in found.copies]
        same = UniformInLoops().run(found.program, [*[NO] * len(consts), *copies])
        self._rows = [
            Rows(old, found, d, k, s) for k, (d, s) in enumerate(zip(outs, same, strict=True))
        ]

    @functools.cached_property
    def dry(self) -> list[Stack]:
        """The stacks of tables without numbers."""
        return [
            Stack(np.array([self._names(rows, form, g) for g in groups], int), classes)
            for rows in self._rows
            for form, groups in rows.forms.items()
            for classes in [tuple(rows.classes)]
        ]

    def _names(self, rows: Rows, form: Form, g: int) -> list[int]:
        named = rows.named(rows.groups[:, g])
        return [self._number[named[a]] for a, at in enumerate(form) if at == a]

    def stacks(self) -> list[Stack]:
        """The tables, found for all elements at once."""
        parts = values_of(self._old, self._found, self._outs, self._consts)
        values = [x for rows, p in zip(self._rows, parts, strict=True) for x in rows.values(p)]
        return [dataclasses.replace(s, value=x) for s, x in zip(self.dry, values, strict=True)]

    def joined(self, digits: Sequence[jax.Array]) -> list[jax.Array]:
        """The digits of the old variables, from those of the elements."""
        out = []
        for i, v in enumerate(self._old.variables):
            mine = [d for d, (j, _) in zip(digits, self.elements, strict=True) if j == i]
            if axes := joint_axes(self._old, i):
                x = jnp.stack(mine).reshape(*(v.shape[a] for a in axes), *mine[0].shape)
                out.append(jnp.moveaxis(x, range(len(axes)), axes))
            else:
                out += mine
        return out


def by_element(
    plan: Plan, program: _jax.ClosedJaxpr, consts: Sequence[Any], outs: Sequence[Dependence]
) -> ByElement | None:
    """The plan with a variable for each element of those that meet; None if it is not known which
    elements each term reads.

    ``outs`` is what the outputs of ``program`` depend on; the variables are its last inputs, after
    ``consts``.
    """
    found = reads_of(plan, program, consts, outs)
    return None if found is None else ByElement(plan, outs, consts, found)


def reads_of(
    plan: Plan, program: _jax.ClosedJaxpr, consts: Sequence[Any], outs: Sequence[Dependence]
) -> ReadApart | None:
    """The program with the elements that meet read apart."""
    numbers = [_numbers(plan, i) for i in range(len(plan.variables))]
    if plan.chains or all(n is None for n in numbers) or _draws(program, len(consts)):
        return None
    found = read_apart(program, consts, numbers, [v.n for v in plan.variables])
    if found is None:
        return None
    for d, reads in zip(outs, found.reads, strict=True):
        plates = axes_of_classes(plan, d).values()
        if any(not is_constant(r.at, a) for _, r in reads for a in plates):
            return None
    return found


def _draws(program: _jax.ClosedJaxpr, n: int) -> bool:
    """Whether something is drawn that depends on the variables, the inputs after ``n`` others: at
    the values of the elements that it does not read it would be drawn again."""
    reached = set(program.jaxpr.invars[n:])
    for eqn in program.jaxpr.eqns:
        if not reached.isdisjoint(v for v in eqn.invars if isinstance(v, _jax.Var)):
            if is_random(eqn):
                return True
            reached.update(eqn.outvars)
    return False


def joint_axes(plan: Plan, i: int) -> list[int]:
    """The axes of a variable along which its elements meet."""
    return [a for a, c in enumerate(plan.classes[i]) if c is None]


def _numbers(plan: Plan, i: int) -> np.ndarray | None:
    """Which element each is."""
    shape, joint = plan.variables[i].shape, joint_axes(plan, i)
    sizes = [n if a in joint else 1 for a, n in enumerate(shape)]
    return np.broadcast_to(np.arange(np.prod(sizes)).reshape(sizes), shape) if joint else None


def _variable(plan: Plan, i: int, e: int | None) -> Variable:
    v, joint = plan.variables[i], joint_axes(plan, i)
    if e is None:
        return v
    at = np.unravel_index(e, [v.shape[a] for a in joint])
    name = v.name.replace(" at ", f"[{', '.join(map(str, at))}] at ", 1)
    return Variable(tuple(n for a, n in enumerate(v.shape) if a not in joint), v.n, name)


def axes_of_classes(plan: Plan, d: Dependence) -> dict[Class, int]:
    """Which axis of a term runs along with each class."""
    return {
        c: a.axis
        for i, along in d.items()
        for a, c in zip(along, plan.classes[i], strict=True)
        if a is not None and c is not None
    }


def is_constant(at: np.ndarray, axis: int) -> bool:
    return bool(np.all(at == np.take(at, [0], axis)))


def values_of(
    plan: Plan, found: ReadApart, outs: Sequence[Dependence], consts: Sequence[Any]
) -> list[Part]:
    """The terms at all values of the copies that they read, all elements in step."""
    variables = [plan.variables[i] for i in found.copies]
    in_step: list[list[Class | None]] = [[0] * len(v.shape) for v in variables]
    every = Plan(variables, in_step, set(), plan.who)
    on = [
        {c: (None,) * len(variables[c].shape) for c in digits_of(found, d, k)}
        for k, d in enumerate(outs)
    ]
    return [p for (p,) in evaluate(found.program, consts, every, on)]


def digits_of(found: ReadApart, d: Dependence, k: int) -> list[int]:
    """The copies that an output depends on."""
    read = {c for c, _ in found.reads[k]}
    mine = {found.copies[c] for c in read}
    return sorted(read | {i for i in d if i not in mine})  # of what it reads nothing of, the first


class Rows:
    """The numbers of a term by the elements that they read.

    ``groups`` has a column for each of the different rows, with an element for each digit (-1:
    none); ``classes`` are those that the term runs along. Along the axes ``same`` its numbers are
    all the same: of rows that are, one is kept.
    """

    def __init__(self, plan: Plan, found: ReadApart, d: Dependence, k: int, same: Axes) -> None:
        axis_of = axes_of_classes(plan, d)
        self.classes = sorted(axis_of, key=axis_of.__getitem__)
        self._plates = [axis_of[c] for c in self.classes]
        shape = found.program.out_avals[k].shape  # type: ignore[attr-defined]
        self._variables = [(c, found.copies[c]) for c in digits_of(found, d, k)]
        at = [element_of(found.reads[k], c, shape) for c, _ in self._variables]
        self.axes = [a for a in range(len(shape)) if not all(is_constant(x, a) for x in at)]
        index = tuple(slice(None) if a in self.axes else 0 for a in range(len(shape)))
        self.shape = tuple(shape[a] for a in self.axes)
        self.at = np.stack([x[index].ravel() for x in at]) if at else np.zeros((0, 1), int)
        self._joint = {i for _, i in self._variables if joint_axes(plan, i)}
        self.groups, self._inverse = in_order(self.at)
        alone = self.groups.shape[1] == self.at.shape[1] and len(self.forms) == 1
        self._alike = alone and same.issuperset(self.axes)

    def named(self, group: np.ndarray) -> list[Element]:
        return [
            (i, int(e) if i in self._joint else None)
            for (_, i), e in zip(self._variables, group, strict=True)
        ]

    @functools.cached_property
    def forms(self) -> dict[Form, list[int]]:
        """The groups by the first digit of the same element that each of their digits has."""
        found: dict[Form, list[int]] = {}
        for g, group in enumerate(self.groups.T):
            named = self.named(group)
            form = tuple(-1 if e is not None and e < 0 else named.index((i, e)) for i, e in named)
            found.setdefault(form, []).append(g)
        return found

    def values(self, part: Part) -> list[jax.Array]:
        """The tables of each form: axes for the tables, their digits and the classes."""
        x = jnp.moveaxis(self.summed(part), len(part.digits), 0)
        out = []
        for form, groups in self.forms.items():
            y = rows_of(x, np.array(groups))
            for a, at in reversed(list(enumerate(form))):
                if at < 0:  # it depends on no such element: it is the same at all values
                    y = lax.index_in_dim(y, 0, 1 + a, keepdims=False)
                elif at < a:
                    y = jnp.moveaxis(jnp.diagonal(y, 0, 1 + at, 1 + a), -1, 1 + at)
            out.append(y)
        return out

    def summed(self, part: Part) -> jax.Array:
        """The term with axes for its digits, the groups, and the classes."""
        n = len(part.digits)
        kept = {*self.axes, *self._plates}
        x = part.value
        for a in self.axes if self._alike else ():
            x = lax.slice_in_dim(x, 0, 1, axis=n + a)
        x = jnp.sum(x, tuple(a for a in range(n, x.ndim) if a - n not in kept))
        left = sorted(kept)
        order = [*range(n), *(n + left.index(a) for a in (*self.axes, *self._plates))]
        x = x.transpose(order) if order != sorted(order) else x
        m = n + len(self.axes)
        x = x.reshape(*x.shape[:n], math.prod(x.shape[n:m]), *x.shape[m:])
        if self._alike or self.groups.shape[1] == x.shape[n]:
            return x
        zeros = jnp.zeros((*x.shape[:n], self.groups.shape[1], *x.shape[n + 1 :]), x.dtype)
        return zeros.at[(*[slice(None)] * n, self._inverse)].add(x)


def element_of(reads: Sequence[tuple[int, Read]], copy: int, shape: Sequence[int]) -> np.ndarray:
    """The element of a copy that each number reads; of what is not read apart, none."""
    mine = [np.maximum(r.at, -1) for c, r in reads if c == copy]
    return functools.reduce(np.maximum, mine, np.full(shape, -1))


__all__ = ["ByElement", "Rows", "by_element", "is_constant", "joint_axes", "values_of"]
