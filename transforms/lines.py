"""Slices of a program, evaluated along random lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import numeric
from .bounded import bounded
from .flat import Op
from .slices import ENOUGH, MAX_SIZE, Place, work
from .tapped import fingerprint, outcome

LINES = 128
"""Fewest lines, if they are not too large; one for each element of a comparison is better."""
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
    return max(ENOUGH, min(max(LINES, 16 * elements), most))


def ends(
    fault: Place, ops: Sequence[Op], n: int
) -> tuple[dict[int, Any], dict[int, Any], dict[int, Any]]:
    """Where ``n`` lines begin and end, and what stays fixed along them."""
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
            fixed[v] = jnp.broadcast_to(given, (n, *aval.shape))
        elif jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
            fixed[v] = jax.random.split(jax.random.key(0), (n, *aval.shape))
        elif not jnp.issubdtype(aval.dtype, jnp.floating):
            whole = rng.integers(0, 2 if aval.dtype == bool else 3, (n, *aval.shape))
            fixed[v] = jnp.asarray(whole, aval.dtype)
        else:
            widths = scale.reshape(n, *[1] * len(aval.shape))
            a, b = rng.normal(size=(2, n, *aval.shape)) * widths
            b[through] = 0.3 * b[through] - a[through]
            positive, unit = regime == 4, regime == 5  # where only these are in the domain
            a[positive], b[positive] = abs(a[positive]), abs(b[positive])
            a[unit], b[unit] = rng.uniform(size=(2, *a[unit].shape))
            a, b = (_inside(fault, v, _near(x, far)) for x in (a, b))
            if v in fault.varied:
                begin[v], end[v] = jnp.asarray(a, aval.dtype), jnp.asarray(b, aval.dtype)
            else:
                fixed[v] = jnp.asarray(a, aval.dtype)
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
    return 1.0 + 0.9 * jnp.sin(2.399 * np.arange(n) + 1.7 * i)


def evaluate(fault: Place, ops: Sequence[Op], env: dict[int, Any]) -> tuple[Any, Any]:
    """All values, and the outcome of the fault."""
    env = dict(env)
    found = None
    for op in ops:
        operands = [env.get(v) if isinstance(v, int) else jnp.asarray(v.val) for v in op.ins]
        if op is fault.op and fault.tap and fault.kind == "jump":
            outs, found = fingerprint(op, operands, fault.tap)
        else:
            outs = op.evaluate(operands)
            found = outcome(op, operands, outs) if op is fault.op else found
        env.update(zip(op.outs, outs, strict=True))
    return env, found


def along(
    fault: Place, ops: Sequence[Op], begin: Any, end: Any, fixed: Any, t: Any
) -> tuple[Any, Any]:
    moved = {v: a + (t * (end[v] - a)).astype(a.dtype) for v, a in begin.items()}
    return evaluate(fault, ops, {**fixed, **moved})


def on_lines(f: Callable[..., Any], *lines: Any, loops: bool) -> Callable[[np.ndarray], Any]:
    """``f(*line, i, t)`` for all ``lines`` i at all points t of ``f32[lines, points]``.

    By NumPy: compilation would be nearly all that a test costs.
    """
    one = bounded(f) if loops else f
    points = jax.vmap(jax.vmap(one, in_axes=(*[None] * (len(lines) + 1), 0)))
    programs: dict[Any, Any] = {}

    def at(t: np.ndarray) -> Any:
        args = (*lines, np.arange(len(t)), t)
        if t.shape not in programs:
            programs[t.shape] = jax.make_jaxpr(points, return_shape=True)(*args)
        closed, out = programs[t.shape]
        results = numeric.evaluate(closed, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(out), results)

    return at


def flattened(value: Any) -> jax.Array:
    value = jnp.ravel(jnp.asarray(value))
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        value = jnp.concatenate([jnp.real(value), jnp.imag(value)])
    return value.astype(float)


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
