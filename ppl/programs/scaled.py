"""``ppl.scale``: a program whose log densities count more, or less, at some addresses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, final

from transforms import _jax
from transforms.errors import Address, AddressError, UnsupportedError, describe
from transforms.runs.execute import Execution
from transforms.runs.parts import Part, check_known, scaled, weighted

from .generative import Generative, Select
from .given import Choices
from .program import check_generative

Weights = Mapping[Any, Any]
"""From addresses (strings, or tuples for nested ones) to weights, or to dicts of them."""


def table_of(weights: Weights) -> dict[Address, Any]:
    """Weights by whole addresses.

    Raises:
        AddressError: it is no dict, or a key in it no address.
    """
    if not isinstance(weights, Mapping):
        raise AddressError(
            f"the weights at {_jax.user_line()} are {describe(weights)}. Give a dict from "
            'addresses to weights, {"z": 0.5}; a nested address is a tuple, ("inner", "z").'
        )
    return dict(_flat(weights, ()))


def _flat(weights: Weights, prefix: Address) -> Iterator[tuple[Address, Any]]:
    for key, value in weights.items():
        name = (key,) if isinstance(key, str) else key
        if not isinstance(name, tuple) or not all(isinstance(n, str) for n in name):
            raise AddressError(
                f"the weights at {_jax.user_line()} have {key!r} for an address. Addresses are "
                "strings, and tuples of strings for nested ones."
            )
        if isinstance(value, Mapping):
            yield from _flat(value, (*prefix, *name))
        else:
            yield (*prefix, *name), value


@final
class Scaled(Generative):
    """See :func:`scale`."""

    def __init__(self, inner: Generative, weights: Weights):
        self.name, self._inner = f"scale({inner.name})", inner
        self._table = table_of(weights)

    @property
    def weighted(self) -> bool:
        return True

    def as_program(self) -> None:
        return None

    def execute(
        self, given: Choices, *, exact: bool = False, select: Select = lambda address: False
    ) -> Execution:
        inner = self._inner
        assert inner is not None
        run = inner.execute(given, exact=exact, select=select)
        parts, table = run.densities, self._table
        check_known(table, [*(a for g in parts for a in g), *run.factors], self.name)
        if run.log_absent is not None:
            raise UnsupportedError(
                f"{self.name} is scaled at {_jax.user_line()}, and has masked choices, whose "
                "weight would be lost where they are integrated out. Use ppl.elbo(p, q, data, "
                "weights=...)."
            )
        chosen = {group: part for group, part in parts.items() if all(map(select, group))}
        factors = {a: Part(w) for a, w in run.factors.items()}
        return dataclasses.replace(
            run,
            log_density=weighted(parts, run.factors, table),
            log_weight=weighted(chosen, run.factors, table),
            parts=scaled(parts, table),
            factors={a: scaled({(a,): w}, table)[(a,)].value for a, w in factors.items()},
        )


def scale(g: Generative, weights: Weights) -> Generative:
    """The same draws, with log densities that count more or less at some addresses.

    For subsampled data, ``ppl.scale(model(batch), {"y": N / len(batch)})``: the
    density is scaled, and the draws and their scores are not. Over batches drawn at random, an
    objective that is linear in log p, as the ELBO is, keeps its mean; ``ppl.iwelbo`` and
    ``ppl.renyi`` do not, and are no bounds of the whole then. As a proposal, or drawn from inside
    another program, it is refused, since its density is not that of its draws.

    Args:
        g: a generative function that was called.
        weights: as those of :func:`ppl.elbo`.

    Raises:
        AddressError: a weight is at an address that it does not have.

    Example:
        >>> tenfold = ppl.scale(model(), {"y": 10.0})
        >>> f = ppl.expectation(lambda phi: ppl.elbo(tenfold, guide(phi), data))
        >>> grad = f.grad(key, phi, samples=10)
    """
    check_generative(g, "ppl.scale")
    return Scaled(g, weights)
