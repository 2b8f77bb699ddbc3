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
from ..program.choices import Choice, Path
from ..program.control import Branches, Loop, Whole, control
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
    """Of the loop at a path."""
    inside, rest = control(closed.jaxpr.eqns[path[0]]), path[1:]
    if isinstance(inside, Whole):
        return _is_reversed(inside.program, rest)
    if isinstance(inside, Branches):
        return _is_reversed(inside.programs[rest[0]], rest[1:])
    assert isinstance(inside, Loop)
    return _is_reversed(inside.body, rest) if rest else inside.reverse
