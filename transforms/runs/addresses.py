"""The addresses of a generative program, and how the values at an address are laid out.

A value has an axis for each ``vmap`` and ``scan`` around its choice, outermost first, then the
shape of one draw. Inside, the interpreter has those of the ``scan``\\s in front: an
:class:`Entry` converts. An entry may have several choices: ``jax.lax.map(f, xs, batch_size=b)``
with a remainder runs its body in two places, whose values stand side by side along one axis; and
of branches that exclude each other, the value of the one that is taken counts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .. import _jax
from ..errors import Address, AddressError, ShapeError, UnsupportedError, describe, nearest, show
from ..program.choices import Choice, Path, choices
from ..program.site import Call, Densities, Expect, Factor, Site
from .axes import axes_of, batch_size, halves, inverse, order, own_loop, same_map, split_axis

Choices = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Entry:
    """An address and the choices behind it.

    ``windows`` is one, or the two parts of a batched ``lax.map``; each has one choice, or those of
    branches that exclude each other.
    """

    address: Address
    windows: tuple[tuple[Choice, ...], ...]

    @property
    def parts(self) -> list[Choice]:
        """All of the choices."""
        return [c for window in self.windows for c in window]

    @property
    def choice(self) -> Choice:
        """The first of the choices."""
        return self.windows[0][0]

    @property
    def source(self) -> str:
        return self.choice.source

    @property
    def conditional(self) -> bool:
        """Whether it stands in a branch, so that :meth:`join` has to be told of what is taken."""
        return any(c.conditional or c.arms for c in self.parts)

    @property
    def optional(self) -> bool:
        """Whether it may be left out of given values, and is then drawn."""
        return all(isinstance(c.random, Site) and c.random.role == "optional" for c in self.parts)

    @property
    def branches(self) -> bool:
        """Whether it is one of several choices that is made."""
        return len(self.windows[0]) > 1

    @property
    def like(self) -> Any:
        """Shape and dtype of the value, or of the tree of values of a nested distribution."""
        inner = {c.path: jax.tree.map(lambda s: s, _like(c)) for c in self.parts}
        if self.conditional:
            inner = {c.path: (inner[c.path], _like_taken(c)) for c in self.parts}
        return jax.eval_shape(self.join, inner)

    def join(self, values: Mapping[Path, Any]) -> Any:
        """The value as a user sees it, from those that the interpreter has; if ``conditional``
        these are pairs of a value and whether it is in a branch that is taken."""
        told = {
            c.path: v if self.conditional else (v, None)
            for c in self.parts
            for v in [values[c.path]]
        }
        return self._together([_outer(window, told) for window in self.windows])

    def made(self, values: Mapping[Path, Any]) -> jax.Array:
        """Which of the choices are in a branch that is taken, bool of the axes around them."""
        return self.added({c.path: values[c.path][1] for c in self.parts}, jnp.logical_or)

    def added(self, values: Mapping[Path, jax.Array], add: Any = jnp.add) -> jax.Array:
        """A number for each of the axes around the choice, of which it has one in each branch."""

        def window(choices: Sequence[Choice]) -> jax.Array:
            found = [jnp.transpose(v, order(c, v.ndim)) for c in choices for v in [values[c.path]]]
            return functools.reduce(add, found)

        return self._together([window(choices) for choices in self.windows])

    @property
    def n_axes(self) -> int:
        """How many axes a user sees around the choice."""
        last = self.windows[-1][0]
        return len(last.lengths) + len(axes_of(last))

    @property
    def loop_axes(self) -> list[int]:
        """Which of these each loop around the choice is, outermost first."""
        at = order(self.choice, self.n_axes)
        return [at.index(i) for i in range(len(self.choice.lengths))]

    @property
    def group(self) -> tuple[Address, ...]:
        """The addresses that share its density."""
        r = self.choice.random
        inner = flatten(r.program.choices) if isinstance(r, Call) else ((),)  # type: ignore[union-attr]
        return tuple((*self.address, *a) for a in inner)

    def _together(self, outer: Sequence[Any]) -> Any:
        if len(outer) == 1:
            return outer[0]
        at = split_axis(*halves(self.windows))

        def together(batches: jax.Array, rest: jax.Array) -> jax.Array:
            shape = batches.shape
            flat = batches.reshape(*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])
            return jnp.concatenate([flat, rest], axis=at)

        return jax.tree.map(together, *outer)

    def split(self, value: Any) -> dict[Path, Any]:
        """The values that the interpreter has, from the one that a user gives."""
        outer = [value]
        if len(self.windows) > 1:
            parts = halves(self.windows)
            at = split_axis(*parts)
            n, b = parts[0].lengths[own_loop(*parts)], batch_size(*parts)

            def batches(v: jax.Array) -> jax.Array:
                full = jax.lax.slice_in_dim(v, 0, n * b, axis=at)
                return full.reshape(*v.shape[:at], n, b, *v.shape[at + 1 :])

            def rest(v: jax.Array) -> jax.Array:
                return jax.lax.slice_in_dim(v, n * b, v.shape[at], axis=at)

            outer = [jax.tree.map(batches, value), jax.tree.map(rest, value)]
        return {
            c.path: jax.tree.map(lambda u, c=c: jnp.transpose(u, inverse(order(c, u.ndim))), v)
            for window, v in zip(self.windows, outer, strict=True)
            for c in window
        }


def _outer(window: Sequence[Choice], values: Mapping[Path, Any]) -> Any:
    """The value of the choice that is made, with its axes in the order of a user."""

    def outer(c: Choice, tree: Any) -> Any:
        return jax.tree.map(lambda v: jnp.transpose(v, order(c, v.ndim)), tree)

    if len(window) == 1:
        return outer(window[0], values[window[0].path][0])
    found = None
    for c in window:
        value, taken = (outer(c, v) for v in values[c.path])

        def select(new: jax.Array, old: jax.Array, taken: jax.Array = taken) -> jax.Array:
            return jnp.where(taken.reshape(taken.shape + (1,) * (new.ndim - taken.ndim)), new, old)

        found = value if found is None else jax.tree.map(select, value, found)
    return found


def _like_taken(choice: Choice) -> Any:
    sizes = (a.size for a in axes_of(choice))
    return jax.ShapeDtypeStruct((*choice.lengths, *sizes), jnp.bool_)


def _like(choice: Choice) -> Any:
    """Shape and dtype of the value(s) of a choice as the interpreter has them."""
    r = choice.random
    if isinstance(r, Site):
        return jax.ShapeDtypeStruct((*choice.lengths, *r.sizes, *r.shape), r.dtype)
    assert isinstance(r, Call) and isinstance(r.program, Densities)
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct((*choice.lengths, *s.shape), s.dtype), r.program.choices
    )


# --- all addresses of a program -------------------------------------------------------------------


def entries(closed: _jax.ClosedJaxpr) -> list[Entry]:
    """The addresses of a generative program, checked.

    Raises:
        AddressError: an address is used twice, or inside another.
        UnsupportedError: the program simulates another, or calls an expectation.
    """
    found: dict[Address, list[list[Choice]]] = {}
    factors: dict[Address, list[Choice]] = {}
    known: dict[Address, Choice] = {}
    beginnings: set[Address] = set()
    for c in choices(closed):
        _check(c)
        if isinstance(c.random, Site) and c.random.role == "hidden":
            continue
        same, weights = found.get(c.address), factors.get(c.address)
        weight = isinstance(c.random, Factor)
        if same is not None and not weight and _admit(same, c):
            continue
        if weights is not None and weight and _adds(weights, c):
            weights.append(c)
            continue
        if c.address in known:
            raise _used_twice(known[c.address], c)
        own = {c.address[:n] for n in range(len(c.address) + 1)}
        if c.address in beginnings or not own.isdisjoint(known):
            clash = next(a for a in known if _nested(a, c.address))
            raise AddressError(
                f"the address {show(c.address)} at {c.source} lies inside {show(clash)} at "
                f"{known[clash].source}. Rename one of them."
            )
        known[c.address] = c
        beginnings |= own
        if weight:
            factors[c.address] = [c]
        else:
            found[c.address] = [[c]]
    for windows in found.values():
        _check_windows(windows)
    return [Entry(a, tuple(map(tuple, windows))) for a, windows in found.items()]


def _admit(windows: list[list[Choice]], c: Choice) -> bool:
    """Add a choice where another one has its address already, if it may have it too."""
    for window in windows:
        if all(_exclusive(p, c) for p in window) and _seen(window[0]) == _seen(c):
            window.append(c)
            return True
    if len(windows) == 1 and any(same_map(*_ordered(p, c)) for p in windows[0]):
        windows.append([c])
        windows.sort(key=lambda window: -len(window[0].lengths))
        return True
    return False


def _ordered(a: Choice, b: Choice) -> tuple[Choice, Choice]:
    return (a, b) if len(a.lengths) > len(b.lengths) else (b, a)


def _exclusive(a: Choice, b: Choice) -> bool:
    """Whether two choices are in different branches of one ``cond``."""
    common = next(n for n, (i, j) in enumerate(zip(a.path, b.path, strict=False)) if i != j)
    if a.path[:common] in a.conds:
        return True
    mine, others = a.arms, b.arms
    branch_of = dict(others)
    return any(branch_of.get(cond, branch) != branch for cond, branch in mine)


def _seen(c: Choice) -> Any:
    """The shape and type of the value of a choice, as a user sees it."""
    return jax.tree.map(lambda s: (s.shape, s.dtype), Entry(c.address, ((c,),)).like)


def _check_windows(windows: Sequence[Sequence[Choice]]) -> None:
    """Each choice in a batched ``lax.map`` needs its counterpart in the remainder."""
    if len(windows) == 1:
        return
    for mine, others in (windows, windows[::-1]):
        for c in mine:
            if not any(same_map(*_ordered(c, o)) for o in others):
                raise _used_twice(next(p for w in windows for p in w if p is not c), c)


def _adds(factors: Sequence[Choice], c: Choice) -> bool:
    """Whether a factor is in another branch than those of its address, or in another part of one
    batched ``lax.map``."""
    return all(_exclusive(f, c) for f in factors) or any(_twice(f, c) for f in factors)


def _used_twice(first: Choice, c: Choice) -> AddressError:
    where = f"the address {show(c.address)} is used twice: at {first.source} and at {c.source}"
    if not _exclusive(first, c):
        return AddressError(
            f"{where}. Give each random choice of a generative function its own address "
            f'(in a Python loop, like f"{c.address[-1]}{{i}}"; under jax.vmap or jax.lax.scan '
            "one address is an array of choices; the branches of one jax.lax.cond may share one)."
        )
    return AddressError(
        f"{where}, in branches that exclude each other. They may share it if both are choices of "
        f"the same shape and type; one is {_in_words(first)}, the other {_in_words(c)}. Make "
        "them agree (d.expand(shape) for the shape, another distribution for the type), or give "
        "each its own address."
    )


def _in_words(c: Choice) -> str:
    if isinstance(c.random, Factor):
        return "a weight"
    leaves = jax.tree.leaves(Entry(c.address, ((c,),)).like)
    return " and ".join(f"{s.dtype}[{','.join(map(str, s.shape))}]" for s in leaves)


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
    optional: Iterable[Address] = (),
) -> Choices:
    """The given values, checked: addresses known (all but the ``optional`` ones present if
    ``exact``), shapes equal.

    Raises:
        AddressError: an address is missing or unknown.
        ShapeError: a value has another shape than its choice.
    """
    given = flatten(values)
    sources = sources or {}
    known = ", ".join(show(a) for a in like) or "none"
    for a in given:
        if a not in like:
            raise AddressError(
                f"{name} has no choice at address {show(a)}, for which a value is given at "
                f"{_jax.user_line()}.{nearest(a, like)} Its addresses: {known}. Rename or remove "
                "the value: a guide and the data together give these addresses and no others."
            )
    missing = [a for a in like if a not in given and a not in optional]
    if missing and exact:
        where = f" ({sources[missing[0]]})" if missing[0] in sources else ""
        raise AddressError(
            f"{name} needs a value at address {show(missing[0])}{where}, and none is given at "
            f"{_jax.user_line()}. Given: {', '.join(map(show, given)) or 'none'}; all of its "
            "addresses: "
            f"{known}. Give it in the data, or draw it in the guide."
        )
    for a, v in given.items():
        check_shape(a, v, like[a], sources.get(a, name))
    return nest((a, _number(v, like[a])) for a, v in given.items())


def _number(value: Any, expected: Any) -> jax.Array:
    """True is 1, where a choice has numbers."""
    x = jnp.asarray(value)
    return x.astype(expected.dtype) if x.dtype == bool else x


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
    free = {a for a, e in owner.items() if e.optional}
    given = match_shapes(values, like, name, exact=exact, sources=sources, optional=free)
    given = flatten(given)
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
        instead = getattr(value, "place", "Give a number or an array, jnp.array(...).")
        raise ShapeError(
            f"the value given for {show(address)} at {_jax.user_line()} is {describe(value)}, and "
            f"the choice at {source} has shape {expected.shape}. {instead}"
        ) from None
    if jnp.iscomplexobj(value) and not jnp.issubdtype(expected.dtype, jnp.complexfloating):
        raise ShapeError(
            f"the value given for {show(address)} at {_jax.user_line()} is complex, and the choice "
            f"at {source} is {expected.dtype}. Give its real part, jnp.real(x), if that is meant."
        )
    if shape != expected.shape:
        raise ShapeError(
            f"the value given for {show(address)} at {_jax.user_line()} has shape {shape}, and the "
            f"choice at {source} has shape {expected.shape}. Nothing is broadcast: reshape the "
            "value, or give the distribution the shape of the data (d.expand(shape), arrays as "
            "parameters)."
        )
