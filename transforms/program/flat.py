"""A program as one flat list of equations, for analyses.

``jit``, ``checkpoint``, ``custom_jvp`` and ``custom_vjp`` functions and generative functions are
inlined; ``scan``, ``cond`` and ``while`` keep their bodies, flat themselves. Values are numbers
(each defined once), so that a function that is called twice is two copies. What follows from an
equation of a library function is told at the line of the user's code that called it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from .. import _jax, authors
from .choices import Path, is_random
from .control import Branches, Control, Loop, Until, Whole, control


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A constant array of a program."""

    val: Any


Atom = int | _jax.Literal | Constant


@dataclasses.dataclass(frozen=True, eq=False)
class Op:
    """An equation.

    ``origin`` is the equation of the user's code that it stands for: itself, or the call of a
    library function that it is a part of, named ``within``; ``caller`` is the call of the last of
    those. ``stack`` is its name stack.
    A *custom* op is a function with a derivative rule of the user's: its operands are followed by
    what its body, which is inlined before it, returns.
    """

    eqn: _jax.JaxprEqn
    ins: tuple[Atom, ...]
    outs: tuple[int, ...]
    path: Path
    origin: _jax.JaxprEqn
    within: tuple[str, ...]
    stack: str
    bodies: tuple[Flat, ...] = ()
    custom: bool = False
    caller: _jax.JaxprEqn | None = None

    @property
    def name(self) -> str:
        return self.eqn.primitive.name

    @functools.cached_property
    def text(self) -> str:
        """Its parameters in writing."""
        return str(self.eqn.params)

    @functools.cached_property
    def control(self) -> Control | None:
        """How it runs its bodies."""
        return control(self.eqn)

    @functools.cached_property
    def is_random(self) -> bool:
        """Whether there is a choice in it."""
        return is_random(self.eqn)

    @functools.cached_property
    def values(self) -> list[int]:
        """The operands that are no constants."""
        return [v for v in self.ins if isinstance(v, int)]

    @functools.cached_property
    def operands(self) -> list[int]:
        """As ``values``, without what the body of a custom op returns."""
        return [v for v in self.ins[: len(self.eqn.invars)] if isinstance(v, int)]

    @property
    def line(self) -> str:
        """``file:line (function)`` of the user's code."""
        return _jax.line_of(self.origin)

    def evaluate(self, operands: Sequence[Any]) -> list[Any]:
        """The results as ordinary JAX code."""
        return _jax.evaluate_equation(self.eqn, operands[: len(self.eqn.invars)])


@dataclasses.dataclass(frozen=True, eq=False)
class Flat:
    """A flat program; ``avals`` are the shapes and types of its values, by number."""

    ops: list[Op]
    inputs: list[int]
    outputs: list[Atom]
    avals: list[Any]

    @functools.cached_property
    def last(self) -> dict[int, int]:
        """Where each value is used last."""
        return {v: j for j, op in enumerate(self.ops) for v in op.values}

    @functools.cached_property
    def makers(self) -> dict[int, int]:
        """Where each value is made."""
        return {v: j for j, op in enumerate(self.ops) for v in op.outs}

    @functools.cached_property
    def known(self) -> set[int]:
        """The values that depend on nothing but constants."""
        found: set[int] = set()
        for op in self.ops:
            if found.issuperset(op.values) and not op.is_random:
                found.update(op.outs)
        return found


@dataclasses.dataclass(frozen=True)
class _Around:
    """What surrounds the equations that are being inlined."""

    path: Path = ()
    origin: _jax.JaxprEqn | None = None
    within: tuple[str, ...] = ()
    stack: str = ""
    caller: _jax.JaxprEqn | None = None


def flatten(closed: _jax.ClosedJaxpr, outputs: slice = slice(None)) -> Flat:
    """The flat form of a program, of which only some ``outputs`` (and what they need) count."""
    return _flatten(closed, _Around(), outputs)


def _flatten(closed: _jax.ClosedJaxpr, around: _Around, outputs: slice = slice(None)) -> Flat:
    flat = Flat([], [], [], [])
    for v in closed.jaxpr.invars:
        flat.inputs.append(_new(flat, v.aval))
    flat.outputs.extend(_inline(flat, closed, list(flat.inputs), around)[outputs])
    live = {v for v in flat.outputs if isinstance(v, int)}
    kept = []
    for op in reversed(flat.ops):
        if any(v in live for v in op.outs):
            live.update(op.values)
            kept.append(op)
    flat.ops[:] = reversed(kept)
    return flat


def _new(flat: Flat, aval: Any) -> int:
    flat.avals.append(aval)
    return len(flat.avals) - 1


def _inline(
    flat: Flat, closed: _jax.ClosedJaxpr, args: Sequence[Atom], around: _Around
) -> list[Atom]:
    """Append the equations of ``closed``, applied to ``args``."""
    jaxpr = closed.jaxpr
    env: dict[Any, Atom] = dict(zip(jaxpr.invars, args, strict=True))
    env.update(zip(jaxpr.constvars, map(Constant, closed.consts), strict=True))

    def read(v: Any) -> Atom:
        return v if isinstance(v, _jax.Literal) else env[v]

    for i, eqn in enumerate(jaxpr.eqns):
        ins = [read(v) for v in eqn.invars]
        outs = _equation(flat, eqn, ins, _inside(around, eqn, i))
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _inside(around: _Around, eqn: _jax.JaxprEqn, i: int) -> _Around:
    stack = str(eqn.source_info.name_stack)
    return dataclasses.replace(
        around,
        path=(*around.path, i),
        stack=f"{around.stack}/{stack}" if around.stack else stack,
    )


def _equation(flat: Flat, eqn: _jax.JaxprEqn, ins: list[Atom], at: _Around) -> Sequence[Atom]:
    inside = control(eqn)
    if isinstance(inside, Whole):
        if inside.call is not None:
            return inside.results(_inline(flat, inside.program, ins, at))
        called = authors.called_function(eqn, inside.program)
        inner = at
        if called.library is not None:
            within = (*at.within, called.name)
            inner = dataclasses.replace(at, origin=at.origin or eqn, within=within, caller=eqn)
        results = _inline(flat, inside.program, ins, inner)
        custom = inside.ruled and called.library is None and not is_random(eqn)
        if not custom:
            return results
        return _append(flat, eqn, [*ins, *results], at, custom=True)
    bodies = tuple(
        _flatten(body, dataclasses.replace(at, path=(*at.path, *below)))
        for below, body in _bodies(inside)
    )
    return _append(flat, eqn, ins, at, bodies)


def _bodies(inside: Control | None) -> list[tuple[Path, _jax.ClosedJaxpr]]:
    """The programs of loops and branches, with their paths."""
    match inside:
        case Branches():
            return [((b,), program) for b, program in enumerate(inside.programs)]
        case Loop():
            return [((), inside.body)]
        case Until():
            return [((), inside.test), ((), inside.body)]
    return []


def _append(
    flat: Flat,
    eqn: _jax.JaxprEqn,
    ins: Sequence[Atom],
    at: _Around,
    bodies: tuple[Flat, ...] = (),
    custom: bool = False,
) -> Sequence[Atom]:
    outs = tuple(_new(flat, v.aval) for v in eqn.outvars)
    origin = at.origin or eqn
    about = at.path, origin, at.within, at.stack, bodies, custom, at.caller
    flat.ops.append(Op(eqn, tuple(ins), outs, *about))
    return outs
