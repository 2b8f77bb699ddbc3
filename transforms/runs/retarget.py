"""*with_estimators*: set the estimators of a program from outside."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .. import _jax
from ..errors import Address
from ..estimation.estimator import Estimator
from ..program.interpret import interpret
from ..program.site import (
    Body,
    Call,
    Factor,
    Site,
    call_p,
    expect_p,
    factor_p,
    flatten_estimator,
    sample_p,
)


def retarget(
    closed: _jax.ClosedJaxpr,
    args: Sequence[Any],
    table: Mapping[Address, Estimator],
    prefix: Address = (),
) -> list[Any]:
    """Evaluate a program into the surrounding trace, with new estimators at some addresses.

    The address of a choice of an expectation inside begins with the name of the expectation.
    """

    def rule(choice: Any, operands: list[Any], **_: Any) -> Any:
        if isinstance(choice, Site):
            estimator = table.get((*prefix, *choice.address))
            if estimator is not None:
                choice, operands = _replace(choice, operands, estimator)
            return sample_p.bind(*operands, site=choice), None, {}
        if isinstance(choice, Factor):
            return factor_p.bind(*operands, factor=choice), None, {}
        if isinstance(choice, Call):
            program, consts = _inside(choice, table, (*prefix, *choice.address))
            call = dataclasses.replace(choice, program=program)
            return call_p.bind(*consts, *operands, call=call), None, {}
        inside = (*prefix, *choice.address)
        if not any(address[: len(inside)] == inside for address in table):
            return expect_p.bind(*operands, expect=choice), None, {}
        jaxpr, consts = _rewritten(choice.jaxpr, table, inside)
        axes = tuple(
            dataclasses.replace(a, mapped=(*[False] * len(consts), *a.mapped)) for a in choice.axes
        )
        expect = dataclasses.replace(choice, jaxpr=jaxpr, axes=axes)
        return expect_p.bind(*consts, *operands, expect=expect), None, {}

    return interpret(closed, args, rule)[0]


def _replace(site: Site, operands: list[Any], estimator: Estimator) -> tuple[Site, list[Any]]:
    leaves, tree = flatten_estimator(estimator)
    end = len(operands) - site.masked
    start = end - site.n_estimator
    new = [*operands[:start], *map(jnp.asarray, leaves), *operands[end:]]
    axes = tuple(
        dataclasses.replace(a, mapped=(*a.mapped[:start], *[False] * len(leaves), *a.mapped[end:]))
        for a in site.axes
    )
    site = dataclasses.replace(site, estimator=tree, n_estimator=len(leaves), axes=axes)
    return site, new


def _inside(call: Call, table: Mapping[Address, Estimator], prefix: Address) -> Any:
    program = call.program
    jaxprs = (
        [program.jaxpr] if isinstance(program, Body) else [program.simulate, program.log_density]
    )
    traced, consts = zip(*(_rewritten(jaxpr, table, prefix) for jaxpr in jaxprs), strict=True)
    if isinstance(program, Body):
        return Body(traced[0]), consts[0]
    simulate, log_density = _jax.with_operands_of(traced, [len(c) for c in consts])
    return (
        dataclasses.replace(program, simulate=simulate, log_density=log_density),
        [*consts[0], *consts[1]],
    )


def _rewritten(
    jaxpr: _jax.ClosedJaxpr, table: Mapping[Address, Estimator], prefix: Address
) -> tuple[_jax.ClosedJaxpr, list[Any]]:
    """The program with new estimators, whose arrays are its first inputs; and those arrays."""
    avals = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in jaxpr.in_avals]
    new, consts, _ = _jax.trace(lambda *xs: retarget(jaxpr, xs, table, prefix), *avals)
    return new, consts
