"""Means of draws of an expectation: ``ppl.mean(inner(x), n)``.

When ``ppl.mean`` is called, its argument is one draw already: the result of an equation of the
program that is being traced. It marks the result, and here the equation that makes it is told to
stand for the mean of n draws.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import NoReturn

import jax
from jax.ad_checkpoint import checkpoint_name

from .. import _jax
from ..errors import UnsupportedError
from .choices import random_of
from .control import with_programs
from .site import Expect

_MARK = "ppl.mean "


def mark_mean(x: jax.Array, n: int) -> jax.Array:
    """A draw of an expectation, marked to be the mean of ``n``."""
    return checkpoint_name(x, f"{_MARK}{n} {_jax.user_line()}")


def averaged(closed: _jax.ClosedJaxpr) -> _jax.ClosedJaxpr:
    """A program whose marked draws are means.

    Raises:
        UnsupportedError: what is marked is no draw of an expectation, or is used elsewhere too.
    """
    return closed if not _has_marks(closed) else _with_means(closed)


def _has_marks(closed: _jax.ClosedJaxpr) -> bool:
    return any(
        _mark(e) is not None or any(map(_has_marks, _jax.sub_jaxprs(e))) for e in closed.jaxpr.eqns
    )


def _mark(eqn: _jax.JaxprEqn) -> tuple[int, str] | None:
    name = eqn.params.get("name") if eqn.primitive.name == "name" else None
    if not isinstance(name, str) or not name.startswith(_MARK):
        return None
    n, _, line = name.removeprefix(_MARK).partition(" ")
    return int(n), line


def _with_means(closed: _jax.ClosedJaxpr) -> _jax.ClosedJaxpr:
    eqns = list(closed.jaxpr.eqns)
    makers = {v: i for i, e in enumerate(eqns) for v in e.outvars}
    read = [v for e in eqns for v in e.invars] + list(closed.jaxpr.outvars)
    uses = collections.Counter(v for v in read if not isinstance(v, _jax.Literal))
    for eqn in list(eqns):
        mark, (v, *_) = _mark(eqn), [*eqn.invars, None]
        if mark is None:
            continue
        at = None if isinstance(v, _jax.Literal) else makers.get(v)
        expect = None if at is None else random_of(eqns[at])
        # one that is a mean already was traced before (ppl.tune)
        if at is None or not isinstance(expect, Expect) or expect.draws not in (1, mark[0]):
            _refuse(mark[1], "is given what is not one draw of an expectation")
        if uses[v] > 1:
            _refuse(mark[1], "is given a draw that is used elsewhere too")
        new = dataclasses.replace(expect, draws=mark[0])
        eqns[at] = eqns[at].replace(params={**eqns[at].params, "expect": new})
    return _jax.with_equations(closed, [_inside(e) for e in eqns])


def _inside(eqn: _jax.JaxprEqn) -> _jax.JaxprEqn:
    """An equation, with the programs inside of it."""
    if random_of(eqn) is not None or not any(map(_has_marks, _jax.sub_jaxprs(eqn))):
        return eqn
    return with_programs(eqn, _with_means)


def _refuse(line: str, what: str) -> NoReturn:
    raise UnsupportedError(
        f"ppl.mean at {line} {what}. Type ppl.mean(inner(args), n) around the call of an "
        "@ppl.expectation itself; or give it a function, ppl.mean(lambda: ..., n), which is run n "
        "times."
    )
