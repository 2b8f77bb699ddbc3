"""Distributions that have values and no draws."""

from __future__ import annotations

from typing import Any

from ..errors import Address, UnsupportedError, show


def is_improper(d: Any) -> bool:
    """Whether a distribution is an ``ImproperUniform``, which has values and no draws."""
    while type(d).__name__ in _AROUND:
        d = d.base_dist
    return any(k.__name__ == "ImproperUniform" for k in type(d).__mro__)


_AROUND = {"Independent", "ExpandedDistribution", "MaskedDistribution"}


def undrawn(address: Address, source: str, d: Any) -> UnsupportedError:
    """The error of a draw from a distribution that has none."""
    return UnsupportedError(
        f"the choice {show(address)} ~ {type(d).__name__} at {source} cannot be drawn: its "
        "sample is not implemented. Draw from a proper distribution with the same support, and "
        'correct its density with ppl.factor("w", log_weight).'
    )
