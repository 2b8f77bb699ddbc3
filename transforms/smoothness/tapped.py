"""Flat programs evaluated as ordinary JAX code, with a tap on one equation, loops or not.

The tap tells where the outcome of a comparison inside of loops changes: it is a fingerprint of
all the outcomes of that equation, in all steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..analyses import primitives
from ..program.control import Branches, Loop, Until
from ..program.flat import Flat, Op
from . import verdicts

Tap = tuple[tuple[int, int], ...]
"""Where an equation stands inside an op: the number of a body, an index in it, and so on."""


def tapped(op: Op, tap: Tap) -> Op:
    """The equation at ``tap`` inside ``op``."""
    for body, index in tap:
        op = op.bodies[body].ops[index]
    return op


def fingerprint(op: Op, operands: Sequence[Any], tap: Tap) -> tuple[list[Any], jax.Array]:
    """The results of ``op``, and a number for the outcomes of the equation at ``tap`` in it."""
    if not tap:
        outs = op.evaluate(operands)
        return outs, _number(outcome(op, operands, outs))
    return _RULES[type(op.control)](op, operands, *tap[0], tap[1:])


def outcome(op: Op, operands: Sequence[Any], outs: Sequence[Any]) -> jax.Array:
    """What changes where an equation jumps, and only there."""
    if op.name == "rem":
        return jnp.ravel(jnp.trunc(operands[0] / operands[1]))
    if op.name == "atan2":
        return _beyond_cut(operands[1], operands[0])
    if op.name == "sort":
        return jnp.ravel(jnp.argsort(operands[0], axis=op.eqn.params["dimension"])).astype(float)
    if op.name == "is_finite":
        return jnp.ravel(jnp.where(jnp.isfinite(operands[0]), 0.0, 1.0))
    if verdicts.is_cut(op):
        z = jnp.asarray(operands[0])
        return _beyond_cut(jnp.real(z), jnp.imag(z))
    if primitives.of(op.eqn).signs:
        return jnp.concatenate([jnp.ravel(jnp.sign(jnp.real(a))) for a in outs])
    whole = [a for a in outs if not jnp.issubdtype(a.dtype, jnp.inexact)]  # of top_k: the indices
    return jnp.concatenate([jnp.ravel(a).astype(float) for a in whole or outs])


def _beyond_cut(x: jax.Array, y: jax.Array) -> jax.Array:
    """Whether a point is below the negative x axis, above it, or on it: y may be 0 throughout."""
    return jnp.ravel(jnp.where(x < 0, jnp.where(y < 0, 1.0, jnp.where(y == 0, 2.0, 0.0)), 0.0))


def _number(outcomes: jax.Array) -> jax.Array:
    if outcomes.size == 1:
        outcomes = jnp.reshape(outcomes, ())
    bits = jax.lax.bitcast_convert_type(outcomes.astype(jnp.float32), jnp.uint32)
    if bits.size == 1:
        return bits * jnp.uint32(2654435761)
    odd = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
    return jnp.sum(bits * odd * odd * jnp.uint32(2654435761), dtype=jnp.uint32)


def _after(number: Any, more: Any) -> Any:
    return number * jnp.uint32(31) + more


def _body(flat: Flat, index: int, tap: Tap, inputs: Sequence[Any]) -> tuple[list[Any], jax.Array]:
    env: dict[int, Any] = dict(zip(flat.inputs, inputs, strict=True))
    read = lambda v: env[v] if isinstance(v, int) else jnp.asarray(v.val)
    number = jnp.uint32(0)
    for i, op in enumerate(flat.ops):
        operands = [read(v) for v in op.ins]
        if i == index:
            outs, number = fingerprint(op, operands, tap)
        else:
            outs = op.evaluate(operands)
        env.update(zip(op.outs, outs, strict=True))
    return [read(v) for v in flat.outputs], number


def _bodies(op: Op, body: int, index: int, tap: Tap) -> list[Callable[..., Any]]:
    return [
        functools.partial(_body, flat, index if b == body else -1, tap)
        for b, flat in enumerate(op.bodies)
    ]


def _scan(op: Op, operands: Sequence[Any], body: int, index: int, tap: Tap) -> Any:
    (run,) = _bodies(op, body, index, tap)
    loop = op.control
    assert isinstance(loop, Loop)
    consts, first, rows = loop.operands(operands)

    def step(state: Any, xs: Any) -> Any:
        number, carry = state
        outs, more = run([*consts, *carry, *xs])
        carry, ys = loop.results(outs)
        return (_after(number, more), carry), ys

    (number, carry), ys = jax.lax.scan(
        step, (jnp.uint32(0), first), rows, length=loop.length, reverse=loop.reverse
    )
    return [*carry, *ys], number


def _cond(op: Op, operands: Sequence[Any], body: int, index: int, tap: Tap) -> Any:
    branches = _bodies(op, body, index, tap)
    return jax.lax.switch(operands[0], branches, list(operands[1:]))


def _while(op: Op, operands: Sequence[Any], body: int, index: int, tap: Tap) -> Any:
    test, step = _bodies(op, body, index, tap)
    assert isinstance(op.control, Until)
    of_test, of_step, first = op.control.operands(operands)

    def tested(number: Any, carry: list[Any]) -> Any:
        (go,), more = test([*of_test, *carry])
        return go, _after(number, more), carry

    def next_(state: Any) -> Any:
        _, number, carry = state
        outs, more = step([*of_step, *carry])
        return tested(_after(number, more), outs)

    init = tested(jnp.uint32(0), first)
    _, number, carry = jax.lax.while_loop(lambda s: s[0], next_, init)
    return carry, number


_RULES: dict[type, Callable[..., Any]] = {Loop: _scan, Branches: _cond, Until: _while}
