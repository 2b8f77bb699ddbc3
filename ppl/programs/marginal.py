"""``ppl.marginal`` and ``ppl.normalize``: programs with the densities of an algorithm."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, final

import jax
import jax.numpy as jnp

from transforms import _jax
from transforms.errors import Address, AddressError, UnsupportedError, describe, nearest, show
from transforms.runs.addresses import flatten, match_shapes, nest
from transforms.runs.execute import Execution

from .branches import made_of
from .enumeration import Enumeration
from .generative import Generative, Select
from .given import Choices, merge
from .importance import Importance
from .program import check_generative
from .sites import Written
from .target import Algorithm, Target


@final
class Marginal(Generative):
    """See :func:`marginal`."""

    def __init__(self, g: Generative, keep: Sequence[Address], by: Algorithm):
        self.name = f"marginal({g.name})"
        self._g, self._keep, self._by = g, keep, by

    @property
    def masked(self) -> frozenset[Address]:
        return frozenset(a for a in self._g.masked if self._kept(a))

    @property
    def in_a_branch(self) -> frozenset[Address]:
        return frozenset(a for a in self._g.in_a_branch if self._kept(a))

    @property
    def weighted(self) -> bool:
        return self._g.weighted

    def written(self) -> Written:
        return self._g.written()

    def _kept(self, address: Address) -> bool:
        return any(address[: len(k)] == k for k in self._keep)

    @property
    def choices_like(self) -> Choices:
        return nest(self._like.items())

    @functools.cached_property
    def _like(self) -> dict[Address, Any]:
        like = flatten(self._g.choices_like)
        for k in self._keep:
            if not any(a[: len(k)] == k for a in like):
                raise AddressError(
                    f"{self.name}: {self._g.name} has no choice at address {show(k)} to keep "
                    f"({_jax.user_line()}).{nearest(k, like)} Its addresses: "
                    f"{', '.join(map(show, like))}."
                )
        return {a: s for a, s in like.items() if self._kept(a)}

    def execute(
        self, given: Choices, *, exact: bool = False, select: Select = lambda address: False
    ) -> Execution:
        if given or exact or not self._keep:  # the evidence is a weight, drawn or not
            x = match_shapes(given, self._like, self.name)
            made = made_of(self._g, x, self._kept)
            log_p = self._by.estimate(Target(self._g, x))
            return Execution(x, x, log_p, log_p, made=made)
        if self.weighted and not isinstance(self._by, Enumeration):
            raise UnsupportedError(
                f"{self.name} is drawn from at {_jax.user_line()}, and {self._g.name} has weights "
                "(ppl.factor, ppl.observe). Its draws come from the program without them, so that "
                "they do not go with an estimate of the density that has them. Take the density at "
                "given values (log_density); use ppl.enumeration() where supports are finite; or "
                "type the data as a choice, ppl.sample, and use ppl.normalize(g, data)."
            )
        return self.drawn()

    def drawn(self) -> Execution:
        if not self._keep:
            return self.execute({})
        assert self._like is not None
        run = self._g.execute({}, select=self._kept)
        x = nest((a, v) for a, v in flatten(run.choices).items() if self._kept(a))
        made = made_of(self._g, x, self._kept)
        log_p = self._by.estimate(Target(self._g, x), run)
        return Execution(x, x, log_p, jnp.zeros_like(log_p), made=made)


@final
class Normalized(Generative):
    """See :func:`normalize`."""

    def __init__(self, g: Generative, data: Choices, by: Algorithm):
        self.name = f"normalize({g.name})"
        self._target, self._by = Target(g, data), by

    @property
    def masked(self) -> frozenset[Address]:
        return frozenset(a for a in self._target.program.masked if not self._target.covers(a))

    @property
    def in_a_branch(self) -> frozenset[Address]:
        inside = self._target.program.in_a_branch
        return frozenset(a for a in inside if not self._target.covers(a))

    def written(self) -> Written:
        written = self._target.program.written()
        return dataclasses.replace(written, fixed=merge(written.fixed, self._target.fixed))

    @property
    def choices_like(self) -> dict[str, Any]:
        return nest(self._like.items())

    def _made(self, run: Execution) -> dict[Address, jax.Array]:
        return {a: made for a, made in run.made.items() if not self._target.covers(a)}

    @functools.cached_property
    def _like(self) -> dict[Address, Any]:
        like = flatten(self._target.program.choices_like)
        match_shapes(self._target.fixed, like, self.name, exact=False)
        data = flatten(self._target.fixed)
        return {a: s for a, s in like.items() if a not in data}

    def execute(
        self, given: Choices, *, exact: bool = False, select: Select = lambda address: False
    ) -> Execution:
        if given or exact:
            z = match_shapes(given, self._like, self.name)
            run = self._target.score(z)
            log_p = run.log_density - self._by.estimate(self._target, run)
            return Execution(z, z, log_p, log_p, made=self._made(run))
        assert self._like is not None
        run, log_z = self._by.sample(self._target)
        z = self._target.free(run.choices)
        log_p = run.log_density - log_z
        return Execution(z, z, log_p, jnp.zeros_like(log_p), made=self._made(run))


def marginal(
    g: Generative, keep: str | Address | Sequence[str | Address], by: Algorithm | None = None
) -> Generative:
    """The distribution of some choices of ``g`` alone, with an estimated density.

    Args:
        g: a generative function that was called.
        keep: the addresses to keep; an outer address keeps all that is nested below it. ``[]``
            keeps none: the density is the evidence of what the program observes (``ppl.observe``,
            ``ppl.factor``). In an ELBO, those of the data and those that the guide draws.
        by: how the other choices are integrated out, ``ppl.importance(n, proposal)`` (default:
            one particle from the program itself) or ``ppl.enumeration()``. The proposal gets
            the kept choices.

    Returns:
        A Generative over ``keep``; its ``retval`` is the dict of kept choices.

    Example:
        >>> evidence = ppl.marginal(model(), ["y"], by=ppl.importance(100))
        >>> log_y = evidence.log_density(data, key)
    """
    check_generative(g, "ppl.marginal")
    return Marginal(g, _addresses(keep), _algorithm(by))


def normalize(g: Generative, data: Choices, by: Algorithm | None = None) -> Generative:
    """An approximation to the posterior of ``g`` given ``data``.

    Args:
        g: a generative function that was called.
        data: nested dict of observed choices.
        by: ``ppl.importance(n, proposal)`` (default: one particle from the program itself; the
            proposal gets ``data``) or ``ppl.enumeration()``, which is exact.

    Returns:
        A Generative over the addresses not in ``data``; its ``retval`` is the dict of them.

    Example:
        >>> posterior = ppl.normalize(model(), data, by=ppl.importance(100))
        >>> x = posterior.simulate(key)["x"]
    """
    check_generative(g, "ppl.normalize")
    flatten(data)
    return Normalized(g, data, _algorithm(by))


def _addresses(keep: Any) -> list[Address]:
    if isinstance(keep, str):
        return [(keep,)]
    if not isinstance(keep, list | tuple | set | frozenset):
        raise AddressError(
            f"keep is {keep!r} ({_jax.user_line()}). Give the addresses to keep, 'x' or "
            "['x', 'y'], or [] for the evidence."
        )
    return [(k,) if isinstance(k, str) else tuple(k) for k in keep]


def _algorithm(by: Any) -> Algorithm:
    if by is None:
        return Importance(1)
    if not isinstance(by, Algorithm):
        raise UnsupportedError(
            f"by is {describe(by)} ({_jax.user_line()}). Give an algorithm, ppl.importance(10) or "
            "ppl.enumeration(), with its parentheses."
        )
    return by
