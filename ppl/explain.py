"""``objective.explain``: what the gradient costs, and whether to trust it."""

from __future__ import annotations

import dataclasses
import functools
import html
import math
from collections.abc import Iterator, Sequence
from typing import Any, final

from transforms import _jax
from transforms.assignment import Chosen
from transforms.estimator import Continued, Enumerated
from transforms.findings import ALMOST, Finding
from transforms.interpret import abstract_distribution
from transforms.site import FreshKey
from transforms.soundness import Soundness

COLUMNS = (
    "address",
    "distribution",
    "shape",
    "estimator",
    "why",
    "evaluations",
    "source",
    "findings",
)


@final
@dataclasses.dataclass(frozen=True)
class SiteRow:
    """One random choice, as ``explain`` shows it.

    ``evaluations`` is how often what follows the choice is run for one gradient.
    """

    address: str
    distribution: str
    shape: tuple[int, ...]
    estimator: str
    why: str
    evaluations: str
    source: str
    findings: tuple[Finding, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as text, by column."""
        kinds = ", ".join(dict.fromkeys(f.kind for f in self.findings)) or "none"
        row = (self.address, self.distribution, str(self.shape), self.estimator, self.why)
        return (*row, self.evaluations, self.source, kinds)


@final
@dataclasses.dataclass(frozen=True)
class Explanation:
    """What ``objective.explain`` returns: text in a terminal, a table in a notebook.

    Attributes:
        name: of the objective.
        sites: a row for each random choice.
        findings: what the soundness checker found.
        stated: reasons that were given to ``ppl.continuous``, with their lines.
        equations: of the gradient's program (a loop's body counts once).
        loops: whether a choice stands in a ``scan``.
        traced: the traced gradient (``jax.stages.Traced``).
    """

    name: str
    sites: tuple[SiteRow, ...]
    findings: tuple[Finding, ...]
    stated: tuple[tuple[str, str], ...]
    equations: int
    loops: bool
    traced: Any = dataclasses.field(repr=False, compare=False)

    @functools.cached_property
    def flops(self) -> float | None:
        """Of one gradient, as XLA estimates them (a loop's body counts once), if it does."""
        cost = self.traced.lower().cost_analysis()
        return cost.get("flops") if isinstance(cost, dict) else None

    @property
    def rows(self) -> tuple[tuple[str, ...], ...]:
        """The table as text, without its head."""
        return tuple(s.cells for s in self.sites)

    @property
    def summary(self) -> str:
        """What holds for the whole, in a sentence."""
        flops = "" if self.flops is None else f", {self.flops:,.0f} FLOPs"
        where = "some choices stand in a loop" if self.loops else "no choice stands in a loop"
        return f"One gradient: {self.equations:,} equations{flops}; {where}."

    @property
    def verdict(self) -> str:
        """Whether to trust the gradient, in a sentence."""
        wrong = [f for f in self.findings if f.kind != ALMOST]
        if not wrong:
            return "Findings: none. The gradient is unbiased."
        return f"Findings: {len(wrong)}. The gradient must not be trusted."

    def __str__(self) -> str:
        table = [COLUMNS, *self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table]
        notes = [f"- {f}" for f in self.findings]
        notes += [f"- stated to be continuous ({line}): {reason}" for reason, line in self.stated]
        body = (line.rstrip() for line in lines)
        return "\n".join([f"objective {self.name}", *body, self.summary, self.verdict, *notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cell = lambda text, tag="td": f"<{tag} style='text-align:left'>{html.escape(text)}</{tag}>"
        head = "".join(cell(c, "th") for c in COLUMNS)
        rows = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in self.rows)
        notes = [str(f) for f in self.findings]
        notes += [f"stated to be continuous ({line}): {reason}" for reason, line in self.stated]
        items = "".join(f"<li>{html.escape(n)}</li>" for n in notes)
        return (
            f"<b>objective {html.escape(self.name)}</b>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
            f"<p>{html.escape(self.summary)} {html.escape(self.verdict)}</p><ul>{items}</ul>"
        )


def explain(
    name: str, traced: Any, seen: Sequence[tuple[Soundness, Sequence[int]]], kinks: bool
) -> Explanation:
    """The explanation of a traced gradient and of what its checker saw."""
    findings: dict[Finding, None] = {}
    sites: list[SiteRow] = []
    stated: dict[tuple[str, str], None] = {}
    loops = False
    for check, inputs in seen:
        found = check.findings(inputs, kinks=kinks)
        findings.update(dict.fromkeys(found))
        stated.update(dict.fromkeys(check.stated))
        for scope, s in check.sites:
            if not isinstance(abstract_distribution(s.choice), FreshKey):
                sites.append(_row(scope, s, found))
                loops |= bool(s.choice.lengths)
    return Explanation(
        name,
        tuple(dict.fromkeys(sites)),
        tuple(findings),
        tuple(stated),
        sum(1 for _ in _equations(traced.jaxpr)),
        loops,
        traced,
    )


def _row(scope: str, s: Chosen, findings: Sequence[Finding]) -> SiteRow:
    c, d = s.choice, abstract_distribution(s.choice)
    site: Any = c.random
    runs = math.prod(c.lengths)
    if isinstance(s.estimator, Enumerated):
        evaluations = str(s.joint)
    elif isinstance(s.estimator, Continued):
        evaluations = "1 + alternatives" + (f" x {runs}" if runs > 1 else "")
    else:
        evaluations = "1"
    return SiteRow(
        scope + "/".join(c.address),
        type(d).__name__,
        (*c.lengths, *site.sizes, *site.shape),
        s.estimator.name,
        s.reason,
        evaluations,
        c.source,
        tuple(f for f in findings if c.address in f.addresses),
    )


def _equations(closed: Any) -> Iterator[Any]:
    for eqn in closed.jaxpr.eqns:
        yield eqn
        for sub in _jax.sub_jaxprs(eqn):
            yield from _equations(sub)
