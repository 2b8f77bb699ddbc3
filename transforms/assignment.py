"""Which estimator for which site of a scope, and whether it fits."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from . import _jax
from .elements import apart, element_shape
from .errors import UnsupportedError, show
from .estimator import Enumerated, Estimator
from .interpret import Choice, Path, abstract_distribution, abstractly, choices
from .site import Site

MAX_JOINT = 2**20
"""Most joint values that a term of a scope is enumerated over."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A site and its estimator."""

    choice: Choice
    estimator: Estimator
    reason: str


@dataclasses.dataclass(frozen=True)
class Rough:
    """Why the use of a site is not smooth, and whether its support is that for all parameters."""

    why: str
    fixed_support: bool


class Choose(abc.ABC):
    """How estimators are chosen where the user chose none."""

    @abc.abstractmethod
    def __call__(
        self,
        sites: Sequence[Choice],
        samples: int,
        rough: Mapping[Path, Rough],
        sizes: Callable[[Mapping[Path, Estimator]], Mapping[Path, int]],
    ) -> dict[Path, tuple[Estimator, str]]:
        """An estimator and the reason for it, for each site.

        ``sizes`` says, for estimators of all the sites, of how many joint values an enumerated one
        would be a part.
        """

    @abc.abstractmethod
    def instead(self, d: Any, *, smooth: bool, fixed_support: bool) -> list[str]:
        """What to type at a site of distribution ``d``, in the order of preference, given whether
        its use is smooth and whether its support is that for all parameters."""


def assign(
    closed: _jax.ClosedJaxpr,
    choose: Choose,
    samples: int,
    rough: Mapping[Path, Rough] | None = None,
) -> list[Chosen]:
    """The sites of a scope with their estimators, checked.

    ``rough`` holds those sites whose use is not smooth.

    Raises:
        UnsupportedError: an estimator does not fit its distribution,
    """
    program = [c for c in choices(closed, densities=True) if isinstance(c.random, Site)]

    def sizes(estimators: Mapping[Path, Estimator]) -> Mapping[Path, int]:
        from .layout import largest  # which is told the estimators

        return largest(closed, _chosen(program, {p: (e, "") for p, e in estimators.items()}))

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


def joint_size(choice: Choice, estimator: Enumerated) -> int:
    """How many joint values the elements of a site have, all of them, in one run of a loop."""
    shape = (*choice.site.sizes, *element_shape(choice.site, choice.avals))
    return support_size(choice, estimator) ** math.prod(shape)


def support_size(choice: Choice, estimator: Enumerated) -> int:
    """How many values one element of a site has."""
    return abstractly(choice, lambda d: estimator.support(apart(d))).shape[0]
