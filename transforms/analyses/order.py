"""Which choices of a model have a law that a guide's earlier draws alone decide.

The mean of log p(a | what p knows) over a ~ q(a | what q knows) has a closed form where all that
p's law of ``a`` depends on was drawn by q before ``a``: it is held fixed then. Where q draws in
another order (a hierarchy that is inferred from below), p's law of ``a`` depends on what q draws
after it, and the closed form would be another number.

A choice is an array of elements. In q those of one equation are independent of each other given
what came before, so that they count as drawn in the order of p. Of loops that both programs have,
the steps are in one order.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import _jax
from ..errors import Address
from ..program.choices import INLINED, Choice, Path, remat_jaxpr
from ..program.site import Body, Call
from ..runs.addresses import Entry
from .dependence import Dependences

Written = tuple[_jax.ClosedJaxpr, Sequence[Entry]]
"""A program and its addresses."""


def settled(p: Written, q: Written) -> set[Address]:
    """The addresses of both whose law in ``p`` depends on nothing but what ``q`` draws before."""
    analysis = Dependences(lambda path: True)
    analysis.run(p[0], [{}] * len(p[0].in_avals))
    mine, theirs = ({e.address: e for e in entries} for _, entries in (p, q))
    out: set[Address] = set()
    for address in mine.keys() & theirs.keys():
        a = mine[address]
        if len(a.parts) > 1 or len(theirs[address].parts) > 1:
            continue
        before = [
            (b, c)
            for source in analysis.parameters.get(a.choice.path, {})
            for b in p[1]
            for c in b.parts
            if source[: len(c.path)] == c.path
        ]
        if all(
            b.address not in theirs  # given in the data
            or all(
                _is_before(p[0], c, a.choice, q[0], d, theirs[address].choice)
                for d in theirs[b.address].parts
            )
            for b, c in before
        ):
            out.add(address)
    return out


def _is_before(
    p: _jax.ClosedJaxpr,
    b: Choice,
    a: Choice,
    q: _jax.ClosedJaxpr,
    d: Choice,
    c: Choice,
) -> bool:
    """Whether q draws, for each element of ``c`` (a in p), those of ``d`` (b in p) before it that p
    draws before."""
    shared = _shared(b, a)
    if not _shared(d, c):
        return d.path == c.path or d.path < c.path
    if shared != _shared(d, c):
        return False
    pairs = [(a, c), (b, d)]
    if any(_loop(p, x, n) != _loop(q, y, n) for x, y in pairs for n in range(shared)):
        return False
    return d.path == c.path or d.path < c.path or b.path > a.path


def _shared(b: Choice, a: Choice) -> int:
    """How many loops are around both."""
    return sum(x == y for x, y in zip(b.loops, a.loops, strict=False))


def _loop(closed: _jax.ClosedJaxpr, c: Choice, n: int) -> tuple[int, bool, int]:
    """The length of a loop around a choice, its direction, and the axis of the value that it is."""
    around = Entry(c.address, ((c,),)).loop_axes
    return c.lengths[n], _is_reversed(closed, c.loops[n]), around[n]


def _is_reversed(closed: _jax.ClosedJaxpr, path: Path) -> bool:
    eqn = closed.jaxpr.eqns[path[0]]
    rest = path[1:]
    if not rest:
        return bool(eqn.params["reverse"])
    call = eqn.params.get("call")
    if isinstance(call, Call) and isinstance(call.program, Body):
        return _is_reversed(call.program.jaxpr, rest)
    if eqn.primitive is _jax.scan_p:
        return _is_reversed(eqn.params["jaxpr"], rest)
    if eqn.primitive is _jax.cond_p:
        return _is_reversed(eqn.params["branches"][rest[0]], rest[1:])
    if eqn.primitive in INLINED:
        return _is_reversed(eqn.params[INLINED[eqn.primitive]], rest)
    assert eqn.primitive is _jax.remat_p
    return _is_reversed(remat_jaxpr(eqn), rest)
