"""Supports and data in a few words, for messages."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ..estimation.inside import base_of, support_of


@dataclasses.dataclass(frozen=True)
class Data:
    """The numbers of a constant, for a message about them."""

    array: Any = dataclasses.field(compare=False)

    def __str__(self) -> str:
        a = self.array
        missing = int(np.isnan(a).sum())
        if missing:
            return (
                f"{missing} of {a.size} are NaN. Where values are missing, type "
                "d.mask(~jnp.isnan(y)): what is masked does not count"
            )
        broken = a[a != np.floor(a)]
        no_integer = f", and {broken[0]:g} is no integer" if broken.size else ""
        return f"they reach from {a.min():g} to {a.max():g}{no_integer}"


def describe_support(d: Any) -> str:
    """The support of a distribution in a few words."""
    constraint = base_of(support_of(d))
    name = type(constraint).__name__.lstrip("_")
    low, high = (getattr(constraint, f"{end}_bound", None) for end in ("lower", "upper"))
    whole = "integers " if name.startswith("Integer") else ""
    if isinstance(low, int | float) and isinstance(high, int | float):
        return f"{whole}from {low:g} to {high:g}"
    if isinstance(low, int | float) and high is None:
        return f"{whole}from {low:g} on"
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()
    return {"interval": "which has ends", "": "which has ends"}.get(words, words)
