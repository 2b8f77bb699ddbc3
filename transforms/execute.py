"""*simulate*, *log_density* and *generate*: one transformation of a generative program.

:func:`execute` runs a program with the choices in ``given`` fixed and the others drawn. It
returns the choices, the return value, the log density of all choices, and the part of it that
belongs to the addresses in ``select`` (and to factors): simulate is ``given = {}``, log_density
is ``given`` = everything, and the log weight of *generate* is the part of what was given. The
draws are left as random choices of the surrounding program, so an objective that simulates is
itself a program whose choices an estimator can treat.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from . import _jax
from .errors import Address, AddressError, ShapeError, UnsupportedError, nearest, show
from .interpret import Choice, Path, Record, choices, entering, interpret
from .site import Call, Densities, Expect, Factor, Site, per_element, sample_p

Choices = dict[str, Any]

LOG_DENSITY = "ppl.log_density"  # marks densities, for the checks and for the checker


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Execution:
    """One run of a program (a pytree)."""

    choices: Choices
    retval: Any
    log_density: jax.Array
    log_weight: jax.Array


# --- what a program's choices look like --------------------------------------------------------


def addressed(closed: _jax.ClosedJaxpr) -> list[Choice]:
    """The choices of a generative program that have an address; each address once."""
    seen: dict[Address, str] = {}
    out = []
    for c in choices(closed):
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
        if c.address in seen:
            raise AddressError(
                f"the address {show(c.address)} is used twice: at {seen[c.address]} and at "
                f"{c.source}. Give each random choice of a generative function its own address "
                "(under jax.vmap or jax.lax.scan one address is an array of choices)."
            )
        clash = next((a for a in seen if _nested(a, c.address)), None)
        if clash is not None:
            raise AddressError(
                f"the address {show(c.address)} at {c.source} lies inside {show(clash)} at "
                f"{seen[clash]}. Rename one of them."
            )
        seen[c.address] = c.source
        if not isinstance(c.random, Factor):
            out.append(c)
    return out


def _nested(a: Address, b: Address) -> bool:
    n = min(len(a), len(b))
    return a[:n] == b[:n]


def shape_of(choice: Choice) -> Any:
    """Shape and dtype of the value(s) that a choice contributes, all loops and vmaps included."""
    r = choice.random
    if isinstance(r, Site):
        return jax.ShapeDtypeStruct((*choice.lengths, *r.sizes, *r.shape), r.dtype)
    assert isinstance(r, Call) and isinstance(r.program, Densities)
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct((*choice.lengths, *s.shape), s.dtype), r.program.choices
    )


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
    """``{"a": {"b": v}}`` as ``{("a", "b"): v}``."""
    out: dict[Address, Any] = {}
    for name, value in nested.items():
        here = (*prefix, name)
        out.update(flatten(value, here) if isinstance(value, Mapping) else {here: value})
    return out


def likeness(program: Sequence[Choice]) -> dict[Address, Any]:
    """Shape and dtype of every value of a program, by address."""
    out: dict[Address, Any] = {}
    for c in program:
        inner = flatten(shape_of(c)) if isinstance(c.random, Call) else {(): shape_of(c)}
        out.update({(*c.address, *a): s for a, s in inner.items()})
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
    if not isinstance(values, Mapping):
        raise AddressError(
            f"choices are a dict from addresses to values, like {{'x': 1.0}}; got "
            f"{type(values).__name__}."
        )
    given = flatten(values)
    known = ", ".join(show(a) for a in like) or "none"
    for a in given:
        if a not in like:
            raise AddressError(
                f"{name} has no choice at address {show(a)}.{nearest(a, like)} Its addresses: "
                f"{known}."
            )
    missing = [a for a in like if a not in given]
    if missing and exact:
        where = f" ({sources[missing[0]]})" if sources else ""
        raise AddressError(
            f"{name} needs a value at address {show(missing[0])}{where}, and none is given."
            f" Given: {', '.join(map(show, given)) or 'none'}; all of its addresses: {known}."
        )
    for a, v in given.items():
        check_shape(a, v, like[a], sources[a] if sources else name)
    return nest((a, jnp.asarray(v)) for a, v in given.items())


def match(
    program: Sequence[Choice], values: Mapping[str, Any], name: str, *, exact: bool
) -> dict[Path, Any]:
    """As :func:`match_shapes`, by the path of the choice that each value is for."""
    sources: dict[Address, str] = {}
    owner: dict[Address, Choice] = {}
    like: dict[Address, Any] = {}
    for c in program:
        for a, s in likeness([c]).items():
            sources[a], owner[a], like[a] = c.source, c, s
    given = flatten(match_shapes(values, like, name, exact=exact, sources=sources))
    out: dict[Path, Any] = {}
    for c in program:
        if isinstance(c.random, Call):
            mine = {a[len(c.address) :]: v for a, v in given.items() if owner[a] is c}
            if mine:
                whole = {a[len(c.address) :]: s for a, s in like.items() if owner[a] is c}
                out[c.path] = match_shapes(nest(mine.items()), whole, f"{name}, {show(c.address)},")
        elif c.address in given:
            out[c.path] = given[c.address]
    return out


def check_shape(address: Address, value: Any, expected: Any, source: str) -> None:
    """Refuse a value of another shape than its choice: nothing broadcasts silently."""
    if jnp.shape(value) != expected.shape:
        raise ShapeError(
            f"the value given for {show(address)} has shape {jnp.shape(value)}, and the choice at "
            f"{source} has shape {expected.shape}. Nothing is broadcast: reshape the value, or "
            "give the distribution the shape of the data (d.expand(shape), arrays as parameters)."
        )


# --- the transformation ------------------------------------------------------------------------


def log_density_of(site: Site, operands: Sequence[Any], value: Any) -> jax.Array:
    """Log density of all elements of a site at ``value``: a scalar."""

    def one(operands: list[Any], value: Any) -> jax.Array:
        d = site.rebuild(operands)
        log_density = jnp.sum(d.log_prob(value))
        return jnp.where(site.mask(operands), log_density, 0.0) if site.masked else log_density

    return jnp.sum(per_element(site.axes, one, 1)(list(operands), value))


def execute(
    closed: _jax.ClosedJaxpr,
    args: Sequence[Any],
    given: Mapping[str, Any],
    *,
    name: str,
    exact: bool = False,
    select: Callable[[Address], bool] = lambda address: False,
) -> Execution:
    """Run a program with the choices in ``given`` fixed; see the module docstring."""
    program = addressed(closed)
    by_path = {c.path: c for c in program}
    fixed = match(program, given, name, exact=exact)

    @entering
    def rule(
        choice: Any, operands: list[Any], *, path: Path, key: Any, given: Record, acc: Any
    ) -> Any:
        total, selected = acc
        if isinstance(choice, Factor):
            weight = _add(jnp.zeros(()), jnp.sum(operands[0]))
            return [], (_add(total, weight), _add(selected, weight)), {}
        address = by_path[path].address
        if isinstance(choice, Site):
            site = dataclasses.replace(choice, address=address, drawn=True)
            value = given[path] if path in given else sample_p.bind(*operands, site=site)[0]
            outs, lp = [value], log_density_of(site, operands, value)
            outs = [value.astype(choice.dtype)]
        else:
            value, outs, lp = _call(choice, operands, given.get(path))
        add = _add(selected, lp) if select(address) else selected
        return outs, (_add(total, lp), add), {path: value}

    zero = jnp.zeros(())
    retval, (total, selected), made = interpret(closed, args, rule, given=fixed, acc=(zero, zero))
    return Execution(
        nest((by_path[p].address, v) for p, v in made.items()), retval, total, selected
    )


def _add(acc: jax.Array, term: Any) -> jax.Array:
    return acc + jnp.asarray(term).astype(acc.dtype)


def _call(call: Call, operands: Sequence[Any], given: Any) -> Any:
    """Simulate or score a nested program that is known by its densities."""
    p = call.program
    assert isinstance(p, Densities)
    if given is None:
        outs = _jax.evaluate(p.simulate, *operands)
        leaves = outs[p.n_retval : -1]
        value = jax.tree.unflatten(jax.tree.structure(p.choices), leaves)
    else:
        shapes = jax.tree.leaves(p.choices)
        leaves = [v.astype(s.dtype) for v, s in zip(jax.tree.leaves(given), shapes, strict=True)]
        outs = _jax.evaluate(p.log_density, *operands, *leaves)
        value = given
    return value, outs[: p.n_retval], jnp.sum(outs[-1])


def refuse_nested_density(closed: _jax.ClosedJaxpr, name: str) -> None:
    """Inside ``@ppl.gen`` a density would be lost: say so (found by its mark)."""
    for eqn in closed.jaxpr.eqns:
        if eqn.primitive.name == "name" and eqn.params.get("name") == LOG_DENSITY:
            line = _jax.line_of(eqn)  # none for a run with a key of its own
            raise UnsupportedError(
                f"the density of a generative function is taken inside {name}"
                f"{f' at {line}' if line else ''}, where it adds nothing to the program's own "
                'density. Inside @ppl.gen use ppl.sample("name", g(...)), or '
                'ppl.factor("name", log_weight) for a weight.'
            )
        for sub in _jax.sub_jaxprs(eqn):
            refuse_nested_density(sub, name)
