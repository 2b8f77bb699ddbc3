"""``objective.explain``: what the gradient costs, and whether to trust it."""

from __future__ import annotations

import dataclasses
import functools
import html
from collections.abc import Iterator, Sequence
from typing import Any, final

from transforms import _jax
from transforms.checker.findings import BY_CHOICE, LABELS, PLUG_IN, Finding
from transforms.checker.soundness import Soundness
from transforms.estimation.chosen import Chosen
from transforms.estimation.estimator import Continued, Enumerated
from transforms.plan.report import Use, plan
from transforms.program.choices import abstract_distribution
from transforms.program.site import Noise

COLUMNS = (
    "address",
    "distribution",
    "shape",
    "estimator",
    "why",
    "evaluations",
    "terms",
    "source",
    "findings",
)


@final
@dataclasses.dataclass(frozen=True)
class SiteRow:
    """One random choice, as ``explain`` shows it.

    ``evaluations`` is how often what follows the choice is run for one gradient, ``terms`` how many
    of the terms of the payoff depend on it: those that its score multiplies, or that are run again.
    """

    address: str
    distribution: str
    shape: tuple[int, ...]
    estimator: str
    why: str
    evaluations: str
    terms: str
    source: str
    findings: tuple[Finding, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as text, by column."""
        kinds = ", ".join(dict.fromkeys(f.kind for f in self.findings)) or "none"
        row = (self.address, self.distribution, str(self.shape), self.estimator, self.why)
        return (*row, self.evaluations, self.terms, self.source, kinds)


@final
@dataclasses.dataclass(frozen=True)
class Explanation:
    """What ``objective.explain`` returns: text in a terminal, a table in a notebook.

    Attributes:
        name: of the objective.
        sites: a row for each random choice.
        findings: what the soundness checker found.
        groups: enumerated choices that meet in a term, and the number of their joint values.
        stated: reasons that were given to ``ppl.continuous``, with their lines.
        equations: of the gradient's program (a loop's body counts once).
        loops: whether a choice stands in a ``scan``.
        traced: the traced gradient (``jax.stages.Traced``).

    Example:
        >>> report = elbo.explain(phi)
        >>> [site.estimator for site in report.sites], report.findings
        (['reparam'], ())
    """

    name: str
    sites: tuple[SiteRow, ...]
    findings: tuple[Finding, ...]
    groups: tuple[tuple[tuple[str, ...], int], ...]
    stated: tuple[tuple[str, str], ...]
    equations: int
    loops: bool
    traced: Any = dataclasses.field(repr=False, compare=False)

    @functools.cached_property
    def flops(self) -> float | None:
        """Of one gradient, as XLA estimates them (a loop's body counts once), if it does."""
        cost = self.traced.lower().cost_analysis()
        return cost.get("flops") if isinstance(cost, dict) else None

    @functools.cached_property
    def memory(self) -> int:
        """Bytes that one gradient needs at its peak beside arguments and result; compiles it."""
        return self.traced.lower().compile().memory_analysis().temp_size_in_bytes

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
        wrong = [f for f in self.findings if f.kind not in LABELS]
        if not wrong and any(f.kind == BY_CHOICE for f in self.findings):
            return "Findings: an estimator that is biased by choice. The gradient is biased."
        if not wrong and any(f.kind == PLUG_IN for f in self.findings):
            return "Findings: a plug-in. Value and gradient have a bias of O(1/n), and no other."
        if not wrong:
            return "Findings: none. The gradient is unbiased."
        return f"Findings: {len(wrong)}. The gradient must not be trusted."

    @property
    def _notes(self) -> list[str]:
        notes = [str(f) for f in self.findings]
        notes += [
            f"enumerated jointly, since they meet in a term: {', '.join(names)} ({n:,} values)"
            for names, n in self.groups
        ]
        notes += [f"stated to be continuous ({line}): {reason}" for reason, line in self.stated]
        return notes

    def __str__(self) -> str:
        table = [COLUMNS, *self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table]
        notes = [f"- {note}" for note in self._notes]
        body = (line.rstrip() for line in lines)
        return "\n".join([f"objective {self.name}", *body, self.summary, self.verdict, *notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cell = lambda text, tag="td": f"<{tag} style='text-align:left'>{html.escape(text)}</{tag}>"
        head = "".join(cell(c, "th") for c in COLUMNS)
        rows = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in self.rows)
        items = "".join(f"<li>{html.escape(note)}</li>" for note in self._notes)
        return (
            f"<b>objective {html.escape(self.name)}</b>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
            f"<p>{html.escape(self.summary)} {html.escape(self.verdict)}</p><ul>{items}</ul>"
        )


def explain(
    name: str,
    traced: Any,
    seen: Sequence[tuple[Soundness, Sequence[int]]],
    kinks: bool,
    lost: Sequence[Finding],
) -> Explanation:
    """The explanation of a traced gradient and of what its checker saw, and of ``lost`` draws."""
    findings: dict[Finding, None] = {}
    sites: list[SiteRow] = []
    stated: dict[tuple[str, str], None] = {}
    groups: dict[tuple[tuple[str, ...], int], None] = {}
    loops = False
    for check, inputs in seen:
        found = (*check.findings(inputs, kinks=kinks, labels=True), *lost)
        findings.update(dict.fromkeys(found))
        stated.update(dict.fromkeys(check.stated))
        for scope, closed, chosen in check.scopes:
            found_plan = plan(check.layouts.of(closed, chosen), chosen)
            for addresses, n in found_plan.groups:
                groups[tuple(scope + "/".join(a) for a in addresses), n] = None
            for s in chosen:
                if not isinstance(abstract_distribution(s.choice), Noise):
                    sites.append(_row(scope, s, found_plan.uses.get(s.choice.path), found))
                    loops |= bool(s.choice.lengths)
    return Explanation(
        name,
        tuple(dict.fromkeys(sites)),
        tuple(findings),
        tuple(groups),
        tuple(stated),
        sum(1 for _ in _equations(traced.jaxpr)),
        loops,
        traced,
    )


def _row(scope: str, s: Chosen, use: Use | None, findings: Sequence[Finding]) -> SiteRow:
    c, d = s.choice, abstract_distribution(s.choice)
    site: Any = c.random
    if use is not None and use.at:
        evaluations = f"{use.values} a {use.at}"
    elif isinstance(s.estimator, Enumerated):
        evaluations = "1" if use is None else str(use.values)
    else:
        evaluations = "1 + alternatives" if isinstance(s.estimator, Continued) else "1"
    told = use is not None and not use.at
    terms = f"{len(use.terms)} of {use.total}" if use is not None and told else "all"
    return SiteRow(
        scope + "/".join(c.address),
        type(d).__name__,
        (*c.lengths, *site.sizes, *site.shape),
        s.estimator.name,
        s.reason,
        evaluations,
        terms,
        c.source,
        tuple(f for f in findings if c.address in f.addresses),
    )


def _equations(closed: Any) -> Iterator[Any]:
    for eqn in closed.jaxpr.eqns:
        yield eqn
        for sub in _jax.sub_jaxprs(eqn):
            yield from _equations(sub)
