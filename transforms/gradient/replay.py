"""The sampling terms of choices whose estimator is given the continuation.

The continuation is the program run again with the same key and the draw replaced: what does not
depend on the choice is the same (outside of loops it is not computed again), everything else is
drawn anew with common random numbers. The choice therefore stands in loops and branches like any
other, and costs nothing where only the value is wanted. Only terms that depend on the choice count.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..errors import UnsupportedError, show
from ..estimation.chosen import Chosen
from ..estimation.draws import Context
from ..estimation.estimator import Continued, Enumerated, LocalSite, constant, refuse_rounding
from ..estimation.weighted import times
from ..plan.layout import Elements, Layout, laws, onto
from ..program.interpret import Record, states_before
from ..program.site import Axis

AT_ONCE = 64
"""Most instances of a choice in a loop that are treated side by side."""


def correction(
    layout: Layout,
    s: Elements,
    run: Any,
    args: list[Any],
    key: jax.Array,
    given: Record,
    made: Record,
    terms: Sequence[Any],
    context: Context,
) -> jax.Array:
    """The sampling terms of all elements of a continued choice: value 0.

    One of the grid's points; a term that does not depend on all of its choices is divided among
    the points that it is the same for.
    """
    lengths = s.shape[: s.loops]
    visited, operands, value, keys = made[s.path]
    known = {**given, **states_before(made, s.path)}
    before = {e.path: made[e.path] for e in layout.of(Enumerated) if e.path in made}
    in_step = _elementwise(s) and not s.stepwise
    whole = in_step or _across_steps(s)
    payoff = lax.stop_gradient(_payoff(layout, s, terms, made, whole))
    rest = args, key, known, before, context.number

    def harmless(a: jax.Array) -> jax.Array:  # in a branch not taken the operands are zeros
        seen = visited.reshape((*lengths, *[1] * (a.ndim - s.loops)))
        return jnp.where(seen, a, jnp.asarray(0.5, a.dtype))

    parameters = jax.tree.map(harmless, operands)
    value = lax.stop_gradient(value)
    still = dataclasses.replace(context, given=None)  # values of a derivative are its arguments
    term = functools.partial(_sampling_term, layout, s, run, in_step, still)
    if whole or not lengths:
        first = keys.reshape(-1, keys.shape[-1])[0] if lengths else keys
        return _differentiated_only(term, s.chosen, parameters, (None, value, first, payoff, *rest))
    n = math.prod(lengths)
    flat = jax.tree.map(lambda a: a.reshape((n, *a.shape[s.loops :])), (parameters, value, keys))

    def instance(i: jax.Array, parameters: list[Any], value: Any, key: Any) -> jax.Array:
        return _differentiated_only(term, s.chosen, parameters, (i, value, key, payoff, *rest))

    xs = (jnp.arange(n), *flat)
    if n <= AT_ONCE:
        parts = jax.vmap(instance)(*xs)
    else:
        even = [b for b in range(AT_ONCE // 4, AT_ONCE + 1) if n % b == 0]  # no remainder
        parts = lax.map(lambda x: instance(*x), xs, batch_size=max(even, default=AT_ONCE))
    return jnp.sum(jnp.where(visited.reshape(n), parts, 0.0))


def _elementwise(s: Elements) -> bool:
    return isinstance(s.chosen.estimator, Continued) and s.chosen.estimator.elementwise


def _across_steps(s: Elements) -> bool:
    """Whether the estimator has the steps of loops all at once though they meet."""
    return isinstance(s.chosen.estimator, Continued) and s.chosen.estimator.across_steps


def _payoff(
    layout: Layout, s: Elements, terms: Sequence[Any], made: Record, whole: bool
) -> jax.Array:
    """The terms that depend on the choice, for each of its elements that are apart if the estimator
    can use that, else their sum; of steps of loops, if it has them as a ``whole``."""
    keep = [a and _elementwise(s) and (whole or i >= s.loops) for i, a in enumerate(s.apart)]
    shape = [n for n, k in zip(s.shape, keep, strict=True) if k]
    total = jnp.zeros(shape)
    weights = laws(layout, made)
    for t, d, grid in layout.grouped(terms, s.path):
        weighted = times(layout.law(d, t.ndim, weights), t)
        share = layout.points(grid) / layout.points(layout.everywhere)
        total += share * onto(weighted, d[s.path], keep).reshape(shape)
    return total


def _sampling_term(
    layout: Layout,
    s: Elements,
    run: Any,
    in_step: bool,
    context: Context,
    parameters: list[Any],
    rest: Any,
) -> jax.Array:
    i, value, own_key, payoff, args, key, known, before, number = rest
    context = dataclasses.replace(context, given=number)
    site, estimator = s.chosen.choice.site, s.chosen.estimator
    assert isinstance(estimator, Continued)
    lengths = s.shape[: s.loops]
    whole = in_step or _across_steps(s)

    def replaced(x: jax.Array, i: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Where the choice is given, and what."""
        if i is not None:
            there = jnp.arange(math.prod(lengths)) == i
            return there.reshape(lengths), jnp.broadcast_to(x, (*lengths, *x.shape))
        return (jnp.ones(lengths, bool) if in_step or not lengths else x != value), x

    def continuation(x: jax.Array, rest: Any) -> jax.Array:
        i, args, key, known, before, number = rest
        there, other = replaced(x, i)
        at = dataclasses.replace(context, given=number)
        outs, made = run(at)(args, key, {**known, s.path: (there, other)})
        return _payoff(layout, s, outs[: len(layout.terms)], {**before, **made}, whole)

    def k(x: jax.Array) -> jax.Array:
        x = jnp.asarray(x)
        refuse_rounding(site, estimator.name, "gives k", x.dtype)
        return _constant(continuation, x.astype(value.dtype), (i, args, key, known, before, number))

    axes = site.axes
    if whole:
        mapped = (True,) * len(parameters)
        axes = (*(Axis(n, mapped) for n in lengths), *axes)
    skip = 0 if whole else s.loops
    apart = s.apart[skip:] if estimator.elementwise else (False,) * (len(s.apart) - skip)
    events = (False,) * (value.ndim - len(apart))
    local = LocalSite(
        dataclasses.replace(site, axes=axes),
        parameters,
        value,
        payoff,
        (*apart, *events),
        context.direction,
        context.others,
    )
    if site.estimator is not None:
        estimator = site.rebuild_estimator(parameters)
    return estimator.surrogate(local, _key_of(own_key, key), k)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _differentiated_only(f: Any, s: Chosen, x: Any, rest: Any) -> jax.Array:
    """0, with the derivative of ``f(x, rest)`` in ``x``; not evaluated for the value."""
    return constant(0.0, x, rest)


@_differentiated_only.defjvp
def _(f: Any, s: Chosen, primals: Any, tangents: Any) -> Any:
    x, rest = _first_order(s, primals)
    _, tangent = jax.jvp(lambda x: f(x, rest), (x,), (tangents[0],))
    zero = constant(0.0, x, rest)
    return zero, tangent.astype(zero.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _constant(f: Any, x: Any, rest: Any) -> jax.Array:
    """``f(x, rest)`` as a number without derivative."""
    return f(x, rest)


@_constant.defjvp
def _(f: Any, primals: Any, tangents: Any) -> Any:
    out = f(*primals)
    return out, jnp.zeros_like(out)


def _first_order(s: Chosen, values: Any) -> Any:
    """``values``, which must not be differentiated: the estimate holds to first order."""

    @jax.custom_jvp
    def identity(values: Any) -> Any:
        return values

    @identity.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        raise UnsupportedError(
            f"a second derivative is taken through {show(s.choice.address)} at "
            f"{s.choice.source}, whose estimator {s.estimator.name} gives first derivatives only. "
            "Use ppl.reparam(), ppl.reinforce() or ppl.enum() for this site."
        )

    return identity(values)


def _key_of(data: jax.Array, like: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
