"""The payoff of a program as a sum of terms.

:func:`split` rewrites a program whose first output is a scalar f, so that it returns arrays
t_1, ..., t_n with f = sum of all their elements instead. What depends on what can then be told for
each element of each term.

From the output backwards, equations that are linear in what the choices reach (sums, reshapes,
products with constants, ...) are the *tail* of the program; what enters it, the *leaves*, are the
terms, each times its coefficient: the derivative of the tail, which is the same everywhere. An
inner product is a sum of products. The tail goes into ``jit`` and ``checkpoint``, and into a
``scan`` where it adds up in the carry or stacks its outputs: the leaves of all steps are stacked
then, and what only adds up is no carry any more.

For draws x f32[n] and y, ``f = jnp.sum(w * x**2) / n + 3 * y`` has the leaves ``x**2`` and ``y``,
with the coefficients ``w / n`` and 3: two terms, ``w / n * x**2`` f32[n], each element of which
depends on its own draw, and ``3 * y``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from ..program.choices import Path, is_random
from ..program.control import Loop, control
from ..program.operands import type_of
from ..program.site import OWN_DENSITY, Site
from .bounds import Bounds
from .dependence import NONE, Along, Dependence, Dependences
from .forward import Place
from .head import collect, head_of, run_head
from .primitives import axes_of, elementwise, keeps_all, of
from .reached import DRAWN, ENUMERATED, Kind, Reached, as_is
from .summed import sum_in_loops
from .tail import Level, as_float, coefficients, is_float, is_var, read


@dataclasses.dataclass(frozen=True)
class Split:
    """A program whose first outputs are terms, with the line of the user's code of each."""

    program: _jax.ClosedJaxpr
    lines: tuple[str, ...]
    own: dict[str, float]
    """How often the log density of a choice at its own draw is among them, by its name."""

    @property
    def n(self) -> int:
        """How many terms there are."""
        return len(self.lines)


def split(
    closed: _jax.ClosedJaxpr,
    is_source: Callable[[Path], bool],
    inputs: Sequence[bool] | None = None,
    is_enumerated: Callable[[Path], bool] = lambda path: False,
) -> Split:
    """The program that returns terms in place of its first output.

    ``is_source`` says at which paths the draws are, and ``inputs`` which inputs they are, that
    terms are to be told apart by. A constant is a term of its own, but of what depends on those
    alone that are enumerated: ``a * (1 - z)`` is not ``a - a * z`` when it is rounded. The choices
    of the new program are those of the old one, in the same order (their paths may differ).
    """

    def kind_of(path: Path) -> int:
        return ENUMERATED if is_enumerated(path) else DRAWN * is_source(path)

    return _split(closed, kind_of, [DRAWN * t for t in inputs or [False] * len(closed.in_avals)])


def _split(closed: _jax.ClosedJaxpr, is_source: Kind, inputs: Sequence[int]) -> Split:
    facts = _Facts(closed, inputs, Reached(is_source))
    facts.reached.run(closed, inputs)
    level = _level(closed, [closed.jaxpr.outvars[0]], (), facts)
    sum_in_loops(level, facts.told_apart)
    others = closed.jaxpr.outvars[1:]
    head, variables = head_of(level, others)
    lines: list[str] = []
    own: dict[str, float] = {}

    def terms(*values: Any) -> list[Any]:
        env = run_head(level, dict(zip(variables, values, strict=True)), others, head)
        leaves, constants = collect(level, env)
        leaves = jax.tree.map(as_float, leaves)
        constant, slopes = coefficients(level, leaves, constants)
        flat = [] if isinstance(constant, np.ndarray) and constant == 0 else [jnp.asarray(constant)]
        for name, c in zip(_own_densities(level), slopes, strict=True):
            if name and (c is None or isinstance(c, np.generic)):
                own[name] = own.get(name, 0.0) + (1.0 if c is None else float(c))
        kept = []
        for line, c, leaf in zip(_lines(level), slopes, jax.tree.leaves(leaves), strict=True):
            if isinstance(c, np.generic) and not c:
                continue
            kept.append(line)
            if c is None or isinstance(c, np.generic):
                flat.append(leaf if c is None else c * leaf)
            else:
                infinite = (c == 0) & ~jnp.isfinite(leaf)  # under a mask, say
                flat.append(c * jnp.where(infinite, 0.0, leaf))
        lines.extend([""] * (len(flat) - len(kept)) + kept)
        return [*flat, *(read(env, v) for v in others)]

    rest = _jax.traced(terms, *(type_of(v) for v in variables))
    eqns = [closed.jaxpr.eqns[i] for i in head]
    new = _jax.followed_by(closed, eqns, variables, rest)
    return Split(_without_dead_code(new), tuple(lines), own)


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What is known of a program, found when it is first asked for."""

    closed: _jax.ClosedJaxpr
    inputs: Sequence[int]
    reached: Reached

    @functools.cached_property
    def bounds(self) -> Bounds:
        return Bounds(self.closed, _is_added_to)

    @functools.cached_property
    def _elements(self) -> Mapping[Path, Mapping[Any, Dependence]]:
        analysis = Dependences(lambda path: bool(self.reached.kind_of(path)))
        avals = self.closed.in_avals
        given = [
            {n: tuple(map(Along, range(aval.ndim)))} if kind else NONE  # type: ignore[attr-defined]
            for n, (kind, aval) in enumerate(zip(self.inputs, avals, strict=True))
        ]
        analysis.run(self.closed, given)
        return analysis.seen

    def mixes_elements(self, eqn: _jax.JaxprEqn, path: Path) -> bool:
        """Whether what one number of the result depends on is not told from the others."""
        axes = self._axes(eqn.invars[0], path)
        return axes is None or None in axes or self.mixes_more(eqn, path, 0)

    def mixes_more(self, eqn: _jax.JaxprEqn, path: Path, operand: int) -> bool:
        """Whether elements of a choice are told apart in an operand, and not in the result."""
        axes, moved = self._axes(eqn.invars[operand], path), axes_of(eqn)[operand]
        return axes is None or any(a and a.axis >= 0 and moved(a.axis) is None for a in axes)

    def told_apart(self, v: Any, path: Path) -> frozenset[int]:
        """The axes of a variable of a program along which elements of choices run."""
        axes = self._axes(v, (*path, 0))
        if axes is None:
            return frozenset(range(v.aval.ndim))
        return frozenset(a.axis for a in axes if a is not None and a.axis >= 0)

    def _axes(self, v: Any, path: Path) -> list[Along | None] | None:
        """Those of a variable that elements of choices run along, None if that is not known."""
        env = self._elements.get(path[:-1], {})
        return [a for along in env[v].values() for a in along] if v in env else None


def _level(
    closed: _jax.ClosedJaxpr,
    wanted: list[Any],
    path: Path,
    facts: _Facts,
) -> Level:
    level, jaxpr, tainted = Level(closed, wanted), closed.jaxpr, facts.reached.within(path)
    makers = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    active: dict[Any, None] = {v: None for v in wanted if is_var(v)}
    whole: set[Any] = set()
    """What the leaves are made of."""
    for i in reversed(range(len(jaxpr.eqns))):
        eqn = jaxpr.eqns[i]
        outs = [n for n, v in enumerate(eqn.outvars) if v in active and v in tainted]
        if not outs:
            if whole.intersection(eqn.outvars):
                whole.update(filter(is_var, eqn.invars))
            continue
        inner = _inner(eqn, outs, tainted, (*path, i), facts)
        if inner is not None:
            level.inner[i], level.outs[i], linear = inner
        else:
            linear = _linear_operands(eqn, tainted, (*path, i), facts)
        anyway = linear is not None and bool(whole.intersection(eqn.outvars))
        if anyway and _ends_anyway(eqn, tainted, makers, (*path, i), facts):
            linear = None
        if linear is not None and _is_offset(eqn, tainted, makers):
            linear = None
        used = linear if linear and not whole.intersection(eqn.outvars) else ()
        whole.update(v for n, v in enumerate(eqn.invars) if n not in used and is_var(v))
        if linear is None:
            continue
        level.tail.add(i)
        for n in level.outs.get(i, outs):
            del active[eqn.outvars[n]]
        for n, v in enumerate(eqn.invars):
            if n in linear and is_var(v):
                active[v] = None
            elif (
                n not in linear and is_var(v) and i not in level.inner and v not in level.constants
            ):
                level.constants.append(v)
    level.leaves += list(active)
    return level


def _linear_operands(
    eqn: _jax.JaxprEqn, tainted: Mapping[Any, int], path: Path, facts: _Facts
) -> set[int] | None:
    """The operands in which an equation is linear, all others being constant; None if it is not,
    also because its integers may wrap around, or because it reads few of many numbers (as the log
    mass of data does), unless elements of a choice are told apart before it alone."""
    found = _linear(eqn, tainted)
    if found == {0} and _reads_few(eqn) and not facts.mixes_elements(eqn, path):
        return None
    if found is None or all(is_float(eqn.invars[n]) for n in found):
        cut = eqn.primitive.name == "convert_element_type" and not is_float(eqn.outvars[0])
        return None if cut else found
    name = eqn.primitive.name  # out of bounds, integers may be filled with another number
    if not of(eqn).counts or (name == "gather" and eqn.params["mode"].name == "FILL_OR_DROP"):
        return None
    return found if is_float(eqn.outvars[0]) or facts.bounds.are_exact(eqn) else None


def _reads_few(eqn: _jax.JaxprEqn) -> bool:
    few = eqn.primitive.name in ("gather", "dynamic_slice", "slice")
    sizes = [math.prod(v.aval.shape) for v in (eqn.outvars[0], eqn.invars[0])]  # type: ignore[attr-defined]
    return few and sizes[0] < sizes[1]


def _ends_anyway(
    eqn: _jax.JaxprEqn,
    tainted: Mapping[Any, int],
    makers: Mapping[Any, Any],
    path: Path,
    facts: _Facts,
) -> bool:
    """Whether the tail goes no further than a result that leaves are made of: a matrix product, or
    one with a constant added. The coefficients of ``x @ (w @ h + b) - log_z(w @ h + b)`` would be
    one more product. Elements that are enumerated stay told apart."""
    hit = _hit(eqn, tainted)
    if len(hit) != 1:
        return False
    v = eqn.invars[hit[0]]
    if eqn.primitive.name == "dot_general":
        return tainted[v] == DRAWN or not facts.mixes_more(eqn, path, hit[0])
    if _adds(eqn):
        return v in makers and _ends_anyway(makers[v], tainted, makers, path, facts)
    return False


def _hit(eqn: _jax.JaxprEqn, tainted: Mapping[Any, int]) -> list[int]:
    return [n for n, v in enumerate(eqn.invars) if is_var(v) and v in tainted]


def _adds(eqn: _jax.JaxprEqn) -> bool:
    return eqn.primitive.name in ("add", "add_any", "sub")


def _is_offset(eqn: _jax.JaxprEqn, tainted: Mapping[Any, int], makers: Mapping[Any, Any]) -> bool:
    """Whether an equation adds a constant to an enumerated draw, or what plain numbers make of it,
    element by element."""
    hit = [eqn.invars[n] for n in _hit(eqn, tainted)]
    if not _adds(eqn) or len(hit) != 1 or tainted[hit[0]] != ENUMERATED:
        return False
    v: Any = hit[0]
    size = math.prod(eqn.outvars[0].aval.shape)  # type: ignore[attr-defined]
    while (maker := makers.get(v)) is not None and math.prod(v.aval.shape) == size:
        if isinstance(maker.params.get("site"), Site):
            return True
        read = [u for u in maker.invars if is_var(u)]
        drawn = [u for u in read if u in tainted]
        plain = of(maker).axes is elementwise and len(read) == 1
        along = keeps_all(maker) or maker.primitive.name in ("div", "mul")
        if len(drawn) != 1 or not (plain or along):
            return False
        (v,) = drawn
    return False


def _linear(eqn: _jax.JaxprEqn, tainted: Mapping[Any, int]) -> set[int] | None:
    if _own_density(eqn):
        return None
    hit = {n for n, v in enumerate(eqn.invars) if is_var(v) and v in tainted}
    name, every = eqn.primitive.name, set(range(len(eqn.invars)))
    if of(eqn).jointly:
        return every
    if name in ("mul", "dot_general"):
        return hit if len(hit) == 1 else None
    if name in ("div", "dynamic_slice", "gather"):
        return {0} if hit == {0} else None
    if name == "select_n":
        return every - {0} if 0 not in hit else None
    if name == "dynamic_update_slice":
        return {0, 1} if hit <= {0, 1} else None
    return None


def _own_density(eqn: _jax.JaxprEqn) -> str | None:
    """The name, if this is the log density of a choice at its own draw."""
    name = eqn.params.get("name") if eqn.primitive.name == "name" else None
    return name if isinstance(name, str) and name.startswith(OWN_DENSITY) else None


def _makers(level: Level) -> list[_jax.JaxprEqn | None]:
    """The equation that each leaf comes from, those of inner levels last."""
    maker = {v: eqn for eqn in level.closed.jaxpr.eqns for v in eqn.outvars}
    found = [maker.get(v) for v in level.leaves]
    for i in sorted(level.inner):
        found += _makers(level.inner[i])
    return found


def _own_densities(level: Level) -> list[str | None]:
    """For each leaf, whether it is the log density of a choice at its own draw."""
    return [None if eqn is None else _own_density(eqn) for eqn in _makers(level)]


def _lines(level: Level) -> list[str]:
    return ["" if eqn is None else _jax.line_of(eqn) for eqn in _makers(level)]


def _inner(
    eqn: _jax.JaxprEqn,
    outs: list[int],
    tainted: Mapping[Any, int],
    path: Path,
    facts: _Facts,
) -> tuple[Level, list[int], set[int]] | None:
    """The level inside an equation, which of its outputs are linear there, and in which operands
    besides."""
    sub = as_is(eqn)
    if sub is None and eqn.primitive.name == "dot_general":
        hit = [tainted.get(v, 0) if is_var(v) else 0 for v in eqn.invars]
        sub = _sum_of_products(eqn, path, facts) if all(hit) else None
        if sub is not None:
            facts.reached.run(sub, hit, Place(path))
    if sub is not None:
        level = _level(sub, [sub.jaxpr.outvars[n] for n in outs], path, facts)
        _pass(level, dict(enumerate(sub.jaxpr.invars)))
        return level, outs, set(level.passed.values())
    loop = control(eqn)
    if not isinstance(loop, Loop):
        return None
    body, n_consts, n_carry = loop.body, loop.n_consts, loop.n_carry
    carried = {n_consts + n: body.jaxpr.invars[n_consts + n] for n in outs if n < n_carry}
    added = {k: v for k, v in carried.items() if _is_added_to(body, k, k - n_consts)}
    while kept := [n for n in outs if n >= n_carry or n_consts + n in added]:
        level = _level(body, [body.jaxpr.outvars[n] for n in kept], path, facts)
        _pass(level, added)
        if len(level.passed) == len(added):
            return level, kept, set(added)
        added = {k: v for v, k in level.passed.items()}
    return None


def _pass(level: Level, inputs: Mapping[int, _jax.Var]) -> None:
    """Some inputs of a level are no leaves."""
    number = {v: k for k, v in inputs.items() if v in level.leaves}
    level.passed = number
    level.leaves = [v for v in level.leaves if v not in number]


def _sum_of_products(eqn: _jax.JaxprEqn, path: Path, facts: _Facts) -> _jax.ClosedJaxpr | None:
    avals = [v.aval for v in (*eqn.invars, *eqn.outvars)]
    sub = _products(eqn.params["dimension_numbers"], *avals)
    if sub is not None and not all(map(is_float, (*eqn.invars, *eqn.outvars))):
        if not facts.bounds.are_exact(eqn):
            return None
        facts.bounds.run(sub, [facts.bounds.of(v) for v in eqn.invars], Place(path))
    return sub


@functools.lru_cache(maxsize=256)
def _products(numbers: Any, left: Any, right: Any, out: Any) -> _jax.ClosedJaxpr | None:
    """An inner product of arrays as the sum of products of their elements; None for others, which
    would be larger that way."""
    contracted, batch = numbers
    orders = [(*b, *c) for b, c in zip(batch, contracted, strict=True)]
    if any(len(order) != x.ndim for order, x in zip(orders, (left, right), strict=True)):
        return None

    def f(x: jax.Array, y: jax.Array) -> jax.Array:
        x, y = (jnp.transpose(a, o).astype(out.dtype) for a, o in zip((x, y), orders, strict=True))
        return jnp.sum(x * y, axis=tuple(range(out.ndim, x.ndim)))

    avals = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (left, right)]
    return _jax.traced(f, *avals)


def _is_added_to(closed: _jax.ClosedJaxpr, before: int, after: int) -> bool:
    """Whether an output is an input, used for nothing else, with something added."""
    chain = _additions(closed.jaxpr, closed.jaxpr.invars[before])
    return chain is not None and chain[0] is closed.jaxpr.outvars[after] and chain[1]


def _additions(jaxpr: _jax.Jaxpr, at: Any) -> tuple[Any, bool] | None:
    """The output that a variable ends up in, and whether something is added on the way; None if
    anything else becomes of it."""
    uses: dict[Any, list[Any]] = {}
    for user, given in [*((eqn, eqn.invars) for eqn in jaxpr.eqns), (None, jaxpr.outvars)]:
        for v in given:
            if is_var(v):
                uses.setdefault(v, []).append(user)
    more = False
    while len(uses.get(at, ())) == 1:
        (eqn,) = uses[at]
        if eqn is None:
            return at, more
        name, place, into = eqn.primitive.name, _place(at, eqn.invars), 0
        if name in ("add", "add_any") or (name == "sub" and place == 0):
            more = True
        elif (sub := as_is(eqn)) is not None:
            inside = _additions(sub.jaxpr, sub.jaxpr.invars[place])
            if inside is None:
                return None
            into, more = _place(inside[0], sub.jaxpr.outvars), more or inside[1]
        elif name not in ("copy", "name") and not _is_same(eqn):
            return None
        at = eqn.outvars[into]
    return None


def _place(v: Any, among: Sequence[Any]) -> int:
    return next(i for i, other in enumerate(among) if other is v)


def _is_same(eqn: _jax.JaxprEqn) -> bool:
    """Whether this is a conversion that changes at most whether a type is weak."""
    dtypes = [v.aval.dtype for v in (eqn.invars[0], eqn.outvars[0])]  # type: ignore[attr-defined]
    return eqn.primitive.name == "convert_element_type" and dtypes[0] == dtypes[1]


def _without_dead_code(closed: _jax.ClosedJaxpr) -> _jax.ClosedJaxpr:
    jaxpr = closed.jaxpr
    needed = {v for v in jaxpr.outvars if is_var(v)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars) or is_random(eqn) or eqn.effects:
            kept.append(eqn)
            needed.update(v for v in eqn.invars if is_var(v))
    return _jax.with_equations(closed, kept[::-1])
