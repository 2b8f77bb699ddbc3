"""Control flow that holds random choices, under ``vmap``.

A ``cond`` whose predicate is mapped runs all its branches, the choices of each *masked* where it is
not taken; the choices inside a ``scan`` learn that a loop stands between them and the ``vmap``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jax
from .choices import Random, is_random
from .control import is_loop, with_programs
from .interpret import interpret
from .site import (
    Arm,
    Body,
    Call,
    Densities,
    Expect,
    Factor,
    Opaque,
    Site,
    call_p,
    expect_p,
    factor_p,
    sample_p,
)


def masked(closed: _jax.ClosedJaxpr, args: Sequence[Any], mask: Any, arm: Arm) -> list[Any]:
    """A branch with its densities switched off where ``mask`` (a scalar) is False."""

    def rule(choice: Random, operands: list[Any], **_: Any) -> Any:
        if isinstance(choice, Expect):
            return expect_p.bind(*operands, expect=choice), None, {}
        choice = dataclasses.replace(choice, arms=(*choice.arms, arm))
        if isinstance(choice, Site):
            return _mask_site(choice, operands, mask), None, {}
        if isinstance(choice, Factor):
            weight = jnp.where(mask, operands[0], jnp.zeros_like(operands[0]))
            return factor_p.bind(weight, factor=choice), None, {}
        return _mask_call(choice, operands, mask, arm), None, {}

    return interpret(closed, args, rule)[0]


def _mask_call(call: Call, operands: list[Any], mask: Any, arm: Arm) -> Any:
    inner = call.program
    program = _mask_body(inner, arm) if isinstance(inner, Body) else _mask_densities(inner)
    axes = tuple(dataclasses.replace(a, mapped=(*a.mapped, False)) for a in call.axes)
    call = dataclasses.replace(call, program=program, axes=axes, masks=call.masks + 1)
    return call_p.bind(*operands, mask, call=call)


def _mask_site(site: Site, operands: list[Any], mask: Any) -> Any:
    every = jnp.broadcast_to(mask, site.sizes)
    if site.masked:
        own = [a.mapped[-1] for a in site.axes]
        shape = [n if m else 1 for n, m in zip(site.sizes, own, strict=True)]
        every &= operands[-1].reshape(shape)
        operands = operands[:-1]
    kept = len(operands)
    axes = tuple(dataclasses.replace(a, mapped=(*a.mapped[:kept], True)) for a in site.axes)
    return sample_p.bind(*operands, every, site=dataclasses.replace(site, axes=axes, masked=True))


def _mask_body(body: Body, arm: Arm) -> Body:
    def f(*xs: Any) -> list[Any]:
        return masked(body.jaxpr, xs[:-1], xs[-1], arm)

    return Body(_retrace(f, body.jaxpr.in_avals))


def _mask_densities(program: Densities) -> Densities:
    n_in = len(program.simulate.in_avals)

    def simulate(*xs: Any) -> list[Any]:
        *outs, log_density = _jax.evaluate(program.simulate, *xs[:-1])
        return [*outs, jnp.where(xs[-1], log_density, 0.0)]

    def log_density(*xs: Any) -> list[Any]:
        operands, mask, chosen = xs[:n_in], xs[n_in], xs[n_in + 1 :]
        *outs, value = _jax.evaluate(program.log_density, *operands, *chosen)
        return [*outs, jnp.where(mask, value, 0.0)]

    avals = program.log_density.in_avals
    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    return dataclasses.replace(
        program,
        simulate=_retrace(simulate, avals[:n_in], flag),
        log_density=_retrace(log_density, [*avals[:n_in], flag, *avals[n_in:]], None),
    )


_FLAG = jax.ShapeDtypeStruct((), jnp.bool_)


def _retrace(f: Callable[..., Any], avals: Sequence[Any], extra: Any = _FLAG) -> _jax.ClosedJaxpr:
    args = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]
    closed, consts, _ = _jax.trace(f, *args, *([] if extra is None else [extra]))
    assert not consts
    return closed


def _cond_batch(
    original: Any, axis_size: int, args: Any, dims: Any, *, branches: Any, **params: Any
) -> Any:
    """Under ``vmap`` with a mapped predicate all branches run, each with its own mask."""
    if dims[0] is None or not any(is_random(e) for b in branches for e in b.jaxpr.eqns):
        return original(args, dims, branches=branches, **params)

    cond = Opaque(None)

    def select(index: Any, *ops: Any) -> list[Any]:
        index = jnp.clip(index, 0, len(branches) - 1)
        outs = [masked(branch, ops, index == b, (cond, b)) for b, branch in enumerate(branches)]
        return [lax.select_n(index, *cases) for cases in zip(*outs, strict=True)]

    outs = jax.vmap(select, in_axes=tuple(dims), axis_size=axis_size)(*args)
    return outs, [0] * len(outs)


def _scan_batch(
    original: Any, axis_size: int, args: Any, dims: Any, *, jaxpr: Any, **params: Any
) -> Any:
    """A ``vmap`` around a ``scan``: the choices inside learn that the loop is between."""
    return original(args, dims, jaxpr=_inside_loops(jaxpr, 1), **params)


def _inside_loops(closed: _jax.ClosedJaxpr, loops: int) -> _jax.ClosedJaxpr:
    """The program with at least ``loops`` counted around its choices."""
    if not any(map(is_random, closed.jaxpr.eqns)):
        return closed

    def counted(value: Any) -> Any:
        if isinstance(value, Site | Call):
            value = dataclasses.replace(value, loops=max(loops, value.loops))
        if isinstance(value, Call) and isinstance(value.program, Body):
            program = Body(_inside_loops(value.program.jaxpr, loops))
            value = dataclasses.replace(value, program=program)
        return value

    eqns = []
    for eqn in closed.jaxpr.eqns:
        if is_random(eqn):
            around = loops + is_loop(eqn)
            eqn = with_programs(eqn, functools.partial(_inside_loops, loops=around), counted)
        eqns.append(eqn)
    return _jax.with_equations(closed, eqns)


_jax.wrap_batcher(_jax.cond_p, _cond_batch)
_jax.wrap_batcher(_jax.scan_p, _scan_batch)
