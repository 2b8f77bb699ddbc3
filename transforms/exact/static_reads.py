"""Which elements of discrete variables each number of a program is made of, where that is known
beforehand.

An array of variables may be read at places that do not depend on its values: ``z[parents]`` in a
tree, ``z[1:] * z[:-1]`` between neighbours, ``jnp.roll(z, 1)``. Its elements then meet, but few at
a time. A :class:`Read` says which element each number of a value depends on; what moves numbers
moves the reads along. For ``t = z[1:] - z[:-1]`` of three elements these are 1, 2 and 0, 1.

:func:`read_apart` makes of such a program one with a *copy* of its variables for each read:
``t = z'[1:] - z''[:-1]``. All elements of a copy may have one value at a time, so that the table of
a term, over the values of its copies, is found for all its numbers at once; each of these is a
table over the elements that it reads.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _jax
from ..analyses.dependence import Along, Dependence, Dependences
from ..analyses.primitives import To, axes_of, elementwise, of
from ..estimation.chosen import MAX_JOINT
from ..numeric.run import equation
from ..numeric.tables import RULES
from ..program.choices import is_random
from ..program.control import Whole, control

MOST = 2**22
"""Numbers of an array beyond which reads are not followed."""
SPLIT = 8
"""Most numbers that may be mixed of each of which the reads are told apart."""


@dataclasses.dataclass(frozen=True, eq=False)
class Read:
    """The elements of a variable that the numbers of a value depend on, one each: ``at`` has its
    shape, and numbers the elements; what depends on none has a negative number."""

    variable: int
    at: np.ndarray


Reads = tuple[Read, ...]


class _Many(Exception):
    """A number depends on many elements, or it is not known on which."""


@dataclasses.dataclass(frozen=True)
class ReadApart:
    """A program with copies of its variables as its last inputs. ``copies`` are their variables,
    ``reads`` those of each output, with the copy that each has."""

    program: _jax.ClosedJaxpr
    copies: list[int]
    reads: list[list[tuple[int, Read]]]


def read_apart(
    program: _jax.ClosedJaxpr,
    consts: Sequence[Any],
    elements: Sequence[np.ndarray | None],
    values: Sequence[int],
) -> ReadApart | None:
    """The program with its variables read apart; None if numbers depend on many elements.

    The last inputs are the variables, after ``consts`` (None if not known). ``elements`` numbers
    those of each variable that are to be told apart, in its shape (None: none are); each has so
    many ``values``.
    """
    flat = _inlined(program)
    found, jaxpr = _Found(flat, consts, elements), flat.jaxpr
    if found.told:
        return None
    copies: list[int] = [i for i in range(len(elements))]
    try:
        outs = [_with_copies(found.of(v), copies) for v in jaxpr.outvars]
    except _Many:
        return None
    if any(math.prod(values[copies[c]] for c in {c for c, _ in o}) > MAX_JOINT for o in outs):
        return None
    return ReadApart(_rewritten(flat, found, copies, len(consts), outs), copies, outs)


def reads_of_each(
    program: _jax.ClosedJaxpr, consts: Sequence[Any], elements: Sequence[np.ndarray | None]
) -> list[Reads | None]:
    """The reads of each output, None of one whose numbers depend on many elements.

    ``consts`` and ``elements`` as for :func:`read_apart`.
    """
    flat = _inlined(program)
    found = _Found(flat, consts, elements)
    return [None if v in found.many else found.of(v) for v in map(_hashed, flat.jaxpr.outvars)]


def _hashed(v: Any) -> Any:
    return v if isinstance(v, _jax.Var) else None


def _is_known(x: Any) -> bool:
    """Whether places may be made of this: integers or truth values that are no tracers."""
    return x is not None and not isinstance(x, _jax.Tracer) and _is_whole(jnp.result_type(x))


def _is_whole(dtype: Any) -> bool:
    return np.issubdtype(dtype, np.integer) or np.issubdtype(dtype, np.bool_)


def _inlined(closed: _jax.ClosedJaxpr) -> _jax.ClosedJaxpr:
    """The program without ``jit`` inside."""

    def run(closed: _jax.ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
        jaxpr = closed.jaxpr
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args], strict=True))
        for eqn in jaxpr.eqns:
            ins, inside = [_read(env, v) for v in eqn.invars], control(eqn)
            if isinstance(inside, Whole) and not (inside.ruled or inside.checkpoint or inside.call):
                outs = run(inside.program, ins)
            else:
                outs = _jax.evaluate_equation(eqn, ins)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [_read(env, v) for v in jaxpr.outvars]

    avals = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in closed.in_avals]
    return _jax.traced(lambda *args: run(closed, args), *avals)


def _read(env: dict[Any, Any], v: Any) -> Any:
    return env[v] if isinstance(v, _jax.Var) else jnp.asarray(v.val, v.aval.dtype)


def _with_copies(reads: Reads, copies: list[int]) -> list[tuple[int, Read]]:
    """The reads, each with a copy: no number depends on two elements of one."""
    out: list[tuple[int, Read]] = []
    for r in reads:
        clash = {c for c, o in out if np.any((o.at >= 0) & (r.at >= 0))}
        mine = [c for c, i in enumerate(copies) if i == r.variable and c not in clash]
        if not mine:
            copies.append(r.variable)
        out.append((mine[0] if mine else len(copies) - 1, r))
    return out


# --- where reads go -------------------------------------------------------------------------------

Links = list[list[tuple[int, ...]]]
"""For each operand, and each of the numbers along the axis by which it is split (one if it is not),
which of the reads of the result those of the operand are."""


class _Found:
    """The reads of the values of a program, and how they come from those of the operands."""

    def __init__(
        self, flat: _jax.ClosedJaxpr, consts: Sequence[Any], elements: Sequence[Any]
    ) -> None:
        jaxpr = flat.jaxpr
        known = zip([*jaxpr.constvars, *jaxpr.invars], [*flat.consts, *consts], strict=False)
        self.known = {v: np.asarray(x) for v, x in known if _is_known(x)}
        self.reads: dict[Any, Reads] = {}
        self.many: set[Any] = set()
        """What depends on many elements, or it is not known on which."""
        self.told = False
        """Whether a message is made of elements."""
        self.links: dict[Any, Links] = {}
        self.split: dict[int, list[int | None]] = {}
        """The axis by which each operand of an equation is split, by the id of the equation."""
        for i, (v, at) in enumerate(zip(jaxpr.invars[len(consts) :], elements, strict=True)):
            if at is not None:
                self.reads[v] = (Read(i, at),)
        for eqn in jaxpr.eqns:
            try:
                self._follow(eqn)
            except _Many:
                self.many.update(eqn.outvars)
                self.told |= not eqn.outvars

    def of(self, v: Any) -> Reads:
        if not isinstance(v, _jax.Var):
            return ()
        if v in self.many:
            raise _Many
        return self.reads.get(v, ())

    def value(self, v: Any) -> np.ndarray | None:
        return np.asarray(v.val) if isinstance(v, _jax.Literal) else self.known.get(v)

    def _follow(self, eqn: _jax.JaxprEqn) -> None:
        if not any([self.of(v) for v in eqn.invars]):  # of all, since one may be of many
            self._compute(eqn)
            return
        sizes = [v.aval.size for v in (*eqn.invars, *eqn.outvars)]  # type: ignore[attr-defined]
        if not eqn.outvars or max(sizes) > MOST:
            raise _Many
        moved = self._moved(eqn)
        if moved is None and control(eqn) is not None:
            moved = self._through(eqn)
        if moved is None:
            moved = self._along_axes(eqn)
        for v, parts in zip(eqn.outvars, moved, strict=True):
            if parts is None:
                self.many.add(v)
            else:
                self.reads[v], self.links[v] = _merged(parts)

    def _compute(self, eqn: _jax.JaxprEqn) -> None:
        """What is known of integers."""
        ins = [self.value(v) for v in eqn.invars]
        outs: list[Any] = [v.aval for v in eqn.outvars]
        small = all(_is_whole(a.dtype) and a.size <= MOST for a in outs)
        known = small and all(x is not None for x in ins)
        if known and control(eqn) is None and not (of(eqn).random or is_random(eqn) or eqn.effects):
            self.known.update(zip(eqn.outvars, equation(eqn, ins), strict=True))

    def _moved(self, eqn: _jax.JaxprEqn) -> list[Any] | None:
        """Where the equation moves numbers to places that are known: those of the reads too."""
        name, known = eqn.primitive.name, of(eqn)
        if not known.moves or known.axes is elementwise or name not in RULES:
            return None
        data = range(len(eqn.invars))[slice(*known.data)]
        places = [self.value(v) for k, v in enumerate(eqn.invars) if k not in data]
        if any(p is None for p in places):
            return None
        none = [
            np.full(v.aval.shape, -1) if k in data else self.value(v)  # type: ignore[attr-defined]
            for k, v in enumerate(eqn.invars)
        ]
        out: list[Any] = [[[[]] for _ in eqn.invars] for _ in eqn.outvars]
        for k, v in enumerate(eqn.invars):
            for r in self.of(v):
                ins = [*none[:k], r.at, *none[k + 1 :]]
                found = RULES[name](eqn, ins, 0)
                if found is None:
                    raise _Many
                for parts, at in zip(out, found, strict=True):
                    parts[k][0].append(Read(r.variable, at))
        return out

    def _along_axes(self, eqn: _jax.JaxprEqn) -> list[Any]:
        """Reads are the same along the axes that are mixed, or the axis is split."""
        known = axes_of(eqn)
        tos = [lambda a: a] * len(known) if of(eqn).axes is elementwise else known
        axes: list[int | None] = []
        shapes = [v.aval.shape for v in eqn.outvars]  # type: ignore[attr-defined]
        out: list[list[list[list[Read]]]] = [[] for _ in shapes]
        for v, to in zip(eqn.invars, tos, strict=True):
            mixed = [a for a in range(v.aval.ndim) if to(a) is None]  # type: ignore[attr-defined]
            varies = {a for r in self.of(v) for a in mixed if not _is_same(r.at, a)}
            axis = min(varies, default=None)
            n = 1 if axis is None else v.aval.shape[axis]  # type: ignore[attr-defined]
            if len(varies) > 1 or n > SPLIT:
                raise _Many
            axes.append(axis)
            for parts, shape in zip(out, shapes, strict=True):
                split = [[] for _ in range(n)]
                for p, r in itertools.product(range(n), self.of(v)):
                    at = r.at if axis is None else np.take(r.at, [p], axis)
                    split[p].append(Read(r.variable, _placed(at, to, shape, mixed)))
                parts.append(split)
        if any(a is not None for a in axes):
            self.split[id(eqn)] = axes
        return out

    def _through(self, eqn: _jax.JaxprEqn) -> list[Any]:
        """Where a program inside the equation takes them, for each result (None: it mixes them)."""
        read = list(dict.fromkeys(v for v in eqn.invars if isinstance(v, _jax.Var)))
        each = _jax.open_jaxpr(_jax.traced(lambda: []).jaxpr, read, eqn.outvars, [eqn])
        own: list[Dependence] = [{v: tuple(map(Along, range(v.aval.ndim)))} for v in read]  # type: ignore[attr-defined]
        found = Dependences(lambda _: False).run(each, own)
        return [self._inside(eqn, v, d) for v, d in zip(eqn.outvars, found, strict=True)]

    def _inside(self, eqn: _jax.JaxprEqn, out: Any, d: Dependence) -> list[list[list[Read]]] | None:
        shape, parts = out.aval.shape, list[list[list[Read]]]()
        for v in eqn.invars:
            along = d.get(v) if isinstance(v, _jax.Var) else None
            if along is None:  # nothing of it
                parts.append([[Read(r.variable, np.full(shape, -1)) for r in self.of(v)]])
                continue
            kept = [a is not None and not a.lag and a.axis >= 0 for a in along]
            mixed = [a for a, k in enumerate(kept) if not k]
            if any(not _is_same(r.at, a) for r in self.of(v) for a in mixed):
                return None
            to: To = lambda a, along=along: along[a].axis  # type: ignore[union-attr]
            parts.append([[Read(r.variable, _placed(r.at, to, shape, mixed)) for r in self.of(v)]])
        return parts


def _is_same(at: np.ndarray, axis: int) -> bool:
    """Whether numbers along an axis depend on one element, if they depend on any."""
    top = at.max(axis, keepdims=True, initial=-1)
    return bool(np.all((at < 0) | (at == top)))


def _placed(at: np.ndarray, to: To, shape: Sequence[int], mixed: Sequence[int]) -> np.ndarray:
    """A read of a result, from that of an operand that is the same along the axes ``mixed``."""
    at = at.max(tuple(mixed), initial=-1) if mixed else at
    kept = [a for a in range(at.ndim + len(mixed)) if a not in mixed]
    places: list[Any] = [to(a) for a in kept]
    order = sorted(range(len(kept)), key=lambda k: places[k])
    sizes = dict(zip((places[k] for k in order), (at.shape[k] for k in order), strict=True))
    at = at.transpose(order).reshape([sizes.get(a, 1) for a in range(len(shape))])
    return np.broadcast_to(at, shape)


def _merged(parts: list[list[list[Read]]]) -> tuple[Reads, Links]:
    """The different reads of a result, and which of them those of the operands are (-1: none)."""
    out: list[Read] = []

    def number(r: Read) -> int:
        if not np.any(r.at >= 0):
            return -1
        for n, o in enumerate(out):
            if o.variable == r.variable and np.array_equal(o.at, r.at):
                return n
        out.append(r)
        return len(out) - 1

    links = [[tuple(map(number, reads)) for reads in split] for split in parts]
    return tuple(out), links


# --- the program ----------------------------------------------------------------------------------

_Copies = tuple[int, ...]
"""The copies that the reads of a value have."""


def _rewritten(
    flat: _jax.ClosedJaxpr, found: _Found, copies: Sequence[int], n: int, outs: Sequence[Any]
) -> _jax.ClosedJaxpr:
    jaxpr = flat.jaxpr
    wanted: list[_Copies] = [tuple(c for c, _ in o) for o in outs]
    runs = _runs(jaxpr, found, wanted)
    variables = jaxpr.invars[n:]

    def run(*args: Any) -> list[Any]:
        env: dict[Any, Any] = {}
        given = zip([*jaxpr.constvars, *jaxpr.invars], [*flat.consts, *args[:n]], strict=False)
        env.update({(v, ()): x for v, x in given})
        for c, (i, x) in enumerate(zip(copies, args[n:], strict=True)):
            v = variables[i]
            env[v, (c,) if found.of(v) else ()] = x
        for eqn, ways in zip(jaxpr.eqns, runs, strict=True):
            axes = found.split.get(id(eqn), [None] * len(eqn.invars))
            for way, made in ways.items():
                ins = [
                    _assembled([_at(env, v, c) for c in cs], a)
                    for v, cs, a in zip(eqn.invars, way, axes, strict=True)
                ]
                results = dict(zip(eqn.outvars, _jax.evaluate_equation(eqn, ins), strict=True))
                env.update({(v, c): results[v] for v, c in made})
        return [_at(env, v, c) for v, c in zip(jaxpr.outvars, wanted, strict=True)]

    consts = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in jaxpr.invars[:n]]
    own = [variables[i].aval for i in copies]
    return _jax.traced(run, *consts, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in own))


def _at(env: dict[Any, Any], v: Any, c: _Copies) -> Any:
    return env[v, c] if isinstance(v, _jax.Var) else jnp.asarray(v.val, v.aval.dtype)


def _assembled(xs: Sequence[Any], axis: int | None) -> Any:
    """An operand from the copies of which its numbers along an axis are made."""
    if axis is None:
        return xs[0]
    parts = [lax.slice_in_dim(x, p, p + 1, axis=axis) for p, x in enumerate(xs)]
    return lax.concatenate(parts, axis)


def _runs(
    jaxpr: _jax.Jaxpr, found: _Found, wanted: Sequence[_Copies]
) -> list[dict[Any, list[tuple[Any, _Copies]]]]:
    """For each equation, of which copies its operands are, each time that it is run; and what is
    made of them."""
    needed: dict[Any, dict[_Copies, None]] = {}
    for v, c in zip(jaxpr.outvars, wanted, strict=True):
        if isinstance(v, _jax.Var):
            needed.setdefault(v, {})[c] = None
    runs = []
    for eqn in reversed(jaxpr.eqns):
        ways: dict[Any, list[tuple[Any, _Copies]]] = {}
        if not eqn.outvars:  # a message
            ways[tuple(((),) for _ in eqn.invars)] = []
        for v in eqn.outvars:
            for c in needed.get(v, {}):
                ways.setdefault(_way(eqn, v, c, found), []).append((v, c))
        for way in ways:
            for v, cs in zip(eqn.invars, way, strict=True):
                if isinstance(v, _jax.Var):
                    needed.setdefault(v, {}).update(dict.fromkeys(cs))
        runs.append(ways)
    return runs[::-1]


def _way(eqn: _jax.JaxprEqn, v: Any, c: _Copies, found: _Found) -> tuple[tuple[_Copies, ...], ...]:
    links = found.links.get(v)
    if links is None:
        return tuple(((),) for _ in eqn.invars)
    way = []
    for w, split in zip(eqn.invars, links, strict=True):
        variables = [r.variable for r in found.of(w)]
        # what nothing is read of may have any copy: the first
        pick: Callable[[int, int], int] = lambda n, i: i if n < 0 else c[n]
        way.append(tuple(tuple(map(pick, ns, variables)) for ns in split))
    return tuple(way)


__all__ = ["Read", "ReadApart", "read_apart"]
