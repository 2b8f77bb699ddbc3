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

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .border import is_at_border
from .bounded import STEPS, bounded, needs_bound
from .domains import into_support
from .flat import Flat, Op
from .interpret import is_random, random_of
from .site import Site
from .tapped import Tap, fingerprint, outcome, tapped

LINES = 128
"""Fewest lines, if they are not too large; one for each element of a comparison is better."""
MEETS = 12
"""Most places that are tried, from the fault on."""
MAX_OPS = 400
ATTEMPTS = ((1, 24, True), (MEETS, 100, False), (MEETS, MAX_OPS, False))
"""How many places are tried, with how many equations that lead there from elsewhere, and
whether only from the value that they all come from, if there is one."""
MAX_WORK = 2**21
"""Most numbers that a slice may compute, with those in loops."""
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

SMALL = 2048
"""Most numbers in the factors of a product of matrices, or in a loop, a sort, that is computed."""

_PRODUCTS = {"dot_general", "conv_general_dilated"}
_HEAVY = {"scan", "while", "cond", "cholesky", "eigh", "svd"}
_HEAVY |= {"sort", "lu", "qr", "linear_solve", "triangular_solve", "custom_lin", "pure_callback"}
_ROUNDING = {"floor", "ceil", "round", "convert_element_type"}
_LOOKUPS = {"gather", "dynamic_slice"}
_UNREACHED = {"eq", "ne", "atan2"}
"""Where these jump, if anywhere, is no matter of scale: lines that do not cross it settle it."""


@dataclasses.dataclass
class Budget:
    """What may still be spent on faults that are not gone nearby: equations to evaluate."""

    left: int = MAX_OPS * 5

    def spend(self, n: int) -> bool:
        self.left -= n
        return self.left >= 0


@dataclasses.dataclass(frozen=True)
class Place:
    """A fault of equation ``index``, or of the one at ``tap`` inside it, and what is known of it.

    ``carrying`` are the values that the fault reaches, ``varied`` those that change with the
    parameters or with pathwise draws, ``sunk`` those that are parameters of sites, ``given``
    constants that are inputs of the program.
    """

    flat: Flat
    index: int
    kind: str
    tap: Tap
    carrying: Collection[int]
    varied: Collection[int]
    sunk: Collection[int]
    given: Mapping[int, Any]

    @property
    def op(self) -> Op:
        return self.flat.ops[self.index]


def gone(fault: Place, budget: Budget) -> int | None:
    """The value in which a fault is gone, or None.

    Little of what is around it is looked at first: what is not computed is free, so that nothing
    is taken for harmless that is not. More of it is asked of fewer faults.
    """
    if fault.tap and is_random(fault.op.eqn):
        return None
    meets = _meets(fault)
    asked: set[_Question] = set()
    for n, near, waist in ATTEMPTS[::2] if fault.tap else ATTEMPTS:
        places = meets[:n]
        while places:
            ops = _slice(fault, places, near, waist)
            if ops is None:
                places = places[: len(places) // 2]
                continue
            question = _Question(fault, places, ops, near == MAX_OPS)
            if question not in asked:
                if asked and not budget.spend(_count(ops)):
                    return None
                asked.add(question)
                passed = _passed(question)
                found = next((v for v, ok in zip(places, passed, strict=True) if ok), None)
                if found is not None:
                    return found
            break
    return None


class _Question:
    """A slice and what is asked of it; equal if it reads the same, wherever it stands."""

    def __init__(self, fault: Place, places: Sequence[int], ops: Sequence[Op], far: bool):
        self.args = (fault, places, ops)
        self.settles = far and tapped(fault.op, fault.tap).name in _UNREACHED
        flat, varied = fault.flat, fault.varied
        local: dict[int, tuple[Any, ...]] = {}

        def named(v: Any) -> Any:
            if not isinstance(v, int):
                return np.asarray(v.val).tobytes(), str(np.asarray(v.val).dtype)
            if v not in local:
                given = _constant(fault, v)
                shape = str(flat.avals[v]) if given is None else np.asarray(given).tobytes()
                local[v] = (len(local), shape, v in varied)
            return local[v]

        every = [
            (op.name, str(op.eqn.params), op is fault.op, *map(named, (*op.ins, *op.outs)))
            for op in (*ops, fault.op)
        ]
        self._content = (fault.kind, fault.tap, self.settles, *every, *map(named, places))
        self._hash = hash(self._content)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Question) and self._content == other._content


@functools.lru_cache(maxsize=1024)
def _passed(question: _Question) -> list[bool]:
    """The answer for each place; an objective is traced more often than its slices change."""
    fault, places, ops = question.args
    test = {"jump": _jumps, "seam": _seam}.get(fault.kind, _slopes)
    with jax.ensure_compile_time_eval():
        passed = test(*question.args)
        if passed is None:  # no line crosses it
            return [question.settles or is_at_border(fault.flat, fault.op)] * len(places)
        if fault.kind == "jump" and any(passed) and any(op.name == "while" for op in ops):
            # of many small jumps in the place of a slope
            passed = [a and b for a, b in zip(passed, _slopes(*question.args), strict=True)]
    return passed


# --- where the paths meet -----------------------------------------------------------------------


def _meets(fault: Place) -> list[int]:
    """The values that all paths of the fault lead through, in order."""
    flat, carrying = fault.flat, fault.carrying
    last = flat.last
    forever = {v for v in flat.outputs if isinstance(v, int)} | set(fault.sunk)
    live: set[int] = set()
    found: list[int] = []
    for j in range(fault.index, len(flat.ops)):
        op = flat.ops[j]
        live.update(v for v in op.outs if v in carrying and (v in last or v in forever))
        live -= {v for v in live if v not in forever and last[v] <= j}
        whole = any(not jnp.issubdtype(flat.avals[v].dtype, jnp.inexact) for v in live)
        if len(live) == 1 and not whole and not live <= set(found):
            found += live
            if live <= forever or len(found) == MEETS:
                break
    return found


def _slice(fault: Place, places: Sequence[int], near: int, waist: bool) -> list[Op] | None:
    """The equations that lead to ``places``; None if they cannot be evaluated by themselves.

    Of those that the fault does not reach, the ``near`` closest ones, and constants; with
    ``waist`` only down to where all of them depend on one value.
    """
    flat, carrying = fault.flat, fault.carrying
    pending: set[int] = set()
    needed = {*places, *fault.op.outs}
    ops: list[Op] = []
    for j in range(max(flat.makers[v] for v in places), -1, -1):
        op = flat.ops[j]
        if needed.isdisjoint(op.outs) or (op is fault.op and is_random(op.eqn)):
            continue
        carries = op is fault.op or any(v in carrying for v in op.outs)
        if carries and is_random(op.eqn):
            return None
        if not carries and (is_random(op.eqn) or _is_heavy(op)):
            continue
        free = not carries and flat.known.isdisjoint(op.outs)
        if free and near <= 0:
            continue
        near -= free
        ops.append(op)
        needed.update(op.operands)
        pending = {v for v in pending.union(op.operands) if v in fault.varied}.difference(op.outs)
        if waist and j <= fault.index and len(pending) == 1:
            near = 0
    size = sum(math.prod(flat.avals[v].shape) for op in ops for v in op.outs)
    if _count(ops) > MAX_OPS or size * ENOUGH > MAX_SIZE or _work(ops) * ENOUGH > MAX_WORK:
        return None
    return ops[::-1]


def _work(ops: Sequence[Op]) -> int:
    """How many numbers are computed at most, with those in loops."""
    return sum(
        sum(map(_size, op.eqn.outvars)) + _trips(op) * sum(_work(body.ops) for body in op.bodies)
        for op in ops
    )


def _size(v: Any) -> int:
    return math.prod(v.aval.shape)


def _count(ops: Sequence[Op]) -> int:
    return sum(1 + sum(_count(body.ops) for body in op.bodies) for op in ops)


def _trips(op: Op) -> int:
    return STEPS if op.name == "while" else op.eqn.params.get("length", 1)


def _is_heavy(op: Op) -> bool:
    """Whether the results of an equation are better left free than computed."""
    if op.name in _PRODUCTS:
        return sum(map(_size, op.eqn.invars)) > SMALL
    return op.name in _HEAVY and _work([op]) > SMALL


# --- random lines -------------------------------------------------------------------------------


def _lines(fault: Place, ops: Sequence[Op]) -> int:
    elements = sum(math.prod(fault.flat.avals[v].shape) for v in fault.op.outs)
    most = MAX_SIZE // max(_work(ops), 1)
    return max(ENOUGH, min(max(LINES, 16 * elements), most))


def _ends(
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
    through = rng.uniform(size=n) < 0.6  # from one side of the origin to the other
    for v in dict.fromkeys(v for op in ops for v in op.operands if v not in made):
        aval = flat.avals[v]
        given = _constant(fault, v)
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
            a, b = _inside(flat, v, a), _inside(flat, v, b)
            if v in fault.varied:
                begin[v], end[v] = jnp.asarray(a, aval.dtype), jnp.asarray(b, aval.dtype)
            else:
                fixed[v] = jnp.asarray(a, aval.dtype)
    return begin, end, fixed


def _constant(fault: Place, v: int) -> Any:
    """The value of ``v``, if it is known."""
    value = fault.given.get(v)
    return value if value is not None and jnp.shape(value) == fault.flat.avals[v].shape else None


def _inside(flat: Flat, v: int, x: np.ndarray) -> np.ndarray:
    """``x``, moved into the support of the choice that ``v`` is drawn by, if it is one."""
    maker = flat.makers.get(v)
    if maker is None:
        return x
    random = random_of(flat.ops[maker].eqn)
    if not isinstance(random, Site):
        return x
    return into_support(random, flat.ops[maker].ins, x)


def _weights(n: int, i: Any) -> Any:
    """Different positive numbers for each line, without the cost of random ones."""
    return 1.0 + 0.9 * jnp.sin(2.399 * np.arange(n) + 1.7 * i)


def _evaluate(fault: Place, ops: Sequence[Op], env: dict[int, Any]) -> tuple[Any, Any]:
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


def _along(
    fault: Place, ops: Sequence[Op], begin: Any, end: Any, fixed: Any, t: Any
) -> tuple[Any, Any]:
    moved = {v: a + (t * (end[v] - a)).astype(a.dtype) for v, a in begin.items()}
    return _evaluate(fault, ops, {**fixed, **moved})


def _on_lines(f: Callable[..., Any], *lines: Any, loops: bool) -> Callable[[np.ndarray], Any]:
    """``f(*line, i, t)`` for all ``lines`` i at all points t of ``f32[lines, points]``.

    Only the slice is compiled, what is made of its values is left to NumPy: compilation is
    nearly all that a test costs.
    """
    options: Any = {"xla_backend_optimization_level": 0}
    one = bounded(f) if loops else f
    points = jax.vmap(one, in_axes=(*[None] * (len(lines) + 1), 0))
    compiled = jax.jit(jax.vmap(points), compiler_options=options)
    return lambda t: jax.tree.map(np.asarray, compiled(*lines, np.arange(len(t)), t))


def _has_loops(ops: Sequence[Op]) -> bool:
    return any(op.custom or needs_bound(op.eqn) for op in ops)


# --- the tests ----------------------------------------------------------------------------------


def _jumps(fault: Place, places: Sequence[int], ops: Sequence[Op]) -> list[bool] | None:
    """Whether each of ``places`` is continuous where the outcome of the equation changes.

    None if it never does.
    """
    n = _lines(fault, ops)

    def at(begin: Any, end: Any, fixed: Any, i: Any, t: Any) -> tuple[jax.Array, list[jax.Array]]:
        env, found = _along(fault, ops, begin, end, fixed, t)
        one = jnp.ravel(found)
        return one[i % max(one.size, 1)], [_flat(env[v]) for v in places]  # of one element

    points = _on_lines(at, *_ends(fault, ops, n), loops=_has_loops(ops))
    grid = np.broadcast_to(GRID, (n, GRID.size))
    outcomes, along = points(grid)
    crossed = (outcomes[:, 1:] != outcomes[:, :-1]).any(1)
    if not crossed.any():
        return None
    each, values = np.arange(n), along
    weights = np.asarray(_weights(GRID.size - 1, each[:, None]))
    for i in range(CLOSER):
        first = np.argmax((outcomes[:, 1:] != outcomes[:, :-1]) * weights, axis=1)
        if i < CLOSER - 1:
            low, high = grid[each, first, None], grid[each, first + 1, None]
            grid = low * (1 - GRID) + high * GRID
            outcomes, values = points(grid)
    table = fault.op.name in _ROUNDING and any(op.name in _LOOKUPS for op in ops)
    seams = SEAMS if table else 0.0
    gaps = [
        _gap(v[each, first], v[each, first + 1], line)
        for v, line in zip(values, along, strict=True)
    ]
    return [_agree(crossed & np.isfinite(g), g <= 1.0, seams) for g in gaps]


def _flat(value: Any) -> jax.Array:
    return jnp.ravel(jnp.asarray(value, float))


def _seam(fault: Place, places: Sequence[int], ops: Sequence[Op]) -> list[bool]:
    """Whether each of ``places`` is the same for a draw of -π and of π."""
    n = _lines(fault, ops)
    angles = set(fault.op.outs)
    begin, _, fixed = _ends(fault, ops, n)

    def at(begin: Any, fixed: Any, i: Any, angle: Any) -> list[jax.Array]:
        drawn = {v: jnp.full_like(a, angle) for v, a in begin.items() if v in angles}
        env, _ = _evaluate(fault, ops, {**fixed, **begin, **drawn})
        return [_flat(env[v]) for v in places]

    turn = np.linspace(-np.pi, np.pi, 9, dtype=np.float32)
    points = _on_lines(at, begin, fixed, loops=_has_loops(ops))
    gaps = [_gap(v[:, 0], v[:, -1], v) for v in points(np.tile(turn, (n, 1)))]
    return [_agree(np.isfinite(g), g <= 1.0) for g in gaps]


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


def _slopes(fault: Place, places: Sequence[int], ops: Sequence[Op]) -> list[bool]:
    """Whether the derivative of each of ``places`` is that of finite differences."""
    n = _lines(fault, ops)
    begin, end, fixed = _ends(fault, ops, n)
    forward = any(needs_bound(op.eqn) and not op.custom for op in ops)
    lengths = [np.abs(end[v] - a).reshape(n, -1).max(1, initial=1e-6) for v, a in begin.items()]
    end = {v: a + (end[v] - a) / max(1.0, len(begin)) for v, a in begin.items()}
    step = (STEP / functools.reduce(np.maximum, lengths, np.ones(n)))[:, None].astype(np.float32)

    def at(begin: Any, end: Any, fixed: Any, i: Any, t: Any) -> tuple[Any, Any]:
        def projected(t: Any) -> tuple[list[jax.Array], list[jax.Array]]:
            env, _ = _along(fault, ops, begin, end, fixed, t)
            ws = [_flat(env[v]) for v in places]
            sums = [w @ (_weights(w.size, i) - 1.2) for w in ws]
            return sums, sums

        if forward:
            _, slopes, sums = jax.jvp(projected, (t,), (jnp.ones_like(t),), has_aux=True)
            return slopes, sums
        return jax.jacrev(projected, has_aux=True)(t)

    t = np.float32(0.4) + step * np.array([0.0, -1.0, 1.0, -0.5, 0.5], np.float32)
    slopes, values = _on_lines(at, begin, end, fixed, loops=_has_loops(ops))(t)
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
