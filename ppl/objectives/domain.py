"""How far parameters can be moved within the domain of a program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from transforms import _jax
from transforms.gradient.seed import draw_rule
from transforms.program.compiled import compiled, computed
from transforms.program.interpret import entering, interpret
from transforms.program.site import Call, Densities, Expect, Site, element_keys, per_element

from .derivatives import Program, moved

STEPS = (5e-2, 1.25e-2, 3e-3, 8e-4)
"""Steps of the differences, relative; the first one that stays within the domain is taken."""


def steps_within(program: Program, key: jax.Array) -> np.ndarray:
    """The step for each row, or 0 where the differences would leave the domain: f[rows]."""

    def leaves(params: list[jax.Array], steps: jax.Array) -> jax.Array:
        def row(v: Any, h: jax.Array) -> jax.Array:
            def at(by: jax.Array, key: jax.Array) -> jax.Array:
                closed, consts = program.trace(moved(params, v(params), by))
                return _outside(closed, consts, key)

            keys = jax.random.split(key, 100)
            by = 3 * h * jnp.array([-1.0, 1.0])
            return jnp.any(jax.vmap(lambda by: jax.vmap(lambda k: at(by, k))(keys))(by))

        return program.each(row, steps)

    scales = np.asarray(
        computed(lambda params: program.each(lambda v: _scale(params, v(params))), program.params)
    )
    steps = np.zeros_like(scales)
    leave = compiled(leaves, program.params, scales)
    for relative in STEPS:
        outside = np.asarray(leave(program.params, jnp.asarray(relative * scales)))
        steps = np.where((steps == 0) & ~outside, relative * scales, steps)
        if np.all(steps > 0):
            break
    return steps


def _scale(params: Sequence[jax.Array], v: Sequence[jax.Array]) -> jax.Array:
    size = sum(jnp.sum((p * d) ** 2) for p, d in zip(params, v, strict=True))
    return jnp.maximum(jnp.sqrt(size), 1.0)


def _outside(closed: _jax.ClosedJaxpr, args: Sequence[Any], key: jax.Array) -> jax.Array:
    """Whether a run meets a parameter outside its domain, or a payoff that is not finite."""

    def run(closed: _jax.ClosedJaxpr, args: Sequence[Any], key: jax.Array) -> Any:
        outs, seen, _ = interpret(closed, args, rule, key=key, acc=jnp.asarray(False))
        return outs, seen

    @entering
    def rule(choice: Any, operands: list[Any], *, key: Any, acc: Any, **state: Any) -> Any:
        if isinstance(choice, Site):
            one = lambda operands: _invalid(choice, operands)
            acc |= jnp.any(per_element(choice.axes, one, 0)(operands))
        elif isinstance(choice, Expect):
            one = lambda operands, key: run(choice.jaxpr, operands, key)
            keys = element_keys(key, choice.axes)
            outs, seen = per_element(choice.axes, one, 1)(operands, keys)
            return outs, acc | jnp.any(seen), {}
        elif isinstance(choice, Call):
            assert isinstance(choice.program, Densities)
            outs, seen = run(choice.program.simulate, operands, key)
            return outs[: choice.program.n_retval], acc | seen, {}
        return draw_rule(choice, operands, key=key, acc=acc, **state)

    outs, seen = run(closed, args, key)
    return seen | ~jnp.isfinite(outs[0])


def _invalid(site: Site, operands: list[Any]) -> jax.Array:
    """Whether a parameter of a site is outside its domain."""
    bad, d = jnp.asarray(False), site.rebuild(site.live(operands))
    while d is not None:
        for name, constraint in getattr(d, "arg_constraints", {}).items():
            # ``vars`` holds the parameters given, not those computed from them
            if name in vars(d) and not isinstance(constraint, type(constraints.dependent)):
                bad |= jnp.any(~constraint(vars(d)[name]))
        d = getattr(d, "base_dist", None)
    return bad & site.mask(operands)
