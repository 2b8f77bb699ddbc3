"""Numbers in the support of a choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .site import Site


def into_support(site: Site, operands: Sequence[Any], x: np.ndarray) -> np.ndarray:
    """``x``, real numbers of any size, moved to where draws of a site are."""
    try:
        constraint = site.rebuild(_stand_ins(site, operands)).support
        while hasattr(constraint, "base_constraint"):
            constraint = constraint.base_constraint
        low, high = (_bound(constraint, name) for name in ("lower_bound", "upper_bound"))
    except Exception:  # the distribution does not say
        return x
    if type(constraint).__name__ == "_Simplex":
        return np.exp(x - x.max(-1, keepdims=True)) / np.exp(x - x.max(-1, keepdims=True)).sum(
            -1, keepdims=True
        )
    if low is not None and high is not None:
        return low + (high - low) / (1.0 + np.exp(-np.clip(x, -30.0, 30.0)))
    if low is not None:
        return low + np.abs(x)
    return x if high is None else high - np.abs(x)


def _stand_ins(site: Site, operands: Sequence[Any]) -> list[Any]:
    """Operands without their ``vmap`` axes: constants as they are, a half for the others."""
    own = operands[: len(operands) - site.n_estimator - site.masked]
    return [np.asarray(x.val) if hasattr(x, "val") else 0.5 for x in own]


def _bound(constraint: Any, name: str) -> float | None:
    bound = getattr(constraint, name, None)
    return None if bound is None else float(bound)
