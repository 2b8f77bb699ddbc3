"""How large the integers of a program can become.

A sum of integers is redone in floating point numbers, term by term, only where that changes
nothing: where no integer wraps around on the way, and none is too large to be told from its
neighbours. :class:`Bounds` finds, for each variable that holds integers, numbers between which they
are. What is not known of 32 or 64 bits (arguments, counts without bound) is *vague*: sums of such
are taken not to wrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from ..estimation.elements import apart
from ..program.choices import Path
from ..program.control import Control, Loop, Until, Whole, control
from ..program.site import Site
from .forward import Analysis, Place
from .primitives import data, of

COUNT = 2**24
"""Counts without bound (Poisson, ...) are taken to be at most that, and so are sums of them."""


class Interval(NamedTuple):
    """The least and the largest value, and whether they are a guess."""

    low: int
    high: int
    vague: bool = False


def _join(intervals: Sequence[Interval]) -> Interval:
    lows, highs, vague = zip(*intervals, strict=True)
    return Interval(min(lows), max(highs), any(vague))


class Bounds(Analysis[Interval]):
    """The bounds of the integers of a program, and which equations go beyond what is exact.

    ``adds_up(body, before, after)`` says whether something is only added to a carry of a loop,
    known by the numbers of an input and an output of its body.
    """

    def __init__(
        self, closed: _jax.ClosedJaxpr, adds_up: Callable[[_jax.ClosedJaxpr, int, int], bool]
    ):
        super().__init__()
        self._adds_up = adds_up
        self._exact: dict[Path, tuple[_jax.JaxprEqn, bool]] = {}
        self.run(closed, [_unknown(a.dtype) for a in closed.in_avals])

    def are_exact(self, eqn: _jax.JaxprEqn) -> bool:
        """Whether the results of an equation are the same in floating point numbers."""
        return all(exact for e, exact in self._exact.values() if e is eqn)

    def of(self, v: Any) -> Interval:
        """The bounds of a variable, also of a function that is called twice."""
        if isinstance(v, _jax.Literal):
            return _of_array(v.val)
        found = [env[v] for env in self.seen.values() if v in env]
        return _join(found) if found else _unknown(v.aval.dtype)

    def constant(self, x: Any) -> Interval:
        return _of_array(x)

    def join(self, values: Sequence[Interval]) -> Interval:
        return _join(values)

    def enters(self, inside: Control) -> bool:
        return super().enters(inside) and not (isinstance(inside, Whole) and inside.is_opaque)

    def draw(self, site: Site, eqn: _jax.JaxprEqn, ins: list[Interval], at: Place) -> Interval:
        return _of_draws(site, eqn)

    def equation(self, eqn: _jax.JaxprEqn, ins: list[Interval], at: Place) -> Sequence[Interval]:
        rule = _moved if of(eqn).moves else _RULES.get(eqn.primitive.name)
        if rule is None or not _is_integer(eqn.outvars[0].aval.dtype):  # type: ignore[attr-defined]
            vague = isinstance(control(eqn), Until)
            return [_of_type(v.aval.dtype, vague) for v in eqn.outvars]  # type: ignore[attr-defined]
        found, exact = _held(eqn, ins, rule(eqn, ins))
        self._exact[at.path] = eqn, exact
        return [found]

    def branches(self, index: Interval, cases: list[list[Interval]], at: Place) -> list[Interval]:
        return [_join(outs) for outs in zip(*cases, strict=True)]

    def carried(
        self,
        loop: Loop,
        first: list[Interval],
        carry: list[Interval],
        late: list[Interval],
        n: int,
    ) -> list[Interval]:
        kinds = [_unknown(a.dtype) for a in loop.body.out_avals[: loop.n_carry]]
        if n > 2:
            return kinds
        new = [
            _grown(start, c, out, loop.length) if adds and not out.vague else _join([c, out])
            for start, c, out, adds in zip(first, carry, late, self._sums(loop), strict=True)
        ]
        if n > 1:
            new = [k if c != x else c for c, x, k in zip(carry, new, kinds, strict=True)]
        return new

    def last(
        self, loop: Loop, first: list[Interval], late: list[Interval], at: Place
    ) -> list[Interval]:
        sums = self._sums(loop)
        return [_counted(o) if o.vague and s else o for o, s in zip(late, sums, strict=True)]

    def _sums(self, loop: Loop) -> list[bool]:
        return [self._adds_up(loop.body, loop.n_consts + k, k) for k in range(loop.n_carry)]


def _held(eqn: _jax.JaxprEqn, operands: list[Interval], found: Interval) -> tuple[Interval, bool]:
    """What the type of a result holds of it, and whether that is exact."""
    dtype = eqn.outvars[0].aval.dtype  # type: ignore[attr-defined]
    kind, name = _of_type(dtype), eqn.primitive.name
    vague = any(o.vague for o in operands) and _is_wide(dtype)
    if vague and name in _TOTALS:
        found = _counted(found)
    elif vague and name in _SUMS and all(o.vague for o in operands):
        low, high, _ = _join([*operands, Interval(-COUNT, COUNT)])
        found = Interval(max(low, found.low, kind.low), min(high, found.high, kind.high))
    fits = kind.low <= found.low and found.high <= kind.high
    exact = fits and (vague or max(-found.low, found.high) <= _largest())
    return Interval(*(found if fits else kind)[:2], vague), exact


def _counted(total: Interval) -> Interval:
    """The bounds of a sum of what is vague."""
    return Interval(max(total.low, -COUNT), min(total.high, COUNT), True)


def _grown(start: Interval, before: Interval, after: Interval, steps: int) -> Interval:
    low, high = after.low - before.low, after.high - before.high
    return Interval(start.low + steps * min(0, low), start.high + steps * max(0, high))


# --- what is known without looking at the program -------------------------------------------------


def _is_integer(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) or _is_bool(dtype)


def _is_bool(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.bool_)


def _is_wide(dtype: Any) -> bool:
    return _is_integer(dtype) and not _is_bool(dtype) and jnp.iinfo(dtype).bits >= 32


def _largest() -> int:
    """The largest number up to which floating point numbers count."""
    return 2 ** (jnp.finfo(jnp.result_type(float)).nmant + 1)


def _of_type(dtype: Any, vague: bool = False) -> Interval:
    if _is_bool(dtype) or not _is_integer(dtype):
        return Interval(0, 1)
    info = jnp.iinfo(dtype)
    return Interval(int(info.min), int(info.max), vague and _is_wide(dtype))


def _unknown(dtype: Any) -> Interval:
    return _of_type(dtype, vague=True)


def _of_array(x: Any) -> Interval:
    dtype = jnp.result_type(x)
    if isinstance(x, _jax.Tracer) or not _is_integer(dtype):
        return _unknown(dtype)
    values = np.asarray(x)
    return Interval(int(values.min()), int(values.max())) if values.size else Interval(0, 0)


def _of_draws(site: Site, eqn: _jax.JaxprEqn) -> Interval:
    """Those of a finite support that is known while tracing, or of counts."""
    dtype = eqn.outvars[0].aval.dtype  # type: ignore[attr-defined]
    if not _is_integer(dtype):
        return _unknown(dtype)
    values = _support(site, [v.aval for v in eqn.invars])  # type: ignore[attr-defined]
    if values is not None:
        return _of_array(values.astype(dtype))
    return Interval(-COUNT, COUNT, True) if _is_wide(dtype) else _of_type(dtype)


def _support(site: Site, avals: Sequence[Any]) -> np.ndarray | None:
    skip = [sum(a.mapped[j] for a in site.axes) for j in range(len(avals))]
    own = [jax.ShapeDtypeStruct(a.shape[n:], a.dtype) for a, n in zip(avals, skip, strict=True)]

    def values(*operands: Any) -> Any:
        d = apart(site.rebuild(operands))
        return d.enumerate_support(expand=False)

    try:
        closed = _jax.live(_jax.traced(values, *own))
    except Exception:  # it has no finite support, or one whose size is not known while tracing
        return None
    used = {v for e in closed.jaxpr.eqns for v in e.invars if isinstance(v, _jax.Var)}
    if used.intersection(closed.jaxpr.invars):
        return None
    with jax.ensure_compile_time_eval():
        return np.asarray(_jax.evaluate(closed, *(jnp.zeros(a.shape, a.dtype) for a in own))[0])


# --- the rules ------------------------------------------------------------------------------------

Rule = Callable[[Any, list[Interval]], Interval]

_TOTALS = frozenset({"reduce_sum", "cumsum", "dot_general"})
_SUMS = frozenset({"add", "add_any", "sub"})


def _product(a: Interval, b: Interval) -> Interval:
    ends = [x * y for x in a[:2] for y in b[:2]]
    return Interval(min(ends), max(ends))


def _times(n: int, a: Interval) -> Interval:
    return _product(Interval(n, n), a) if n else Interval(0, 0)


def _reduced(eqn: Any, ins: list[Interval]) -> Interval:
    return _times(math.prod(eqn.invars[0].aval.shape[a] for a in eqn.params["axes"]), ins[0])


def _cumulated(eqn: Any, ins: list[Interval]) -> Interval:
    total = _times(eqn.invars[0].aval.shape[eqn.params["axis"]], ins[0])
    return _join([ins[0], total])


def _dot(eqn: Any, ins: list[Interval]) -> Interval:
    ((contracted, _), _) = eqn.params["dimension_numbers"]
    return _times(math.prod(eqn.invars[0].aval.shape[a] for a in contracted), _product(*ins))


def _converted(eqn: Any, ins: list[Interval]) -> Interval:
    if _is_integer(eqn.invars[0].aval.dtype):
        return ins[0]
    dtype = eqn.outvars[0].aval.dtype
    return Interval(-COUNT, COUNT, True) if _is_wide(dtype) else _of_type(dtype)


def _absolute(eqn: Any, ins: list[Interval]) -> Interval:
    low, high, _ = ins[0]
    return Interval(0 if low <= 0 <= high else min(abs(low), abs(high)), max(abs(low), abs(high)))


def _remainder(eqn: Any, ins: list[Interval]) -> Interval:
    most = max(abs(ins[1].low), abs(ins[1].high)) - 1
    return Interval(max(-most, min(ins[0].low, 0)), min(most, max(ins[0].high, 0)))


def _power(eqn: Any, ins: list[Interval]) -> Interval:
    n = eqn.params["y"]
    most = max(abs(ins[0].low), abs(ins[0].high)) ** max(n, 0)
    return Interval(ins[0].low ** n if ins[0].low >= 0 <= n else -most, most)


def _numbered(eqn: Any, ins: list[Interval]) -> Interval:
    axis = eqn.params["dimension"]
    return Interval(0, max(eqn.outvars[0].aval.shape[axis] - 1, 0))


def _index(eqn: Any, ins: list[Interval]) -> Interval:
    return Interval(0, max(max(eqn.invars[0].aval.shape, default=1) - 1, 0))


def _moved(eqn: Any, ins: list[Interval]) -> Interval:
    return _join(ins[data(eqn)])


def _first(eqn: Any, ins: list[Interval]) -> Interval:
    return ins[0]


def _clamped(eqn: Any, ins: list[Interval]) -> Interval:
    least, x, most = ins
    return Interval(min(max(x.low, least.low), most.high), max(min(x.high, most.high), least.low))


_RULES: dict[str, Rule] = {
    "add": lambda eqn, ins: Interval(ins[0].low + ins[1].low, ins[0].high + ins[1].high),
    "add_any": lambda eqn, ins: Interval(ins[0].low + ins[1].low, ins[0].high + ins[1].high),
    "sub": lambda eqn, ins: Interval(ins[0].low - ins[1].high, ins[0].high - ins[1].low),
    "mul": lambda eqn, ins: _product(*ins),
    "neg": lambda eqn, ins: Interval(-ins[0].high, -ins[0].low),
    "abs": _absolute,
    "sign": lambda eqn, ins: Interval(-1, 1),
    "rem": _remainder,
    "max": lambda eqn, ins: Interval(max(i.low for i in ins), max(i.high for i in ins)),
    "min": lambda eqn, ins: Interval(min(i.low for i in ins), min(i.high for i in ins)),
    "integer_pow": _power,
    "square": lambda eqn, ins: _product(*[_absolute(eqn, ins)] * 2),
    "convert_element_type": _converted,
    "reduce_sum": _reduced,
    "cumsum": _cumulated,
    "dot_general": _dot,
    "iota": _numbered,
    "argmax": _index,
    "argmin": _index,
    "clamp": _clamped,
    **dict.fromkeys(("cummax", "cummin", "reduce_max", "reduce_min"), _first),
}


__all__ = ["Bounds", "Interval"]
