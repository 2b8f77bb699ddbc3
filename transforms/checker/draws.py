"""Where the draws of a program are, as far as their supports tell, and what is positive of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..program.flat import Flat, Op
from ..program.site import Site
from ..smoothness import verdicts
from ..smoothness.domains import Domain, domain_of
from ..smoothness.signs import Sign, signs


class Draws:
    """The draws of the programs of one objective."""

    def __init__(self) -> None:
        self.domains: dict[Flat, dict[int, Domain]] = {}
        self._signs: dict[Flat, dict[int, Sign]] = {}

    def note(self, flat: Flat, i: int, site: Site, d: Any) -> None:
        """Note the draw that equation ``i`` makes, of the distribution ``d``."""
        domains, op = self.domains.setdefault(flat, {}), flat.ops[i]
        if not domains.keys() >= set(op.outs):
            domain = domain_of(site, op.ins, d)
            if domain is not None:
                domains.update(dict.fromkeys(op.outs, domain))

    def may_be_zero(self, flat: Flat, v: int) -> bool:
        """Whether a value may be 0, for all that is known."""
        if flat not in self._signs:
            draws = self.domains.get(flat, {})
            positive = {v for v, domain in draws.items() if domain.positive}
            self._signs[flat] = signs(flat, positive)
        return self._signs[flat].get(v) != Sign.POSITIVE

    def reach_pole(self, flat: Flat, op: Op, args: Sequence[Any]) -> bool:
        """Whether a draw may take an equation to where it is not defined, for all that is known of
        its operands."""
        v = verdicts.pole(op)
        if v is None:
            return False
        moving = args[op.ins.index(v)]
        return bool(moving.sources and moving.drawn) and self.may_be_zero(flat, v)
