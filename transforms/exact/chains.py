"""Expectations over Markov chains, by the forward recursion.

Enumerated choices whose terms touch neighbours, as those of a ``scan`` do, would take K^T joint
values. :func:`sum_out` rewrites such a scope: the choices become inputs, terms and probabilities
become tables over an element and some before it (``tables.py``), and each term is weighed by the
law of the elements that it touches, which the forward recursion gives for all steps (``laws.py``):
T K^2. The neighbours may meet in a term alone, as where a guide draws them independently and the
model is a chain. What is left is a scope without these choices.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .. import _jax
from ..analyses.dependence import EVER, LAST, NONE, Along, Dependence, Dependences
from ..analyses.terms import split
from ..errors import UnsupportedError, show
from ..estimation.chosen import Chosen, support_size
from ..estimation.elements import element_shape, value_and_mass
from ..estimation.estimator import Enumerated
from ..program.choices import Choice, Path, choices
from ..program.interpret import entering, interpret
from ..program.site import Call, Expect, Factor, Site, call_p, expect_p, factor_p, sample_p
from .classes import Class, Plan, Variable, check_size, plan_of
from .laws import Laws
from .means import Averaged, means_by_reads
from .single_reads import along_chains
from .tables import Part, evaluate, joined, tables


@dataclasses.dataclass(frozen=True)
class SummedOut:
    """A scope without some of its choices, which are those of a chain or not; ``largest`` is how
    many of their values meet."""

    closed: _jax.ClosedJaxpr
    chosen: list[Chosen]
    largest: int
    chain: bool


def sum_out(
    closed: _jax.ClosedJaxpr,
    chosen: Sequence[Chosen],
    stepwise: Sequence[Path],
    known: Sequence[Any],
) -> SummedOut | None:
    """The scope without those of its enumerated choices that make up chains, or are independent and
    read at static places.

    ``stepwise`` are enumerated choices whose elements meet, ``known`` the inputs of the scope (None
    where they are not known). None if they are neither.
    """
    paths = list(stepwise)
    by_path = {s.choice.path: s for s in chosen}
    while True:
        if any(by_path[p].choice.conditional for p in paths):
            return None
        chain = _Chain(closed, [by_path[p] for p in paths])
        more = [p for p in chain.reached() if p not in paths]
        if not all(isinstance(by_path[p].estimator, Enumerated) for p in more):
            return None
        if not more:
            break
        paths += more
    return chain.summed_out(chosen, known)


class _Chain:
    """A scope, with enumerated choices as its last inputs and their probabilities as its last
    outputs: the *open* program."""

    def __init__(self, closed: _jax.ClosedJaxpr, sites: Sequence[Chosen]):
        self.closed, self.sites = closed, list(sites)
        self.variables = [_variable(s) for s in sites]
        avals = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in closed.in_avals]
        digits = [jax.ShapeDtypeStruct(v.shape, jnp.result_type(int)) for v in self.variables]
        self.first = len(avals)
        self.open = _jax.traced(self._opened, *avals, *digits)

    def _opened(self, *args: Any) -> list[Any]:
        estimators = {s.choice.path: s.estimator for s in self.sites}
        paths = list(estimators)
        given = dict(zip(paths, args[self.first :], strict=True))

        @entering
        def rule(choice: Any, operands: list[Any], *, path: Path, given: Any, **_: Any) -> Any:
            estimator = estimators.get(path)
            if isinstance(estimator, Enumerated):
                value, mass = value_and_mass(choice, estimator, operands, given[path])
                return [value], None, {path: mass}
            return _again(choice, operands), None, {}

        outs, _, made = interpret(self.closed, args[: self.first], rule, given=given)
        return [*outs, *(made[p] for p in paths)]

    @property
    def _inputs(self) -> list[Dependence]:
        own: list[Dependence] = [
            {i: tuple(map(Along, range(len(v.shape))))} for i, v in enumerate(self.variables)
        ]
        return [*[NONE] * self.first, *own]

    def reached(self) -> list[Path]:
        """The other choices whose distribution depends on the chain: by their path in the scope."""
        analysis = Dependences(lambda _: True)
        analysis.run(self.open, self._inputs)
        mine = {s.choice.path for s in self.sites}
        old = [c.path for c in _sites(self.closed) if c.path not in mine]
        new = [c.path for c in _sites(self.open)]
        numbers = set(range(len(self.variables)))
        return [
            o
            for o, n in zip(old, new, strict=True)
            if numbers & set(analysis.parameters.get(n, ()))
        ]

    def summed_out(self, chosen: Sequence[Chosen], known: Sequence[Any]) -> SummedOut | None:
        flags = [False] * self.first + [True] * len(self.variables)
        terms = split(self.open, lambda _: False, flags)
        program, n = terms.program, terms.n
        env = Dependences(lambda _: False, ends=True).variables(program, self._inputs)
        outs = [NONE if isinstance(v, _jax.Literal) else env[v] for v in program.jaxpr.outvars]
        who = "ppl.enum()", "use ppl.reinforce() or ppl.mvd() for some of them"
        plan_for = lambda outs: plan_of(self.variables, outs, who=who)
        program, outs, plan = along_chains(program, outs, n, self.variables, known, plan_for)
        averaged = (
            _means_by_laws(plan, program, outs)
            if plan.chains
            else means_by_reads(plan, program, outs, known)
        )
        if averaged is None:
            return None
        means, largest = averaged

        def scope(*args: Any) -> list[Any]:
            found = means(args)
            payoff = sum((jnp.sum(t) for t in found[:n]), jnp.zeros(()))
            return [payoff.astype(self.closed.out_avals[0].dtype), *found[n:]]

        avals = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in self.closed.in_avals]
        try:
            new = _jax.traced(scope, *avals)
        except UnsupportedError:  # choices in the loop that do not depend on the chain
            return None
        mine = {s.choice.path for s in self.sites}
        rest, there = [s for s in chosen if s.choice.path not in mine], _sites(new)
        if len(there) < len(rest):  # draws that nothing reads are gone
            same = {id(c.random) for c in there}
            rest = [s for s in rest if id(s.choice.random) in same]
        if len(there) != len(rest):
            return None
        left = [
            dataclasses.replace(s, choice=dataclasses.replace(s.choice, path=c.path))
            for s, c in zip(rest, there, strict=True)
        ]
        return SummedOut(new, left, largest, bool(plan.chains))


def _means_by_laws(
    plan: Plan, program: _jax.ClosedJaxpr, outs: Sequence[Dependence]
) -> Averaged | None:
    """Of outputs over chains."""
    if not all(a is not None and a.lag < EVER for d in outs for along in d.values() for a in along):
        return None
    for d in outs:
        check_size(plan, plan.signature(d)[0])
    groups, m = _groups(plan, outs), len(plan.variables)
    if groups is None:
        return None

    def means(args: Sequence[Any]) -> list[jax.Array]:
        parts = evaluate(program, args, plan, outs)
        whole = map(joined, parts)
        values = [_on(plan, d, p) for d, p in zip(outs, whole, strict=True)]
        laws = {g: _laws(plan, g, outs, parts[-m:]) for g in groups}
        return [_mean(plan, laws, d, v) for d, v in zip(outs[:-m], values[:-m], strict=True)]

    meeting = [math.prod(plan.values(i) for i, _ in plan.signature(d)[0]) for d in outs]
    return means, max(meeting)


def _sites(closed: _jax.ClosedJaxpr) -> list[Choice]:
    return [c for c in choices(closed, densities=True) if isinstance(c.random, Site)]


def _variable(s: Chosen) -> Variable:
    c, estimator = s.choice, s.estimator
    assert isinstance(estimator, Enumerated)
    shape = (*c.lengths, *c.site.sizes, *element_shape(c.site, c.avals))
    return Variable(shape, support_size(c, estimator), f"{show(c.address)} at {c.source}")


def _again(choice: Any, operands: list[Any]) -> list[Any]:
    if isinstance(choice, Site):
        return sample_p.bind(*operands, site=choice)
    if isinstance(choice, Factor):
        return factor_p.bind(*operands, factor=choice)
    if isinstance(choice, Call):
        return call_p.bind(*operands, call=choice)
    assert isinstance(choice, Expect)
    return expect_p.bind(*operands, expect=choice)


# --- the law of neighbours ------------------------------------------------------------------------


def _groups(plan: Plan, outs: Sequence[Dependence]) -> list[frozenset[int]] | None:
    """The variables of each chain; None if two chains meet, or elements do."""
    groups: dict[Class, frozenset[int]] = {}
    for i, classes in enumerate(plan.classes):
        chains = plan.of(i) & plan.chains
        if len(chains) != 1 or None in classes or len(set(classes)) != len(classes):
            return None
        (c,) = chains
        groups[c] = groups.get(c, frozenset()) | {i}
    for d in outs:
        if d and not any(set(d) <= g for g in groups.values()):
            return None
    m = len(plan.variables)
    return None if any(map(plan.ends, outs[-m:])) else list(groups.values())


def _on(plan: Plan, d: Dependence, part: Part) -> jax.Array:
    """An output with an axis for each of its digits in front."""
    digits = sorted(plan.signature(d)[0])
    own = part.value.shape[len(part.digits) :]
    sizes = [plan.values(i) if (i, lag) in part.digits else 1 for i, lag in digits]
    full = [plan.values(i) for i, _ in digits]
    return jnp.broadcast_to(part.value.reshape(*sizes, *own), (*full, *own))


def _laws(
    plan: Plan, group: frozenset[int], outs: Sequence[Dependence], masses: Sequence[Sequence[Part]]
) -> Laws:
    """The laws of the variables of a chain, and as many steps back as something asks for."""
    orders = dict.fromkeys(sorted(group), 0)
    for d in outs:
        for i, lag in plan.signature(d)[0]:
            if i in group:
                orders[i] = max(orders[i], lag)
    (chain,) = plan.of(min(group)) & plan.chains
    found = [
        dataclasses.replace(t, owner=i)
        for i in sorted(group)
        for t in tables(plan, outs[i - len(masses)], masses[i])
    ]
    wanted = [tuple(sorted(plan.signature(d)[0])) for d in outs[: -len(masses)]]
    mine = [digits for digits in wanted if any(i in group for i, _ in digits)]
    return Laws(plan, found, orders, chain, mine)


def _mean(
    plan: Plan, laws: Mapping[frozenset[int], Laws], d: Dependence, value: jax.Array
) -> jax.Array:
    """The mean of an output over the variables that it depends on; its own axes stay."""
    if not d:
        return value
    digits = tuple(sorted(plan.signature(d)[0]))
    law = next(law for g, law in laws.items() if set(d) <= g).of(digits)
    axis_of: dict[Class, int] = {}
    for i, along in d.items():
        for a, c in zip(along, plan.classes[i], strict=True):
            assert a is not None and c is not None
            if a.axis != LAST:
                axis_of[c] = a.axis
    weight, classes, n = law.value, list(law.classes), len(digits)
    if plan.ends(d):  # the chain stands first
        weight, classes = jnp.take(weight, -1, axis=n), classes[1:]
    order = sorted(classes, key=axis_of.__getitem__)
    weight = weight.transpose([*range(n), *(n + classes.index(c) for c in order)])
    shape = list(weight.shape[:n]) + [1] * (value.ndim - n)
    for c, size in zip(order, weight.shape[n:], strict=True):
        shape[n + axis_of[c]] = size
    weight = weight.reshape(shape)
    safe = jnp.where((weight == 0) & ~jnp.isfinite(value), 0.0, value)
    return jnp.sum(weight * safe, axis=tuple(range(n)))
