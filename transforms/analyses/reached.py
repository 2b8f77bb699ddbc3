"""Which variables the draws of choices reach, and of which kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import _jax
from ..program.choices import INLINED, Path, is_random
from ..program.site import Site
from .bounds import program_of
from .tail import is_var

ENUMERATED, DRAWN = 1, 2
"""What a variable is reached by: the greatest counts. 0 stands for nothing."""
Kind = Callable[[Path], int]

_NO_RULES = {_jax.jit_p: INLINED[_jax.jit_p]}
"""Calls that have no derivative rule of their own."""


def as_is(eqn: _jax.JaxprEqn) -> _jax.ClosedJaxpr | None:
    """The program that an equation runs on its own operands, if it may be taken apart."""
    return program_of(eqn, _NO_RULES)


def reached(
    closed: _jax.ClosedJaxpr, ins: Sequence[int], kind_of: Kind, path: Path
) -> dict[Any, int]:
    """The kind of each variable that is reached, given those of the inputs."""
    jaxpr = closed.jaxpr
    out = {v: t for v, t in zip(jaxpr.invars, ins, strict=True) if t}
    for i, eqn in enumerate(jaxpr.eqns):
        at = (*path, i)
        hit = [out.get(v, 0) if is_var(v) else 0 for v in eqn.invars]
        if isinstance(eqn.params.get("site"), Site):
            results = [max([*hit, kind_of(at)])] * len(eqn.outvars)
        elif (sub := as_is(eqn)) is not None:
            inside = reached(sub, hit, kind_of, at)
            results = [inside.get(v, 0) if is_var(v) else 0 for v in sub.jaxpr.outvars]
        elif eqn.primitive is _jax.scan_p:
            inside = reached_in_body(eqn, hit, kind_of, at)
            outs = eqn.params["jaxpr"].jaxpr.outvars
            results = [inside.get(v, 0) if is_var(v) else 0 for v in outs]
        else:
            results = [max([*hit, DRAWN * is_random(eqn)])] * len(eqn.outvars)
        out |= {v: r for v, r in zip(eqn.outvars, results, strict=True) if r}
    return out


def reached_in_body(
    eqn: _jax.JaxprEqn, ins: list[int], kind_of: Kind, path: Path
) -> dict[Any, int]:
    """The same inside a ``scan``, for all of its steps."""
    body = eqn.params["jaxpr"]
    n_consts, n_carry = _jax.scan_layout(eqn)
    while True:
        inside = reached(body, ins, kind_of, path)
        carry = [inside.get(v, 0) if is_var(v) else 0 for v in body.jaxpr.outvars[:n_carry]]
        new = list(ins)
        for n, t in enumerate(carry):
            new[n_consts + n] = max(t, new[n_consts + n])
        if new == ins:
            return inside
        ins = new
