"""The linear end of a program, and its derivative.

A *level* (``terms.py``) says which equations of a program are its tail: linear in its leaves. What
multiplies the leaves, their coefficients, is the derivative of the tail, which is the same at all
values. A coefficient is 0 where the tail does not read a number (``jnp.where(n > 0, z / n, 0)``),
also where it would be multiplied by something that is not finite.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _jax
from ..numeric import run as numeric
from ..program.control import Loop, control
from ..program.shared import shared
from . import primitives


@dataclasses.dataclass(frozen=True)
class Sum:
    """A leaf that is the sum of a variable's product with others, along some axes."""

    of: Any
    factors: Sequence[Any]
    axes: tuple[int, ...]


@dataclasses.dataclass
class Level:
    """The tail of one jaxpr, and of those in it."""

    closed: _jax.ClosedJaxpr
    wanted: list[Any]
    leaves: list[Any] = dataclasses.field(default_factory=list)
    constants: list[_jax.Var] = dataclasses.field(default_factory=list)
    tail: set[int] = dataclasses.field(default_factory=set)
    inner: dict[int, Level] = dataclasses.field(default_factory=dict)
    passed: dict[_jax.Var, int] = dataclasses.field(default_factory=dict)
    """Inputs that would be leaves, by their number: the tail goes on outside, or before."""
    outs: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    """Which outputs of an equation with an inner level are wanted."""
    summed: dict[Any, Sum] = dataclasses.field(default_factory=dict)
    """Leaves of which the sum is enough (``summed.py``)."""


def is_var(v: Any) -> bool:
    return isinstance(v, _jax.Var)


def is_float(v: Any) -> bool:
    return jnp.issubdtype(v.aval.dtype, jnp.floating)


def as_float(x: jax.Array) -> jax.Array:
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))


def read(env: dict[Any, Any], v: Any) -> Any:
    if is_var(v):
        return env[v]
    return jnp.asarray(v.val, v.aval.dtype)


def coefficients(level: Level, leaves: Any, constants: Any) -> tuple[Any, list[Any]]:
    """The value of the tail at 0, and its derivative in each leaf (None stands for ones)."""
    flat, tree = jax.tree.flatten(leaves)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in flat]
    partly = _partly_read(level, [False])

    def affine(constants: Any) -> Any:
        tail = lambda *xs: _tail(level, partly, tree.unflatten(xs), constants)[0]
        closed, more, _ = _jax.trace(tail, *shapes)
        (program,) = shared([closed])
        zeros = [jnp.zeros(s.shape, s.dtype) for s in shapes]
        out, back = jax.vjp(lambda *xs: _jax.evaluate(program, *more, *xs)[0], *zeros)
        return out, list(back(jnp.ones_like(out)))

    if jax.tree.leaves(constants):
        return affine(constants)
    out, *slopes = numeric.evaluate(jax.make_jaxpr(lambda: affine(constants))(), [])
    return out, [
        None if np.all(c == 1) else c.flat[0] if c.size and np.all(c == c.flat[0]) else c
        for c in slopes
    ]


def _tail(
    level: Level, partly: set[Any], leaves: Any, constants: Any, passed: Any = None
) -> list[Any]:
    """What is wanted of a level, from its leaves, its constants, and what is passed to it."""
    env: dict[Any, Any] = dict(passed or {})
    own, *inside = leaves
    own_constants, *inside_constants = constants
    own = map(functools.partial(_in_one_place, level), level.leaves, own)
    env.update(zip(level.leaves, own, strict=True))
    env.update(zip(level.constants, own_constants, strict=True))
    number = {i: n for n, i in enumerate(sorted(level.inner))}

    for i in sorted(level.tail):
        eqn = level.closed.jaxpr.eqns[i]
        if i not in level.inner:
            outs = _evaluated(level, eqn, [read(env, v) for v in eqn.invars], partly)
            env.update(zip(eqn.outvars, outs, strict=True))
            continue
        inner = level.inner[i]
        args = inside[number[i]], inside_constants[number[i]]
        if isinstance(loop := control(eqn), Loop):
            at_0 = lambda v: as_float(jnp.zeros(v.aval.shape, v.aval.dtype))
            start = {v: at_0(v) for v in inner.passed}
            each = functools.partial(_tail, inner, partly, passed=start)
            found = jax.vmap(each)(*args)
            for n, v in zip(level.outs[i], found, strict=True):
                if n < loop.n_carry:
                    v = read(env, eqn.invars[loop.n_consts + n]) + jnp.sum(v, axis=0)
                env[eqn.outvars[n]] = v
        else:
            passed = {v: read(env, eqn.invars[k]) for v, k in inner.passed.items()}
            found = _tail(inner, partly, *args, passed)
            env.update({eqn.outvars[n]: v for n, v in zip(level.outs[i], found, strict=True)})
    return [read(env, v) for v in level.wanted]


def _in_one_place(level: Level, v: Any, x: jax.Array) -> jax.Array:
    """A leaf as the tail expects it, from its sum, which it adds up again."""
    if v not in level.summed:
        return x
    missing = [(0, n - m, 0) for n, m in zip(v.aval.shape, x.shape, strict=True)]
    return lax.pad(x, jnp.zeros((), x.dtype), missing)


def _evaluated(
    level: Level, eqn: _jax.JaxprEqn, operands: list[Any], partly: set[Any]
) -> Sequence[Any]:
    if eqn.primitive.name in ("name", "copy"):
        return operands
    if not all(map(is_float, eqn.invars[primitives.data(eqn)])) and primitives.of(eqn).counts:
        if eqn.primitive.name == "convert_element_type":
            return [_converted(eqn, operands[0])]
        eqn, operands = _counted(eqn, operands)
        evaluate = lambda: [eqn.primitive.bind(*operands, **eqn.params)]
    else:
        evaluate = lambda: _jax.evaluate_equation(eqn, operands)
    if eqn.primitive.name in ("mul", "div", "dot_general") and partly.intersection(eqn.outvars):
        (linear,) = (n for n, v in enumerate(eqn.invars) if is_var(v) and v not in level.constants)
        if not _is_harmless(level, eqn, 1 - linear):
            return [_factor(eqn, linear, operands)]
    return evaluate()


def _converted(eqn: _jax.JaxprEqn, x: jax.Array) -> jax.Array:
    to = eqn.params["new_dtype"]
    return x.astype(to) if jnp.issubdtype(to, jnp.floating) else as_float(x)


def _counted(eqn: _jax.JaxprEqn, operands: list[Any]) -> tuple[_jax.JaxprEqn, list[Any]]:
    """An equation of integers, and its operands, in floating point numbers."""
    operands, numbers = list(operands), primitives.data(eqn)
    operands[numbers] = map(as_float, operands[numbers])
    if eqn.primitive.name == "dot_general":
        to = eqn.outvars[0].aval.dtype  # type: ignore[attr-defined]
        exact = to if jnp.issubdtype(to, jnp.floating) else operands[0].dtype
        precise = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
        params = {**eqn.params, "preferred_element_type": exact, "precision": precise}
        eqn = eqn.replace(params=params)
    return eqn, operands


# --- what is not read -----------------------------------------------------------------------------


def _partly_read(level: Level, wanted: Sequence[bool]) -> set[Any]:
    """The variables of a tail of which only a part is read, by this level or those around it;
    ``wanted`` says whether that is so of its results."""
    partly: set[Any] = {v for v, p in zip(level.wanted, wanted, strict=True) if p and is_var(v)}
    for i in sorted(level.tail, reverse=True):
        eqn = level.closed.jaxpr.eqns[i]
        if i in level.inner:
            inner = level.inner[i]
            outs = [eqn.outvars[n] in partly for n in level.outs[i]]
            inside = _partly_read(inner, outs)
            partly |= inside
            given = [eqn.invars[k] for v, k in inner.passed.items() if v in inside]
            partly.update(filter(is_var, given))
        elif primitives.of(eqn).skips or partly.intersection(eqn.outvars):
            partly.update(filter(is_var, eqn.invars))
    return partly


def _is_harmless(level: Level, eqn: _jax.JaxprEqn, n: int) -> bool:
    """Whether a factor (or divisor) is known to be finite (or not 0) while tracing."""
    divides, v = eqn.primitive.name == "div", eqn.invars[n]
    eqns = level.closed.jaxpr.eqns
    shaping = (
        e for e in eqns if primitives.keeps_all(e) or e.primitive.name == "convert_element_type"
    )
    makers = {e.outvars[0]: e for e in shaping}
    while v in makers if is_var(v) else False:
        v = makers[v].invars[0]
        if not is_float(v) and not divides:
            return True
    if is_var(v):
        constants = dict(zip(level.closed.jaxpr.constvars, level.closed.consts, strict=True))
        value = constants.get(v)
        if value is None or isinstance(value, _jax.Tracer):
            return False
    else:
        value = v.val  # type: ignore[union-attr]
    with jax.ensure_compile_time_eval():
        return bool(np.all(np.isfinite(value)) and not (divides and np.any(np.equal(value, 0))))


@jax.custom_vjp
def _product(x: jax.Array, factor: jax.Array) -> jax.Array:
    return x * factor


def _product_back(factor: jax.Array, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    unread = slope == 0
    out = jnp.where(unread, 0.0, slope * jnp.where(unread, 1.0, factor))
    return out, jnp.zeros_like(factor)


_product.defvjp(lambda x, factor: (_product(x, factor), factor), _product_back)


@jax.custom_vjp
def _quotient(x: jax.Array, divisor: jax.Array) -> jax.Array:
    """The value of a division by 0 has no derivative, so that a guard finds none to be infinite."""
    never = divisor == 0
    safe = x / jnp.where(never, 1.0, divisor)
    return jnp.where(never, lax.stop_gradient(x / divisor), safe)


def _quotient_back(divisor: jax.Array, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    unread = slope == 0
    out = jnp.where(unread, 0.0, slope / jnp.where(unread, 1.0, divisor))
    return out, jnp.zeros_like(divisor)


_quotient.defvjp(lambda x, divisor: (_quotient(x, divisor), divisor), _quotient_back)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _inner_products(times: Callable[..., jax.Array], x: jax.Array, array: jax.Array) -> jax.Array:
    return times(x, array)


def _inner_products_back(
    times: Callable[..., jax.Array], rest: Any, slope: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Numbers that are not finite count where the slope that multiplies them is not 0."""
    like, array = rest
    finite = jnp.isfinite(array)

    def back(array: jax.Array, slope: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: times(x, array), like)[1](slope)[0]

    lost = back((~finite).astype(array.dtype), (slope != 0).astype(slope.dtype))
    out = back(jnp.where(finite, array, 0.0), slope)
    return jnp.where(lost > 0, jnp.nan, out), jnp.zeros_like(array)


_inner_products.defvjp(
    lambda times, x, array: (times(x, array), (jnp.zeros_like(x), array)), _inner_products_back
)


def _factor(eqn: _jax.JaxprEqn, linear: int, operands: Sequence[jax.Array]) -> jax.Array:
    """What an equation multiplies or divides, where some slopes are 0 since nothing is read."""
    x, other = operands[linear], operands[1 - linear]
    if eqn.primitive.name == "dot_general":

        def times(x: jax.Array, array: jax.Array) -> jax.Array:
            both = (array, x) if linear else (x, array)
            return eqn.primitive.bind(*both, **eqn.params)

        return _inner_products(times, x, other)
    return (_product if eqn.primitive.name == "mul" else _quotient)(*jnp.broadcast_arrays(x, other))


__all__ = ["Level", "Sum", "as_float", "coefficients", "is_float", "is_var", "read"]
