"""Sums over discrete variables, by variable elimination.

:func:`log_sum` is the log of the sum of exp(f) over all values of arrays of discrete variables. f
is a sum of terms (``terms.py``), each a table over what it depends on (``tables.py``). Elements of
a plate are summed out by themselves, and what remains is multiplied over the plate (tensor variable
elimination, Obermeyer et al. 2019); a chain is summed out by the forward recursion
(``recursion.py``), T K^2 in place of K^T. Of what can be summed out next, that goes first which
leaves the smallest table (``orders.py``).

For k and a plate of n values z, f = sum_i (a[z_i] + b[i, z_i, k]) is summed over z_i first, for
each i and k, m[i, k] = log sum_z exp(a[z] + b[i, z, k]); then over k, log sum_k exp(sum_i m[i, k]):
K^2 n numbers in place of K^(n + 1).

The same elimination with other operations: with the maximum in place of the sum, and the best value
in place of a draw, it finds the most probable values (:func:`best`; for a chain that is Viterbi's
algorithm); and the derivative of the log sum in a weight of each value is how probable it is
(:func:`marginals`; for a chain, forward and backward).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from .. import _jax
from ..analyses.alike import NO, UniformInLoops
from ..analyses.contained import resolve
from ..analyses.dependence import NONE, Along, Dependence, Dependences
from ..analyses.terms import split
from .by_element import ByElement, by_element
from .classes import Class, Digit, Plan, Variable, Who, check_size, plan_of
from .contraction import (
    BEST,
    LOG,
    PRODUCTS,
    Algebra,
    Look,
    Pick,
    Summed,
    merged,
    reduced,
    sum_digit,
    untouched,
)
from .grid import LARGE
from .orders import Stuck, best_order
from .products import unless_lost
from .recursion import Recursion, Sparing
from .rounds import Rounds
from .single_reads import along_chains
from .tables import END, Table, digits, evaluate, steps_apart, tables

ENUMERATION: Who = "enumeration()", "use ppl.importance(n, proposal)"


def log_sum(f: Callable[..., jax.Array], variables: Sequence[Variable]) -> jax.Array:
    """The log of the sum of exp(f(*digits)), digits being int arrays of the variables' shapes.

    Raises:
        UnsupportedError: too many joint values are needed.
    """
    return _terms(f, variables, ENUMERATION).summed_out(PRODUCTS)[0]


def draw(
    f: Callable[..., jax.Array], variables: Sequence[Variable], pick: Pick
) -> tuple[list[jax.Array], jax.Array]:
    """Digits from the distribution proportional to exp(f(*digits)), and the log of its sum.

    Backwards from the variable that was summed out last, each given those that came after: for a
    chain, forward filtering and backward sampling.
    """
    return _backwards(f, variables, pick, ENUMERATION)


def best(
    f: Callable[..., jax.Array], variables: Sequence[Variable], who: Who
) -> tuple[list[jax.Array], jax.Array]:
    """The digits at which f(*digits) is largest (the first of several), and that value."""
    first = lambda i, name, x: jnp.argmax(x, axis=-1)
    return _backwards(f, variables, first, who, BEST)


def marginals(
    f: Callable[..., jax.Array], variables: Sequence[Variable], who: Who
) -> tuple[list[jax.Array], jax.Array]:
    """How probable each value of each element is: ``f32[*shape, n]`` for each variable; and the
    log of the sum of exp(f(zeros, *digits)).

    ``f(weights, *digits)`` adds the logarithms ``weights``, shaped like the result, of the values
    that the elements have.
    """

    def total(weights: list[jax.Array]) -> jax.Array:
        at = functools.partial(f, weights)
        return _terms(at, variables, who).summed_out(PRODUCTS)[0]

    zeros = [jnp.zeros((*v.shape, v.n)) for v in variables]
    value, found = jax.value_and_grad(total)(zeros)
    return found, value


def _backwards(
    f: Callable[..., jax.Array],
    variables: Sequence[Variable],
    pick: Pick,
    who: Who,
    algebra: Algebra = LOG,
) -> tuple[list[jax.Array], jax.Array]:
    value, draw = _terms(f, variables, who).summed_out(algebra)
    return draw(pick), value


class _Terms:
    """What is summed, as tables; by elements and in rounds if that is cheaper."""

    def __init__(
        self, plan: Plan, tables: Sequence[Table], by: ByElement | None, rounds: Rounds | None
    ) -> None:
        self._plan, self._tables, self._by, self._rounds = plan, tables, by, rounds

    def summed_out(self, algebra: Algebra) -> tuple[jax.Array, Callable[[Pick], list[jax.Array]]]:
        """The sum, and the digits of the variables by a way to pick them."""
        plan, tables, by, rounds = self._plan, self._tables, self._by, self._rounds
        if by is None or rounds is None:
            value, backwards = _eliminate(plan, tables, algebra)
            return value, lambda pick: _digits(plan, _drawn(backwards, pick))
        tables, sums = rounds.run(by.stacks(), algebra)
        value, backwards = _eliminate(rounds.rest, tables, algebra)

        def draw(pick: Pick) -> list[jax.Array]:
            def each(k: int, name: str, logits: jax.Array) -> jax.Array:
                i, e = by.elements[k]
                return pick(i, name if e is None else f"{e} {name}".strip(), logits)

            drawn = rounds.draw(sums, _drawn(backwards, each), each)
            return by.joined(_digits(by.plan, drawn))

        return value, draw


def _drawn(backwards: Sequence[Backward], pick: Pick) -> Drawn:
    drawn: Drawn = {}
    for step in reversed(backwards):
        drawn |= step(drawn, pick)
    return drawn


def _digits(plan: Plan, drawn: Drawn) -> list[jax.Array]:
    return [digits(plan, i, drawn[i]) for i in range(len(plan.variables))]


def _terms(f: Callable[..., jax.Array], variables: Sequence[Variable], who: Who) -> _Terms:
    avals = [jax.ShapeDtypeStruct(v.shape, jnp.result_type(int)) for v in variables]
    closed, consts, _ = _jax.trace(f, *avals)
    closed, _ = resolve(closed, consts, partly=True)
    inputs = [False] * len(consts) + [True] * len(variables)
    terms = split(closed, lambda _: False, inputs)
    program = _jax.live(terms.program)
    own: list[Dependence] = [
        {i: tuple(map(Along, range(len(v.shape))))} for i, v in enumerate(variables)
    ]
    env = Dependences(lambda _: False, ends=True).variables(program, [*[NONE] * len(consts), *own])
    outs = [NONE if isinstance(v, _jax.Literal) else env[v] for v in program.jaxpr.outvars]
    plan_for = lambda outs: plan_of(variables, outs, lambda plan: _clashes(plan, outs), who=who)
    program, outs, plan = along_chains(program, outs, len(outs), variables, consts, plan_for)
    meeting = [plan.signature(d)[0] for d in outs]
    most = max((math.prod(plan.values(i) for i, _ in on) for on in meeting), default=1)
    by = by_element(plan, program, consts, outs) if most > LARGE else None
    rounds = by and _rounds(by)
    if by is not None and rounds is not None and _largest(by, rounds) < most:
        return _Terms(by.plan, [], by, rounds)
    for on in meeting:
        check_size(plan, on)
    values = evaluate(program, consts, plan, outs)
    same = UniformInLoops().run(program, [*[NO] * len(consts), *plan.in_step])
    found = zip(outs, values, same, strict=True)
    return _Terms(plan, [t for d, v, axes in found for t in tables(plan, d, v, axes)], None, None)


def _rounds(by: ByElement) -> Rounds:
    """In which elements are summed out, or none if one by one is cheaper."""
    rounds = Rounds(by.plan, by.dry, lambda k: by.elements[k][1] is not None)
    if _largest(by, rounds) <= LARGE:
        return rounds
    single = Rounds(by.plan, by.dry, lambda k: False)
    return min(rounds, single, key=lambda r: _largest(by, r))


def _largest(by: ByElement, rounds: Rounds) -> float:
    """How many joint values meet at most, when all is summed out; infinitely many if it cannot."""
    plan = rounds.rest
    left = [reduced(plan, t, LOG) for t in rounds.dry]
    try:
        order = _order(plan, left)
    except _Clash:
        return math.inf
    most = rounds.largest
    for n in order:
        mine = [t for t in left if any(i in n.variables for i, _ in t.digits)]
        most = max(most, math.prod(plan.values(i) for i, _ in merged(mine).digits))
        left = [t for t in left if t not in mine] + (_merge(plan, n, mine) or [])
    return most


def _clashes(plan: Plan, terms: Sequence[Dependence]) -> set[tuple[int, int]]:
    """Axes that must be joint for the elimination to work; none if it works as planned."""
    found = []
    for d in terms:
        on, classes = plan.signature(d)
        ends = dict.fromkeys(plan.ends(d), END)
        found.append(Table(tuple(sorted(on)), tuple(sorted(classes)), None, ends))
    try:
        _order(plan, found)
    except _Clash as clash:
        i, classes = clash.args
        return {(i, e) for e, c in enumerate(plan.classes[i]) if c in classes}
    return set()


class _Clash(Exception):
    """A variable and those of its classes that keep it from being summed out."""


# --- the order ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Node:
    """What is summed out at once: a variable, or the variables of a chain."""

    variables: tuple[int, ...]
    chain: Class | None = None


def _nodes(plan: Plan, found: Sequence[Table]) -> list[_Node]:
    """Variables that are in a chain but meet no neighbours there are by themselves.

    Raises:
        _Clash: the variables of a chain have different plates, or are in two chains.
    """
    chained: dict[Class, set[int]] = {}
    for t in found:
        for i, lag in t.digits:
            ends = [c for c in plan.of(i) & plan.chains if lag or t.pins.get(c) == END]
            for c in ends:
                chained.setdefault(c, set()).add(i)
    for c, group in chained.items():
        first = max(group, key=lambda i: (len(plan.of(i)), i))
        if any(plan.of(i) != plan.of(first) for i in group):
            raise _Clash(first, {c})
    for i in range(len(plan.variables)):
        if len(plan.of(i) & plan.chains) > 1:
            raise _Clash(i, plan.of(i) & plan.chains)
    inside = plan.summed.union(*chained.values())
    alone = [_Node((i,)) for i in range(len(plan.variables)) if i not in inside]
    return [*alone, *(_Node(tuple(sorted(g)), c) for c, g in chained.items())]


def _order(plan: Plan, found: Sequence[Table]) -> list[_Node]:
    """The nodes in the order in which they are summed out."""
    nodes = _nodes(plan, found)
    node_of = {i: n for n in nodes for i in n.variables}

    def cost(n: _Node, mine: Sequence[Table]) -> float:
        if n.chain is not None:
            return math.inf  # what goes before makes it smaller
        each = merged(mine)
        points = math.prod(map(plan.size, each.classes))
        return points * math.prod(plan.values(i) for i, _ in {(n.variables[0], 0), *each.digits})

    dry = [reduced(plan, dataclasses.replace(t, value=None), LOG) for t in found]
    of_table = lambda t: {node_of[i] for i, _ in t.digits}
    try:
        return best_order(nodes, dry, of_table, lambda n, mine: _merge(plan, n, mine), cost)
    except Stuck as stuck:
        left = {i for n in stuck.args for i in n.variables}
        i = max(left, key=lambda i: (len(plan.of(i)), not plan.in_chain(i), i))
        # those that meet it and are in other classes
        for t in stuck.tables:
            if any(j == i for j, _ in t.digits):
                for j, _ in t.digits:
                    if not plan.of(j) <= plan.of(i):
                        raise _Clash(j, plan.of(j) - plan.of(i)) from None
        raise _Clash(i, plan.of(i)) from None


def _merge(plan: Plan, n: _Node, mine: Sequence[Table]) -> list[Table] | None:
    """The tables in place of those that have a node; None if they are in other classes, or stand at
    different steps of another chain."""
    own = plan.of(n.variables[0])
    if not all(own.issuperset(t.classes) for t in mine):
        return None
    out = []
    for part in _pieces(plan, n, mine).values():
        pins: dict[Class, set[int]] = {}
        for t in part:
            for c, at in t.pins.items():
                pins.setdefault(c, set()).add(at)
        new = merged(part, [d for t in part for d in t.digits if d[0] in n.variables])
        if n.chain is not None:
            if any(n.chain in plan.of(i) for i, _ in new.digits):
                return None
            classes = tuple(c for c in new.classes if c != n.chain)
            rest = {c: at for c, at in new.pins.items() if c != n.chain}
            new = dataclasses.replace(new, classes=classes, pins=rest)
        if any(len(at) > 1 for c, at in pins.items() if c != n.chain):
            return None
        out.append(reduced(plan, new, LOG))
    return out


def _pieces(plan: Plan, n: _Node, mine: Sequence[Table]) -> dict[int | None, list[Table]]:
    """The tables of a variable in a chain, by the step at which they are pinned."""
    (chain,) = plan.of(n.variables[0]) & plan.chains or {None}
    out: dict[int | None, list[Table]] = {}
    for t in mine:
        at = None if n.chain is not None or chain is None else t.pins.get(chain)
        out.setdefault(at, []).append(t)
    return out


# --- the elimination ------------------------------------------------------------------------------

Drawn = dict[int, jax.Array]
"""Numbers of joint values of variables, with an axis for each class, in order."""
Backward = Callable[[Drawn, Pick], Drawn]


def _eliminate(
    plan: Plan, found: Sequence[Table], algebra: Algebra
) -> tuple[jax.Array, list[Backward]]:
    """The variables summed out one by one.

    Also, for each step, how its variables are drawn given those that are summed out later.
    """
    backwards: list[Backward] = []
    left = [reduced(plan, t, algebra) for t in (*found, *_untouched(plan, found, algebra))]
    order = _order(plan, left)
    for k, n in enumerate(order):
        mine = [t for t in left if any(i in n.variables for i, _ in t.digits)]
        left = [t for t in left if all(i not in n.variables for i, _ in t.digits)]
        if n.chain is None:
            before = [i for o in order[:k] for i in o.variables]
            new, backward = _summed_out(plan, mine, n, algebra, before)
        else:
            new, backward = _along_chain(plan, mine, n, algebra)
        backwards.append(backward)
        left += new
    return functools.reduce(jnp.add, [t.value for t in left], jnp.zeros(())), backwards


def _untouched(plan: Plan, found: Sequence[Table], algebra: Algebra) -> list[Table]:
    """A table for each variable that has none."""
    out = []
    touched = plan.summed.union(j for t in found for j, _ in t.digits)
    for i in set(range(len(plan.variables))) - touched:
        t = untouched(plan, (i, 0), sorted(plan.of(i)), algebra)
        chains = sorted(plan.of(i) & plan.chains)
        out += steps_apart(plan, t, chains[0]) if chains else [t]
    return out


def _summed_out(
    plan: Plan, mine: Sequence[Table], n: _Node, algebra: Algebra, before: Sequence[int]
) -> tuple[list[Table], Backward]:
    (i,) = n.variables
    (chain,) = plan.of(i) & plan.chains or {None}
    new: list[Table] = []
    how: dict[int | None, Summed] = {}
    for at, part in _pieces(plan, n, mine).items():
        check_size(plan, merged(part).digits, before)
        t, how[at] = sum_digit(plan, part, (i, 0), algebra, "" if at is None else f"{at}")
        new.append(t)

    def backward(drawn: Drawn, pick: Pick) -> Drawn:
        parts = {}
        for at, s in how.items():
            classes = sorted(plan.of(i) - ({chain} if at is not None else set()))
            parts[at] = s.draw(plan, classes, _look(plan, drawn, s.table), pick)
        if chain is None:
            return {i: parts[None]}
        axis = sorted(plan.of(i)).index(chain)
        first = [jnp.expand_dims(parts[at], axis) for at in range(plan.starts(chain))]
        return {i: jnp.concatenate([*first, *([parts[None]] if None in parts else [])], axis)}

    return new, backward


def _look(plan: Plan, drawn: Drawn, table: Table) -> Look:
    """What was drawn, for the elements of a table."""

    def look(d: Digit) -> jax.Array:
        i, lag = d
        x, classes = drawn[i], sorted(plan.of(i))
        for c in plan.of(i) & plan.chains:
            axis, start, size = classes.index(c), plan.starts(c), plan.size(c)
            at = table.pins.get(c)
            if at is None:
                x = jax.lax.slice_in_dim(x, start - lag, size - lag, axis=axis)
            else:
                x = jnp.take(x, (size - 1 if at == END else at) - lag, axis=axis)
                classes.remove(c)
        sizes = dict(zip(classes, x.shape, strict=True))
        return x.reshape([sizes.get(c, 1) for c in table.classes])

    return look


def _along_chain(
    plan: Plan, mine: Sequence[Table], n: _Node, algebra: Algebra
) -> tuple[list[Table], Backward]:
    group, along = n.variables, n.chain
    assert along is not None
    chain = Recursion(plan, mine, group, along, algebra)
    new = chain.result
    if chain.watches:

        def again(xs: list[jax.Array]) -> list[jax.Array]:
            same = [dataclasses.replace(t, value=x) for t, x in zip(mine, xs, strict=True)]
            return [t.value for t in Sparing(plan, same, group, along, LOG).result]

        found = [t.value for t in new]
        found = unless_lost(chain.watches, found, again, [t.value for t in mine])
        new = [dataclasses.replace(t, value=x) for t, x in zip(new, found, strict=True)]

    def backward(drawn: Drawn, pick: Pick) -> Drawn:
        return chain.draw(functools.partial(_look, plan, drawn), pick)

    return new, backward
