"""Expressions that are the same share one program, of which JAX takes the derivative once.

JAX differentiates equation by equation, and each takes longer than to trace it. A function under
``jax.jit`` is differentiated once, and found again by its program. So the equations of a program
are gathered to expressions, and those that are the same, as in the rounds of a Python loop, become
calls of one program. The calls are *inline*: where they are traced, the equations are put in their
place, so what is compiled is the same.

An expression is an equation with those that make an operand which nothing else reads. What is not
there often, as ``x[3]``, is no part of one, and a sum of many is cut between its terms.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import _jax
from .operands import written

KEPT = 4096
"""How many programs are kept."""
SIZE = 32
"""Most equations of an expression."""
OFTEN = 8
"""What is there less often does not pay for a program of its own."""


class _Form:
    """What equations do, equal if they do the same with operands of the same types."""

    def __init__(self, eqns: Sequence[_jax.JaxprEqn], content: tuple[Any, ...]):
        self.eqns, self._content, self._hash = eqns, content, hash(content)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Form) and self._content == other._content


class _Expression:
    """Equations, of which nothing but the last one's results is read; ``forms`` are theirs."""

    def __init__(self, eqn: _jax.JaxprEqn, form: _Form | None):
        self.eqns, self.forms = [eqn], [form]

    def add(self, part: _Expression) -> None:
        """Another one, which makes an operand of the last equation."""
        self.eqns[-1:-1], self.forms[-1:-1] = part.eqns, part.forms
        part.eqns, part.forms = [], []

    @functools.cached_property
    def form(self) -> _Form | None:
        """Of all of it; None if it cannot be shared."""
        if len(self.eqns) < 2:
            return self.forms[0]
        return _Form(self.eqns, (*self.forms, *_wired(self.eqns)))


def shared(
    programs: Sequence[_jax.ClosedJaxpr], labels: Mapping[Any, int] | None = None
) -> list[_jax.ClosedJaxpr]:
    """Programs, to be evaluated and no more, with calls in place of the expressions that are there
    often. An expression is of equations with the same of the ``labels``, by their results."""
    if _jax.is_bare():
        return list(programs)
    forms = [list(map(_form, p.jaxpr.eqns)) for p in programs]
    often = _frequent(form for own in forms for form in own)
    found = [
        _expressions(p.jaxpr, [f if f in often else None for f in own], labels or {})
        for p, own in zip(programs, forms, strict=True)
    ]
    whole = _frequent(each.form for own in found for each in own)

    def calls(each: _Expression) -> list[_jax.JaxprEqn]:
        if each.form is not None and each.form in whole:
            return [_called(each.form, each.eqns)]
        parts = zip(each.eqns, each.forms, strict=True)
        return [eqn if form is None else _called(form, [eqn]) for eqn, form in parts]

    return [
        _jax.with_equations(p, [eqn for each in own for eqn in calls(each)])
        for p, own in zip(programs, found, strict=True)
    ]


def _form(eqn: _jax.JaxprEqn) -> _Form | None:
    """Of an equation; None if it cannot be shared."""
    if not _jax.is_differentiable(eqn):
        return None
    types = [v.aval for v in eqn.invars]
    values = [None if isinstance(v, _jax.Var) else written(v) for v in eqn.invars]
    try:
        content = eqn.primitive, *sorted(eqn.params.items()), *types, *values, eqn.ctx
        content = *content, *_wired([eqn])
        return _Form([eqn], content)
    except TypeError:  # a parameter that has no hash
        return None


def _wired(eqns: Sequence[_jax.JaxprEqn]) -> list[int]:
    """Which operands and results are the same, by numbers."""
    numbers: dict[_jax.Var, int] = {}
    every = (v for eqn in eqns for v in (*eqn.invars, *eqn.outvars) if isinstance(v, _jax.Var))
    return [numbers.setdefault(v, len(numbers)) for v in every]


def _frequent(forms: Iterable[_Form | None]) -> set[_Form]:
    return {form for form, n in Counter(forms).items() if n >= OFTEN and form is not None}


def _expressions(
    jaxpr: _jax.Jaxpr, forms: Sequence[_Form | None], labels: Mapping[Any, int]
) -> list[_Expression]:
    """The expressions of a program, each where its last equation stands, from the forms of the
    equations that may be a part of one."""
    read = Counter(v for eqn in jaxpr.eqns for v in eqn.invars if isinstance(v, _jax.Var))
    read.update(v for v in jaxpr.outvars if isinstance(v, _jax.Var))
    open_: dict[Any, _Expression] = {}
    """By the variable that it makes, which is read once."""
    found = []
    for eqn, form in zip(jaxpr.eqns, forms, strict=True):
        own = _Expression(eqn, form)
        found.append(own)
        if form is None:
            continue
        for v in eqn.invars:
            part = open_.get(v) if isinstance(v, _jax.Var) else None
            if part is None or part.forms[-1] == form or len(part.eqns) + len(own.eqns) > SIZE:
                continue
            if labels.get(v) != labels.get(eqn.outvars[0]):
                continue
            own.add(part)
            del open_[v]
        (*others, out) = eqn.outvars
        if not others and read[out] == 1:
            open_[out] = own
    return [own for own in found if own.eqns]


def _called(form: _Form, eqns: Sequence[_jax.JaxprEqn]) -> _jax.JaxprEqn:
    last, call = eqns[-1], _call(form)
    about = {"source_info": last.source_info, "ctx": last.ctx}
    return call.replace(invars=[*_jax.operands_of(eqns)], outvars=last.outvars, **about)


@functools.lru_cache(maxsize=KEPT)
def _call(form: _Form) -> _jax.JaxprEqn:
    return _jax.inline_call(form.eqns)


__all__ = ["shared"]
