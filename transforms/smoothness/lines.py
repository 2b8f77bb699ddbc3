"""Slices of a program, evaluated along random lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from ..numeric import run as numeric
from ..program.flat import Op
from .slices import ENOUGH, MAX_SIZE, Place, work
from .tapped import fingerprint, outcome

LINES = 128
"""Fewest lines, if they are not too large; several for each element of a comparison are better."""
LINES_OF_LOOPS = 48
"""As many where a loop of any number of steps is evaluated, which takes long."""
JUMP = 1e-3
"""Smallest jump, relative to how much the value varies along the line."""
SEAMS = 0.3
"""How many of the jumps of a table lookup may remain."""
FAR = 10.0
"""Farthest that values are from zero on the lines of a suspect."""
GRID = np.linspace(0.0, 1.0, 17, dtype=np.float32)
CLOSER = 6
"""How often the interval between two points of the grid takes the place of the line."""


def number_of_lines(fault: Place, ops: Sequence[Op]) -> int:
    elements = sum(math.prod(fault.flat.avals[v].shape) for v in fault.op.outs)
    most = MAX_SIZE // max(work(ops), 1)
    fewest = LINES_OF_LOOPS if any(_jax.holds(op.eqn, _jax.while_p) for op in ops) else LINES
    return max(ENOUGH, min(max(fewest, 8 * elements), most))


def ends(
    fault: Place, ops: Sequence[Op], n: int
) -> tuple[dict[int, Any], dict[int, Any], dict[int, Any]]:
    """Where ``n`` lines begin and end, and what stays fixed along them: one point on each."""
    flat = fault.flat
    made = {v for op in ops for v in op.outs}
    rng = np.random.default_rng(0)
    begin, end, fixed = {}, {}, {}
    regime = rng.integers(0, 6, n)
    scale = np.array([0.5, 2.0, 8.0, 40.0, 2.0, 1.0])[regime]
    if any(op.name == "while" or op.custom for op in ops):  # need not converge far away
        scale = np.minimum(scale, 2.0)
    far = FAR if fault.kind == "suspect" else math.inf
    through = rng.uniform(size=n) < 0.6  # from one side of the origin to the other
    for v in dict.fromkeys(v for op in ops for v in op.operands if v not in made):
        aval = flat.avals[v]
        given = fault.constant(v)
        if given is not None:
            fixed[v] = np.broadcast_to(np.asarray(given), (n, *aval.shape))
        elif jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
            fixed[v] = jax.random.split(jax.random.key(0), (n, *aval.shape))
        elif not jnp.issubdtype(aval.dtype, jnp.floating):
            whole = rng.integers(0, 2 if aval.dtype == bool else 3, (n, *aval.shape))
            fixed[v] = whole.astype(aval.dtype)
        else:
            widths = scale.reshape(n, *[1] * len(aval.shape))
            a, b = rng.normal(size=(2, n, *aval.shape)) * widths
            b[through] = 0.3 * b[through] - a[through]
            positive, unit = regime == 4, regime == 5  # where only these are in the domain
            a[positive], b[positive] = abs(a[positive]), abs(b[positive])
            a[unit], b[unit] = rng.uniform(size=(2, *a[unit].shape))
            a, b = (_inside(fault, v, _near(x, far)) for x in (a, b))
            if v in fault.varied:
                begin[v], end[v] = a.astype(aval.dtype), b.astype(aval.dtype)
            else:
                fixed[v] = a.astype(aval.dtype)
    begin, end, fixed = ({v: x[:, None] for v, x in d.items()} for d in (begin, end, fixed))
    return begin, end, fixed


def _inside(fault: Place, v: int, x: np.ndarray) -> np.ndarray:
    """``x``, moved to where the draws are, if ``v`` is one."""
    domain = fault.domains.get(v)
    if domain is not None:
        return domain.move(x)
    positive = fault.kind == "suspect" and v not in fault.varied
    return abs(x) if positive else x


def _near(x: np.ndarray, far: float) -> np.ndarray:
    """Where functions that saturate do not do so yet."""
    if far == math.inf:
        return x
    farthest = np.max(np.abs(x), axis=tuple(range(1, x.ndim)), keepdims=True, initial=1e-9)
    return x * np.minimum(1.0, far / farthest)


def weights(n: int, i: Any) -> Any:
    """Different positive numbers for each line, without the cost of random ones."""
    sin = np.sin if isinstance(i, np.ndarray) else jnp.sin
    return 1.0 + 0.9 * sin(2.399 * np.arange(n) + 1.7 * i)


def evaluate(fault: Place, ops: Sequence[Op], env: dict[int, Any]) -> tuple[dict[int, Any], Any]:
    """All values, with axes for lines and points in front, and the outcome of the fault."""
    env, found = dict(env), None
    for op in ops:
        n = len(op.eqn.invars)
        ins = [env[v] if isinstance(v, int) else numeric.array(v.val) for v in op.ins[:n]]
        if op is fault.op and fault.tap and fault.kind == "jump":
            run = lambda *xs, op=op: _told(fingerprint(op, xs, fault.tap))
            *outs, found = numeric.apply(run, *ins, ndims=_ndims(op.eqn.invars))
        else:
            outs = numeric.equation(op.eqn, ins)
        if op is fault.op and found is None:
            tell = lambda *xs, op=op, n=n: outcome(op, xs[:n], xs[n:])
            ndims = _ndims([*op.eqn.invars, *op.eqn.outvars])
            (found,) = numeric.apply(tell, *ins, *outs, ndims=ndims)
        env.update(zip(op.outs, outs, strict=True))
    return env, found


def _told(run: tuple[list[Any], jax.Array]) -> list[Any]:
    outs, number = run
    return [*outs, jnp.ravel(number)]


def _ndims(variables: Sequence[Any]) -> list[int]:
    return [v.aval.ndim for v in variables]


def leading_to(last: Op, ops: Sequence[Op]) -> list[Op]:
    """Those of the equations that ``last`` needs, and itself."""
    needed, found = set(last.outs), []
    for op in reversed(ops):
        if not needed.isdisjoint(op.outs):
            needed.update(op.operands)
            found.append(op)
    return found[::-1]


def along(
    fault: Place, ops: Sequence[Op], begin: Any, end: Any, fixed: Any, t: np.ndarray
) -> tuple[dict[int, Any], Any]:
    """As :func:`evaluate`, at the points t of ``f32[lines, points]``."""
    moved = {
        v: (a + t.reshape(*t.shape, *[1] * (a.ndim - 2)) * (end[v] - a)).astype(a.dtype)
        for v, a in begin.items()
    }
    return evaluate(fault, ops, {**fixed, **moved})


def elements(value: Any, ndim: int, t: np.ndarray) -> np.ndarray:
    """The elements of a value at the points t, as an array of lines, points and elements."""
    value = value if value.ndim > ndim else value[None, None]
    size = math.prod(value.shape[2:])
    return np.broadcast_to(value, (*t.shape, *value.shape[2:])).reshape(*t.shape, size)


def flattened(value: Any, ndim: int, t: np.ndarray) -> np.ndarray:
    """As :func:`elements`, of floating point."""
    value = elements(value, ndim, t)
    if value.dtype.kind == "c":
        value = np.concatenate([value.real, value.imag], axis=-1)
    return value if value.dtype.kind == "f" else value.astype(np.float32)


def derivable(ops: Sequence[Op], env: dict[int, Any], places: Sequence[int]) -> list[jax.Array]:
    """The elements of some values at one point, as JAX code."""
    env = dict(env)
    for op in ops:
        ins = [env.get(v) if isinstance(v, int) else jnp.asarray(v.val) for v in op.ins]
        env.update(zip(op.outs, op.evaluate(ins), strict=True))
    return [_as_real(env[v]) for v in places]


def _as_real(value: Any) -> jax.Array:
    value = jnp.ravel(value)
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        value = jnp.concatenate([jnp.real(value), jnp.imag(value)])
    return value.astype(float)


def one_of(values: np.ndarray) -> np.ndarray:
    """Another element on each line."""
    lines, _, n = values.shape
    i = np.arange(lines)
    return values[i, :, i % n] if n else np.zeros(values.shape[:2])


def gap_of(below: np.ndarray, above: np.ndarray, along: np.ndarray) -> np.ndarray:
    """The largest difference of two sides of a jump, in units of what counts as one.

    The sides are ``f32[lines, n]``, the values along the lines ``f32[lines, points, n]``.
    """
    finite = np.isfinite(along)
    high = np.max(along, axis=1, where=finite, initial=-np.inf)
    low = np.min(along, axis=1, where=finite, initial=np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.maximum(np.abs(high), np.abs(low))
        least = JUMP * (high - low) + 1e-5 * size + 1e-30
        return np.max(np.abs(above - below) / least, axis=1, initial=0.0)


_ROUNDING = {"floor", "ceil", "round", "convert_element_type"}
_LOOKUPS = {"gather", "dynamic_slice"}


def seams_of(fault: Place, ops: Sequence[Op]) -> float:
    """How many jumps may remain: the index of a table ends at the border of the table."""
    table = fault.op.name in _ROUNDING and any(op.name in _LOOKUPS for op in ops)
    return SEAMS if table else 0.0
