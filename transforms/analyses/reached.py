"""Which variables the draws of choices reach, and of which kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import _jax
from ..program.choices import Path, is_random
from ..program.control import Control, Loop, Whole, control
from ..program.site import Site
from .forward import Analysis, Place

ENUMERATED, DRAWN = 1, 2
"""What a variable is reached by: the greatest counts. 0 stands for nothing."""
Kind = Callable[[Path], int]


def may_be_taken_apart(inside: Control | None) -> bool:
    """Whether a program is run as it is and has no derivative rule, and no density, of its own."""
    return isinstance(inside, Whole) and not inside.ruled and not inside.is_opaque


def as_is(eqn: _jax.JaxprEqn) -> _jax.ClosedJaxpr | None:
    """The program that an equation runs on its own operands, if it may be taken apart."""
    inside = control(eqn)
    return inside.program if isinstance(inside, Whole) and may_be_taken_apart(inside) else None


class Reached(Analysis[int]):
    """The analysis; ``kind_of(path)`` says of which kind the draws of a choice are."""

    nothing = 0

    def __init__(self, kind_of: Kind):
        super().__init__()
        self.kind_of = kind_of

    def join(self, values: Sequence[int]) -> int:
        return max(values)

    def enters(self, inside: Control) -> bool:
        return isinstance(inside, Loop) or may_be_taken_apart(inside)

    def equation(self, eqn: _jax.JaxprEqn, ins: list[int], at: Place) -> Sequence[int]:
        return [max([*ins, DRAWN * is_random(eqn)])] * len(eqn.outvars)

    def draw(self, site: Site, eqn: _jax.JaxprEqn, ins: list[int], at: Place) -> int:
        return max([*ins, self.kind_of(at.path)])

    def within(self, path: Path) -> Mapping[Any, int]:
        """The kind of each variable that is reached, in the program at a path."""
        return {v: kind for v, kind in self.seen[path].items() if kind}
