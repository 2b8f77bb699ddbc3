"""What runs programs of its own, and how its operands enter them.

All of control flow is of four kinds: a program is run as it is (:class:`Whole`), one of several is
(:class:`Branches`), one is run step by step (:class:`Loop`), or as long as a test says so
(:class:`Until`). A primitive that is new is one record of :data:`KINDS`, and all passes know it.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax

from .. import _jax
from .site import Body, Call, Densities, call_p

Program = _jax.ClosedJaxpr


@dataclasses.dataclass(frozen=True, eq=False)
class Whole:
    """A program that is run once, on the operands of the equation.

    It may be *ruled* by a derivative rule of the user's, a ``checkpoint``, or that of a generative
    function, the address of which its choices are below (``call``).
    """

    eqn: _jax.JaxprEqn
    program: Program
    ruled: bool = False
    checkpoint: bool = False
    call: Call | None = None

    @property
    def is_opaque(self) -> bool:
        """Whether it stands for a generative function that is not run as it is: a marginal, or
        one that simulates by a program of its own."""
        return self.call is not None and isinstance(self.call.program, Densities)

    def results(self, outs: Sequence[Any]) -> list[Any]:
        """What belongs to the results of the equation, of what belongs to the outputs."""
        return list(outs)[: len(self.eqn.outvars)]

    def around(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """``f``, run as the program is: under ``jax.checkpoint`` if that is."""
        if not self.checkpoint:
            return f
        p = self.eqn.params
        return jax.checkpoint(f, prevent_cse=p["prevent_cse"], policy=p["policy"])


@dataclasses.dataclass(frozen=True, eq=False)
class Branches:
    """Programs of which the first operand says which is run, on the others."""

    eqn: _jax.JaxprEqn
    programs: tuple[Program, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """A program that is run ``length`` times."""

    eqn: _jax.JaxprEqn
    body: Program
    n_consts: int
    n_carry: int

    @property
    def length(self) -> int:
        return self.eqn.params["length"]

    @property
    def reverse(self) -> bool:
        return self.eqn.params["reverse"]

    @property
    def unroll(self) -> Any:
        return self.eqn.params["unroll"]

    def operands(self, values: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """What belongs to its operands: to constants, carries, and what it takes row by row."""
        n, m = self.n_consts, self.n_consts + self.n_carry
        return list(values[:n]), list(values[n:m]), list(values[m:])

    def results(self, values: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """What belongs to its results: to carries, and what it stacks up."""
        return list(values[: self.n_carry]), list(values[self.n_carry :])


@dataclasses.dataclass(frozen=True, eq=False)
class Until:
    """A program that is run as long as another says so."""

    eqn: _jax.JaxprEqn
    test: Program
    body: Program

    def operands(self, values: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """What belongs to its operands: to constants of the test, of the body, and carries."""
        n, m = self.eqn.params["cond_nconsts"], self.eqn.params["body_nconsts"]
        return list(values[:n]), list(values[n : n + m]), list(values[n + m :])


def _generative(eqn: _jax.JaxprEqn) -> Whole:
    call: Call = eqn.params["call"]
    program = call.program
    return Whole(eqn, program.jaxpr if isinstance(program, Body) else program.simulate, call=call)


Control = Whole | Branches | Loop | Until


def _whole(name: str, ruled: bool = False) -> Callable[[_jax.JaxprEqn], Whole]:
    return lambda eqn: Whole(eqn, eqn.params[name], ruled)


KINDS: dict[Any, Callable[[_jax.JaxprEqn], Control]] = {
    _jax.jit_p: _whole("jaxpr"),
    _jax.closed_call_p: _whole("call_jaxpr"),
    _jax.custom_jvp_call_p: _whole("call_jaxpr", ruled=True),
    _jax.custom_vjp_call_p: _whole("call_jaxpr", ruled=True),
    _jax.remat_p: lambda eqn: Whole(eqn, next(_jax.sub_jaxprs(eqn)), checkpoint=True),
    _jax.cond_p: lambda eqn: Branches(eqn, tuple(eqn.params["branches"])),
    _jax.scan_p: lambda eqn: Loop(eqn, eqn.params["jaxpr"], *_jax.scan_layout(eqn)),
    call_p: _generative,
    _jax.while_p: lambda eqn: Until(eqn, eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]),
}


def control(eqn: _jax.JaxprEqn) -> Control | None:
    """How an equation runs programs, if it does."""
    kind = KINDS.get(eqn.primitive)
    return None if kind is None else kind(eqn)


def loop(eqn: _jax.JaxprEqn) -> Loop:
    """An equation that is a loop."""
    found = control(eqn)
    assert isinstance(found, Loop)
    return found


def is_loop(eqn: _jax.JaxprEqn) -> bool:
    return isinstance(control(eqn), Loop)


def with_programs(
    eqn: _jax.JaxprEqn, f: Callable[[Program], Program], other: Callable[[Any], Any] = lambda x: x
) -> _jax.JaxprEqn:
    """The equation with ``f`` of each program in its parameters, and ``other`` of all else."""

    def inside(value: Any) -> Any:
        if isinstance(value, Program):
            return f(value)
        if isinstance(value, _jax.Jaxpr):
            return f(Program(value, [])).jaxpr
        if not isinstance(value, tuple):
            return other(value)
        new = tuple(map(inside, value))
        return value if all(map(operator.is_, new, value)) else new

    params = {name: inside(v) for name, v in eqn.params.items()}
    same = all(params[name] is v for name, v in eqn.params.items())
    return eqn if same else eqn.replace(params=params)
