"""*seed*: a program with random choices becomes a pure function of a key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from . import _jax, rounding
from .interpret import Path, Record, entering, interpret
from .site import Call, Densities, Expect, Factor, Site, _factor_outside, element_keys, per_element


def draw(site: Site, operands: Sequence[Any], key: jax.Array) -> jax.Array:
    """A draw of a site with all its ``vmap`` axes: ``[*sizes, *shape]``."""
    return vectorised_draw(site, operands, key, sampled)


def sampled(d: Any, key: jax.Array, sample_shape: tuple[int, ...]) -> jax.Array:
    """How distributions draw by themselves."""
    return rounding.sample(d, key, sample_shape)


def vectorised_draw(
    site: Site, operands: Sequence[Any], key: jax.Array, sample: Callable[..., Any]
) -> jax.Array:
    """Draw by ``sample(distribution, key, sample_shape)`` for each element of the site."""
    parameters = len(operands) - site.masked
    if not any(any(a.mapped[:parameters]) for a in site.axes):
        return sample(site.rebuild(operands), key, site.sizes)

    def one(operands: list[Any], key: jax.Array) -> jax.Array:
        return sample(site.rebuild(site.live(operands)), key, ())

    return per_element(site.axes, one, 1)(list(operands), element_keys(key, site.axes))


@entering
def draw_rule(
    choice: Any, operands: list[Any], *, path: Path, key: Any, given: Record, acc: Any
) -> Any:
    """Draw every choice; no densities, no gradient estimators."""
    if isinstance(choice, Site):
        return [draw(choice, operands, key)], acc, {}
    if isinstance(choice, Call):
        assert isinstance(choice.program, Densities)
        outs, acc, _ = interpret(choice.program.simulate, operands, draw_rule, key=key, acc=acc)
        return outs[: choice.program.n_retval], acc, {}
    if isinstance(choice, Expect):
        from .surrogate import estimate

        return estimate(choice, operands, key), acc, {}
    assert isinstance(choice, Factor)
    return _factor_outside(choice)


def seeded(closed: _jax.ClosedJaxpr, args: Sequence[Any], key: jax.Array) -> list[Any]:
    """Evaluate a program, drawing its choices with ``key``."""
    return interpret(closed, args, draw_rule, key=key)[0]
