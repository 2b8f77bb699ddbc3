"""Loops of any number of steps, which have no derivative in reverse mode."""

from __future__ import annotations

from . import _jax


def has_while(closed: _jax.ClosedJaxpr) -> bool:
    return any(needs_bound(eqn) for eqn in closed.jaxpr.eqns)


def needs_bound(eqn: _jax.JaxprEqn) -> bool:
    """Whether an equation is, or has inside, a loop of any number of steps."""
    return eqn.primitive is _jax.while_p or any(map(has_while, _jax.sub_jaxprs(eqn)))
