"""The programs of an objective that have a payoff of their own."""

from __future__ import annotations

import dataclasses

from .. import _jax
from ..estimation.chosen import Choose, Chosen, Rough
from ..plan.assignment import assign
from ..plan.layouts import Layouts
from ..program.choices import Path
from ..program.flat import Flat


@dataclasses.dataclass(eq=False)
class Scope:
    """A program with a payoff: the objective, or an expectation inside."""

    closed: _jax.ClosedJaxpr
    choose: Choose
    flat: Flat
    name: str
    rough: dict[Path, Rough] = dataclasses.field(default_factory=dict)
    chosen: list[Chosen] = dataclasses.field(default_factory=list)

    def assign(self, samples: int, layouts: Layouts) -> None:
        self.chosen = assign(self.closed, self.choose, samples, self.rough, layouts)
        self.by_path = {s.choice.path: s for s in self.chosen}
