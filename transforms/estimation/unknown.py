"""Log densities that are known by their score alone.

The derivative of an expectation with pathwise draws needs the score of a density, not its value:
:func:`of_score` is a number with that derivative, to which the primitive :data:`unknown_p` adds
what is not known. It cannot run, so that nobody gets a value that is wrong. A surrogate, which is
made for its derivative, has 0 in its place (:func:`known`), after it has seen that no other
estimator would multiply a score by it (:func:`refuse_unknown`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jax
from ..errors import UnsupportedError, show
from ..program.choices import random_of
from ..program.control import with_programs
from ..program.marks import hold


@dataclasses.dataclass(frozen=True)
class Unknown:
    """The line of a density whose value is not known, and the sizes of the ``vmap``\\s around."""

    source: str
    sizes: tuple[int, ...] = ()


def of_score(score: Callable[[jax.Array], jax.Array], value: jax.Array) -> jax.Array:
    """A number whose derivative in ``value`` is ``score(value)``, and whose value is not known."""
    slope = lax.stop_gradient(score(hold(value)))
    off = jnp.sum(slope * (value - lax.stop_gradient(value)))
    (rest,) = unknown_p.bind(value, slope, unknown=Unknown(_jax.user_line()))
    return off + rest


def _refuse(unknown: Unknown) -> NoReturn:
    raise UnsupportedError(
        f"the log density at {unknown.source} is known by its score alone (ppl.score_only), and "
        "its value is asked for. The gradient of an objective is known: objective.grad(key, ...), "
        "value_and_grad and fits, whose values lack this log density."
    )


def _batch(size: int, args: Sequence[Any], dims: Sequence[Any], *, unknown: Unknown) -> Any:
    moved = [
        jnp.broadcast_to(a, (size, *a.shape)) if d is None else jnp.moveaxis(a, d, 0)
        for a, d in zip(args, dims, strict=True)
    ]
    unknown = dataclasses.replace(unknown, sizes=(size, *unknown.sizes))
    return unknown_p.bind(*moved, unknown=unknown), [0]


def _jvp(primals: Sequence[Any], tangents: Any, *, unknown: Unknown) -> Any:
    outs = unknown_p.bind(*primals, unknown=unknown)
    return outs, [jnp.zeros_like(o) for o in outs]


unknown_p = _jax.define_primitive(
    "unknown_density",
    abstract=lambda value, *_, unknown: [_jax.ShapedArray(unknown.sizes, value.dtype)],
    batch=_batch,
    jvp=_jvp,
    refuse=_refuse,
)


def refuse_value(closed: _jax.ClosedJaxpr) -> None:
    """Refuse to give the value of a program that lacks a density."""
    if is_unknown(closed):
        _refuse(Unknown(line_of_unknown(closed)))


def is_unknown(closed: _jax.ClosedJaxpr) -> bool:
    """Whether the value of a program lacks a density, those of expectations inside included."""
    return any(
        eqn.primitive is unknown_p or any(map(is_unknown, _programs(eqn)))
        for eqn in closed.jaxpr.eqns
    )


def line_of_unknown(closed: _jax.ClosedJaxpr) -> str:
    """Where the first such density is."""
    for eqn in closed.jaxpr.eqns:
        if eqn.primitive is unknown_p:
            return eqn.params["unknown"].source
        for sub in _programs(eqn):
            if is_unknown(sub):
                return line_of_unknown(sub)
    raise AssertionError("nothing is unknown")


def _programs(eqn: _jax.JaxprEqn) -> list[_jax.ClosedJaxpr]:
    inner = getattr(random_of(eqn), "jaxpr", None)
    return [*_jax.sub_jaxprs(eqn), *([] if inner is None else [inner])]


def known(closed: _jax.ClosedJaxpr) -> _jax.ClosedJaxpr:
    """The program with 0 for what is not known."""
    if not any(_jax.holds(eqn, unknown_p) for eqn in closed.jaxpr.eqns):
        return closed
    return _jax.with_equations(closed, [_known(eqn) for eqn in closed.jaxpr.eqns])


def _known(eqn: _jax.JaxprEqn) -> _jax.JaxprEqn:
    if eqn.primitive is unknown_p:
        return _jax.nothing_instead_of(eqn)
    if not _jax.holds(eqn, unknown_p):
        return eqn
    return with_programs(eqn, known)


def refuse_unknown(
    program: _jax.ClosedJaxpr, terms: Sequence[Collection[Any]], sites: Mapping[Any, Any]
) -> None:
    """Refuse a program whose terms (its first outputs) depend on choices that need their value.

    Raises:
        UnsupportedError: such a term lacks a density.
    """
    if not any(_jax.holds(eqn, unknown_p) for eqn in program.jaxpr.eqns):
        return
    for choices, out in zip(terms, program.jaxpr.outvars, strict=False):
        if not choices:
            continue
        needed, found = {out}, None
        for eqn in reversed(program.jaxpr.eqns):
            if needed.intersection(eqn.outvars):
                needed.update(v for v in eqn.invars if isinstance(v, _jax.Var))
                found = eqn if _jax.holds(eqn, unknown_p) else found
        if found is not None:
            alone = _jax.with_equations(program, [found])
            s = sites[next(iter(choices))].chosen
            raise UnsupportedError(
                f"the log density at {line_of_unknown(alone)} is known by its score alone "
                f"(ppl.score_only), and {s.estimator.name} at {show(s.choice.address)} "
                f"({s.choice.source}) needs its value. Type ppl.reparam() at the choices that it "
                "depends on; or give a distribution with a density."
            )
