"""The log density of a program by its choices.

A density is the product of those of its choices, each given the ones before it. A :class:`Part` is
the logarithm of one of the factors, with an axis for each ``vmap`` and ``scan`` around the choice.
Choices that are known by a joint density alone (an approximate marginal, a guide of full rank) are
one *group*, and have one part.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .. import _jax
from ..errors import Address, AddressError, ShapeError, UnsupportedError, nearest, show
from ..program.sums import sum_over
from .addresses import nest

Group = tuple[Address, ...]
"""The addresses that share a density: one of them, but where they are known together alone."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Part:
    """The log density of a group: f32[*axes], with the axes around the choice, outermost first.

    A ``vmap`` around the whole program puts its axis in front of these ``axes``.
    """

    value: jax.Array
    axes: int = dataclasses.field(default=0, metadata={"static": True})

    @property
    def total(self) -> jax.Array:
        """The sum over the axes around the choice: a number for each run."""
        n = self.value.ndim
        return sum_over(self.value, range(n - self.axes, n))


def by_address(parts: Mapping[Group, Part], name: str, *, plates: bool = False) -> dict[str, Any]:
    """The log densities as nested as the choices; a group stands at the address that holds it.

    Raises:
        UnsupportedError: a group is held by no address of its own.
    """
    every = [a for group in parts for a in group]
    found = {}
    for group, part in parts.items():
        address = _place(group, every)
        if address is None:
            raise UnsupportedError(
                f"the choices {', '.join(map(show, group))} of {name} have one joint density, and "
                f"none by address ({_jax.user_line()}). Use .log_density; or a program whose "
                "choices have densities of their own."
            )
        found[address] = part.value if plates else part.total
    return nest(found.items())


def _place(group: Group, every: Iterable[Address]) -> Address | None:
    """The address of a group: its own, or that which holds it and nothing else."""
    if len(group) == 1:
        return group[0]
    n = next(i for i in range(len(group[0])) if any(a[: i + 1] != group[0][: i + 1] for a in group))
    prefix = group[0][:n]
    inside = {a for a in every if a[:n] == prefix}
    return prefix if prefix and inside == set(group) else None


Table = Mapping[Address, Any]
"""Weights by address, that of an outer address for all that it holds."""


def weighted(parts: Mapping[Group, Part], factors: Mapping[Address, Any], table: Table) -> Any:
    """The sum of log densities and log weights, each times the weight at its address: f32[].

    Raises:
        ShapeError: a weight has other axes than those around its choice.
        UnsupportedError: choices of one joint density have several weights.
    """
    every = {**parts, **{(a,): Part(w) for a, w in factors.items()}}
    counted = {g: p for g, p in every.items() if not _is_zero(_weight(g, table))}
    terms = [part.total for part in scaled(counted, table).values()]
    return functools.reduce(jnp.add, terms) if terms else jnp.zeros(())


def scaled(parts: Mapping[Group, Part], table: Table) -> dict[Group, Part]:
    """The log densities, each times the weight at its address; raises as :func:`weighted`."""
    return {group: _times(_weight(group, table), part, group) for group, part in parts.items()}


def _weight(group: Group, table: Table) -> Any:
    found = [max((k for k in table if a[: len(k)] == k), key=len, default=None) for a in group]
    own = [1.0 if k is None else table[k] for k in found]
    if any(w is not own[0] and not _equal(w, own[0]) for w in own):
        raise UnsupportedError(
            f"the choices {', '.join(map(show, group))} have one joint density, and several "
            f"weights at {_jax.user_line()}. Give all of them the same one; or, of choices that "
            "are summed out for the data of a batch alone, draw them as one choice of the model, "
            'ppl.sample("y", ppl.marginal(of_the_batch, ["y"])), and give that a weight.'
        )
    return own[0]


def _equal(a: Any, b: Any) -> bool:
    return isinstance(a, int | float) and isinstance(b, int | float) and a == b


def _is_zero(weight: Any) -> bool:
    return isinstance(weight, int | float) and weight == 0  # also where the density is 0


def _times(weight: Any, part: Part, group: Group) -> Part:
    if _equal(weight, 1.0):
        return part
    shape = jnp.shape(weight)
    own = part.value.shape[part.value.ndim - part.axes :]
    if shape not in ((), own):
        raise ShapeError(
            f"the weight of {' and '.join(map(show, group))} at {_jax.user_line()} has shape "
            f"{shape}. Give a number, or one for each element of the vmaps and scans around the "
            f"choice: {own}."
        )
    if shape:
        return dataclasses.replace(part, value=weight * part.value)
    return Part(weight * part.total)


def check_known(table: Table, known: Iterable[Address], what: str) -> None:
    """Refuse a weight at an address that is none.

    Raises:
        AddressError: with the known ones.
    """
    known = list(dict.fromkeys(known))
    for address in table:
        if not any(a[: len(address)] == address for a in known):
            raise AddressError(
                f"{what} has no choice and no weight at address {show(address)} "
                f"({_jax.user_line()}).{nearest(address, known)} Its addresses: "
                f"{', '.join(map(show, known)) or 'none'}."
            )
