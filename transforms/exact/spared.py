"""Arithmetic that need not be done.

A term that is subtracted comes as one that is added -1 times. A value that is weighed by a
probability that is the exponential of a logarithm needs fewer guards.
"""

from __future__ import annotations

from typing import Any

from jax import lax

from .. import _jax
from ..estimation.weighted import times_exp_p, times_p


def spared(closed: _jax.ClosedJaxpr) -> _jax.ClosedJaxpr:
    """The program with less arithmetic; what it does not need any more is still there."""
    makers: dict[Any, _jax.JaxprEqn] = {}
    eqns = []
    for eqn in closed.jaxpr.eqns:
        eqn = _spared(eqn, makers)
        makers.update(dict.fromkeys(eqn.outvars, eqn))
        eqns.append(eqn)
    return _jax.with_equations(closed, eqns)


def _spared(eqn: _jax.JaxprEqn, makers: dict[Any, _jax.JaxprEqn]) -> _jax.JaxprEqn:
    makes = [makers.get(v) if isinstance(v, _jax.Var) else None for v in eqn.invars]
    if eqn.primitive is times_p and makes[0] is not None and makes[0].primitive is lax.exp_p:
        return eqn.replace(primitive=times_exp_p, invars=[makes[0].invars[0], eqn.invars[1]])
    if eqn.primitive is lax.add_p:
        for i in (1, 0):
            less = _negated(makes[i])
            if less is not None and less.aval.shape == eqn.invars[i].aval.shape:  # type: ignore[attr-defined]
                return eqn.replace(primitive=lax.sub_p, invars=[eqn.invars[1 - i], less])
    return eqn


def _negated(eqn: _jax.JaxprEqn | None) -> Any:
    """What an equation multiplies by -1."""
    if eqn is None or eqn.primitive is not lax.mul_p:
        return None
    one, other = eqn.invars
    literal = isinstance(one, _jax.Literal) and not one.aval.shape and one.val == -1  # type: ignore[attr-defined]
    return other if literal and isinstance(other, _jax.Var) else None


__all__ = ["spared"]
