"""Sums over discrete variables, by variable elimination.

:func:`log_sum` is the log of the sum of exp(f) over all values of arrays of discrete variables. f
is a sum of terms (``terms.py``), each a table over what it depends on (``tables.py``). Elements of
a plate are summed out by themselves, and what remains is multiplied over the plate (tensor variable
elimination, Obermeyer et al. 2019); a chain is summed out by the forward recursion, T K^2 in place
of K^T.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import logsumexp

from . import _jax
from .dependence import NONE, Along, Dependence, Dependences
from .tables import (
    Class,
    Digit,
    Plan,
    Table,
    Variable,
    class_size,
    evaluate,
    plan_of,
    table,
)
from .terms import split
from .worlds import Stacked


def log_sum(f: Callable[..., jax.Array], variables: Sequence[Variable]) -> jax.Array:
    """The log of the sum of exp(f(*digits)), digits being int arrays of the variables' shapes.

    Raises:
        UnsupportedError: too many joint values are needed.
    """
    avals = [jax.ShapeDtypeStruct(v.shape, jnp.result_type(int)) for v in variables]
    closed, consts, _ = _jax.trace(f, *avals)
    inputs = [False] * len(consts) + [True] * len(variables)
    terms = split(closed, lambda _: False, inputs)
    program = _jax.live(terms.program)
    own: list[Dependence] = [
        {i: tuple(map(Along, range(len(v.shape))))} for i, v in enumerate(variables)
    ]
    env = Dependences(lambda _: False).variables(program, [*[NONE] * len(consts), *own])
    outs = [NONE if isinstance(v, _jax.Literal) else env[v] for v in program.jaxpr.outvars]
    plan = plan_of(variables, outs, lambda plan: _try(plan, outs))
    values = evaluate(program, consts, plan, outs)
    tables = [table(plan, d, v) for d, v in zip(outs, values, strict=True)]
    return _eliminate(plan, tables)


def _try(plan: Plan, terms: Sequence[Dependence]) -> set[tuple[int, int]]:
    """Axes that must be joint for the elimination to work; none if it works as planned."""
    signatures = [plan.signature(d) for d in terms]
    tables = [Table(tuple(sorted(on)), tuple(sorted(classes))) for on, classes in signatures]
    try:
        _eliminate(plan, tables, dry=True)
    except _Clash as clash:
        i, classes = clash.args
        return {(i, e) for e, c in enumerate(plan.classes[i]) if c in classes}
    return set()


class _Clash(Exception):
    """A variable and those of its classes that keep it from being summed out."""


# --- the elimination -----------------------------------------------------------------------------


def _eliminate(plan: Plan, tables: Sequence[Table], dry: bool = False) -> Any:
    """The variables summed out one by one, those in most classes first."""
    left = [_reduced(plan, t, dry) for t in tables]
    remaining = set(range(len(plan.variables)))
    while remaining:
        i = max(remaining, key=lambda i: (len(plan.of(i)), not plan.in_chain(i), i))
        chains = plan.of(i) & plan.chains
        group = {i}
        if chains:
            group = {j for j in remaining if plan.of(j) & chains}
            other = next((j for j in group if plan.of(j) != plan.of(i)), None)
            if other is not None or len(chains) > 1:
                raise _Clash(i, chains)
        mine = [t for t in left if any(d in group for d, _ in t.digits)]
        left = [t for t in left if t not in mine]
        for t in mine:
            for j, _ in t.digits:
                if not plan.of(j) <= plan.of(i):
                    raise _Clash(j, plan.of(j) - plan.of(i))
        if chains:
            new = _along_chain(plan, mine, group, next(iter(chains)), dry)
        else:
            new = _summed_out(plan, mine, i, dry)
        left.append(_reduced(plan, new, dry))
        remaining -= group
    return None if dry else functools.reduce(jnp.add, [t.value for t in left], jnp.zeros(()))


def _reduced(plan: Plan, t: Table, dry: bool) -> Table:
    """The product over the plates in which no digit of a table is."""
    inside = frozenset[Class]().union(*(plan.of(i) for i, _ in t.digits))
    kept = tuple(c for c in t.classes if c in inside)
    if dry:
        return Table(t.digits, kept)
    n = len(t.digits)
    axes = tuple(n + k for k, c in enumerate(t.classes) if c not in inside)
    return Table(t.digits, kept, jax.tree.map(lambda x: jnp.sum(x, axis=axes), t.value))


def _axes(tables: Sequence[Table]) -> tuple[list[Digit], list[Class]]:
    digits = sorted(set(itertools.chain.from_iterable(t.digits for t in tables)))
    classes = sorted(set(itertools.chain.from_iterable(t.classes for t in tables)))
    return digits, classes


def _sum(tables: Sequence[Table], digits: Sequence[Digit], classes: Sequence[Class]) -> jax.Array:
    return functools.reduce(jnp.add, [t.laid_out(digits, classes) for t in tables])


def _summed_out(plan: Plan, tables: Sequence[Table], i: int, dry: bool) -> Table:
    digits, _ = _axes(tables)
    classes = sorted(plan.of(i))
    rest = [d for d in digits if d[0] != i]
    if dry:
        return Table(tuple(rest), tuple(classes))
    shape = [class_size(plan, i, c) for c in classes]
    if not tables:  # it is in no term
        value = jnp.full(shape, math.log(plan.values(i)))
    else:
        value = logsumexp(_sum(tables, [(i, 0), *rest], classes), axis=0)
        value = jnp.broadcast_to(value, (*value.shape[: len(rest)], *shape))
    return Table(tuple(rest), tuple(classes), value)


def _along_chain(
    plan: Plan, tables: Sequence[Table], group: set[int], chain: Class, dry: bool
) -> Table:
    """The forward recursion."""
    digits, _ = _axes(tables)
    i = min(group)
    classes = sorted(plan.of(i) - {chain})
    rest = [d for d in digits if d[0] not in group]
    if dry:
        return Table(tuple(rest), tuple(classes))
    now, late = [(j, 0) for j in sorted(group)], [(j, 1) for j in sorted(group)]
    n, length = len(group), class_size(plan, i, chain)
    sizes, order = [plan.values(j) for j in sorted(group)], [*late, *now, *rest]
    none = jnp.zeros([1] * (1 + len(order) + len(classes)))
    first, fixed, varying = none, [none, none], [none, none]
    for t in tables:
        x = t.laid_out(order, [*classes, chain])
        x = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), x)
        start, later = (x.first, x.later) if isinstance(x, Stacked) else (x[:1], x[1:])
        first = first + start
        which = 0 if set(t.digits) & set(late) else 1  # of pairs, or of single elements
        where = fixed if len(later) == 1 else varying
        where[which] = where[which] + later
    outer = jnp.broadcast_shapes(*(x.shape[1 + 2 * n :] for x in [first, *fixed, *varying]))
    drop = (0,) * n  # the first step has none before it; single terms never do

    def step(alpha: jax.Array, x: list[jax.Array]) -> tuple[jax.Array, None]:
        pair, single = (a[0] + b for a, b in zip(fixed, x, strict=True))
        before = alpha.reshape(*sizes, *[1] * n, *outer)
        new = logsumexp(before + pair, axis=tuple(range(n))) + single[drop]
        return jnp.broadcast_to(new, (*sizes, *outer)), None

    start = jnp.broadcast_to(first[(0, *drop)], (*sizes, *outer))
    xs = [jnp.broadcast_to(x, (length - 1, *x.shape[1:])) for x in varying]
    alpha, _ = lax.scan(step, start, xs)
    value = logsumexp(alpha, axis=tuple(range(n)))
    return Table(tuple(rest), tuple(classes), value)
