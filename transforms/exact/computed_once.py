"""What a program computes twice it computes once.

XLA would find so too, but after its derivative has been taken: two equal functions have two
derivatives, each of a cotangent of its own.
"""

from __future__ import annotations

from typing import Any

from .. import _jax
from ..program.content import parameter
from ..program.operands import written


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


__all__ = ["computed_once"]
