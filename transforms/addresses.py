"""The addresses of a generative program, and how the values at an address are laid out.

A value has an axis for each ``vmap`` and ``scan`` around its choice, outermost first, then the
shape of one draw. Inside, the interpreter has those of the ``scan``\\s in front: an
:class:`Entry` converts. ``jax.lax.map(f, xs, batch_size=b)`` with a remainder runs its body in
two places, which are one entry with one axis for both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from . import _jax
from .errors import Address, AddressError, ShapeError, UnsupportedError, describe, nearest, show
from .interpret import Choice, Path, choices
from .site import Axis, Call, Densities, Expect, Factor, Site

Choices = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Entry:
    """An address and the choices behind it: one, or the two parts of a batched ``lax.map``."""

    address: Address
    parts: tuple[Choice, ...]

    @property
    def choice(self) -> Choice:
        """The first of the choices."""
        return self.parts[0]

    @property
    def source(self) -> str:
        return self.choice.source

    @property
    def like(self) -> Any:
        """Shape and dtype of the value, or of the tree of values of a nested distribution."""
        inner = {c.path: jax.tree.map(lambda s: s, _like(c)) for c in self.parts}
        return jax.eval_shape(self.join, inner)

    def join(self, values: Mapping[Path, Any]) -> Any:
        """The value as a user sees it, from those that the interpreter has."""
        outer = [
            jax.tree.map(lambda v, c=c: jnp.transpose(v, _order(c, v.ndim)), values[c.path])
            for c in self.parts
        ]
        if len(outer) == 1:
            return outer[0]
        at = _split_axis(*self.parts)

        def together(batches: jax.Array, rest: jax.Array) -> jax.Array:
            shape = batches.shape
            flat = batches.reshape(*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])
            return jnp.concatenate([flat, rest], axis=at)

        return jax.tree.map(together, *outer)

    def split(self, value: Any) -> dict[Path, Any]:
        """The values that the interpreter has, from the one that a user gives."""
        outer = [value]
        if len(self.parts) > 1:
            at = _split_axis(*self.parts)
            n, b = self.parts[0].lengths[_own_loop(*self.parts)], _batch_size(*self.parts)

            def batches(v: jax.Array) -> jax.Array:
                full = jax.lax.slice_in_dim(v, 0, n * b, axis=at)
                return full.reshape(*v.shape[:at], n, b, *v.shape[at + 1 :])

            def rest(v: jax.Array) -> jax.Array:
                return jax.lax.slice_in_dim(v, n * b, v.shape[at], axis=at)

            outer = [jax.tree.map(batches, value), jax.tree.map(rest, value)]
        return {
            c.path: jax.tree.map(lambda u, c=c: jnp.transpose(u, _inverse(_order(c, u.ndim))), v)
            for c, v in zip(self.parts, outer, strict=True)
        }


def _axes(choice: Choice) -> tuple[Axis, ...]:
    assert isinstance(choice.random, Site | Call)
    return choice.random.axes


def _like(choice: Choice) -> Any:
    """Shape and dtype of the value(s) of a choice as the interpreter has them."""
    r = choice.random
    if isinstance(r, Site):
        return jax.ShapeDtypeStruct((*choice.lengths, *r.sizes, *r.shape), r.dtype)
    assert isinstance(r, Call) and isinstance(r.program, Densities)
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct((*choice.lengths, *s.shape), s.dtype), r.program.choices
    )


def _order(choice: Choice, ndim: int) -> list[int]:
    """The axes of the interpreter in the order of a user: outermost first."""
    k, axes = len(choice.lengths), _axes(choice)
    depth = [(i, 1) for i in range(k)] + [(max(k - a.loops, 0), 0) for a in axes]
    front = sorted(range(len(depth)), key=lambda i: depth[i])
    return [*front, *range(len(front), ndim)]


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


# --- the two parts of a batched lax.map ---------------------------------------------------------


def _own_loop(batches: Choice, rest: Choice) -> int:
    """Which of the loops around the batches is that of the ``lax.map``."""
    common = 0
    while batches.path[common] == rest.path[common]:
        common += 1
    return sum(len(p) <= common for p in batches.loops)


def _batch_size(batches: Choice, rest: Choice) -> int:
    return _axes(batches)[_own_axis(batches, rest)].size


def _own_axis(batches: Choice, rest: Choice) -> int:
    sizes = [(a.size, b.size) for a, b in zip(_axes(batches), _axes(rest), strict=True)]
    return next(i for i, (a, b) in enumerate(sizes) if a != b)


def _split_axis(batches: Choice, rest: Choice) -> int:
    """The axis of a user's value that the two parts share."""
    return _order(batches, len(batches.lengths) + len(_axes(batches))).index(
        _own_loop(batches, rest)
    )


def _same_map(a: Choice, b: Choice) -> bool:
    """Whether b is the remainder of the ``lax.map`` in batches that a is in."""
    if a.source != b.source or type(a.random) is not type(b.random):
        return False
    if isinstance(a.random, Factor) or len(_axes(a)) != len(_axes(b)):
        return False
    own = _own_loop(a, b)
    differing = [s for s, t in zip(_axes(a), _axes(b), strict=True) if s.size != t.size]
    return a.lengths[:own] + a.lengths[own + 1 :] == b.lengths and len(differing) == 1


# --- all addresses of a program -------------------------------------------------------------------


def entries(closed: _jax.ClosedJaxpr) -> list[Entry]:
    """The addresses of a generative program, checked.

    Raises:
        AddressError: an address is used twice, or inside another.
        UnsupportedError: the program simulates another, or calls an expectation.
    """
    found: dict[Address, Entry] = {}
    factors: dict[Address, Choice] = {}
    for c in choices(closed):
        _check(c)
        same = found.get(c.address)
        if same is not None and len(same.parts) == 1:
            first = same.choice
            ordered = (first, c) if len(first.lengths) > len(c.lengths) else (c, first)
            if _same_map(*ordered):
                found[c.address] = Entry(c.address, ordered)
                continue
        known = {a: e.source for a, e in found.items()} | {a: f.source for a, f in factors.items()}
        if c.address in factors and isinstance(c.random, Factor) and _twice(factors[c.address], c):
            continue
        if c.address in known:
            raise AddressError(
                f"the address {show(c.address)} is used twice: at {known[c.address]} and at "
                f"{c.source}. Give each random choice of a generative function its own address "
                f'(in a Python loop, like f"{c.address[-1]}{{i}}"; under jax.vmap or jax.lax.scan '
                "one address is an array of choices)."
            )
        clash = next((a for a in known if _nested(a, c.address)), None)
        if clash is not None:
            raise AddressError(
                f"the address {show(c.address)} at {c.source} lies inside {show(clash)} at "
                f"{known[clash]}. Rename one of them."
            )
        if isinstance(c.random, Factor):
            factors[c.address] = c
        else:
            found[c.address] = Entry(c.address, (c,))
    return list(found.values())


def _twice(a: Choice, b: Choice) -> bool:
    """Whether two factors are the parts of one batched ``lax.map``."""
    return a.source == b.source and len(a.lengths) != len(b.lengths)


def _check(c: Choice) -> None:
    if isinstance(c.random, Expect):
        raise UnsupportedError(
            f"the expectation {c.random.name} is called inside @ppl.gen at {c.source}: a "
            "generative function has a density, which an estimate inside would make random. "
            "Call the expectation in the objective."
        )
    if isinstance(c.random, Site) and c.random.drawn:
        raise UnsupportedError(
            f"a generative function is simulated inside @ppl.gen at {c.source}, so its choice "
            f"{show(c.address)} would be missing from the density. Inside @ppl.gen use a "
            'generative function through ppl.sample("name", g(...)).'
        )


def _nested(a: Address, b: Address) -> bool:
    n = min(len(a), len(b))
    return a[:n] == b[:n]


def likeness(program: Sequence[Entry]) -> dict[Address, Any]:
    """Shape and dtype of every value of a program, by address."""
    out: dict[Address, Any] = {}
    for e in program:
        inner = flatten(e.like) if isinstance(e.choice.random, Call) else {(): e.like}
        out.update({(*e.address, *a): s for a, s in inner.items()})
    return out


# --- nested dicts of choices ----------------------------------------------------------------------


def nest(flat: Iterable[tuple[Address, Any]]) -> Choices:
    """``{("a", "b"): v}`` as ``{"a": {"b": v}}``."""
    out: Choices = {}
    for address, value in flat:
        at = out
        for name in address[:-1]:
            at = at.setdefault(name, {})
        at[address[-1]] = value
    return out


def flatten(nested: Mapping[str, Any], prefix: Address = ()) -> dict[Address, Any]:
    """``{"a": {"b": v}}`` as ``{("a", "b"): v}``.

    Raises:
        AddressError: it is no dict, or a name in it is no string.
    """
    if not isinstance(nested, Mapping):
        instead = "Give a dict; a key comes after it."
        if isinstance(getattr(nested, "choices", None), Mapping):
            instead = "Give its .choices."
        raise AddressError(
            f"choices are a dict from addresses to values, like {{'x': 1.0}}; got "
            f"{describe(nested)} ({_jax.user_line()}). {instead}"
        )
    out: dict[Address, Any] = {}
    for name, value in nested.items():
        if not isinstance(name, str):
            raise AddressError(
                f"choices are a dict from addresses to values, like {{'x': 1.0}}; got one with "
                f"{name!r} for an address ({_jax.user_line()}). Addresses are strings."
            )
        here = (*prefix, name)
        out.update(flatten(value, here) if isinstance(value, Mapping) else {here: value})
    return out


def match_shapes(
    values: Mapping[str, Any],
    like: Mapping[Address, Any],
    name: str,
    *,
    exact: bool = True,
    sources: Mapping[Address, str] | None = None,
) -> Choices:
    """The given values, checked: addresses known (all present if ``exact``), shapes equal.

    Raises:
        AddressError: an address is missing or unknown.
        ShapeError: a value has another shape than its choice.
    """
    given = flatten(values)
    known = ", ".join(show(a) for a in like) or "none"
    for a in given:
        if a not in like:
            raise AddressError(
                f"{name} has no choice at address {show(a)}, for which a value is given at "
                f"{_jax.user_line()}.{nearest(a, like)} Its addresses: {known}. Rename or remove "
                "the value: a guide and the data together give these addresses and no others."
            )
    missing = [a for a in like if a not in given]
    if missing and exact:
        where = f" ({sources[missing[0]]})" if sources else ""
        raise AddressError(
            f"{name} needs a value at address {show(missing[0])}{where}, and none is given at "
            f"{_jax.user_line()}. Given: {', '.join(map(show, given)) or 'none'}; all of its "
            "addresses: "
            f"{known}. Give it in the data, or draw it in the guide."
        )
    for a, v in given.items():
        check_shape(a, v, like[a], sources[a] if sources else name)
    return nest((a, jnp.asarray(v)) for a, v in given.items())


def match(
    program: Sequence[Entry], values: Mapping[str, Any], name: str, *, exact: bool
) -> dict[Path, Any]:
    """As :func:`match_shapes`, as the interpreter has them: by the path of a choice."""
    sources: dict[Address, str] = {}
    owner: dict[Address, Entry] = {}
    like: dict[Address, Any] = {}
    for e in program:
        for a, s in likeness([e]).items():
            sources[a], owner[a], like[a] = e.source, e, s
    given = flatten(match_shapes(values, like, name, exact=exact, sources=sources))
    out: dict[Path, Any] = {}
    for e in program:
        n = len(e.address)
        if isinstance(e.choice.random, Call):
            mine = {a[n:]: v for a, v in given.items() if owner[a] is e}
            if mine:
                whole = {a[n:]: s for a, s in like.items() if owner[a] is e}
                value = match_shapes(nest(mine.items()), whole, f"{name}, {show(e.address)},")
                out.update(e.split(value))
        elif e.address in given:
            out.update(e.split(given[e.address]))
    return out


def check_shape(address: Address, value: Any, expected: Any, source: str) -> None:
    """Refuse a value of another shape than its choice: nothing broadcasts silently."""
    try:
        shape = jnp.asarray(value).shape
    except (TypeError, ValueError):
        raise ShapeError(
            f"the value given for {show(address)} at {_jax.user_line()} is {describe(value)}, and "
            f"the choice at {source} has shape {expected.shape}. Give a number or an array, "
            "jnp.array(...)."
        ) from None
    if shape != expected.shape:
        raise ShapeError(
            f"the value given for {show(address)} at {_jax.user_line()} has shape {shape}, and the "
            f"choice at {source} has shape {expected.shape}. Nothing is broadcast: reshape the "
            "value, or give the distribution the shape of the data (d.expand(shape), arrays as "
            "parameters)."
        )
