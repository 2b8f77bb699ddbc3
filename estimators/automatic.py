"""The estimator of a site where the user chose none.

Pathwise where the distribution allows and what follows is smooth; enumeration where few joint
values meet in a term (in plates, and in chains in a ``scan``, too); else REINFORCE, with a
leave-one-out baseline where there are several samples (measure-valued where the support depends on
a parameter).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from transforms.estimation.chosen import Choose, Rough, joint_size, support_size
from transforms.estimation.estimator import Estimator
from transforms.program.choices import Choice, Path, abstract_distribution
from transforms.program.site import Noise

from .baselines import LeaveOneOut
from .enumeration import Enum
from .measure_valued import MVD
from .pathwise import Reparam
from .reinforce import Reinforce

SMALL = 64
"""Most joint values, in one term of a scope, that are enumerated unasked."""


@final
class Automatic(Choose):
    """See the module docstring."""

    def __call__(
        self,
        sites: Sequence[Choice],
        samples: int,
        rough: Mapping[Path, Rough],
        sizes: Callable[[Mapping[Path, Estimator]], Mapping[Path, int]],
    ) -> dict[Path, tuple[Estimator, str]]:
        out: dict[Path, tuple[Estimator, str]] = {}
        joint, large = 1, []
        score = Reinforce(LeaveOneOut() if samples > 1 else None)
        for c in sites:
            d = abstract_distribution(c)
            if isinstance(d, Noise):
                out[c.path] = Reparam(), "noise without parameters"
                continue
            if Reparam().unsuitable(d) is None:
                out[c.path] = self._continuous(d, score, rough.get(c.path))
                continue
            if Enum().unsuitable(d) is None:
                here = joint_size(c, Enum()) ** math.prod(c.lengths)
                if joint * here <= SMALL:
                    joint *= here
                    out[c.path] = Enum(), f"automatic: a support of {here}"
                    continue
                if support_size(c, Enum()) <= SMALL:
                    large.append(c.path)
            out[c.path] = score, "automatic: neither reparameterised nor of small support"
        if large:  # unless few of its values meet in a term
            found = sizes({p: Enum() if p in large else e for p, (e, _) in out.items()})
            for p in large:
                if found[p] <= SMALL:
                    out[p] = Enum(), f"automatic: {found[p]} joint values in a term"
        return out

    def _continuous(self, d: Any, score: Reinforce, rough: Rough | None) -> tuple[Estimator, str]:
        if rough is None:
            return Reparam(), "automatic: the distribution is reparameterised"
        if rough.fixed_support and score.unsuitable(d) is None:
            return score, f"automatic: {rough.why}"
        if MVD().unsuitable(d) is None:
            return MVD(), f"automatic: {rough.why}, and the support depends on a parameter"
        return Reparam(), "automatic: no other estimator fits"

    def instead(self, d: Any, *, smooth: bool, fixed_support: bool) -> list[str]:
        fits = {
            "ppl.reparam()": smooth and Reparam().unsuitable(d) is None,
            "ppl.reinforce()": fixed_support and Reinforce().unsuitable(d) is None,
            "ppl.mvd()": MVD().unsuitable(d) is None,
        }
        return [text for text, fit in fits.items() if fit]


choose = Automatic()
