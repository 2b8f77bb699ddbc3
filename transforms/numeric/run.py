"""Programs evaluated by NumPy, equation by equation, without compilation.

What is evaluated once, on few numbers, takes XLA longer to compile than NumPy to compute. A value
may have two axes in front of its own, the lines and the points on them (one of which may be 1).
What the tables here do not know is left to JAX.

A loop is cut short that takes too many steps, and returns NaN: programs are evaluated on values
that were made up, for which a solver need not converge.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from ..program.control import Branches, Control, Loop, Until, Whole, control
from .tables import ELEMENTWISE, RULES, over, spread

STEPS = 300
"""Most steps of a loop: what has not converged by then is taken to diverge."""


def evaluate(closed: _jax.ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    """The results of a program; numbers are arrays of NumPy, keys are as JAX has them."""
    with np.errstate(all="ignore"):
        return _run(closed, args)


def _run(closed: _jax.ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, map(array, closed.consts), strict=True))
    typed = (_typed(v.aval.dtype, x) for v, x in zip(jaxpr.invars, args, strict=True))
    env.update(zip(jaxpr.invars, typed, strict=True))
    read = lambda v: array(v.val) if isinstance(v, _jax.Literal) else env[v]
    for step, dead in _steps(jaxpr):
        ins = [env[v] if x is None else x for v, x in step.ins]
        env.update(zip(step.eqn.outvars, _equation(step, ins), strict=True))
        for v in dead:
            del env[v]
    return [read(v) for v in jaxpr.outvars]


def equation(eqn: _jax.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """The results of one equation."""
    with np.errstate(all="ignore"):
        return _equation(_step_of(eqn), [array(x) for x in operands])


class _Step(NamedTuple):
    """An equation and what is known of it: what it runs, constants, numbers of axes, types of the
    results."""

    eqn: _jax.JaxprEqn
    inside: Control | None
    ins: list[tuple[Any, Any]]
    ndims: list[int]
    ndim: int
    dtypes: list[Any]


def _step_of(eqn: _jax.JaxprEqn) -> _Step:
    ins = [(v, np.asarray(v.val) if isinstance(v, _jax.Literal) else None) for v in eqn.invars]
    outs: list[Any] = [v.aval for v in eqn.outvars]
    ndims = [v.aval.ndim for v in eqn.invars]  # type: ignore[attr-defined]
    inside = control(eqn)
    return _Step(eqn, inside, ins, ndims, outs[0].ndim if outs else 0, [a.dtype for a in outs])


@functools.lru_cache(maxsize=256)
def _steps(jaxpr: _jax.Jaxpr) -> list[tuple[_Step, list[Any]]]:
    """The equations of a program, each with the values that are read no more."""
    kept = {v for v in jaxpr.outvars if isinstance(v, _jax.Var)}
    steps = []
    for eqn in reversed(jaxpr.eqns):
        read = {v for v in (*eqn.invars, *eqn.outvars) if isinstance(v, _jax.Var)}
        steps.append((_step_of(eqn), list(read - kept)))
        kept |= read
    return steps[::-1]


def apply(f: Callable[..., Any], *args: Any, ndims: Sequence[int]) -> list[Any]:
    """A function of JAX; ``ndims`` are how many axes of each argument are its own."""
    avals = [
        jax.ShapeDtypeStruct(x.shape[x.ndim - n :], x.dtype)
        for x, n in zip(args, ndims, strict=True)
    ]
    return evaluate(jax.make_jaxpr(lambda *xs: f(*xs))(*avals), args)


def array(x: Any) -> Any:
    return x if _jax.is_key(x) else np.asarray(x)


def _equation(step: _Step, ins: list[Any]) -> list[Any]:
    eqn, ndims = step.eqn, step.ndims
    name = eqn.primitive.name
    lines = 2 if any(x.ndim > n for x, n in zip(ins, ndims, strict=True)) else 0
    if step.inside is not None:
        outs = _PROGRAMS[type(step.inside)](step.inside, ins)
        return list(map(_typed, step.dtypes, outs))
    if lines:
        ins = [x if x.ndim > n else x[None, None] for x, n in zip(ins, ndims, strict=True)]
    outs = None
    if name in ELEMENTWISE and not any(map(_jax.is_key, ins)):
        if lines:
            ins = [spread(x, step.ndim - n) for x, n in zip(ins, ndims, strict=True)]
        outs = [ELEMENTWISE[name](*ins)]
    elif name in RULES and not any(map(_jax.is_key, ins)):
        outs = RULES[name](eqn, ins, lines)
    if outs is None:
        outs = _by_jax(eqn, ins, lines)
    return list(map(_typed, step.dtypes, outs))


def _by_jax(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any]:
    run = lambda *xs: _jax.evaluate_equation(eqn, xs)
    with jax.ensure_compile_time_eval():
        if not lines:
            return list(map(array, run(*ins)))
        front, flat = _side_by_side(ins)
        return [array(x).reshape((*front, *x.shape[1:])) for x in jax.vmap(run)(*flat)]


def _side_by_side(ins: Sequence[Any]) -> tuple[tuple[int, ...], list[Any]]:
    """Values with one axis in the place of lines and points, the sizes of which come first."""
    front = np.broadcast_shapes(*(x.shape[:2] for x in ins))
    n = math.prod(front)
    return front, [over(x, front).reshape((n, *x.shape[2:])) for x in ins]


def _typed(dtype: Any, x: Any) -> Any:
    return x if _jax.is_key(x) else np.asarray(x).astype(dtype, copy=False)


# --- programs inside ----------------------------------------------------------------------------


def _whole(whole: Whole, ins: list[Any]) -> list[Any]:
    return _run(whole.program, ins)


def _while(until: Until, ins: list[Any]) -> list[Any]:
    own = [v.aval.ndim for v in until.eqn.invars]  # type: ignore[attr-defined]
    if all(x.ndim == k for x, k in zip(ins, own, strict=True)):
        ins = [x[None, None] for x in ins]
        outs = _loops(until, ins)
        return [x[0, 0] for x in outs]
    ins = [x if x.ndim > k else x[None, None] for x, k in zip(ins, own, strict=True)]
    return _loops(until, ins)


def _loops(until: Until, ins: list[Any]) -> list[Any]:
    """Many loops side by side, of which those that have ended are not computed any further."""
    front, flat = _side_by_side(ins)
    flat = [x[:, None] for x in flat]
    of_test, of_body, carry = until.operands(flat)
    done, running = list(carry), np.arange(math.prod(front))
    ndim = until.test.out_avals[0].ndim  # of loops side by side in the program itself
    for step in range(STEPS + 1):
        (test,) = _run(until.test, [*of_test, *carry])
        test = test if test.ndim > ndim else test[None, None]
        test = np.broadcast_to(test, (len(running), *test.shape[1:]))
        if step == STEPS:
            carry = [_nan(x, test) for x in carry]
            test = np.zeros_like(test)
        go = test.reshape(len(running), -1).any(1)
        if not go.all():
            done = [_put(old, running[~go], x[~go]) for old, x in zip(done, carry, strict=True)]
            running, test = running[go], test[go]
            of_test, of_body, carry = ([x[go] for x in xs] for xs in (of_test, of_body, carry))
        if not running.size:
            break
        new = _run(until.body, [*of_body, *carry])
        carry = [_step(test if ndim else None, x, old) for x, old in zip(new, carry, strict=True)]
    return [x.reshape((*front, *x.shape[2:])) for x in done]


def _nan(x: Any, unfinished: Any) -> Any:
    if _jax.is_key(x) or x.dtype.kind not in "fc":
        return x
    return np.where(spread(unfinished, x.ndim - unfinished.ndim), x.dtype.type(np.nan), x)


def _step(test: Any, x: Any, old: Any) -> Any:
    x = x if x.shape == old.shape else over(x, old.shape)
    if test is None:
        return x
    where = jnp.where if _jax.is_key(x) else np.where
    return where(spread(test, x.ndim - test.ndim), x, old)


def _put(x: Any, rows: Any, new: Any) -> Any:
    if _jax.is_key(x):
        return x.at[rows].set(new)
    x = x if x.flags.writeable else x.copy()
    x[rows] = new
    return x


def _cond(cond: Branches, ins: list[Any]) -> list[Any]:
    branches, index = cond.programs, np.clip(ins[0], 0, len(cond.programs) - 1)
    if index.ndim == 0:
        return _run(branches[int(index)], ins[1:])
    cases = [_run(branch, ins[1:]) for branch in branches]
    return [
        _chosen(index, outs, v.aval.ndim)  # type: ignore[attr-defined]
        for v, outs in zip(cond.eqn.outvars, zip(*cases, strict=True), strict=True)
    ]


def _chosen(index: Any, outs: Sequence[Any], ndim: int) -> Any:
    outs = [x if x.ndim > ndim else x[None, None] for x in outs]
    where = jnp.where if any(map(_jax.is_key, outs)) else np.where
    chosen = outs[0]
    for i, x in enumerate(outs[1:], 1):
        chosen = where(spread(index == i, ndim), x, chosen)
    return chosen


def _scan(loop: Loop, ins: list[Any]) -> list[Any]:
    consts, carry, xs = loop.operands(ins)
    avals: Any = [v.aval for v in loop.operands(loop.eqn.invars)[2]]
    ahead = [x.ndim - a.ndim for x, a in zip(xs, avals, strict=True)]
    steps = range(loop.length)
    rows = []
    for i in reversed(steps) if loop.reverse else steps:
        row = [x[(slice(None),) * k + (i,)] for x, k in zip(xs, ahead, strict=True)]
        carry, out = loop.results(_run(loop.body, [*consts, *carry, *row]))
        rows.append(out)
    if loop.reverse:
        rows.reverse()
    ys: Any = loop.results(loop.eqn.outvars)[1]
    if not rows:
        return [*carry, *(np.zeros(v.aval.shape, v.aval.dtype) for v in ys)]
    columns = zip(*rows, strict=True)
    return [*carry, *(_stacked(c, v.aval.ndim - 1) for c, v in zip(columns, ys, strict=True))]


def _stacked(rows: Sequence[Any], ndim: int) -> Any:
    if any(x.ndim > ndim for x in rows):
        rows = [x if x.ndim > ndim else x[None, None] for x in rows]
        front = np.broadcast_shapes(*(x.shape[:2] for x in rows))
        rows = [over(x, front) for x in rows]
    axis = rows[0].ndim - ndim
    return jnp.stack(rows, axis) if _jax.is_key(rows[0]) else np.stack(rows, axis)


_PROGRAMS: dict[type, Callable[..., Any]] = {
    Whole: _whole,
    Branches: _cond,
    Loop: _scan,
    Until: _while,
}
