"""``ppl.forecast``: a program goes on where values for its first steps end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from transforms import _jax
from transforms.errors import Address, AddressError, ShapeError, UnsupportedError, show
from transforms.program.choices import choices as choices_of
from transforms.runs.addresses import Entry, flatten, likeness, nest
from transforms.runs.execute import weights_of

from .generative import Generative
from .given import Choices, seed
from .partly import Partly
from .program import check_generative
from .sites import Written

Cut = tuple[int, int]
"""The axis of a loop, and how many of its steps are known."""


def forecast(g: Generative, choices: Choices, key: jax.Array | None = None) -> dict[str, Any]:
    """The steps of a program after those that are known, drawn from the program itself.

    Given all choices of the first steps the future does not depend on how they were found, so it
    needs no guide: they may be data, and draws of a posterior given these. A filter's forecast is
    ``ppl.normalize(model(t), data, by=ppl.smc(100))`` and this; that of a fitted guide is
    ``posterior.forecast``.

    Args:
        g: the program with more steps, called.
        choices: a value for each of its choices, as of the program with fewer steps: choices in a
            ``scan`` have fewer along its axis. The other choices are as they are.
        key: random key, where randomness is not implicit.

    Returns:
        Nested dict of the choices in the ``scan``, with the steps after those that are known.

    Raises:
        AddressError: a choice has no value. ShapeError: no choice has steps that are not known, or
            choices of one ``scan`` are known for different steps, or a value has another shape in
            another axis. UnsupportedError: a choice stands after the ``scan``.

    Example:
        >>> @ppl.gen
        ... def walk(t):
        ...     def step(x, _):
        ...         x = ppl.sample("x", dist.Normal(x, 1.0))
        ...         return x, None
        ...     jax.lax.scan(step, 0.0, length=t)
        >>> ppl.forecast(walk(5), {"x": jnp.array([0.5, 1.5])}, key)["x"].shape
        (3,)
    """
    check_generative(g, "ppl.forecast")
    if key is not None:
        return seed(lambda: forecast(g, choices))(key)
    written = g.written()
    program = written.entries
    values, cuts = flatten(choices), {}
    for e in program:
        for address, like in likeness([e]).items():
            if address not in values:
                raise _unknown(g, address, e)
            axis = _ends(e, jnp.shape(values[address]), like.shape)
            if axis is not None:
                cuts[address] = (axis, jnp.shape(values[address])[axis])
                values[address] = _begun(values[address], like.shape, axis)
    _check(g, program, cuts)
    _refuse_weights(g, written, cuts)
    drawn = flatten(g.generate(nest(values.items()))[0].choices)
    return nest(
        (a, jax.lax.slice_in_dim(drawn[a], steps, None, axis=axis))
        for a, (axis, steps) in cuts.items()
    )


def _ends(e: Entry, given: tuple[int, ...], wanted: tuple[int, ...]) -> int | None:
    """The axis of the outermost loop, where a value ends before it; None if it is whole, or wrong
    in another way."""
    if len(given) != len(wanted) or not e.loop_axes:
        return None
    differ = [i for i, sizes in enumerate(zip(given, wanted, strict=True)) if len(set(sizes)) > 1]
    axis = e.loop_axes[0]
    return axis if differ == [axis] and given[axis] < wanted[axis] else None


def _check(g: Generative, program: Sequence[Entry], cuts: Mapping[Address, Cut]) -> None:
    """Nothing that is known may depend on steps that are not."""
    if not cuts:
        raise ShapeError(
            f"nothing of {g.name} is left to forecast at {_jax.user_line()}: no value has fewer "
            "steps than its choice in a scan. Call the program with more steps than the values "
            "have."
        )
    steps = {e.choice.loops[0]: (e, cuts[e.address][1]) for e in program if e.address in cuts}
    for loop, (first, n) in steps.items():
        for e in program:
            if loop in e.choice.loops:
                if cuts.get(e.address, (0, None))[1] != n:
                    raise ShapeError(
                        f"{show(first.address)} has values for {n} steps at {_jax.user_line()}, "
                        f"and {show(e.address)} ({e.source}), in the same scan, for others. Give "
                        "the same first steps of both."
                    )
            elif e.choice.path > loop:
                raise UnsupportedError(
                    f"{show(e.address)} ({e.source}) stands after the scan of "
                    f"{show(first.address)}, so that its value tells something of the steps to "
                    f"come, from which ppl.forecast at {_jax.user_line()} does not draw them. "
                    "Observe it in the scan, step by step; or leave it out of the program that "
                    "forecasts."
                )


def _refuse_weights(g: Generative, written: Written, cuts: Mapping[Address, Cut]) -> None:
    """Steps to come are drawn from the program as if nothing weighed them."""
    loops = {e.choice.loops[0] for e in written.entries if e.address in cuts}
    weights = weights_of(written.closed)
    for c in choices_of(written.closed):
        if c.path in weights and any(loop in c.loops or c.path > loop for loop in loops):
            raise UnsupportedError(
                f"{g.name} has the weight {show(c.address)} ({c.source}) at steps to come or after "
                f"them (ppl.factor, ppl.observe), which ppl.forecast at {_jax.user_line()} does "
                "not draw them by. Type data as a choice in the scan, ppl.sample, with values for "
                "the first steps; or leave the weight out of the program that forecasts."
            )


def _begun(value: Any, shape: tuple[int, ...], axis: int) -> Partly:
    value = jnp.asarray(value)
    ahead = [(0, n - m) for n, m in zip(shape, value.shape, strict=True)]
    known = jnp.broadcast_to(jnp.arange(shape[axis]) < value.shape[axis], shape[: axis + 1])
    return Partly(jnp.pad(value, ahead), known)


def _unknown(g: Generative, address: Address, e: Entry) -> AddressError:
    return AddressError(
        f"{g.name} has the choice {show(address)} ({e.source}), and ppl.forecast at "
        f"{_jax.user_line()} gets no value of it: drawn anew it would not be that of the data. "
        "Give the first steps of all choices, data and draws of a posterior: "
        "ppl.merge(draws, data)."
    )
