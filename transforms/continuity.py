"""Is a fault gone where its paths meet again?

From a comparison, a floor, a stopped gradient, ... several paths may lead to the objective: in
bilinear interpolation floor(x) is an index and a weight, in logsumexp a shift that is subtracted
and added. Where all of them have met in one value, the few equations in between are a function
of their own, which :func:`gone` evaluates on random lines:

- a *jump* is gone if the value is continuous where the outcome of the comparison changes, which
  is found by bisection;
- the *seam* of a draw on the circle is gone if the value is the same on both of its sides;
- a *stopped* gradient, or a derivative rule of the user's, is harmless if the derivative along
  the line is that of finite differences.

What the slice does not compute itself is free, which can only make the test stricter. A fault is
taken for harmless only if enough lines were decisive, and all of them agree.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .flat import Flat, Op
from .interpret import is_random

LINES = 128
"""Fewest lines, if they are not too large; one for each element of a comparison is better."""
MEETS = 6
"""Most places that are tried, from the fault on."""
MAX_OPS = 400
MAX_SIZE = 2**22
"""Most numbers that a slice may hold, for all lines together."""
ENOUGH = 4
JUMP = 1e-3
"""Smallest jump, relative to how much the value varies along the line."""
SEAMS = 0.3
"""How many of the jumps of a table lookup may remain: its index ends at the border of the table."""
SLOPE = 2e-2
"""Largest relative error of a derivative along a line."""
KINKS = 0.03
"""How many derivatives may be off, for a kink that lies within a step."""
STEP = 1e-2

SMALL_PRODUCT = 2048
"""Most numbers in the factors of a product of matrices that is computed."""

_PRODUCTS = {"dot_general", "conv_general_dilated"}
_HEAVY = {"scan", "while", "cond", "cholesky", "eigh", "svd"}
_HEAVY |= {"sort", "lu", "qr", "linear_solve", "triangular_solve", "custom_lin", "pure_callback"}
_ROUNDING = {"floor", "ceil", "round", "convert_element_type"}
_LOOKUPS = {"gather", "dynamic_slice"}
_UNREACHED = {"eq", "ne", "atan2"}
"""Where these jump, if anywhere, is no matter of scale: lines that do not cross it settle it."""


def gone(
    flat: Flat,
    index: int,
    kind: str,
    carrying: Collection[int],
    varied: Collection[int],
    sunk: Collection[int],
) -> int | None:
    """The value in which the fault of equation ``index`` is gone, or None.

    ``carrying`` are the values that the fault reaches, ``varied`` those that change with the
    parameters or with pathwise draws, ``sunk`` those that are parameters of sites.
    """
    places = _meets(flat, index, carrying, sunk)
    while places:
        ops = _slice(flat, index, places, carrying)
        if ops is not None:
            passed = _passed(_Question(flat, index, kind, places, ops, varied))
            return next((v for v, ok in zip(places, passed, strict=True) if ok), None)
        places = places[: len(places) // 2]
    return None


class _Question:
    """A slice and what is asked of it; equal if it reads the same, wherever it stands."""

    def __init__(
        self,
        flat: Flat,
        index: int,
        kind: str,
        places: Sequence[int],
        ops: Sequence[Op],
        varied: Collection[int],
    ):
        self.kind = kind
        self.args = (flat, index, places, ops, varied)
        local: dict[int, tuple[Any, ...]] = {}

        def named(v: Any) -> Any:
            if not isinstance(v, int):
                return np.asarray(v.val).tobytes(), str(np.asarray(v.val).dtype)
            aval = flat.avals[v]
            return local.setdefault(v, (len(local), str(aval), v in varied))

        fault = flat.ops[index]
        every = [
            (op.name, str(op.eqn.params), op is fault, *map(named, (*op.ins, *op.outs)))
            for op in (*ops, fault)
        ]
        self._content = (kind, *every, *map(named, places))

    def __hash__(self) -> int:
        return hash(self._content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Question) and self._content == other._content


@functools.lru_cache(maxsize=1024)
def _passed(question: _Question) -> list[bool]:
    """The answer for each place; an objective is traced more often than its slices change."""
    test = {"jump": _jumps, "seam": _seam}.get(question.kind, _slopes)
    with jax.ensure_compile_time_eval():
        return test(*question.args)


# --- where the paths meet -----------------------------------------------------------------------


def _meets(flat: Flat, index: int, carrying: Collection[int], sunk: Collection[int]) -> list[int]:
    """The values that all paths of the fault lead through, in order."""
    last = {v: j for j, op in enumerate(flat.ops) for v in op.values}
    forever = {v for v in flat.outputs if isinstance(v, int)} | set(sunk)
    live: set[int] = set()
    found: list[int] = []
    for j in range(index, len(flat.ops)):
        op = flat.ops[j]
        live.update(v for v in op.outs if v in carrying and (v in last or v in forever))
        live -= {v for v in live if v not in forever and last[v] <= j}
        whole = any(not jnp.issubdtype(flat.avals[v].dtype, jnp.inexact) for v in live)
        if len(live) == 1 and not whole and not live <= set(found):
            found += live
            if live <= forever or len(found) == MEETS:
                break
    return found


def _slice(
    flat: Flat, index: int, places: Sequence[int], carrying: Collection[int]
) -> list[Op] | None:
    """The equations that lead to ``places``; None if they cannot be evaluated by themselves."""
    fault = flat.ops[index]
    needed = {*places, *fault.outs}
    ops: list[Op] = []
    for op in reversed(flat.ops):
        if needed.isdisjoint(op.outs) or (op is fault and is_random(op.eqn)):
            continue
        carries = op is fault or any(v in carrying for v in op.outs)
        if carries and (is_random(op.eqn) or op.name == "while"):
            return None
        if carries or not (_is_heavy(flat, op) or is_random(op.eqn)):
            ops.append(op)
            needed.update(op.values)
    size = sum(math.prod(flat.avals[v].shape) for op in ops for v in op.outs)
    if len(ops) > MAX_OPS or size * ENOUGH > MAX_SIZE:
        return None
    return ops[::-1]


def _is_heavy(flat: Flat, op: Op) -> bool:
    """Whether the results of an equation are better left free than computed."""
    if op.name in _PRODUCTS:
        return sum(math.prod(flat.avals[v].shape) for v in op.values) > SMALL_PRODUCT
    return op.name in _HEAVY


# --- random lines -------------------------------------------------------------------------------


def _lines(flat: Flat, index: int, ops: Sequence[Op]) -> int:
    size = sum(math.prod(flat.avals[v].shape) for op in ops for v in op.outs)
    elements = sum(math.prod(flat.avals[v].shape) for v in flat.ops[index].outs)
    return max(ENOUGH, min(max(LINES, 16 * elements), MAX_SIZE // max(size, 1)))


def _ends(
    flat: Flat, ops: Sequence[Op], varied: Collection[int], n: int
) -> tuple[dict[int, Any], dict[int, Any], dict[int, Any]]:
    """Where ``n`` lines begin and end, and what stays fixed along them."""
    made = {v for op in ops for v in op.outs}
    rng = np.random.default_rng(0)
    begin, end, fixed = {}, {}, {}
    regime = rng.integers(0, 6, n)
    scale = np.array([0.5, 2.0, 8.0, 40.0, 2.0, 1.0])[regime]
    through = rng.uniform(size=n) < 0.6  # from one side of the origin to the other
    for v in dict.fromkeys(v for op in ops for v in op.values if v not in made):
        aval = flat.avals[v]
        if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
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
            if v in varied:
                begin[v], end[v] = jnp.asarray(a, aval.dtype), jnp.asarray(b, aval.dtype)
            else:
                fixed[v] = jnp.asarray(a, aval.dtype)
    return begin, end, fixed


def _weights(n: int, i: jax.Array) -> jax.Array:
    """Different positive numbers for each line, without the cost of random ones."""
    return 1.0 + 0.9 * jnp.sin(2.399 * jnp.arange(n) + 1.7 * i)


def _evaluate(ops: Sequence[Op], env: dict[int, Any]) -> dict[int, Any]:
    env = dict(env)
    for op in ops:
        operands = [env[v] if isinstance(v, int) else jnp.asarray(v.val) for v in op.ins]
        env.update(zip(op.outs, op.evaluate(operands), strict=True))
    return env


def _along(ops: Sequence[Op], begin: Any, end: Any, fixed: Any, t: Any) -> dict[int, Any]:
    moved = {v: a + (t * (end[v] - a)).astype(a.dtype) for v, a in begin.items()}
    return _evaluate(ops, {**fixed, **moved})


def _on_lines(f: Callable[..., Any], *ends: Any) -> Any:
    options: Any = {"xla_backend_optimization_level": 0}
    compiled = jax.jit(jax.vmap(f), compiler_options=options)
    return jax.tree.map(np.asarray, compiled(*ends))


# --- the two tests ------------------------------------------------------------------------------


def _jumps(
    flat: Flat, index: int, places: Sequence[int], ops: Sequence[Op], varied: Collection[int]
) -> list[bool]:
    """Whether each of ``places`` is continuous where the outcome of the equation changes."""
    fault = flat.ops[index]
    n = _lines(flat, index, ops)
    begin, end, fixed = _ends(flat, ops, varied, n)

    def line(begin: Any, end: Any, fixed: Any, i: jax.Array) -> Any:
        along = functools.partial(_along, ops, begin, end, fixed)

        def at(t: jax.Array) -> tuple[jax.Array, list[Any]]:
            env = along(t)
            all_ = _outcome(fault, env)
            return all_[i % max(all_.size, 1)], [env[v] for v in places]  # of one element

        grid = jnp.linspace(0.0, 1.0, 17)
        outcomes, values = jax.vmap(at)(grid)
        changes = outcomes[1:] != outcomes[:-1]
        first = jnp.argmax(changes * _weights(changes.size, i))
        below = outcomes[first]

        def halve(_: int, bounds: Any) -> Any:
            low, high = bounds
            middle = (low + high) / 2
            same = at(middle)[0] == below
            return jnp.where(same, middle, low), jnp.where(same, high, middle)

        bounds = lax.fori_loop(0, 30, halve, (grid[first], grid[first + 1]))
        sides = jax.vmap(lambda t: at(t)[1])(jnp.stack(bounds))
        return jnp.any(changes), [_gap(s[0], s[1], w) for s, w in zip(sides, values, strict=True)]

    crossed, gaps = _on_lines(line, begin, end, fixed, jnp.arange(n))
    if not crossed.any() and fault.name in _UNREACHED:
        return [True] * len(places)
    table = fault.name in _ROUNDING and any(op.name in _LOOKUPS for op in ops)
    seams = SEAMS if table else 0.0
    return [_agree(crossed & np.isfinite(g), g <= 1.0, seams) for g in gaps]


def _outcome(op: Op, env: dict[int, Any]) -> jax.Array:
    """What changes where an equation jumps, and only there."""
    operands = [env[v] if isinstance(v, int) else jnp.asarray(v.val) for v in op.ins]
    if op.name == "rem":
        return jnp.ravel(jnp.trunc(operands[0] / operands[1]))
    if op.name == "atan2":
        return jnp.ravel((operands[0] < 0) & (operands[1] < 0)).astype(float)
    if op.name == "sort":
        return jnp.ravel(jnp.argsort(operands[0], axis=op.eqn.params["dimension"])).astype(float)
    outs = [env[v] for v in op.outs]
    whole = [a for a in outs if not jnp.issubdtype(a.dtype, jnp.inexact)]  # of top_k: the indices
    return jnp.concatenate([jnp.ravel(a).astype(float) for a in whole or outs])


def _seam(
    flat: Flat, index: int, places: Sequence[int], ops: Sequence[Op], varied: Collection[int]
) -> list[bool]:
    """Whether each of ``places`` is the same for a draw of -π and of π."""
    n = _lines(flat, index, ops)
    angles = set(flat.ops[index].outs)
    begin, end, fixed = _ends(flat, ops, varied, n)

    def sides(begin: Any, end: Any, fixed: Any) -> list[jax.Array]:
        def at(angle: float) -> list[jax.Array]:
            drawn = {v: jnp.full_like(a, angle) for v, a in begin.items() if v in angles}
            env = _evaluate(ops, {**fixed, **begin, **drawn})
            return [jnp.asarray(env[v], float) for v in places]

        turn = [at(angle) for angle in np.linspace(-np.pi, np.pi, 9)]
        return [_gap(a[0], a[-1], jnp.stack(a)) for a in zip(*turn, strict=True)]

    gaps = _on_lines(sides, begin, end, fixed)
    return [_agree(np.isfinite(g), g <= 1.0) for g in gaps]


def _gap(below: jax.Array, above: jax.Array, along: jax.Array) -> jax.Array:
    """The largest difference of two sides of a jump, in units of what counts as one."""
    below, above, along = (jnp.asarray(a, float) for a in (below, above, along))
    finite = jnp.isfinite(along)
    high = jnp.max(jnp.where(finite, along, -jnp.inf), axis=0)
    low = jnp.min(jnp.where(finite, along, jnp.inf), axis=0)
    size = jnp.maximum(jnp.abs(high), jnp.abs(low))
    least = JUMP * (high - low) + 1e-5 * size + 1e-30
    return jnp.max(jnp.abs(above - below) / least) if below.size else jnp.zeros(())


def _slopes(
    flat: Flat, index: int, places: Sequence[int], ops: Sequence[Op], varied: Collection[int]
) -> list[bool]:
    """Whether the derivative of each of ``places`` is that of finite differences."""
    n = _lines(flat, index, ops)
    begin, end, fixed = _ends(flat, ops, varied, n)

    def line(begin: Any, end: Any, fixed: Any, i: jax.Array) -> Any:
        lengths = [jnp.max(jnp.abs(end[v] - a), initial=1e-6) for v, a in begin.items()]
        end = {v: a + (end[v] - a) / max(1.0, len(begin)) for v, a in begin.items()}
        step = STEP / functools.reduce(jnp.maximum, lengths, jnp.ones(()))

        def projected(t: jax.Array) -> list[jax.Array]:
            env = _along(ops, begin, end, fixed, t)
            ws = [jnp.asarray(env[v], float) for v in places]
            return [jnp.ravel(w) @ (_weights(w.size, i) - 1.2) for w in ws]

        def error(value: Any, slope: Any, wide: Any, narrow: Any) -> jax.Array:
            size = jnp.maximum(jnp.abs(slope), jnp.abs(narrow))
            noise = 1e-6 * jnp.abs(value) / step
            smooth = jnp.abs(wide - narrow) <= SLOPE / 2 * size + noise
            relative = jnp.abs((4 * narrow - wide) / 3 - slope) / (SLOPE * size + noise + 1e-30)
            return jnp.where(smooth & (noise < SLOPE * size), relative, jnp.nan)

        def difference(h: jax.Array) -> list[jax.Array]:
            pairs = zip(projected(at + h), projected(at - h), strict=True)
            return [(a - b) / (2 * h) for a, b in pairs]

        at = jnp.asarray(0.4)
        slopes = jax.jacrev(projected)(at)
        return [
            error(*all_)
            for all_ in zip(
                projected(at), slopes, difference(step), difference(step / 2), strict=True
            )
        ]

    errors = _on_lines(line, begin, end, fixed, jnp.arange(n))
    return [_agree(np.isfinite(e), e <= 1.0, KINKS) for e in errors]


def _agree(decisive: np.ndarray, passed: np.ndarray, exceptions: float = 0.0) -> bool:
    n = int(decisive.sum())
    return n >= ENOUGH and int((~passed[decisive]).sum()) <= exceptions * n
