"""A program cut at its loops, so that many runs of it can go side by side, step by step.

What a program computes is, in turn, plain code and loops that make choices; what depends on no
choice is computed once. Sequential Monte Carlo runs each *stage* for all particles, a loop one step
at a time (``ppl/programs/smc.py``): :func:`run_plain` and :func:`run_step` run them for one, by the
rule of a transformation (``interpret.py``), which sees the paths of the program that was cut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax import lax

from .. import _jax
from ..errors import Address
from ..program import control
from ..program.choices import Choice, Path, choices, is_random
from ..program.interpret import Record, Rule, entering, interpret
from ..program.site import Call, Factor, Site, call_p, factor_p, sample_p
from .addresses import Entry, entries
from .execute import values_in, weights_of


@dataclasses.dataclass(frozen=True)
class Plain:
    """Equations outside of loops that make choices; ``numbers`` are their places in the program."""

    jaxpr: _jax.ClosedJaxpr
    numbers: tuple[int, ...]

    @property
    def invars(self) -> list[Any]:
        return self.jaxpr.jaxpr.invars

    @property
    def outvars(self) -> list[Any]:
        return self.jaxpr.jaxpr.outvars


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop that makes choices, and its place in the program."""

    control: control.Loop
    number: int

    @property
    def eqn(self) -> _jax.JaxprEqn:
        return self.control.eqn

    @property
    def length(self) -> int:
        return self.control.length

    @property
    def reverse(self) -> bool:
        return self.control.reverse

    def operands(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Its operands: constants, carries, rows."""
        return self.control.operands(self.eqn.invars)

    def results(self) -> tuple[list[Any], list[Any]]:
        """Its results: carries, and what is stacked up."""
        return self.control.results(self.eqn.outvars)


Stage = Plain | Loop


@dataclasses.dataclass(frozen=True)
class Stages:
    """A program as stages; ``known`` is what does not depend on choices, by variable."""

    entries: list[Entry]
    choices: list[Choice]
    weights: Mapping[Path, Address]
    known: Mapping[Any, Any]
    stages: list[Stage]

    def inside(self, stage: Stage) -> list[Choice]:
        """The choices of a stage."""
        numbers = stage.numbers if isinstance(stage, Plain) else (stage.number,)
        return [c for c in self.choices if c.path[0] in numbers]

    def needed_after(self, stage: Stage) -> set[Any]:
        """The variables that later stages read."""
        later = self.stages[self.stages.index(stage) + 1 :]
        return {
            v
            for s in later
            for v in (s.invars if isinstance(s, Plain) else s.eqn.invars)
            if isinstance(v, _jax.Var)
        }


def cut(closed: _jax.ClosedJaxpr, args: Sequence[Any]) -> Stages:
    """The stages of a program at ``args``: up to its last choice."""
    flat = _unnested(closed)
    jaxpr = flat.jaxpr
    known = dict(zip(jaxpr.constvars, flat.consts, strict=True))
    known.update(zip(jaxpr.invars, args, strict=True))
    drawn: set[Any] = set()
    kept: list[tuple[int, _jax.JaxprEqn]] = []
    last = max((i for i, eqn in enumerate(jaxpr.eqns) if is_random(eqn)), default=-1)
    for i, eqn in enumerate(jaxpr.eqns[: last + 1]):
        if is_random(eqn) or drawn.intersection(v for v in eqn.invars if isinstance(v, _jax.Var)):
            kept.append((i, eqn))
            drawn.update(eqn.outvars)
        else:
            outs = _jax.evaluate_equation(eqn, [_read(known, v) for v in eqn.invars])
            known.update(zip(eqn.outvars, outs, strict=True))
    groups: list[list[tuple[int, _jax.JaxprEqn]] | Loop] = []
    for i, eqn in kept:
        inside = control.control(eqn)
        if isinstance(inside, control.Loop) and is_random(eqn):
            groups.append(Loop(inside, i))
        elif groups and isinstance(groups[-1], list):
            groups[-1].append((i, eqn))
        else:
            groups.append([(i, eqn)])
    stages: list[Stage] = []
    needed: set[Any] = set()
    for group in reversed(groups):
        if isinstance(group, Loop):
            needed.update(v for v in group.eqn.invars if isinstance(v, _jax.Var))
            stages.append(group)
            continue
        made = [v for _, e in group for v in e.outvars]
        read = [v for _, e in group for v in e.invars if isinstance(v, _jax.Var)]
        invars = [v for v in dict.fromkeys(read) if v not in made]
        outvars = [v for v in made if v in needed]
        part = _jax.open_jaxpr(jaxpr, invars, outvars, [e for _, e in group])
        stages.append(Plain(part, tuple(i for i, _ in group)))
        needed.update(invars)
    return Stages(entries(flat), list(choices(flat)), weights_of(flat), known, stages[::-1])


def _read(env: Mapping[Any, Any], v: Any) -> Any:
    return env[v] if isinstance(v, _jax.Var) else jax.numpy.asarray(v.val, v.aval.dtype)


def _unnested(closed: _jax.ClosedJaxpr) -> _jax.ClosedJaxpr:
    """The program with generative functions and ``jit`` inlined where they make choices, whose
    addresses are then whole."""
    address = {c.path: c.address for c in choices(closed)}

    @entering
    def rule(choice: Any, operands: list[Any], *, path: Path, **_: Any) -> Any:
        whole = dataclasses.replace(choice, address=address[path])
        if isinstance(choice, Site):
            return sample_p.bind(*operands, site=whole), None, {}
        if isinstance(choice, Factor):
            return factor_p.bind(*operands, factor=whole), None, {}
        assert isinstance(choice, Call)
        return call_p.bind(*operands, call=whole), None, {}

    avals = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in closed.in_avals]
    return _jax.traced(lambda *args: interpret(closed, args, rule)[0], *avals)


def run_plain(
    stage: Plain, inputs: Sequence[Any], rule: Rule, given: Record, acc: Any
) -> tuple[list[Any], Any, Record]:
    """A plain stage of one run: its results, ``acc``, and what was chosen."""
    place = dict(enumerate(stage.numbers))
    here = {number: i for i, number in place.items()}
    inner = lambda path: (here[path[0]], *path[1:])
    outer = lambda path: (place[path[0]], *path[1:])

    def renumbered(choice: Any, operands: list[Any], *, path: Path, given: Record, **rest: Any):
        known = {outer(p): v for p, v in given.items()}
        return rule(choice, operands, path=outer(path), given=known, **rest)

    mine = {inner(p): v for p, v in given.items() if p[0] in here}
    outs, acc, made = interpret(stage.jaxpr, inputs, renumbered, given=mine, acc=acc)
    return outs, acc, values_in(made)


def run_step(
    loop: Loop, operands: Sequence[Any], rule: Rule, given: Record, acc: Any
) -> tuple[list[Any], list[Any], Any, Record]:
    """One step of a loop of one run: its carries, what it stacks up, ``acc``, and what was
    chosen."""
    path = (loop.number,)
    mine = {p: v for p, v in given.items() if p[0] == loop.number}
    body = loop.control.body
    outs, acc, made = interpret(body, operands, rule, given=mine, acc=acc, path=path)
    declared = [v.aval.dtype for v in body.jaxpr.outvars]
    outs = [
        o if o.dtype == dtype else lax.convert_element_type(o, dtype)
        for o, dtype in zip(outs, declared, strict=True)
    ]
    return *loop.control.results(outs), acc, values_in(made)
