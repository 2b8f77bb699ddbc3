"""A site with its estimator, and how one is chosen."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..program.choices import Choice, Path, abstractly
from .elements import apart, element_shape
from .estimator import Enumerated, Estimator
from .kinds import by_kind

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


def joint_size(choice: Choice, estimator: Enumerated) -> int:
    """How many joint values the elements of a site have, all of them, in one run of a loop."""
    shape = (*choice.site.sizes, *element_shape(choice.site, choice.avals))
    return support_size(choice, estimator) ** math.prod(shape)


@by_kind
def support_size(choice: Choice, estimator: Enumerated) -> int:
    """How many values one element of a site has."""
    return abstractly(choice, lambda d: estimator.support(apart(d))).shape[0]
