"""Which estimator for which site of a scope, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from .. import _jax
from ..errors import UnsupportedError, show
from ..estimation.chosen import Choose, Chosen, Rough
from ..estimation.estimator import Estimator
from ..program.choices import Choice, Path, abstract_distribution, choices
from ..program.site import Site
from .layouts import Layouts


def assign(
    closed: _jax.ClosedJaxpr,
    choose: Choose,
    samples: int,
    rough: Mapping[Path, Rough] | None = None,
    layouts: Layouts | None = None,
) -> list[Chosen]:
    """The sites of a scope with their estimators, checked.

    ``rough`` holds those sites whose use is not smooth; ``layouts`` keeps what is found of the
    scope.

    Raises:
        UnsupportedError: an estimator does not fit its distribution,
    """
    program = [c for c in choices(closed, densities=True) if isinstance(c.random, Site)]

    known = layouts or Layouts()

    def sizes(estimators: Mapping[Path, Estimator]) -> Mapping[Path, int]:
        return known.largest(closed, _chosen(program, {p: (e, "") for p, e in estimators.items()}))

    free = [c for c in program if c.site.estimator is None]
    return _chosen(program, choose(free, samples, rough or {}, sizes))


def _chosen(
    program: Sequence[Choice], automatic: Mapping[Path, tuple[Estimator, str]]
) -> list[Chosen]:
    out = []
    for c in program:
        d = abstract_distribution(c)
        if c.path in automatic:
            estimator, reason = automatic[c.path]
        else:
            shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in c.avals]
            estimator, reason = c.site.rebuild_estimator(shapes), "chosen"
        problem = _censored(d) or estimator.unsuitable(d)
        if problem is not None:
            raise UnsupportedError(
                f"{estimator.name} cannot be used for {show(c.address)} ~ {type(d).__name__} at "
                f"{c.source}: {problem}"
            )
        out.append(Chosen(c, estimator, reason))
    return out


def _censored(d: Any) -> str | None:
    """Why there is no estimator for a distribution whose density is not that of its draws."""
    kinds = []
    while d is not None:
        kinds.append(type(d).__name__)
        d = getattr(d, "base_dist", None)
    kind = next((k for k in kinds if k.endswith("CensoredDistribution")), None)
    return kind and (
        f"the density of a {kind} is that of observations, not that of its draws, which are not "
        "censored. Give its value as data; where a draw is meant, sample from the distribution "
        "inside of it."
    )
