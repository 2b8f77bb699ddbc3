"""``objective.explain``: what each random choice costs and how its gradient is estimated."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from transforms import _jax
from transforms.estimator import Continued, Enumerated
from transforms.interpret import abstract_distribution, choices
from transforms.site import Expect, FreshKey
from transforms.surrogate import Choose, assign

COLUMNS = ("address", "distribution", "shape", "estimator", "why", "evaluations", "source")


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A table, one row for each random choice; prints as text."""

    name: str
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        table = [COLUMNS, *self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table]
        return "\n".join([f"objective {self.name}", *(line.rstrip() for line in lines)])

    __repr__ = __str__


def explain(
    name: str, closed: _jax.ClosedJaxpr, choose: Choose, samples: int, scope: str = ""
) -> Explanation:
    """Rows for the choices of a scope, then for those of the expectations inside."""
    rows: list[tuple[str, ...]] = []
    for s in assign(closed, choose, samples):
        c, d = s.choice, abstract_distribution(s.choice)
        if isinstance(d, FreshKey):
            continue
        site: Any = c.random
        shape = (*c.lengths, *site.sizes, *site.shape)
        if isinstance(s.estimator, Enumerated):
            evaluations = str(s.joint)
        elif isinstance(s.estimator, Continued):
            evaluations = f"1 + alternatives x {math.prod(c.lengths)}"
        else:
            evaluations = "1"
        rows.append(
            (
                scope + "/".join(c.address),
                type(d).__name__,
                str(shape),
                s.estimator.name,
                s.reason,
                evaluations,
                c.source,
            )
        )
    for c in choices(closed, densities=True):
        if isinstance(c.random, Expect):
            inner = explain(name, c.random.jaxpr, choose, samples, f"{scope}{c.random.name}/")
            rows += inner.rows
    return Explanation(name, tuple(rows))
