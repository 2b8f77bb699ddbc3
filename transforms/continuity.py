"""Is a fault gone where its paths meet again?

From a comparison, a floor, a stopped gradient, ... several paths may lead to the objective: in
bilinear interpolation floor(x) is an index and a weight, in logsumexp a shift that is subtracted
and added. Where all of them have met in one value, the few equations in between are a function
of their own, which :func:`gone` evaluates on random lines:

- a *jump* is gone if the value is continuous where the outcome of the comparison changes, which
  a grid finds that is refined six times;
- the *seam* of a draw on the circle is gone if the value is the same on both of its sides;
- a *stopped* gradient, or a derivative rule of the user's, is harmless if the derivative along
  the line is that of finite differences.

What the slice does not compute itself is free, which can only make the test stricter. A fault is
taken for harmless only if enough lines were decisive, and all of them agree.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import verdicts
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
GRID = np.linspace(0.0, 1.0, 17, dtype=np.float32)
CLOSER = 6
"""How often the interval between two points of the grid takes the place of the line."""

SMALL_PRODUCT = 2048
"""Most numbers in the factors of a product of matrices that is computed."""

_PRODUCTS = {"dot_general", "conv_general_dilated"}
_HEAVY = {"scan", "while", "cond", "cholesky", "eigh", "svd"}
_HEAVY |= {"sort", "lu", "qr", "linear_solve", "triangular_solve", "custom_lin", "pure_callback"}
_ROUNDING = {"floor", "ceil", "round", "convert_element_type"}
_LOOKUPS = {"gather", "dynamic_slice"}
FACTORS = {"eigh", "svd", "qr", "geqrf", "householder_product", "eig", "schur"}
"""Their vectors have signs, which are the solver's choice."""
CUTS = {"log", "log1p", "sqrt", "rsqrt", "pow", "acosh", "asinh", "atanh", "acos", "asin", "atan"}
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


def convicted(
    flat: Flat,
    index: int,
    carrying: Collection[int],
    varied: Collection[int],
    sunk: Collection[int],
    supports: Mapping[int, str],
) -> bool:
    """Whether a value is seen to jump, by a finite amount, because of equation ``index``.

    ``varied`` are the values that change with draws; ``supports`` tells which are positive.
    """
    places = _meets(flat, index, carrying, sunk)
    sizes = {op.outs[0]: "not negative" for op in flat.ops if op.name == "svd"}
    supports = {**supports, **sizes}
    while places:
        ops = _slice(flat, index, places, carrying)
        if ops is not None:
            question = _Question(flat, index, "suspect", places, ops, varied, supports)
            return not any(_passed(question))
        places = places[: len(places) // 2]
    return False


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
        supports: Mapping[int, str] | None = None,
    ):
        self.kind = kind
        self.args = (flat, index, places, ops, varied)
        self.supports = supports or {}
        local: dict[int, tuple[Any, ...]] = {}

        def named(v: Any) -> Any:
            if not isinstance(v, int):
                return np.asarray(v.val).tobytes(), str(np.asarray(v.val).dtype)
            aval = flat.avals[v]
            return local.setdefault(v, (len(local), str(aval), v in varied, self.supports.get(v)))

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
        if question.kind == "suspect":
            return [not _is_seen_to_jump(*question.args, question.supports)]
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


def _weights(n: int, i: Any) -> Any:
    """Different positive numbers for each line, without the cost of random ones."""
    return 1.0 + 0.9 * jnp.sin(2.399 * np.arange(n) + 1.7 * i)


def _evaluate(ops: Sequence[Op], env: dict[int, Any]) -> dict[int, Any]:
    env = dict(env)
    for op in ops:
        operands = [env[v] if isinstance(v, int) else jnp.asarray(v.val) for v in op.ins]
        env.update(zip(op.outs, op.evaluate(operands), strict=True))
    return env


def _along(ops: Sequence[Op], begin: Any, end: Any, fixed: Any, t: Any) -> dict[int, Any]:
    moved = {v: a + (t * (end[v] - a)).astype(a.dtype) for v, a in begin.items()}
    return _evaluate(ops, {**fixed, **moved})


def _on_lines(f: Callable[..., Any], *lines: Any) -> Callable[[np.ndarray], Any]:
    """``f(*line, i, t)`` for all ``lines`` i at all points t of ``f32[lines, points]``.

    Only the slice is compiled, what is made of its values is left to NumPy: compilation is
    nearly all that a test costs.
    """
    options: Any = {"xla_backend_optimization_level": 0}
    points = jax.vmap(f, in_axes=(*[None] * (len(lines) + 1), 0))
    compiled = jax.jit(jax.vmap(points), compiler_options=options)
    return lambda t: jax.tree.map(np.asarray, compiled(*lines, np.arange(len(t)), t))


# --- the tests ----------------------------------------------------------------------------------


def _jumps(
    flat: Flat, index: int, places: Sequence[int], ops: Sequence[Op], varied: Collection[int]
) -> list[bool]:
    """Whether each of ``places`` is continuous where the outcome of the equation changes."""
    fault = flat.ops[index]
    n = _lines(flat, index, ops)

    def at(begin: Any, end: Any, fixed: Any, i: Any, t: Any) -> tuple[jax.Array, list[jax.Array]]:
        env = _along(ops, begin, end, fixed, t)
        outcome = _outcome(fault, env)
        return outcome[i % max(outcome.size, 1)], [_flat(env[v]) for v in places]  # of one element

    points = _on_lines(at, *_ends(flat, ops, varied, n))
    grid = np.broadcast_to(GRID, (n, GRID.size))
    outcomes, along = points(grid)
    crossed = (outcomes[:, 1:] != outcomes[:, :-1]).any(1)
    if not crossed.any():
        return [fault.name in _UNREACHED] * len(places)
    each, values = np.arange(n), along
    weights = np.asarray(_weights(GRID.size - 1, each[:, None]))
    for i in range(CLOSER):
        first = np.argmax((outcomes[:, 1:] != outcomes[:, :-1]) * weights, axis=1)
        if i < CLOSER - 1:
            low, high = grid[each, first, None], grid[each, first + 1, None]
            grid = low * (1 - GRID) + high * GRID
            outcomes, values = points(grid)
    table = fault.name in _ROUNDING and any(op.name in _LOOKUPS for op in ops)
    seams = SEAMS if table else 0.0
    gaps = [
        _gap(v[each, first], v[each, first + 1], line)
        for v, line in zip(values, along, strict=True)
    ]
    return [_agree(crossed & np.isfinite(g), g <= 1.0, seams) for g in gaps]


def _flat(value: Any) -> jax.Array:
    value = jnp.ravel(jnp.asarray(value))
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        value = jnp.concatenate([jnp.real(value), jnp.imag(value)])
    return value.astype(float)


def _outcome(op: Op, env: dict[int, Any]) -> jax.Array:
    """What changes where an equation jumps, and only there."""
    operands = [env[v] if isinstance(v, int) else jnp.asarray(v.val) for v in op.ins]
    if op.name == "rem":
        return jnp.ravel(jnp.trunc(operands[0] / operands[1]))
    if op.name == "atan2":
        return jnp.ravel((operands[0] < 0) & (operands[1] < 0)).astype(float)
    if op.name == "sort":
        return jnp.ravel(jnp.argsort(operands[0], axis=op.eqn.params["dimension"])).astype(float)
    if op.name == "is_finite":
        return _flat(jnp.where(jnp.isfinite(operands[0]), 0.0, 1.0))
    if _is_cut(op):
        z = jnp.asarray(operands[0])
        return jnp.ravel((jnp.real(z) < 0) & (jnp.imag(z) < 0)).astype(float)
    outs = [env[v] for v in op.outs]
    if op.name in FACTORS:
        return jnp.concatenate([jnp.ravel(jnp.sign(jnp.real(a))) for a in outs])
    whole = [a for a in outs if not jnp.issubdtype(a.dtype, jnp.inexact)]  # of top_k: the indices
    return jnp.concatenate([jnp.ravel(a).astype(float) for a in whole or outs])


def _seam(
    flat: Flat, index: int, places: Sequence[int], ops: Sequence[Op], varied: Collection[int]
) -> list[bool]:
    """Whether each of ``places`` is the same for a draw of -π and of π."""
    n = _lines(flat, index, ops)
    angles = set(flat.ops[index].outs)
    begin, _, fixed = _ends(flat, ops, varied, n)

    def at(begin: Any, fixed: Any, i: Any, angle: Any) -> list[jax.Array]:
        drawn = {v: jnp.full_like(a, angle) for v, a in begin.items() if v in angles}
        env = _evaluate(ops, {**fixed, **begin, **drawn})
        return [_flat(env[v]) for v in places]

    turn = np.linspace(-np.pi, np.pi, 9, dtype=np.float32)
    gaps = [_gap(v[:, 0], v[:, -1], v) for v in _on_lines(at, begin, fixed)(np.tile(turn, (n, 1)))]
    return [_agree(np.isfinite(g), g <= 1.0) for g in gaps]


# --- suspects -----------------------------------------------------------------------------------

CLEAR = 0.1
"""How much the values beside a jump may vary, relative to it: more is a pole, not a jump."""
HUGE = 1e6
"""What is larger, where it ceases to be finite, overflows."""
FAR = 10.0
"""Farthest that values are from zero on the lines of a suspect."""
TOUCHED = 1e-4
"""How close to zero, relative to its largest value, a denominator comes that has a zero."""


def _is_cut(op: Op) -> bool:
    """Whether an equation has a branch cut along the negative numbers."""
    aval: Any = op.eqn.outvars[0].aval
    return op.name in CUTS and jnp.issubdtype(aval.dtype, jnp.complexfloating)


def _zero(op: Op, operand: Any) -> jax.Array:
    """What is zero at the poles of an equation."""
    return _flat(jnp.cos(operand) if op.name == "tan" else operand)


def _is_seen_to_jump(
    flat: Flat,
    index: int,
    places: Sequence[int],
    ops: Sequence[Op],
    varied: Collection[int],
    supports: Mapping[int, str],
) -> bool:
    """Whether none of ``places`` is continuous, and one jumps by a finite amount."""
    fault, n = flat.ops[index], _lines(flat, index, ops)
    lines = _in_their_supports(flat, _ends(flat, ops, varied, n), supports)
    pole = verdicts.pole(fault)

    def at(begin: Any, end: Any, fixed: Any, i: Any, t: Any) -> tuple[Any, Any, list[jax.Array]]:
        env = _along(ops, begin, end, fixed, t)
        outcome = _outcome(fault, env) if pole is None else _zero(fault, env[pole])
        operand = _flat(env[fault.values[0]]) if fault.name == "is_finite" else outcome
        j = i % max(outcome.size, 1)
        return outcome[j], operand[j % max(operand.size, 1)], [_flat(env[v]) for v in places]

    points = _on_lines(at, *lines)
    closer = _closer_to_a_change if pole is None else _closer_to_zero
    below, above, crossed, operands, coarse, fine = closer(points, n)
    if fault.name == "is_finite":
        edge = np.stack([operands[np.arange(n), below], operands[np.arange(n), above]])
        size = np.max(np.abs(edge), axis=0, where=np.isfinite(edge), initial=0.0)
        crossed &= size < HUGE
    table = fault.name in _ROUNDING and any(op.name in _LOOKUPS for op in ops)
    seen = False
    for near, line in zip(fine, coarse, strict=True):
        jumps, poles, continuous = _sides(near, line, below, above, crossed)
        allowed = (SEAMS if table else 0.0) * (jumps + continuous)
        if continuous >= ENOUGH and jumps + poles <= allowed:
            return False
        seen |= jumps >= ENOUGH
    return seen


def _in_their_supports(flat: Flat, lines: Any, supports: Mapping[int, str]) -> Any:
    """Lines within the supports of draws, and at positive values of what is fixed."""
    begin, end, fixed = lines
    within = {"positive": jnp.abs, "unit": lambda x: jnp.abs(x) / (1.0 + jnp.abs(x))}
    within["not negative"] = jax.nn.relu
    inside = lambda v, x: within.get(supports.get(v, ""), lambda x: x)(_near(x))
    floats = lambda v: jnp.issubdtype(flat.avals[v].dtype, jnp.floating)
    fixed = {v: jnp.abs(inside(v, x)) if floats(v) else x for v, x in fixed.items()}
    return (
        {v: inside(v, x) for v, x in begin.items()},
        {v: inside(v, x) for v, x in end.items()},
        fixed,
    )


def _near(x: Any) -> jax.Array:
    """Where functions that saturate do not do so yet."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    farthest = jnp.max(jnp.abs(x), axis=range(1, x.ndim), keepdims=True, initial=1e-9)
    return x * jnp.minimum(1.0, FAR / farthest).astype(x.dtype)


def _closer_to_a_change(points: Callable[..., Any], n: int) -> tuple[Any, ...]:
    """The two sides of a change of the outcome on each line, as indices of the finest grid."""
    grid, each, coarse = np.broadcast_to(GRID, (n, GRID.size)), np.arange(n), None
    weights = np.asarray(_weights(GRID.size - 1, each[:, None]))
    crossed = np.zeros(n, bool)
    for i in range(CLOSER):
        outcomes, operands, fine = points(grid)
        changes = outcomes[:, 1:] != outcomes[:, :-1]
        first = np.argmax(changes * weights, axis=1)
        if coarse is None:
            coarse, crossed = fine, changes.any(1)
            if not crossed.any():
                break
        if i < CLOSER - 1:
            low, high = grid[each, first, None], grid[each, first + 1, None]
            grid = low * (1 - GRID) + high * GRID
    return first, first + 1, crossed, operands, coarse, fine


def _closer_to_zero(points: Callable[..., Any], n: int) -> tuple[Any, ...]:
    """Two places beside a zero of the outcome on each line, as indices of the finest grid."""
    grid, each, coarse, size = np.broadcast_to(GRID, (n, GRID.size)), np.arange(n), None, 0.0
    last = GRID.size - 1
    for i in range(CLOSER):
        outcomes, operands, fine = points(grid)
        distance = np.where(np.isfinite(outcomes), np.abs(outcomes), np.inf)
        if coarse is None:
            coarse = fine
            size = np.max(distance, axis=1, where=np.isfinite(distance), initial=0.0)
        nearest = np.argmin(distance, axis=1)
        if i < CLOSER - 1:
            low = grid[each, np.maximum(nearest - 1, 0), None]
            high = grid[each, np.minimum(nearest + 1, last), None]
            grid = low * (1 - GRID) + high * GRID
    crossed = (distance[each, nearest] <= TOUCHED * size) & (nearest > 1) & (nearest < last - 1)
    below, above = np.maximum(nearest - 2, 0), np.minimum(nearest + 2, last)
    return below, above, crossed, operands, coarse, fine


def _sides(near: Any, line: Any, below: Any, above: Any, crossed: Any) -> tuple[int, int, int]:
    """On how many lines a value jumps by a finite amount, has a pole, and is continuous."""
    each = np.arange(len(near))
    left, right = near[each, below], near[each, above]
    with np.errstate(invalid="ignore", over="ignore"):
        gap = _gap(left, right, line)
        height = np.max(np.abs(right - left), axis=1, initial=0.0)
        beside = np.maximum(np.abs(left - near[:, 0]), np.abs(right - near[:, -1]))
        clear = np.max(beside, axis=1, initial=0.0) <= CLEAR * height
    decisive = crossed & np.isfinite(gap)
    kinds = (gap > 1.0) & clear, (gap > 1.0) & ~clear, gap <= 1.0
    jumps, poles, continuous = (int((decisive & kind).sum()) for kind in kinds)
    return jumps, poles, continuous


def _gap(below: np.ndarray, above: np.ndarray, along: np.ndarray) -> np.ndarray:
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


def _slopes(
    flat: Flat, index: int, places: Sequence[int], ops: Sequence[Op], varied: Collection[int]
) -> list[bool]:
    """Whether the derivative of each of ``places`` is that of finite differences."""
    n = _lines(flat, index, ops)
    begin, end, fixed = _ends(flat, ops, varied, n)
    lengths = [np.abs(end[v] - a).reshape(n, -1).max(1, initial=1e-6) for v, a in begin.items()]
    end = {v: a + (end[v] - a) / max(1.0, len(begin)) for v, a in begin.items()}
    step = (STEP / functools.reduce(np.maximum, lengths, np.ones(n)))[:, None].astype(np.float32)

    def at(begin: Any, end: Any, fixed: Any, i: Any, t: Any) -> tuple[Any, Any]:
        def projected(t: Any) -> tuple[list[jax.Array], list[jax.Array]]:
            env = _along(ops, begin, end, fixed, t)
            ws = [_flat(env[v]) for v in places]
            sums = [w @ (_weights(w.size, i) - 1.2) for w in ws]
            return sums, sums

        return jax.jacrev(projected, has_aux=True)(t)

    t = np.float32(0.4) + step * np.array([0.0, -1.0, 1.0, -0.5, 0.5], np.float32)
    slopes, values = _on_lines(at, begin, end, fixed)(t)
    errors = [
        _slope_error(v, slope[:, 0], step[:, 0]) for v, slope in zip(values, slopes, strict=True)
    ]
    return [_agree(np.isfinite(e), e <= 1.0, KINKS) for e in errors]


def _slope_error(values: np.ndarray, slope: np.ndarray, step: np.ndarray) -> np.ndarray:
    """How far a derivative is from finite differences, in units of what is allowed, or NaN.

    The values are those at t, t - step, t + step, t - step/2 and t + step/2.
    """
    at, before, after, shortly_before, shortly_after = values.T
    with np.errstate(invalid="ignore", over="ignore"):
        wide, narrow = (after - before) / (2 * step), (shortly_after - shortly_before) / step
        size = np.maximum(np.abs(slope), np.abs(narrow))
        noise = 1e-6 * np.abs(at) / step
        smooth = np.abs(wide - narrow) <= SLOPE / 2 * size + noise
        relative = np.abs((4 * narrow - wide) / 3 - slope) / (SLOPE * size + noise + 1e-30)
    return np.where(smooth & (noise < SLOPE * size), relative, np.nan)


def _agree(decisive: np.ndarray, passed: np.ndarray, exceptions: float = 0.0) -> bool:
    n = int(decisive.sum())
    return n >= ENOUGH and int((~passed[decisive]).sum()) <= exceptions * n
