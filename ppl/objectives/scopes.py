"""The choices of an objective by address, and which estimators they can have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transforms import _jax
from transforms.errors import Address
from transforms.estimation.estimator import Estimator
from transforms.program.choices import Choice, abstract_distribution, choices
from transforms.program.site import Expect, Noise, Site

Sites = dict[Address, list[Choice]]


def scopes_of(closed: _jax.ClosedJaxpr, prefix: Address = ()) -> Iterator[Sites]:
    """The choices of a program by address, then those of the expectations inside."""
    sites: Sites = {}
    program = list(choices(closed, densities=True))
    for c in program:
        if isinstance(c.random, Site) and not isinstance(abstract_distribution(c), Noise):
            sites.setdefault((*prefix, *c.address), []).append(c)
    yield sites
    for c in program:
        if isinstance(c.random, Expect):
            yield from scopes_of(c.random.jaxpr, (*prefix, *c.address))


def fits(estimator: Estimator, sites: Sequence[Choice]) -> bool:
    return all(estimator.unsuitable(abstract_distribution(c)) is None for c in sites)
