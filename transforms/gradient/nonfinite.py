"""Where a value that is not finite shows first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .. import _jax
from ..analyses.contained import resolve
from ..checker.findings import of_misfit
from ..errors import describe, show
from ..estimation.chosen import Choose
from ..estimation.draws import vectorised_draw
from ..estimation.rounding import cure, rounding_parts, smallest_lost
from ..program.site import Site
from .origin import origin
from .surrogate import surrogate

CURES = (
    "A smaller learning rate, parameters transformed to their support (jnp.exp, jax.nn.softplus), "
    "or log-space arithmetic are the usual cures."
)


def first_nonfinite(
    closed: _jax.ClosedJaxpr,
    args: Sequence[Any],
    key: jax.Array,
    choose: Choose,
    how: Mapping[str, Any],
    fitted: Sequence[Any] = (),
) -> str:
    """A sentence that names the first choice with parameters or a draw that are not finite.

    The surrogate itself runs, and its derivative, with the same key: what is seen are its own
    draws, all values of what it enumerates, and the alternatives of what it continues from. ``how``
    are its numbers of samples, its averages and direction.
    ``fitted`` are those of the arguments that are no data.

    Raises:
        SupportError: data among the arguments are outside the support at which they are scored.
    """
    _, misfits = resolve(closed, args)
    watch = _Watch()
    smooth = [i for i, a in enumerate(args) if jnp.issubdtype(jnp.result_type(a), jnp.inexact)]

    def value(key: jax.Array, inputs: list[Any]) -> jax.Array:
        full = list(args)
        for i, a in zip(smooth, inputs, strict=True):
            full[i] = a
        return surrogate(
            closed,
            full,
            key,
            choose,
            **how,
            report=lambda check, inputs: None,
            watch=watch,
        )[0]

    estimate, inputs = jax.value_and_grad(value, argnums=1), [args[i] for i in smooth]
    result = jax.jit(estimate)(key, inputs)[0]
    jax.effects_barrier()
    bad, lost = sorted(watch.bad), sorted(watch.lost)
    if lost and lost[0] <= min(bad, default=lost[0]):
        return watch.lost[lost[0]]
    if bad:
        address, source = watch.places[bad[0]]
        return (
            f"It shows first at the random choice {show(address)} ({source}), whose parameters or "
            f"draw are not finite. {CURES}"
        )
    if told := _not_numbers(closed, args, fitted):
        return told
    if misfits:
        return of_misfit(misfits[0]).message.replace("the choice", "The choice", 1)
    what = "the gradient" if bool(jnp.isfinite(result)) else "the value"
    return (
        f"Every random choice has finite parameters and draws; {what} is made not finite by what "
        f"is computed from them{origin(estimate, key, inputs)}. {CURES}"
    )


def _not_numbers(closed: _jax.ClosedJaxpr, args: Sequence[Any], fitted: Sequence[Any]) -> str:
    """What to say of data that hold NaN, if any do."""
    parameters = {id(a) for a in fitted}
    values = [*args, *closed.consts]
    for v, x in zip([*closed.jaxpr.invars, *closed.jaxpr.constvars], values, strict=True):
        if id(x) in parameters or not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            continue
        count = int(jnp.sum(jnp.isnan(x)))
        if count:
            used = [_jax.line_of(e) for e in closed.jaxpr.eqns if v in e.invars]
            at = f", used at {used[0]}," if used and used[0] else ""
            return (
                f"The data are not numbers: {describe(x)}{at} has {count} NaN. Leave those "
                "elements out, or mask them: jnp.nan_to_num(y) as the data of "
                "d.mask(~jnp.isnan(y))."
            )
    return ""


@dataclasses.dataclass
class _Watch:
    """Told of every choice of a run: the choices in order, the numbers of the bad ones, and what to
    say of those whose draws are lost."""

    places: list[tuple[Any, str]] = dataclasses.field(default_factory=list)
    bad: set[int] = dataclasses.field(default_factory=set)
    lost: dict[int, str] = dataclasses.field(default_factory=dict)

    def __call__(self, site: Site, operands: Sequence[Any], value: Any) -> None:
        place = (site.address, site.source)
        if place not in self.places:
            self.places.append(place)
        number = self.places.index(place)
        mask = operands[-1] if site.masked else True
        parameters = operands[: len(operands) - site.masked - site.n_estimator]
        seen = [site.live(operands)] if site.masked else [parameters]
        flags = [
            jnp.any(~jnp.isfinite(a))
            for a in [*seen[0][: len(parameters)], value]
            if jnp.issubdtype(a.dtype, jnp.inexact)
        ]

        def note(flag: Any) -> None:
            if bool(flag):
                self.bad.add(number)

        taken = jnp.any(jnp.asarray(mask))
        if flags:
            jax.debug.callback(note, jnp.any(jnp.stack(flags)) & taken)
        if rounding_parts(site.rebuild(operands)):
            self._note_lost(number, site, operands, value, taken)

    def _note_lost(
        self, number: int, site: Site, operands: Sequence[Any], value: Any, taken: Any
    ) -> None:
        smallest = lambda d, *_: smallest_lost(d, value.dtype)
        told = vectorised_draw(site, operands, jax.random.key(0), smallest).reshape(-1, 2)
        limit = told[jnp.argmin(told[:, 0])][1]
        at_end = jnp.any((value == 0) | (value == 1) | jnp.isinf(value))

        def note(limit: Any) -> None:
            if bool(jnp.isfinite(limit)):
                self.lost[number] = (
                    f"Draws of {show(site.address)} ({site.source}) are at an end of their "
                    f"support. {cure(value.dtype, float(limit))}"
                )

        jax.debug.callback(note, jnp.where(at_end & taken, limit, jnp.inf))
