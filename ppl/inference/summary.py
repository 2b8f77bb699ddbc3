"""A table of posterior means, standard deviations and quantiles."""

from __future__ import annotations

import dataclasses
import html
from typing import Any, final

import numpy as np

from transforms.errors import Address

QUANTILES = (0.05, 0.5, 0.95)
SHOWN = 60
"""Rows that are printed."""


@final
@dataclasses.dataclass(frozen=True)
class Row:
    """One number of a choice.

    Attributes:
        name: its address and place, like ``theta[3]``; nested addresses are joined by ``/``.
        mean, sd: of the draws.
        quantiles: at 5, 50 and 95 %.
    """

    name: str
    mean: float
    sd: float
    quantiles: tuple[float, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.name, *(f"{v:.4g}" for v in (self.mean, self.sd, *self.quantiles)))


@final
@dataclasses.dataclass(frozen=True)
class Summary:
    """A row for each number that was drawn; prints as text, shows as HTML in a notebook.

    ``summary["theta[3]"]`` is a row.

    Example:
        >>> table = posterior.summary()
        >>> table["x"].mean.round(1)
        np.float64(0.5)
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> Row:
        found = {row.name: row for row in self.rows}
        if name not in found:
            raise KeyError(f"no row {name!r}; the rows are {', '.join(found)}.")
        return found[name]

    def _table(self) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
        head = ("", "mean", "sd", *(f"{q:.0%}" for q in QUANTILES))
        left = len(self.rows) - SHOWN
        more = (f"... and {left:,} more rows (.rows has all).",) if left > 0 else ()
        return [head, *(row.cells for row in self.rows[:SHOWN])], (*more, *self.notes)

    def __str__(self) -> str:
        cells, notes = self._table()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join([c[0].ljust(widths[0]), *map(str.rjust, c[1:], widths[1:])]).rstrip()
            for c in cells
        ]
        return "\n".join([*lines, *notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cells, notes = self._table()
        row = lambda c, tag: "".join(f"<{tag}>{html.escape(v)}</{tag}>" for v in c)
        rows = [row(cells[0], "th"), *(row(c, "td") for c in cells[1:])]
        table = "".join(f"<tr>{r}</tr>" for r in rows)
        below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
        return f"<table>{table}</table>{below}"


def named(address: Address) -> str:
    """An address as one word."""
    return "/".join(map(str, address))


def summarize(draws: dict[Address, Any], notes: tuple[str, ...]) -> Summary:
    """The table of draws ``[n, ...]``."""
    rows = []
    for address, value in draws.items():
        values = np.asarray(value, np.float64)
        for place in np.ndindex(values.shape[1:]):
            column = values[(slice(None), *place)]
            at = f"[{', '.join(map(str, place))}]" if place else ""
            quantiles = tuple(float(q) for q in np.quantile(column, QUANTILES))
            row = Row(f"{named(address)}{at}", column.mean(), column.std(ddof=1), quantiles)
            rows.append(row)
    return Summary(tuple(rows), notes)
