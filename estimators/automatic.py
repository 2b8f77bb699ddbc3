"""The estimator of a site where the user chose none.

Pathwise where the distribution allows; enumeration where the joint support is small; else
REINFORCE, with a leave-one-out baseline where there are several samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from transforms.estimator import Estimator
from transforms.interpret import Choice, Path, abstract_distribution
from transforms.site import FreshKey
from transforms.surrogate import joint_size

from .baselines import LeaveOneOut
from .enumeration import Enum
from .pathwise import Reparam
from .reinforce import Reinforce

SMALL = 64
"""Largest joint support, over all sites of a scope, that is enumerated unasked."""


def choose(sites: Sequence[Choice], samples: int) -> dict[Path, tuple[Estimator, str]]:
    """An estimator and the reason for it, for each site."""
    out: dict[Path, tuple[Estimator, str]] = {}
    joint = 1
    score = Reinforce(LeaveOneOut() if samples > 1 else None)
    for c in sites:
        d = abstract_distribution(c)
        if isinstance(d, FreshKey):
            out[c.path] = Reparam(), "a random key"
            continue
        if Reparam().unsuitable(d) is None:
            out[c.path] = Reparam(), "automatic: the distribution is reparameterised"
            continue
        if Enum().unsuitable(d) is None:
            here = joint_size(c, Enum()) ** math.prod(c.lengths)
            if joint * here <= SMALL:
                joint *= here
                out[c.path] = Enum(), f"automatic: a support of {here}"
                continue
        out[c.path] = score, "automatic: neither reparameterised nor of small support"
    return out
