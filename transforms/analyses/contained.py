"""Checks of supports that a program passes by construction, and those that it cannot pass.

:func:`resolve` goes through a program with what is known of its values: from where to where they
reach, whether they are integers, in which support they were drawn. A check (``inside.py``) that is
passed by all of them is taken away, one that data fail is an error, and one that a choice fails
whose support reaches further is a *misfit*, for the checker. The others are written out.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from .. import _jax
from ..errors import SupportError, show
from ..estimation.inside import Check, base_of, inside_p, narrowed, support_of
from ..program.choices import random_of
from ..program.control import Branches, Loop, Whole, control, with_programs
from ..program.site import Body, Call, Densities, Expect, Site
from . import primitives
from .described import Data, describe_support

INFINITE = float("inf")


@dataclasses.dataclass(frozen=True)
class Misfit:
    """A choice whose support reaches beyond that of the choice at which it is scored; or beyond
    the data, where it is an ``end`` of their support.

    ``outcome`` is the equation that tells whether it, or they, are inside; ``end`` the constraint
    on the choice that keeps them inside.
    """

    drawn: Site
    drawn_from: str
    check: Check
    outcome: _jax.JaxprEqn
    end: str = ""


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of all the elements of a value.

    ``kind`` names the support of an event (a simplex, ...), ``site`` and ``name`` the draw that it
    is, the support of which is then ``low`` to ``high`` exactly; ``data`` holds a
    constant all of whose elements count. ``root`` is the value that all its elements are.
    """

    low: float = -INFINITE
    high: float = INFINITE
    integer: bool = False
    kind: str = ""
    site: Site | None = None
    name: str = ""
    data: Data | None = None
    root: Any = None
    low_root: Any = None
    high_root: Any = None


NOTHING = Known()


def resolve(
    closed: _jax.ClosedJaxpr, args: Sequence[Any] = (), *, partly: bool = False
) -> tuple[_jax.ClosedJaxpr, list[Misfit]]:
    """A program without checks; ``args`` are its first inputs, of which constants are known.

    ``partly`` leaves those that depend on ``args`` alone, and are not settled by them, to the
    program around, where more is known of those.

    Raises:
        SupportError: data are outside the support of a choice at which they are scored.
    """
    if not _has_checks(closed):
        return closed, []
    given = [_constant(a) if not isinstance(a, _jax.Tracer) else NOTHING for a in args]
    given += [NOTHING] * (len(closed.in_avals) - len(given))
    misfits: list[Misfit] = []
    others = {*closed.jaxpr.invars[len(args) :]} if partly else None
    new, _ = _program(closed, given, misfits, others)
    return new, misfits


def _has_checks(closed: _jax.ClosedJaxpr) -> bool:
    return any(
        eqn.primitive is inside_p or any(map(_has_checks, _inner(eqn))) for eqn in closed.jaxpr.eqns
    )


def _inner(eqn: _jax.JaxprEqn) -> list[_jax.ClosedJaxpr]:
    random = random_of(eqn)
    if isinstance(random, Expect):
        return [random.jaxpr]
    if isinstance(random, Call):
        program = random.program
        return [program.jaxpr] if isinstance(program, Body) else [program.simulate]
    return [] if random is not None else list(_jax.sub_jaxprs(eqn))


def _variables(eqn: _jax.JaxprEqn) -> list[Any]:
    return [v for v in eqn.invars if isinstance(v, _jax.Var)]


def _constant(x: Any) -> Known:
    try:
        array = np.asarray(x)
    except Exception:  # a key
        return NOTHING
    if array.dtype == bool or array.size == 0 or not np.issubdtype(array.dtype, np.number):
        return Known(0.0, 1.0, True) if array.dtype == bool else NOTHING
    if np.iscomplexobj(array):
        return NOTHING
    integer = bool(np.all(array == np.floor(array)))
    return Known(float(array.min()), float(array.max()), integer, data=Data(array))


# --- the pass -----------------------------------------------------------------------------------


class _Rewriting:
    """One level of a program, as its equations are gone through. Checks of what no variable of
    ``others`` reaches stay; with None, none does."""

    def __init__(self, misfits: list[Misfit], others: set[Any] | None = None):
        self.known: dict[Any, Known] = {}
        self.alias: dict[Any, Any] = {}
        self.true: set[Any] = set()
        self.eqns: list[_jax.JaxprEqn] = []
        self.misfits, self.others = misfits, others

    def read(self, v: Any) -> Known:
        if isinstance(v, _jax.Literal):
            return _constant(v.val)
        return self.known.get(v, NOTHING)

    def atom(self, v: Any) -> Any:
        """What stands for a variable in the new program."""
        while not isinstance(v, _jax.Literal) and v in self.alias:
            v = self.alias[v]
        if not isinstance(v, _jax.Literal) and v in self.true:
            self.true.discard(v)
            self.inline(_jax.traced(lambda: [jax.numpy.ones(v.aval.shape, bool)]), [], [v], None)
            return self.atom(v)
        return v

    def inline(self, closed: _jax.ClosedJaxpr, ins: Any, outs: Any, info: Any) -> None:
        constants = [_jax.Literal(c, jax.typeof(c)) for c in closed.consts]
        inside = dict(zip(closed.jaxpr.constvars, constants, strict=True))
        inside.update(zip(closed.jaxpr.invars, ins, strict=True))
        for eqn in closed.jaxpr.eqns:
            new = [inside.get(v, v) if not isinstance(v, _jax.Literal) else v for v in eqn.invars]
            source = {} if info is None else {"source_info": info}
            self.eqns.append(eqn.replace(invars=new, **source))
        for out, v in zip(outs, closed.jaxpr.outvars, strict=True):
            is_input = not isinstance(v, _jax.Literal) and v in inside
            self.alias[out] = inside[v] if is_input else v

    def equation(self, eqn: _jax.JaxprEqn) -> None:
        p, known = eqn.primitive, [self.read(v) for v in eqn.invars]
        if self.others is not None and not self.others.isdisjoint(_variables(eqn)):
            self.others.update(eqn.outvars)
        if p is inside_p:
            return self.check(eqn, known)
        ins = [self.root(v) for v in eqn.invars]
        if p.name == "select_n" and ins[0] in self.true and len(ins) == 3:
            self.alias[eqn.outvars[0]] = eqn.invars[2]
            self.known[eqn.outvars[0]] = known[2]
            return None
        if primitives.keeps_all(eqn) and ins[0] in self.true:
            self.true.add(eqn.outvars[0])
            return None
        eqn, outs = _transfer(eqn, known, self.misfits)
        atoms = [self.atom(v) for v in eqn.invars]
        same = all(map(operator.is_, atoms, eqn.invars))
        self.eqns.append(eqn if same else eqn.replace(invars=atoms))
        self.known.update(zip(eqn.outvars, outs, strict=True))
        return None

    def root(self, v: Any) -> Any:
        if isinstance(v, _jax.Literal):
            return None
        while v in self.alias and not isinstance(self.alias[v], _jax.Literal):
            v = self.alias[v]
        return v

    def check(self, eqn: _jax.JaxprEqn, known: list[Known]) -> None:
        check: Check = eqn.params["check"]
        safe, inside = eqn.outvars
        passed = _passes(check, eqn, known)
        fits = safe.aval.shape == eqn.invars[0].aval.shape  # type: ignore[attr-defined]
        self.known[safe] = dataclasses.replace(known[0], data=None)
        if passed is True and fits:
            self.alias[safe] = eqn.invars[0]
            self.true.add(inside)
            return
        if passed is None and self.others is not None and eqn.outvars[0] not in self.others:
            self.eqns.append(eqn.replace(invars=[self.atom(v) for v in eqn.invars]))
            return
        fails = passed is False and not check.partial
        if fails and known[0].data:
            _refuse(check, known[0].data)
        avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]  # type: ignore[attr-defined]
        written = _jax.traced(check.evaluate, *avals)
        ins = [self.atom(v) for v in eqn.invars]
        self.inline(written, ins, eqn.outvars, eqn.source_info)
        drawn, end = (known[0], "") if fails else _end(check, eqn, known)
        if drawn.site is not None:
            test = self.alias[inside]
            outcome = next(e for e in reversed(self.eqns) if test in e.outvars)
            self.misfits.append(Misfit(drawn.site, drawn.name, check, outcome, end))


def _program(
    closed: _jax.ClosedJaxpr,
    given: Sequence[Known],
    misfits: list[Misfit],
    others: set[Any] | None = None,
) -> tuple[_jax.ClosedJaxpr, list[Known]]:
    jaxpr = closed.jaxpr
    r = _Rewriting(misfits, others)
    for v, k in zip(jaxpr.invars, given, strict=True):
        r.known[v] = k if k.root is not None or v.aval.shape else dataclasses.replace(k, root=v)
    r.known.update(zip(jaxpr.constvars, map(_constant, closed.consts), strict=True))
    for eqn in jaxpr.eqns:
        r.equation(eqn)
    outs = [r.read(v) for v in jaxpr.outvars]
    outvars = [r.atom(v) for v in jaxpr.outvars]
    before, after = [*jaxpr.eqns, *jaxpr.outvars], [*r.eqns, *outvars]
    if len(before) == len(after) and all(map(operator.is_, before, after)):
        return closed, outs  # the same object, which JAX differentiates once
    new = jaxpr.replace(eqns=r.eqns, outvars=outvars)
    return _jax.ClosedJaxpr(new, closed.consts), outs


def _refuse(check: Check, data: Data) -> None:
    raise SupportError(
        f"the data at {show(check.address)} are outside the support of {check.name} "
        f"({check.source}), {_region(check)}: {data}. "
        "Their density is 0 and its logarithm minus infinity. Correct the data, or type a "
        "distribution that can produce them."
    )


def _region(check: Check) -> str:
    return describe_support(check.rebuild([None] * _n_leaves(check)))


def _n_leaves(check: Check) -> int:
    return check.distribution.value.num_leaves - len(check.static)


# --- what supports say --------------------------------------------------------------------------


class _Number:
    """An operand of a distribution, as far as it is known."""

    def __init__(self, known: Known, aval: Any):
        self.known, self.aval = known, aval
        self.shape, self.ndim, self.dtype = aval.shape, len(aval.shape), aval.dtype


def _bound(b: Any, upper: bool) -> tuple[float, float, Any]:
    """The least and the greatest that a bound may be, and the one value that it is."""
    if b is None:
        return (INFINITE, INFINITE, None) if upper else (-INFINITE, -INFINITE, None)
    k = b.known if isinstance(b, _Number) else _constant(b)
    return k.low, k.high, k.root


def _passes(check: Check, eqn: _jax.JaxprEqn, known: list[Known]) -> bool | None:
    """Whether a check is passed: None if that depends."""
    numbers = [_Number(k, v.aval) for k, v in zip(known[1:], eqn.invars[1:], strict=True)]
    d = check.rebuild(numbers)
    constraint = base_of(support_of(d))
    value, kind = known[0], type(constraint).__name__
    exact = value.data is not None or value.site is not None
    if constraint is None or narrowed(d):
        return None
    if getattr(constraint, "event_dim", 0):
        if value.kind == kind and kind not in _WITH_NUMBERS:
            return True
        if value.site is not None and not value.kind and kind not in _REACHING:
            return False
        return None
    if kind == "_Boolean":
        bounds, integer = [(0.0, 0.0, None), (1.0, 1.0, None)], True
    elif kind in _ENDS:
        ends = [getattr(constraint, f"{e}_bound", None) for e in ("lower", "upper")]
        bounds, integer = (
            [_bound(ends[0], False), _bound(ends[1], True)],
            kind.startswith("_Integer"),
        )
    else:
        return None
    (low, low_most, low_root), (high_least, high, high_root) = bounds
    same = value.low_root is not None and value.low_root is low_root
    above = same or not _beyond(value.low, low_most, -1)
    same = value.high_root is not None and value.high_root is high_root
    below = same or not _beyond(value.high, high_least, 1)
    if above and below and (value.integer or not integer):
        return True
    if not exact:
        return None
    out = _reaches(value.low, low, value.low_root, -1) or _reaches(value.high, high, None, 1)
    if value.high_root is not None and value.high == INFINITE:
        out = _reaches(value.low, low, value.low_root, -1)
    return False if out or (integer and not value.integer) else None


def _end(check: Check, eqn: _jax.JaxprEqn, known: list[Known]) -> tuple[Known, str]:
    """A draw at which the support of data ends, and may end before them; and what prevents it."""
    data = known[0]
    if data.data is None or check.partial:
        return NOTHING, ""
    numbers = [_Number(k, v.aval) for k, v in zip(known[1:], eqn.invars[1:], strict=True)]
    constraint = base_of(support_of(check.rebuild(numbers)))
    low, high = (getattr(constraint, f"{end}_bound", None) for end in ("lower", "upper"))
    if isinstance(low, _Number) and low.known.site is not None and low.known.high > data.low:
        return low.known, f"less_than({data.low:g})"
    if isinstance(high, _Number) and high.known.site is not None and high.known.low < data.high:
        return high.known, f"greater_than({data.high:g})"
    return NOTHING, ""


def _reaches(end: float, limit: float, root: Any, sign: int) -> bool:
    return root is None and bool(np.isfinite(limit)) and _beyond(end, limit, sign)


def _beyond(end: float, limit: float, sign: int) -> bool:
    """Whether an end is beyond a limit by more than rounding: π is another in 32 bits."""
    rounding = 1e-6 * abs(limit) if np.isfinite(limit) else 0.0
    return not sign * end <= sign * limit + rounding


_ENDS = {"_GreaterThan", "_GreaterThanEq", "_Positive", "_Nonnegative", "_SoftplusPositive"}
_ENDS |= {"_LessThan", "_LessThanEq", "_Interval", "_OpenInterval", "_UnitInterval", "_Circular"}
_ENDS |= {"_IntegerInterval", "_IntegerGreaterThan", "_IntegerPositive", "_IntegerNonnegative"}
_WITH_NUMBERS = {"_Multinomial"}
_REACHING = {"_Real"}


def _of_draw(site: Site, known: Sequence[Known], avals: Sequence[Any]) -> Known:
    """What is known of a draw."""
    try:
        d = site.rebuild([_Number(k, a) for k, a in zip(known, avals, strict=True)])
        name = type(d).__name__
        constraint = base_of(support_of(d))
        if narrowed(d):
            return NOTHING
    except Exception:  # no distribution of numpyro
        return NOTHING
    kind = type(constraint).__name__
    if kind in _EVERYTHING:
        return Known(site=site, name=name)
    if kind == "_Boolean":
        return Known(0.0, 1.0, True, site=site, name=name)
    if kind in _ENDS:
        ends = [getattr(constraint, f"{e}_bound", None) for e in ("lower", "upper")]
        (low, low_most, a), (high_least, high, b) = _bound(ends[0], False), _bound(ends[1], True)
        exact = low == low_most and high_least == high
        integer = kind.startswith("_Integer")
        site_if = site if exact and np.isfinite([low, high]).any() else None
        return Known(low, high, integer, "", site_if, name, low_root=a, high_root=b)
    if constraint is None:
        return NOTHING
    low, high = (0.0, 1.0) if kind == "_Simplex" else (-INFINITE, INFINITE)
    return Known(low, high, kind=kind, name=name)


_EVERYTHING = {"_Real"}


# --- what equations do with it --------------------------------------------------------------------


def _transfer(
    eqn: _jax.JaxprEqn, known: list[Known], misfits: list[Misfit]
) -> tuple[_jax.JaxprEqn, list[Known]]:
    """An equation with its bodies resolved, and what is known of its results."""
    name, n = eqn.primitive.name, len(eqn.outvars)
    random = random_of(eqn)
    if isinstance(random, Site):
        return eqn, [_of_draw(random, known, [v.aval for v in eqn.invars])]
    if isinstance(random, Expect | Call):
        return _called(eqn, random, known, misfits)
    if name == "convert_element_type":
        return eqn, [_converted(eqn, known[0])]
    if name == "iota":
        return eqn, [Known(0.0, eqn.params["shape"][eqn.params["dimension"]] - 1.0, True)]
    if primitives.of(eqn).moves or name == "reduce_precision":
        return eqn, _elsewhere(eqn, known[primitives.data(eqn)])
    inside = control(eqn)
    if isinstance(inside, Loop):
        return _loop(inside, known, misfits)
    if isinstance(inside, Branches):
        pairs = [_program(b, known[1:], misfits) for b in inside.programs]
        new = iter([program for program, _ in pairs])
        outs = [_join(ks) for ks in zip(*(o for _, o in pairs), strict=True)]
        return with_programs(eqn, lambda _: next(new)), outs
    if isinstance(inside, Whole) and eqn.primitive is not _jax.custom_vjp_call_p:
        program, outs = _program(inside.program, known, misfits)
        return with_programs(eqn, lambda _: program), outs
    return eqn, [NOTHING] * n


def _elsewhere(eqn: _jax.JaxprEqn, known: list[Known]) -> list[Known]:
    """What is known of numbers that have been moved; a part of the data is no longer the data."""
    if primitives.is_identity(eqn):
        return known
    moved = [_moved(_join(known), v, eqn) for v in eqn.outvars]
    whole = primitives.keeps_all(eqn)
    return [k if whole else dataclasses.replace(k, data=None) for k in moved]


def _moved(k: Known, v: Any, eqn: _jax.JaxprEqn) -> Known:
    """What is known where elements are moved, or copied; events must stay whole."""
    if not k.kind:
        return k
    first = primitives.data(eqn).start or 0
    to, n, m = primitives.axes_of(eqn)[first], eqn.invars[first].aval.ndim, v.aval.ndim  # type: ignore[attr-defined]
    event = range(1, 3 if k.kind in _MATRICES else 2)
    return k if all(to(n - e) == m - e for e in event) else Known(k.low, k.high, k.integer)


_MATRICES = {"_CorrCholesky", "_CorrMatrix", "_LowerCholesky", "_PositiveDefinite"}
_MATRICES |= {"_PositiveSemiDefinite", "_ScaledUnitLowerCholesky", "_SoftplusLowerCholesky"}


def _converted(eqn: _jax.JaxprEqn, k: Known) -> Known:
    new: Any = eqn.outvars[0].aval
    before: Any = eqn.invars[0].aval
    narrow = not jax.numpy.issubdtype(new.dtype, np.floating)
    if narrow and (not k.integer or new.dtype.itemsize < before.dtype.itemsize):
        return NOTHING
    return k


def _join(ks: Sequence[Known]) -> Known:
    if all(k == ks[0] for k in ks):
        return ks[0]
    kind = ks[0].kind if all(k.kind == ks[0].kind for k in ks) else ""
    low, high = min(k.low for k in ks), max(k.high for k in ks)
    return Known(low, high, all(k.integer for k in ks), kind)


def _loop(
    loop: Loop, known: list[Known], misfits: list[Misfit]
) -> tuple[_jax.JaxprEqn, list[Known]]:
    consts, carry, xs = loop.operands(known)
    xs = [dataclasses.replace(k, root=None) if k.root is not None else k for k in xs]
    carry = [dataclasses.replace(k, root=None, data=None) for k in carry]
    while True:
        found: list[Misfit] = []
        body, outs = _program(loop.body, [*consts, *carry, *xs], found)
        late, ys = loop.results(outs)
        new = [k if k == o else _wider(k, o) for k, o in zip(carry, late, strict=True)]
        if new == carry:
            misfits.extend(found)
            return with_programs(loop.eqn, lambda _: body), [*carry, *ys]
        carry = new


def _wider(k: Known, o: Known) -> Known:
    """Of a carry: an end that moves is not known."""
    low = k.low if o.low >= k.low else -INFINITE
    high = k.high if o.high <= k.high else INFINITE
    return Known(low, high, k.integer and o.integer, k.kind if k.kind == o.kind else "")


def _called(
    eqn: _jax.JaxprEqn, random: Any, known: list[Known], misfits: list[Misfit]
) -> tuple[_jax.JaxprEqn, list[Known]]:
    plain = [dataclasses.replace(k, root=None, low_root=None, high_root=None) for k in known]
    n = len(eqn.outvars)
    if isinstance(random, Expect):
        new, outs = _program(random.jaxpr, plain, misfits)
        random = dataclasses.replace(random, jaxpr=new)
        return eqn.replace(params={**eqn.params, "expect": random}), outs[:n]
    program = random.program
    if isinstance(program, Body):
        new, outs = _program(program.jaxpr, plain, misfits)
        program = Body(new)
    else:
        assert isinstance(program, Densities)
        new, outs = _program(program.simulate, plain, misfits)
        program = dataclasses.replace(program, simulate=new)
    random = dataclasses.replace(random, program=program)
    return eqn.replace(params={**eqn.params, "call": random}), outs[:n]
