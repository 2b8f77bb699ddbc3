"""What a program computes twice it computes once.

XLA would find so too, but after its derivative has been taken: two equal functions have two
derivatives, each of a cotangent of its own, and a loop keeps for it what each of them needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from .. import _jax
from .content import parameter
from .operands import written
from .site import unnamed


def computed_once(closed: _jax.ClosedJaxpr) -> _jax.ClosedJaxpr:
    """The program without equations that are equal to others."""
    jaxpr = closed.jaxpr
    names: dict[Any, Any] = {}
    new = lambda v: names.get(v, v) if isinstance(v, _jax.Var) else v
    found: dict[Any, _jax.JaxprEqn] = {}
    eqns = []
    for eqn in jaxpr.eqns:
        eqn = eqn.replace(invars=list(map(new, eqn.invars)))
        same = found.setdefault(_key(eqn), eqn)
        if same is eqn:
            eqns.append(eqn)
        else:
            names.update(zip(eqn.outvars, same.outvars, strict=True))
    outvars = list(map(new, jaxpr.outvars))
    return _jax.with_outputs(_jax.with_equations(closed, eqns), outvars)


def _key(eqn: _jax.JaxprEqn) -> Any:
    """Equal for equations that compute the same; a barrier keeps what it keeps apart."""
    if eqn.effects or eqn.primitive.name == "optimization_barrier":
        return id(eqn)
    operands = tuple(v if isinstance(v, _jax.Var) else written(v) for v in eqn.invars)
    params = tuple(sorted((name, _param(x)) for name, x in eqn.params.items()))
    return eqn.primitive, operands, params


def _param(x: Any) -> Any:
    """Programs and functions are the same if they are one object."""
    if isinstance(x, tuple | list):
        return type(x), tuple(map(_param, x))
    if isinstance(x, _jax.ClosedJaxpr | _jax.Jaxpr) or callable(x):
        return "object", id(x)
    return parameter(x)


def scan_once(body: Callable[..., Any], init: Any, xs: Any, **how: Any) -> tuple[Any, Any]:
    """``lax.scan`` of a step that computes nothing twice, nor stacks it."""
    row = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    closed, consts, like = _jax.trace(body, init, jax.tree.map(row, xs))
    program = computed_once(unnamed(closed))
    carries, ys = map(jax.tree.structure, like)
    results, n = program.jaxpr.outvars, carries.num_leaves
    names = [v if isinstance(v, _jax.Var) else id(v) for v in results[n:]]
    places = [names.index(name) for name in names]
    stacked = sorted(set(places))
    program = _jax.with_outputs(program, [*results[:n], *(results[n + k] for k in stacked)])

    def step(carry: Any, x: Any) -> tuple[Any, list[jax.Array]]:
        outs = _jax.evaluate(program, *consts, *jax.tree.leaves((carry, x)))
        return jax.tree.unflatten(carries, outs[:n]), outs[n:]

    carry, rows = lax.scan(step, init, xs, **how)
    return carry, jax.tree.unflatten(ys, [rows[stacked.index(k)] for k in places])


__all__ = ["computed_once", "scan_once"]
