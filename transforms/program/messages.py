"""What a program tells the host.

A *message* is an equation with an effect whose results nobody reads: ``jax.debug.print``,
``jax.debug.callback``, an ``io_callback`` that logs. A run that is made for a derivative, or to
learn what would have been, is no run of the user's, and is made *silent*.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from .. import _jax
from .choices import random_of
from .control import with_programs
from .site import Body, Call

Rewrite = Callable[[_jax.JaxprEqn], _jax.JaxprEqn]


def silent(closed: _jax.ClosedJaxpr) -> _jax.ClosedJaxpr:
    """The program without its messages, whose equations keep their places and operands."""
    return _rewritten(closed, _jax.nothing_instead_of)


def silent_equation(eqn: _jax.JaxprEqn) -> _jax.JaxprEqn:
    """An equation whose results are read, without the messages in it."""
    return _equation(eqn, set(eqn.outvars), _jax.nothing_instead_of)


def transformable(closed: _jax.ClosedJaxpr) -> _jax.ClosedJaxpr:
    """The program with all its messages of a kind that every transformation of JAX keeps."""
    return _rewritten(closed, _jax.debug_instead_of)


def _rewritten(closed: _jax.ClosedJaxpr, rewrite: Rewrite) -> _jax.ClosedJaxpr:
    if not any(map(_speaks, closed.jaxpr.eqns)):
        return closed
    read = {v for eqn in closed.jaxpr.eqns for v in eqn.invars if isinstance(v, _jax.Var)}
    read.update(v for v in closed.jaxpr.outvars if isinstance(v, _jax.Var))
    eqns = [_equation(eqn, read, rewrite) for eqn in closed.jaxpr.eqns]
    effects = frozenset().union(*(eqn.effects for eqn in eqns))
    return _jax.ClosedJaxpr(closed.jaxpr.replace(eqns=eqns, effects=effects), closed.consts)


def _speaks(eqn: _jax.JaxprEqn) -> bool:
    return bool(eqn.effects) or any(
        _speaks(e) for program in _programs(eqn) for e in program.jaxpr.eqns
    )


def _programs(eqn: _jax.JaxprEqn) -> list[_jax.ClosedJaxpr]:
    random = random_of(eqn)
    if not isinstance(random, Call):
        return list(_jax.sub_jaxprs(eqn))
    p = random.program
    return [p.jaxpr] if isinstance(p, Body) else [p.simulate, p.log_density]


def _equation(eqn: _jax.JaxprEqn, read: set[Any], rewrite: Rewrite) -> _jax.JaxprEqn:
    if not _speaks(eqn):
        return eqn
    if not _programs(eqn):
        return eqn if read.intersection(eqn.outvars) else rewrite(eqn)
    silenced = lambda program: _rewritten(program, rewrite)
    eqn = with_programs(eqn, silenced, lambda value: _called(value, silenced))
    inside = (sub.jaxpr.effects for sub in _jax.sub_jaxprs(eqn))
    return eqn.replace(effects=frozenset().union(*inside))


def _called(value: Any, inside: Callable[[_jax.ClosedJaxpr], _jax.ClosedJaxpr]) -> Any:
    """A generative function, rewritten; any other parameter as it is."""
    if not isinstance(value, Call):
        return value
    p = value.program
    if isinstance(p, Body):
        return dataclasses.replace(value, program=Body(inside(p.jaxpr)))
    parts = {n: inside(getattr(p, n)) for n in ("simulate", "log_density")}
    return dataclasses.replace(value, program=dataclasses.replace(p, **parts))
