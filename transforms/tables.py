"""Terms over discrete variables, as tables.

A program is evaluated for all values of its discrete variables that each of its outputs depends
on. Axes of variables that run along each other in the outputs are one *class*. Along a class the
elements take their values in step, since no two of them meet in an output:

- a *plate*, where an output depends on its own element only;
- a *chain*, where it depends on its own element and the one before it, as through the carry of a
  ``scan``, whose steps are evaluated side by side, for all pairs of values.

Along any other axis elements are treated jointly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _jax
from .assignment import MAX_JOINT
from .dependence import NONE, Dependence, Dependences
from .errors import UnsupportedError
from .interpret import is_random
from .uniform import NO, Axes, Uniform, compress

Digit = tuple[int, int]
"""A variable, by its number, here (0) or one step before in its chain (1)."""
Class = int
"""Axes of variables that run along each other, by the number of one of them."""


@dataclasses.dataclass(frozen=True)
class Variable:
    """An array of discrete variables with ``n`` values each; ``name`` is for messages."""

    shape: tuple[int, ...]
    n: int
    name: str


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Stacked:
    """The steps of a chain: the first one, which none is before, and the others.

    ``later`` has size 1 where they are all the same, so that a chain that does not change takes
    the memory of one step.
    """

    first: jax.Array
    later: jax.Array
    length: int = dataclasses.field(metadata={"static": True})

    def whole(self, axis: int = 0) -> jax.Array:
        shape = list(self.later.shape)
        shape[axis] = self.length - 1
        return jnp.concatenate([self.first, jnp.broadcast_to(self.later, shape)], axis)


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """An array (or steps) with an axis for each digit, and then for each class."""

    digits: tuple[Digit, ...]
    classes: tuple[Class, ...]
    value: Any = None

    def laid_out(self, digits: Sequence[Digit], classes: Sequence[Class]) -> Any:
        """The value with these axes, of size 1 where it has none."""
        have = [("digit", d) for d in self.digits] + [("class", c) for c in self.classes]
        want = [("digit", d) for d in digits] + [("class", c) for c in classes]
        order = [have.index(a) for a in want if a in have]

        def lay_out(x: jax.Array) -> jax.Array:
            sizes = iter(x.shape[a] for a in order)
            return x.transpose(order).reshape([next(sizes) if a in have else 1 for a in want])

        return jax.tree.map(lay_out, self.value)


# --- the plan: which axes are plates, which are chains --------------------------------------------


@dataclasses.dataclass
class Plan:
    variables: Sequence[Variable]
    classes: list[list[Class | None]]
    """For each axis of each variable; None where elements are joint."""
    chains: set[Class]

    def of(self, i: int) -> frozenset[Class]:
        return frozenset(c for c in self.classes[i] if c is not None)

    def in_chain(self, i: int) -> bool:
        return bool(self.of(i) & self.chains)

    def values(self, i: int) -> int:
        """How many joint values a variable takes."""
        v = self.variables[i]
        met = (m for m, c in zip(v.shape, self.classes[i], strict=True) if c is None)
        return v.n ** math.prod(met)

    def signature(self, d: Dependence) -> tuple[frozenset[Digit], frozenset[Class]]:
        """The digits and classes of the table of a term."""
        digits = set()
        classes = set()
        for i, along in d.items():
            digits.add((i, 0))
            for a, c in zip(along, self.classes[i], strict=True):
                if a is not None and c is not None:
                    classes.add(c)
                    if a.lag:
                        digits.add((i, 1))
        return frozenset(digits), frozenset(classes)


def plan_of(
    variables: Sequence[Variable],
    terms: Sequence[Dependence],
    clashes: Callable[[Plan], set[tuple[int, int]]] = lambda _: set(),
) -> Plan:
    """The classes of the axes. ``clashes`` says which axes must be joint for what comes next.

    Raises:
        UnsupportedError: a term depends on too many joint values.
    """
    joint = {
        (i, e)
        for d in terms
        for i, along in d.items()
        for e, a in enumerate(along)
        if a is None or a.lag > 1
    }
    while True:
        plan, clash = _classes(variables, terms, joint)
        clash = clash or clashes(plan)
        if not clash:
            break
        joint |= clash
    for d in terms:
        digits, _ = plan.signature(d)
        total = math.prod(plan.values(i) for i, _ in digits)
        if total > MAX_JOINT:
            raise UnsupportedError(_too_many(plan, {i for i, _ in digits}))
    return plan


def _too_many(plan: Plan, which: set[int]) -> str:
    parts = []
    for i in sorted(which):
        v = plan.variables[i]
        met = [n for n, c in zip(v.shape, plan.classes[i], strict=True) if c is None]
        count = f"{v.n}**{math.prod(met)}" if met else str(v.n)
        parts.append(f"{v.name} ({count} values)")
    return (
        f"enumeration() needs too many joint values, since these meet: {', '.join(parts)}. Let "
        "each element touch only itself (a plate, jax.vmap) or the one before it (a chain, "
        "jax.lax.scan whose carry is the last choice), or use ppl.importance(n, proposal)."
    )


def _classes(
    variables: Sequence[Variable], terms: Sequence[Dependence], joint: set[tuple[int, int]]
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
                if a is not None and (i, e) in parent:
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
                if a.lag:
                    chains.add(root((i, e)))
    number = {r: n for n, r in enumerate(sorted({root(a) for a in parent}))}
    classes: list[list[Class | None]] = [
        [number[root((i, e))] if (i, e) in parent else None for e in range(len(v.shape))]
        for i, v in enumerate(variables)
    ]
    return Plan(variables, classes, {number[r] for r in chains}), clash


# --- the tables ----------------------------------------------------------------------------------


def table(plan: Plan, d: Dependence, value: jax.Array | Stacked) -> Table:
    """A term as a table: the digits are in front already, other axes are classes or add up."""
    digits = tuple(sorted(plan.signature(d)[0]))
    n = len(digits)
    axis_of: dict[Class, int] = {}
    for i, along in d.items():
        for a, c in zip(along, plan.classes[i], strict=True):
            if a is not None and c is not None:
                axis_of[c] = a.axis
    kept = sorted(axis_of.items(), key=lambda item: item[1])
    if isinstance(value, Stacked) and 0 not in axis_of.values():
        value = value.whole(n)

    def summed(x: jax.Array) -> jax.Array:
        others = set(range(x.ndim - n)).difference(axis_of.values())
        return jnp.sum(x, axis=tuple(n + a for a in others))

    return Table(digits, tuple(c for c, _ in kept), jax.tree.map(summed, value))


def evaluate(
    program: _jax.ClosedJaxpr, consts: Sequence[Any], plan: Plan, outs: Sequence[Dependence]
) -> list[jax.Array | Stacked]:
    """The outputs for all values of the digits that they depend on, which are axes in front.

    ``outs`` is what they depend on; the variables are the last inputs, after ``consts``. What
    depends on no variable (choices among it) is evaluated once.
    """
    m = len(plan.variables)
    chained = [i for i in range(m) if plan.in_chain(i)]
    digits: list[Digit] = [(i, 0) for i in range(m)] + [(i, 1) for i in chained]
    digits.sort()
    in_step = [frozenset(e for e, c in enumerate(cs) if c is not None) for cs in plan.classes]
    same = [*[NO] * len(consts), *in_step]
    program = compress(program, same)
    worlds = _Worlds(
        _touching(program, len(consts), [i in chained for i in range(m)]),
        _reached(program, len(consts)),
        Uniform().variables(program, same),
    )
    once = worlds.once(program, consts)

    def point(*indices: jax.Array) -> list[Any]:
        at = dict(zip(digits, indices, strict=True))
        here = [_digits(plan, i, at[i, 0]) for i in range(m)]
        before = [_digits(plan, i, at.get((i, 1), at[i, 0])) for i in range(m)]
        return worlds.run(program, once, here, before)

    on = [plan.signature(d)[0] for d in outs]
    for j, digit in reversed(list(enumerate(digits))):
        in_axes = tuple(0 if k == j else None for k in range(len(digits)))
        out_axes = [0 if digit in o else None for o in on]
        point = jax.vmap(point, in_axes=in_axes, out_axes=out_axes, axis_size=plan.values(digit[0]))
    return point(*(jnp.arange(plan.values(i)) for i, _ in digits))


def _touching(program: _jax.ClosedJaxpr, first: int, which: Sequence[bool]) -> set[Any]:
    """The variables of the program that depend on some of the inputs after the first ones."""
    inputs: list[Dependence] = [{0: ()} if w else NONE for w in which]
    found = Dependences(lambda _: False).variables(program, [*[NONE] * first, *inputs])
    return {v for v, d in found.items() if d}


def _reached(program: _jax.ClosedJaxpr, first: int) -> set[Any]:
    """The results of all equations that the inputs after the first ones reach."""
    reached = set(program.jaxpr.invars[first:])
    for eqn in program.jaxpr.eqns:
        if reached.intersection(v for v in eqn.invars if isinstance(v, _jax.Var)):
            reached.update(eqn.outvars)
    return reached


def _digits(plan: Plan, i: int, index: jax.Array) -> jax.Array:
    """The joint value number ``index``: one digit for each element, the same along classes."""
    v = plan.variables[i]
    shape = [1 if c is not None else n for n, c in zip(v.shape, plan.classes[i], strict=True)]
    places = np.array([v.n**k for k in range(math.prod(shape))][::-1], dtype=np.int32)
    return jnp.broadcast_to((index // jnp.asarray(places) % v.n).reshape(shape), v.shape)


@dataclasses.dataclass
class _Worlds:
    """A program with its variables at their digits, and (the other world) one step before.

    A ``scan`` over a chain needs both: its carry comes from the step before.
    """

    chained: set[Any]
    """The variables of the program that depend on digits of a chain."""
    touched: set[Any]
    """The results of equations that any digit reaches."""
    same: dict[Any, Axes]
    """The axes along which they are the same."""

    def once(self, closed: _jax.ClosedJaxpr, consts: Sequence[Any]) -> dict[Any, Any]:
        """The variables that depend on no digit."""
        jaxpr = closed.jaxpr
        env = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        env.update(zip(jaxpr.invars, consts, strict=False))
        for eqn in jaxpr.eqns:
            if not self.touched.intersection(eqn.outvars):
                outs = _jax.evaluate_equation(eqn, [_read(env, v) for v in eqn.invars])
                env.update(zip(eqn.outvars, outs, strict=True))
        return env

    def run(
        self,
        closed: _jax.ClosedJaxpr,
        once: dict[Any, Any],
        here: Sequence[Any],
        before: Sequence[Any],
    ) -> list[jax.Array | Stacked]:
        jaxpr = closed.jaxpr
        inputs = jaxpr.invars[len(jaxpr.invars) - len(here) :]
        worlds = [once | dict(zip(inputs, args, strict=True)) for args in (here, before)]
        for eqn in jaxpr.eqns:
            if not self.touched.intersection(eqn.outvars):
                continue
            operands = [[_whole(_read(w, v)) for v in eqn.invars] for w in worlds]
            chained = any(map(self._is_chained, eqn.outvars))
            if eqn.primitive is _jax.scan_p and chained:
                # before, what lags behind would need two steps back: nothing asks for it
                both = self._scan(eqn, *operands), self._scan(eqn, operands[1], operands[1])
            else:
                outs = _jax.evaluate_equation(eqn, operands[0])
                both = outs, _jax.evaluate_equation(eqn, operands[1]) if chained else outs
            for world, values in zip(worlds, both, strict=True):
                world.update(zip(eqn.outvars, values, strict=True))
        return [_read(worlds[0], v) for v in jaxpr.outvars]

    def _is_chained(self, v: Any) -> bool:
        return isinstance(v, _jax.Var) and v in self.chained

    def _scan(self, eqn: _jax.JaxprEqn, here: list[Any], before: list[Any]) -> list[Any]:
        """All steps side by side. What comes through the carry is a function of the digits one
        step before, or of no digit of a chain: that part is run step by step."""
        if is_random(eqn):
            raise UnsupportedError(
                f"the loop at {_jax.line_of(eqn)} makes random choices of its own, beside those "
                "that enumeration() sums out. Use ppl.importance(n, proposal)."
            )
        p, body = eqn.params, eqn.params["jaxpr"]
        n_consts, n_carry = _jax.scan_layout(eqn)
        consts, init = here[:n_consts], here[n_consts : n_consts + n_carry]
        length = p["length"]
        drawn = list(map(self._is_chained, eqn.outvars[:n_carry]))

        def step(carry: Sequence[Any], x: Sequence[Any]) -> list[Any]:
            return _jax.evaluate(body, *consts, *carry, *x)

        xs, xs_before = here[n_consts + n_carry :], before[n_consts + n_carry :]
        plain = [n for n in range(n_carry) if not drawn[n]]

        def alone(carry: list[Any], x: Sequence[Any]) -> Any:
            full = list(init)
            for n, c in zip(plain, carry, strict=True):
                full[n] = c
            outs = step(full, x)
            return [outs[n] for n in plain], carry

        last, entering = lax.scan(
            alone, [init[n] for n in plain], xs, length=length, reverse=p["reverse"]
        )
        rows = eqn.invars[n_consts + n_carry :]
        mapped = [0 not in self.same.get(v, NO) for v in rows]
        at = lambda xs, of: [of(x) if m else x[0] for x, m in zip(xs, mapped, strict=True)]
        in_axes = [0 if m else None for m in mapped]
        if not any(drawn):  # no carry touches a chain
            f = lambda c, x: step(c, x)[n_carry:]
            ys = jax.vmap(f, in_axes=(0, in_axes), axis_size=length)(entering, at(xs, lambda x: x))
            return [*last, *ys]
        assert not p["reverse"]

        def full(carry: Sequence[Any], others: Sequence[Any]) -> list[Any]:
            given, rest = iter(carry), iter(others)
            return [next(rest) if d else next(given) for d in drawn]

        unknown = [i for i, d in zip(init, drawn, strict=True) if d]

        def made(carry: Sequence[Any], x: Sequence[Any]) -> list[Any]:
            outs = step(full(carry, unknown), x)
            return [o for o, d in zip(outs[:n_carry], drawn, strict=True) if d]

        first = step(init, [x[0] for x in xs])[n_carry:]
        head, tail = (lambda a: a[: length - 1]), (lambda a: a[1:])
        read = _inputs(
            body.jaxpr, [v for v, d in zip(body.jaxpr.outvars, drawn, strict=False) if d]
        )
        varying = {body.jaxpr.invars[n_consts + n] for n in plain}
        varying |= {
            v for v, m in zip(body.jaxpr.invars[n_consts + n_carry :], mapped, strict=True) if m
        }
        if read & varying:
            late = jax.vmap(made, in_axes=(0, in_axes), axis_size=length - 1)(
                list(map(head, entering)), at(xs_before, head)
            )
        else:  # the same at all steps
            late = made([init[n] for n in plain], [x[0] for x in xs_before])
        if read & varying:
            varying.update(
                v for v, d in zip(body.jaxpr.invars[n_consts:], drawn, strict=False) if d
            )
        made_of = [_inputs(body.jaxpr, [v]) for v in body.jaxpr.outvars[n_carry:]]
        changing = [bool(of & varying) for of in made_of]
        rest = jax.vmap(
            lambda c, o, x: step(full(c, o), x)[n_carry:],
            in_axes=(0, 0 if read & varying else None, in_axes),
            out_axes=[0 if c else None for c in changing],
            axis_size=length - 1,
        )(list(map(tail, entering)), late, at(xs, tail))
        ys = [
            Stacked(f[None], r if c else r[None], length)
            for f, r, c in zip(first, rest, changing, strict=True)
        ]
        finals = iter(last)
        carry = [jnp.zeros_like(i) if d else next(finals) for i, d in zip(init, drawn, strict=True)]
        return [*carry, *ys]


def _inputs(jaxpr: _jax.Jaxpr, outs: Sequence[Any]) -> set[Any]:
    """The inputs that outputs are computed from."""
    needed = {v for v in outs if isinstance(v, _jax.Var)}
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            needed.update(v for v in eqn.invars if isinstance(v, _jax.Var))
    return needed.intersection(jaxpr.invars)


def _whole(x: Any) -> Any:
    return x.whole() if isinstance(x, Stacked) else x


def _read(env: dict[Any, Any], v: Any) -> Any:
    return env[v] if isinstance(v, _jax.Var) else jnp.asarray(v.val, v.aval.dtype)


def class_size(plan: Plan, i: int, c: Class) -> int:
    return plan.variables[i].shape[plan.classes[i].index(c)]
