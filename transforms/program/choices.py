"""The choices of a program, and where they stand.

A *path* is the position of a choice: the index of its equation, the branch of a ``cond``, the
index inside, and so on. :func:`choices` lists the choices of a jaxpr with their paths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from .. import _jax
from ..errors import Address, UnsupportedError, show
from .control import Branches, Loop, Until, Whole, control
from .site import (
    Arm,
    Call,
    Expect,
    Factor,
    Site,
    call_p,
    expect_p,
    factor_p,
    sample_p,
)

Path = tuple[int, ...]
Random = Site | Factor | Call | Expect

RANDOM = {sample_p: "site", factor_p: "factor", call_p: "call", expect_p: "expect"}


@dataclasses.dataclass(frozen=True)
class Choice:
    """A random choice and where it stands.

    ``address`` includes the addresses of the generative functions around it; ``lengths`` are
    the trip counts of the ``scan``\\ s around it, outermost first; ``loops`` and ``conds``
    the paths of the ``scan``\\ s and ``cond``\\ s.
    """

    path: Path
    random: Random
    address: Address
    avals: tuple[Any, ...] = ()
    lengths: tuple[int, ...] = ()
    loops: tuple[Path, ...] = ()
    conds: tuple[Path, ...] = ()

    @property
    def conditional(self) -> bool:
        return bool(self.conds)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The branches around it of which a ``vmap`` runs all."""
        return () if isinstance(self.random, Expect) else self.random.arms

    @property
    def source(self) -> str:
        return self.random.source

    @property
    def site(self) -> Site:
        """The choice, which must be a draw of a distribution."""
        assert isinstance(self.random, Site)
        return self.random

    @property
    def own_avals(self) -> list[Any]:
        """Shapes of the operands of a site without its ``vmap`` axes."""
        skip = [sum(a.mapped[j] for a in self.site.axes) for j in range(len(self.avals))]
        return [
            jax.ShapeDtypeStruct(a.shape[n:], a.dtype)
            for a, n in zip(self.avals, skip, strict=True)
        ]


def random_of(eqn: _jax.JaxprEqn) -> Random | None:
    """The choice that an equation makes itself, if any."""
    name = RANDOM.get(eqn.primitive)
    return None if name is None else eqn.params[name]


def is_random(eqn: _jax.JaxprEqn) -> bool:
    """Whether an equation makes a choice or hides one."""
    return eqn.primitive in RANDOM or any(
        is_random(e) for sub in _jax.sub_jaxprs(eqn) for e in sub.jaxpr.eqns
    )


def choices(
    closed: _jax.ClosedJaxpr, path: Path = (), *, densities: bool = False
) -> Iterator[Choice]:
    """The choices of a program in the order in which it makes them.

    With ``densities``, those that a nested program makes in order to simulate are listed in the
    place of that program.
    """

    def inside(sub: _jax.ClosedJaxpr, at: Path, **around: Any) -> Iterator[Choice]:
        for c in choices(sub, at, densities=densities):
            yield dataclasses.replace(
                c,
                address=(*around.get("address", ()), *c.address),
                lengths=(*around.get("lengths", ()), *c.lengths),
                loops=(*around.get("loops", ()), *c.loops),
                conds=(*around.get("conds", ()), *c.conds),
            )

    for i, eqn in enumerate(closed.jaxpr.eqns):
        at = (*path, i)
        random = random_of(eqn)
        found = control(eqn)
        if isinstance(found, Whole) and (densities or not found.is_opaque):
            call = found.call
            yield from inside(found.program, at, address=() if call is None else call.address)
        elif random is not None:
            yield Choice(at, random, random.address, tuple(v.aval for v in eqn.invars))
        elif isinstance(found, Loop):
            yield from inside(found.body, at, lengths=(found.length,), loops=(at,))
        elif isinstance(found, Branches):
            for b, branch in enumerate(found.programs):
                yield from inside(branch, (*at, b), conds=(at,))
        elif is_random(eqn):
            refuse(eqn)


def abstract_distribution(choice: Choice) -> Any:
    """The distribution of a site (without its ``vmap`` axes), with shapes in place of numbers."""
    return choice.site.rebuild(choice.own_avals)


def abstractly(choice: Choice, f: Callable[[Any], Any]) -> Any:
    """Shapes of ``f(distribution)``."""
    return jax.eval_shape(lambda ops: f(choice.site.rebuild(ops)), choice.own_avals)


def refuse(eqn: _jax.JaxprEqn) -> NoReturn:
    inner = next(
        r
        for sub in _jax.sub_jaxprs(eqn)
        for e in sub.jaxpr.eqns
        if is_random(e)
        for r in [random_of(e) or _first_random(e)]
    )
    name = eqn.primitive.name
    advice = (
        "Use jax.lax.scan (or fori_loop with a static number of steps) and mask the steps that "
        "should not count, or move the random choice out of the loop."
        if isinstance(control(eqn), Until)
        else "Move the random choice out of it."
    )
    raise UnsupportedError(
        f"the random choice {show(inner.address)} at {inner.source} is inside '{name}' "
        f"({_jax.line_of(eqn)}), and there is no rule that would make its gradient and density "
        f"right there. {advice}"
    )


def _first_random(eqn: _jax.JaxprEqn) -> Random:
    for sub in _jax.sub_jaxprs(eqn):
        for e in sub.jaxpr.eqns:
            if is_random(e):
                return random_of(e) or _first_random(e)
    raise AssertionError("no choice in this equation")
