"""Programs whose loops end: ``while`` with a bound on its steps.

The soundness checker evaluates parts of a program on values that it makes up, for which a solver
need not converge. A loop that is cut short returns NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from . import _jax

STEPS = 300
"""Most steps of a loop: what has not converged by then is taken to diverge."""


def has_while(closed: _jax.ClosedJaxpr) -> bool:
    return any(needs_bound(eqn) for eqn in closed.jaxpr.eqns)


def needs_bound(eqn: _jax.JaxprEqn) -> bool:
    """Whether an equation is, or has inside, a loop of any number of steps."""
    return eqn.primitive is _jax.while_p or any(map(has_while, _jax.sub_jaxprs(eqn)))


def bounded(f: Callable[..., Any]) -> Callable[..., Any]:
    """``f``, with derivatives that it takes, cut short where a ``while`` takes too many steps."""

    def run(*args: Any) -> Any:
        closed, out = jax.make_jaxpr(f, return_shape=True)(*args)
        results = _run(closed, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(out), results)

    return run


def _run(closed: _jax.ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, _jax.Literal) else env[v]

    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        rule = _RULES.get(eqn.primitive, _inline) if needs_bound(eqn) else _plain
        env.update(zip(eqn.outvars, rule(eqn, operands), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _plain(eqn: _jax.JaxprEqn, operands: list[Any]) -> list[Any]:
    return _jax.evaluate_equation(eqn, operands)


def _inline(eqn: _jax.JaxprEqn, operands: list[Any]) -> list[Any]:
    return _run(next(_jax.sub_jaxprs(eqn)), operands)


def _scan(eqn: _jax.JaxprEqn, operands: list[Any]) -> list[Any]:
    body, n, m = eqn.params["jaxpr"], *_jax.scan_layout(eqn)

    def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        outs = _run(body, [*operands[:n], *carry, *xs])
        return outs[:m], outs[m:]

    options = {k: eqn.params[k] for k in ("length", "reverse")}
    carry, ys = jax.lax.scan(step, operands[n : n + m], operands[n + m :], **options)
    return [*carry, *ys]


def _cond(eqn: _jax.JaxprEqn, operands: list[Any]) -> list[Any]:
    branches = [functools.partial(_branch, b) for b in eqn.params["branches"]]
    return jax.lax.switch(operands[0], branches, operands[1:])


def _branch(closed: _jax.ClosedJaxpr, operands: list[Any]) -> list[Any]:
    return _run(closed, operands)


def _while(eqn: _jax.JaxprEqn, operands: list[Any]) -> list[Any]:
    n, m = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    test = lambda carry: _run(eqn.params["cond_jaxpr"], [*operands[:n], *carry])[0]
    step = lambda carry: _run(eqn.params["body_jaxpr"], [*operands[n : n + m], *carry])
    return while_loop(test, step, operands[n + m :])


def while_loop(
    test: Callable[[Any], Any], step: Callable[[Any], list[Any]], init: list[Any]
) -> list[Any]:
    """``jax.lax.while_loop`` of a list of arrays with a bound; NaN where it is reached."""
    _, carry = jax.lax.while_loop(
        lambda s: (s[0] < STEPS) & test(s[1]), lambda s: (s[0] + 1, step(s[1])), (0, init)
    )
    return [_or_nan(test(carry), x) for x in carry]


def _or_nan(unfinished: Any, x: Any) -> Any:
    return jnp.where(unfinished, jnp.nan, x) if jnp.issubdtype(x.dtype, jnp.inexact) else x


_RULES = {_jax.scan_p: _scan, _jax.cond_p: _cond, _jax.while_p: _while}
