"""Programs inside ``jax.shard_map``, where every value has the mesh axes along which it varies.

JAX's functions cast their operands to vary alike; the equations that they leave behind do not. So a
program is traced as if nothing varied, and then run equation by equation with such casts: what
varies is found from the values. That is the code that a user would have written by hand, with the
same types, and so the same derivatives: the derivative of a cast is the sum over devices.

A program that closes over values that vary is traced with them: it is *plain* once its casts are
taken away.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jax, authors
from .choices import RANDOM
from .control import Branches, Loop, Until, Whole, control

Axes = frozenset[Any]
_CAST = "pvary"


def unvarying(aval: Any) -> jax.ShapeDtypeStruct:
    """A value of the same shape and type that does not vary between devices."""
    weak = getattr(aval, "weak_type", False)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=weak)


def run(closed: _jax.ClosedJaxpr, args: Sequence[Any], keep_casts: bool = True) -> list[Any]:
    """Evaluate a program at values that may vary otherwise than when it was traced."""
    jaxpr = closed.jaxpr
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(v: Any) -> Any:
        aval: Any = v.aval
        return jnp.asarray(v.val, aval.dtype) if isinstance(v, _jax.Literal) else env[v]

    for eqn in jaxpr.eqns:
        again = functools.partial(run, keep_casts=keep_casts)
        outs = _equation(eqn, [*map(read, eqn.invars)], again, keep_casts)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [*map(read, jaxpr.outvars)]


def plain(closed: _jax.ClosedJaxpr) -> _jax.ClosedJaxpr:
    """The program of values that do not vary; casts that a user wrote stay."""
    if not any(map(_jax.varying, closed.in_avals)):
        return closed
    args = [unvarying(a) for a in closed.in_avals]
    return _jax.traced(lambda *xs: run(closed, xs, keep_casts=False), *args)


def _plainly(random: Any) -> Any:
    """A choice whose programs are plain."""
    parts = {"jaxpr", "program", "simulate", "log_density"} & set(vars(random))
    found = {name: getattr(random, name) for name in parts}
    new = {
        n: plain(v) if isinstance(v, _jax.ClosedJaxpr) else _plainly(v) for n, v in found.items()
    }
    return dataclasses.replace(random, **new)


def _equation(eqn: _jax.JaxprEqn, operands: list[Any], again: Any, keep_casts: bool) -> list[Any]:
    if eqn.primitive.name == _CAST:
        keep = keep_casts or authors.is_within(eqn, "parallel.py")
        return _cast(operands, frozenset(eqn.params["axes"])) if keep else operands
    name = RANDOM.get(eqn.primitive)
    if name is not None:
        eqn = eqn.replace(params={name: _plainly(eqn.params[name])})
    inside = None if name is not None else control(eqn)
    if inside is not None:
        return _RULES[type(inside)](inside, operands, again)
    f = _jax.function_of(eqn)
    if f is not None:
        return again(_jax.traced(f, *map(unvarying, map(jax.typeof, operands))), operands)
    operands = _cast(operands, _union(operands) | _named(eqn))
    return _jax.evaluate_equation(eqn, operands)


def _named(eqn: _jax.JaxprEqn) -> Axes:
    """The mesh axes along which a collective takes values that vary."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    found = [eqn.params.get(name, ()) for name in ("axes", "axis_name")] if eqn.invars else []
    names = [n for f in found for n in (f if isinstance(f, tuple | list | frozenset) else [f])]
    return frozenset(n for n in names if isinstance(n, str) and n in manual)


def _union(values: Sequence[Any]) -> Axes:
    return frozenset[Any]().union(*map(_jax.varying, map(jax.typeof, jax.tree.leaves(values))))


def _cast(values: Sequence[Any], axes: Axes) -> list[Any]:
    """Values that vary along the axes, at least."""

    def one(x: Any) -> Any:
        more = tuple(sorted(axes - _jax.varying(jax.typeof(x)), key=str))
        return lax.pcast(x, more, to="varying") if more else x

    return [*map(one, values)]


# --- equations that hold programs -----------------------------------------------------------------


def _whole(whole: Whole, operands: list[Any], again: Any) -> list[Any]:
    if whole.ruled:
        jvp = whole.eqn.primitive is _jax.custom_jvp_call_p
        return (_custom_jvp if jvp else _custom_vjp)(whole, operands, again)
    return whole.around(lambda *xs: again(whole.program, xs))(*operands)


def _settled(body: Callable[[list[Any]], list[Any]], carry: list[Any]) -> list[Any]:
    """A carry that varies as it does after any number of steps of a loop."""
    while True:
        after = [_jax.varying(a) for a in _jax.traced(lambda: body(carry)).out_avals]
        wider = [*map(lambda x, axes: _cast([x], axes)[0], carry, after)]
        if all(a is b for a, b in zip(carry, wider, strict=True)):
            return carry
        carry = wider


def _like(values: Sequence[Any], carry: Sequence[Any]) -> list[Any]:
    return [_cast([v], _union([c]))[0] for v, c in zip(values, carry, strict=True)]


def _scan(loop: Loop, operands: list[Any], again: Any) -> list[Any]:
    consts, carry, xs = loop.operands(operands)

    def step(carry: list[Any]) -> list[Any]:
        first = [lax.index_in_dim(x, 0, keepdims=False) for x in xs]
        return loop.results(again(loop.body, [*consts, *carry, *first]))[0]

    carry = _settled(step, carry) if loop.length else carry

    def body(carry: Any, xs: Any) -> Any:
        late, ys = loop.results(again(loop.body, [*consts, *carry, *xs]))
        return _like(late, carry), ys

    how = {"length": loop.length, "reverse": loop.reverse, "unroll": loop.unroll}
    carry, ys = lax.scan(body, carry, xs, **how)
    return [*carry, *ys]


def _while(until: Until, operands: list[Any], again: Any) -> list[Any]:
    tests, consts, carry = until.operands(operands)
    step = lambda carry: again(until.body, [*consts, *carry])
    carry = _settled(step, carry)
    # devices may take different numbers of steps: then all of the carry varies
    axes = _jax.varying(_jax.traced(lambda: again(until.test, [*tests, *carry])).out_avals[0])
    carry = _settled(step, _cast(carry, axes))
    test = lambda carry: again(until.test, [*tests, *carry])[0]
    return lax.while_loop(test, lambda carry: _like(step(carry), carry), carry)


def _cond(cond: Branches, operands: list[Any], again: Any) -> list[Any]:
    index, *rest = operands
    branches = [functools.partial(again, b) for b in cond.programs]
    kinds = [_jax.traced(lambda b=b: b(rest)).out_avals for b in branches]
    own = _union([index])
    axes = [own.union(*map(_jax.varying, kind)) for kind in zip(*kinds, strict=True)]

    def branch(b: Any) -> Any:
        return lambda xs: [_cast([v], a)[0] for v, a in zip(b(xs), axes, strict=True)]

    return lax.switch(index, [*map(branch, branches)], _cast(rest, own))


# --- functions with derivatives of their own ------------------------------------------------------


def _alone(eqn: _jax.JaxprEqn) -> Callable[..., list[Any]]:
    return lambda *xs: _jax.evaluate_equation(eqn, xs)


def _avals(values: Sequence[Any]) -> list[Any]:
    return [unvarying(jax.typeof(v)) for v in values]


def _traced_at(eqn: _jax.JaxprEqn) -> list[Any]:
    """What the operands of an equation were when it was traced."""
    return [v.aval for v in eqn.invars]


def _custom_jvp(whole: Whole, operands: list[Any], again: Any) -> list[Any]:
    """The function with its rule, which is traced as the function was."""
    eqn, alone = whole.eqn, _alone(whole.eqn)

    @jax.custom_jvp
    def f(*xs: Any) -> list[Any]:
        return again(whole.program, xs)

    @functools.partial(f.defjvp, symbolic_zeros=True)
    def _(primals: Any, tangents: Any) -> Any:
        zero = [isinstance(t, jax.custom_derivatives.SymbolicZero) for t in tangents]
        given = [t for t, z in zip(tangents, zero, strict=True) if not z]

        def derivative(xs: Any, given: Any) -> Any:
            left = iter(given)
            moved = [x for x, z in zip(xs, zero, strict=True) if not z]

            def of_moved(*moved: Any) -> list[Any]:
                new = iter(moved)
                return alone(*(x if z else next(new) for x, z in zip(xs, zero, strict=True)))

            return jax.jvp(of_moved, tuple(moved), tuple(left))

        kinds = _traced_at(eqn)
        moved = [a for a, z in zip(kinds, zero, strict=True) if not z]
        closed, consts, out = _jax.trace(derivative, kinds, moved)
        outs = again(closed, [*consts, *primals, *given])
        values, slopes = jax.tree.unflatten(jax.tree.structure(out), outs)
        return values, [_cast([s], _union([v]))[0] for s, v in zip(slopes, values, strict=True)]

    return f(*_cast(operands, _union(operands)))


def _custom_vjp(whole: Whole, operands: list[Any], again: Any) -> list[Any]:
    eqn, alone = whole.eqn, _alone(whole.eqn)
    trees: list[Any] = []

    @jax.custom_vjp
    def f(*xs: Any) -> list[Any]:
        return again(whole.program, xs)

    def forward(*xs: Any) -> Any:
        closed, consts, out = _jax.trace(lambda *xs: jax.vjp(alone, *xs), *_traced_at(eqn))
        outs, pullback = jax.tree.unflatten(jax.tree.structure(out), again(closed, [*consts, *xs]))
        residuals, tree = jax.tree.flatten(pullback)
        trees.append(tree)
        return outs, residuals

    def backward(residuals: Any, slopes: Any) -> Any:
        pull = lambda residuals, slopes: jax.tree.unflatten(trees[-1], residuals)(slopes)
        closed, consts, out = _jax.trace(pull, _avals(residuals), _avals(slopes))
        outs = again(closed, [*consts, *residuals, *slopes])
        return jax.tree.unflatten(jax.tree.structure(out), outs)

    f.defvjp(forward, backward)
    return f(*_cast(operands, _union(operands)))


_RULES: dict[type, Callable[..., list[Any]]] = {
    Whole: _whole,
    Branches: _cond,
    Loop: _scan,
    Until: _while,
}
