"""Programs without their messages to the host.

A *message* is an equation with an effect whose results nobody reads: ``jax.debug.print``,
``jax.debug.callback``, an ``io_callback`` that logs. A run that is made for a derivative, or to
learn what would have been, is no run of the user's, and says nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from . import _jax
from .interpret import random_of
from .site import Body, Call


def silent(closed: _jax.ClosedJaxpr) -> _jax.ClosedJaxpr:
    """The program without its messages, whose equations keep their places and operands."""
    if not any(map(_speaks, closed.jaxpr.eqns)):
        return closed
    read = {v for eqn in closed.jaxpr.eqns for v in eqn.invars if isinstance(v, _jax.Var)}
    read.update(v for v in closed.jaxpr.outvars if isinstance(v, _jax.Var))
    eqns = [_silent_equation(eqn, read) for eqn in closed.jaxpr.eqns]
    effects = frozenset().union(*(eqn.effects for eqn in eqns))
    return _jax.ClosedJaxpr(closed.jaxpr.replace(eqns=eqns, effects=effects), closed.consts)


def silent_equation(eqn: _jax.JaxprEqn) -> _jax.JaxprEqn:
    """An equation whose results are read, without the messages in it."""
    return _silent_equation(eqn, set(eqn.outvars))


def _programs(eqn: _jax.JaxprEqn) -> list[_jax.ClosedJaxpr]:
    random = random_of(eqn)
    if not isinstance(random, Call):
        return list(_jax.sub_jaxprs(eqn))
    p = random.program
    return [p.jaxpr] if isinstance(p, Body) else [p.simulate, p.log_density]


def _speaks(eqn: _jax.JaxprEqn) -> bool:
    return bool(eqn.effects) or any(
        _speaks(e) for program in _programs(eqn) for e in program.jaxpr.eqns
    )


def _silent_equation(eqn: _jax.JaxprEqn, read: set[Any]) -> _jax.JaxprEqn:
    if not _speaks(eqn):
        return eqn
    if not _programs(eqn):
        return eqn if read.intersection(eqn.outvars) else _jax.nothing_instead_of(eqn)
    eqn = eqn.replace(params={name: _inside(value) for name, value in eqn.params.items()})
    inside = frozenset().union(*(sub.jaxpr.effects for sub in _jax.sub_jaxprs(eqn)))
    return eqn.replace(effects=eqn.effects & inside)


def _inside(value: Any) -> Any:
    if isinstance(value, _jax.ClosedJaxpr):
        return silent(value)
    if isinstance(value, _jax.Jaxpr):
        return silent(_jax.ClosedJaxpr(value, [])).jaxpr
    if isinstance(value, tuple):
        return tuple(map(_inside, value))
    if isinstance(value, Call):
        p = value.program
        program = (
            Body(silent(p.jaxpr))
            if isinstance(p, Body)
            else dataclasses.replace(
                p, simulate=silent(p.simulate), log_density=silent(p.log_density)
            )
        )
        return dataclasses.replace(value, program=program)
    return value
