"""Where the draws of a choice are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..estimation.inside import base_of, support_of
from ..program.site import Site


@dataclasses.dataclass(frozen=True)
class Domain:
    """Numbers between two ends, or a simplex; ``positive`` if parameters do not change that.

    If ``closed``, many are at the low end.
    """

    low: float | None = None
    high: float | None = None
    simplex: bool = False
    positive: bool = False
    closed: bool = False

    def move(self, x: np.ndarray) -> np.ndarray:
        """``x``, real numbers of any size, moved inside."""
        if self.simplex:
            e = np.exp(x - x.max(-1, keepdims=True))
            return e / e.sum(-1, keepdims=True)
        if self.low is not None and self.high is not None:
            return self.low + (self.high - self.low) / (1.0 + np.exp(-np.clip(x, -30.0, 30.0)))
        if self.low is not None:
            return self.low + (np.maximum(x, 0.0) if self.closed else np.abs(x))
        return x if self.high is None else self.high - np.abs(x)


NOT_NEGATIVE = Domain(low=0.0, closed=True)


def domain_of(site: Site, operands: Sequence[Any], abstract: Any) -> Domain | None:
    """The domain of the draws of a site, whose distribution is ``abstract``."""
    positive = _is_positive(base_of(support_of(abstract)))
    try:
        constraint = base_of(site.rebuild(_stand_ins(site, operands)).support)
        low, high = (_bound(constraint, name) for name in ("lower_bound", "upper_bound"))
    except Exception:  # the distribution does not say
        return Domain(low=0.0, positive=True) if positive else None
    return Domain(low, high, type(constraint).__name__ == "_Simplex", positive)


def _is_positive(constraint: Any) -> bool:
    low = getattr(constraint, "lower_bound", None)
    in_unit = type(constraint).__name__ in ("_UnitInterval", "_Simplex")
    return in_unit or (isinstance(low, int | float) and low >= 0)


def _stand_ins(site: Site, operands: Sequence[Any]) -> list[Any]:
    """Operands without their ``vmap`` axes: constants as they are, a half for the others."""
    own = operands[: len(operands) - site.n_estimator - site.masked]
    return [np.asarray(x.val) if hasattr(x, "val") else 0.5 for x in own]


def _bound(constraint: Any, name: str) -> float | None:
    bound = getattr(constraint, name, None)
    return None if bound is None else float(bound)
