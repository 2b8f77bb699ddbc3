"""Sums over discrete variables, by variable elimination.

:func:`log_sum` is the log of the sum of exp(f) over all values of arrays of discrete variables. f
is a sum of terms (``terms.py``), each a table over what it depends on (``tables.py``). Elements of
a plate are summed out by themselves, and what remains is multiplied over the plate (tensor variable
elimination, Obermeyer et al. 2019); a chain is summed out by the forward recursion, T K^2 in place
of K^T.

For k and a plate of n values z, f = sum_i (a[z_i] + b[i, z_i, k]) is summed over z_i first, for
each i and k, m[i, k] = log sum_z exp(a[z] + b[i, z, k]); then over k, log sum_k exp(sum_i m[i, k]):
K^2 n numbers in place of K^(n + 1).

The same elimination with other operations: with the maximum in place of the sum, and the best value
in place of a draw, it finds the most probable values (:func:`best`; for a chain that is Viterbi's
algorithm); and the derivative of the log sum in a weight of each value is how probable it is
(:func:`marginals`; for a chain, forward and backward).
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

from .. import _jax
from ..analyses.contained import resolve
from ..analyses.dependence import NONE, Along, Dependence, Dependences
from ..analyses.terms import split
from .side_by_side import Stacked
from .tables import (
    Class,
    Digit,
    Plan,
    Table,
    Variable,
    class_size,
    digits,
    evaluate,
    plan_of,
    table,
)

Pick = Callable[[int, jax.Array], jax.Array]
"""``pick(i, logits)``: a draw of a variable, or of those of a chain of which it is the first, for
each element: ``f32[..., K]`` to an index into the last axis."""
Who = tuple[str, str]
"""Who enumerates, and what to use instead where that is too much: for messages."""
ENUMERATION: Who = "enumeration()", "use ppl.importance(n, proposal)"
Reduce = Callable[..., jax.Array]
"""``reduce(x, axis=)``: what takes the place of the log of the sum of exp."""


def log_sum(f: Callable[..., jax.Array], variables: Sequence[Variable]) -> jax.Array:
    """The log of the sum of exp(f(*digits)), digits being int arrays of the variables' shapes.

    Raises:
        UnsupportedError: too many joint values are needed.
    """
    return _eliminate(*_plan(f, variables, ENUMERATION))[0]


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
    first = lambda i, x: jnp.argmax(x, axis=-1)
    return _backwards(f, variables, first, who, jnp.max)


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
        return _eliminate(*_plan(at, variables, who), reduce=_log_sum)[0]

    zeros = [jnp.zeros((*v.shape, v.n)) for v in variables]
    value, found = jax.value_and_grad(total)(zeros)
    return found, value


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _log_sum(x: jax.Array, axis: Any) -> jax.Array:
    """As ``logsumexp``, with a derivative of 0 where all of ``x`` is minus infinity."""
    return logsumexp(x, axis=axis)


@_log_sum.defjvp
def _(axis: Any, primals: Any, tangents: Any) -> Any:
    out = _log_sum(primals[0], axis)
    level = jnp.expand_dims(jnp.where(jnp.isfinite(out), out, 0.0), axis)
    return out, jnp.sum(jnp.exp(primals[0] - level) * tangents[0], axis=axis)


def _backwards(
    f: Callable[..., jax.Array],
    variables: Sequence[Variable],
    pick: Pick,
    who: Who,
    reduce: Reduce = logsumexp,
) -> tuple[list[jax.Array], jax.Array]:
    plan, tables = _plan(f, variables, who)
    value, backwards = _eliminate(plan, tables, reduce=reduce)
    drawn: dict[int, jax.Array] = {}
    for step in reversed(backwards):
        drawn |= step(drawn, pick)
    return [digits(plan, i, drawn[i]) for i in range(len(variables))], value


def _plan(
    f: Callable[..., jax.Array], variables: Sequence[Variable], who: Who
) -> tuple[Plan, list[Table]]:
    avals = [jax.ShapeDtypeStruct(v.shape, jnp.result_type(int)) for v in variables]
    closed, consts, _ = _jax.trace(f, *avals)
    closed, _ = resolve(closed, consts)
    inputs = [False] * len(consts) + [True] * len(variables)
    terms = split(closed, lambda _: False, inputs)
    program = _jax.live(terms.program)
    own: list[Dependence] = [
        {i: tuple(map(Along, range(len(v.shape))))} for i, v in enumerate(variables)
    ]
    env = Dependences(lambda _: False).variables(program, [*[NONE] * len(consts), *own])
    outs = [NONE if isinstance(v, _jax.Literal) else env[v] for v in program.jaxpr.outvars]
    plan = plan_of(
        variables,
        outs,
        lambda plan: _try(plan, outs),
        who=who[0],
        instead=who[1],
    )
    values = evaluate(program, consts, plan, outs)
    return plan, [table(plan, d, v) for d, v in zip(outs, values, strict=True)]


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


Drawn = dict[int, jax.Array]
"""Numbers of joint values of variables, with an axis for each class, in order."""
Backward = Callable[[Drawn, Pick], Drawn]


def _eliminate(
    plan: Plan, tables: Sequence[Table], dry: bool = False, reduce: Reduce = logsumexp
) -> tuple[jax.Array, list[Backward]]:
    """The variables summed out one by one, those in most classes first.

    Also, for each step, how its variables are drawn given those that are summed out later. A dry
    run finds out whether it works.
    """
    backwards: list[Backward] = []
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
            new, backward = _along_chain(plan, mine, group, next(iter(chains)), dry, reduce)
        else:
            new, backward = _summed_out(plan, mine, i, dry, reduce)
        backwards.append(backward)
        left.append(_reduced(plan, new, dry))
        remaining -= group
    values = [] if dry else [t.value for t in left]
    return functools.reduce(jnp.add, values, jnp.zeros(())), backwards


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


def _given(
    plan: Plan, x: jax.Array, n: int, rest: Sequence[Digit], classes: Sequence[Class], drawn: Drawn
) -> jax.Array:
    """``x`` at what was drawn for the digits ``rest``, axes that come after the first ``n``."""
    for j, _ in rest:
        sizes = [class_size(plan, j, c) if c in plan.of(j) else 1 for c in classes]
        index = drawn[j].reshape([1] * (x.ndim - len(classes)) + sizes)
        if x.shape[n] > 1:
            x = jnp.take_along_axis(x, index, axis=n)
        x = jnp.squeeze(x, axis=n)
    return x


def _summed_out(
    plan: Plan, tables: Sequence[Table], i: int, dry: bool, reduce: Reduce
) -> tuple[Table, Backward]:
    digits, _ = _axes(tables)
    classes = sorted(plan.of(i))
    rest = [d for d in digits if d[0] != i]
    if dry:
        return Table(tuple(rest), tuple(classes)), lambda drawn, pick: {}
    shape = [class_size(plan, i, c) for c in classes]
    every = _sum(tables, [(i, 0), *rest], classes) if tables else jnp.zeros(())
    outer = every.shape[1 : 1 + len(rest)]
    every = jnp.broadcast_to(every, (plan.values(i), *outer, *shape))

    def backward(drawn: Drawn, pick: Pick) -> Drawn:
        return {i: pick(i, jnp.moveaxis(_given(plan, every, 1, rest, classes, drawn), 0, -1))}

    return Table(tuple(rest), tuple(classes), reduce(every, axis=0)), backward


def _steps(
    tables: Sequence[Table], order: list[tuple[int, int]], classes: list[Class], late: set[Any]
) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
    """The sum of tables in the first step of a chain, and in the later ones: what is the same in
    all of them, and what is not, of pairs of elements and of single ones; steps in front."""
    none = jnp.zeros([1] * (len(order) + len(classes)))
    first, fixed, varying = none, [none, none], [none, none]
    for t in tables:
        x = t.laid_out(order, classes)
        x = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), x)
        start, later = (x.first, x.later) if isinstance(x, Stacked) else (x[:1], x[1:])
        first = first + start
        which = 0 if set(t.digits) & late else 1
        where = fixed if len(later) == 1 else varying
        where[which] = where[which] + later
    return first, fixed, varying


def _along_chain(
    plan: Plan, tables: Sequence[Table], group: set[int], chain: Class, dry: bool, reduce: Reduce
) -> tuple[Table, Backward]:
    """The forward recursion."""
    digits, _ = _axes(tables)
    i = min(group)
    classes = sorted(plan.of(i) - {chain})
    rest = [d for d in digits if d[0] not in group]
    if dry:
        return Table(tuple(rest), tuple(classes)), lambda drawn, pick: {}
    now, late = [(j, 0) for j in sorted(group)], [(j, 1) for j in sorted(group)]
    n, length = len(group), class_size(plan, i, chain)
    sizes, order = [plan.values(j) for j in sorted(group)], [*late, *now, *rest]
    first, fixed, varying = _steps(tables, order, [*classes, chain], set(late))
    outer = jnp.broadcast_shapes(*(x.shape[1 + 2 * n :] for x in [first, *fixed, *varying]))
    drop = (0,) * n  # the first step has none before it; single terms never do

    def step(alpha: jax.Array, x: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        pair, single = (a[0] + b for a, b in zip(fixed, x, strict=True))
        before = alpha.reshape(*sizes, *[1] * n, *outer)
        new = reduce(before + pair, axis=tuple(range(n))) + single[drop]
        return jnp.broadcast_to(new, (*sizes, *outer)), alpha

    start = jnp.broadcast_to(first[(0, *drop)], (*sizes, *outer))
    xs = [jnp.broadcast_to(x, (length - 1, *x.shape[1:])) for x in varying]
    alpha, alphas = lax.scan(step, start, xs)

    def backward(drawn: Drawn, pick: Pick) -> Drawn:
        shape = [class_size(plan, i, c) for c in classes]
        k = math.prod(sizes)

        def at(x: jax.Array, m: int) -> jax.Array:
            """Of the first ``m`` axes, which are digits of the chain, one or two at the end."""
            x = jnp.broadcast_to(x, (*sizes * (m // n), *x.shape[m:]))
            x = _given(plan, x, m, rest, classes, drawn)
            x = jnp.broadcast_to(x, (*x.shape[:m], *shape)).reshape(*[k] * (m // n), *shape)
            return jnp.moveaxis(x, range(m // n), range(-(m // n), 0))

        def one(onward: jax.Array, x: Any) -> tuple[jax.Array, jax.Array]:
            alpha, pair = x
            state = pick(i, at(alpha, n) + onward)
            pairs = at(fixed[0][0] + pair, 2 * n)
            return jnp.take_along_axis(pairs, state[..., None, None], axis=-1)[..., 0], state

        into = jnp.concatenate([jnp.zeros((1, *xs[0].shape[1:])), xs[0]])
        steps = jnp.concatenate([alphas, alpha[None]]), into
        _, states = lax.scan(one, jnp.zeros((*shape, k)), steps, reverse=True)
        states = jnp.moveaxis(states, 0, sorted(plan.of(i)).index(chain))
        places = [math.prod(sizes[a + 1 :]) for a in range(n)]
        return {
            j: states // place % size
            for (j, _), place, size in zip(now, places, sizes, strict=True)
        }

    value = reduce(alpha, axis=tuple(range(n)))
    return Table(tuple(rest), tuple(classes), value), backward
