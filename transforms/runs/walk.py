"""A walk through a program that gives every choice its value, and scores none.

What a choice gets is up to the :data:`Visit` of who walks: a value that is given, a draw, or the
image of unconstrained numbers under the bijection of its support (:func:`constrain`), which may
depend on the choices before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions.transforms import ComposeTransform, biject_to

from .. import _jax
from ..errors import Address, UnsupportedError, show
from ..estimation import inside
from ..estimation.draws import sampled, vectorised_draw
from ..estimation.elements import unmasked
from ..program import opened
from ..program.choices import Choice, Path, abstract_distribution, abstractly
from ..program.interpret import Record, entering, interpret
from ..program.site import Densities, Factor, Opaque, Site, per_element
from .addresses import Entry

Visit = Callable[..., tuple[Any, Any, Any]]
"""``visit(entry, site, operands, given, key, acc) -> (value, what is recorded, acc)``."""


def walk(
    closed: _jax.ClosedJaxpr,
    args: Sequence[Any],
    program: Sequence[Entry],
    visit: Visit,
    *,
    given: Record,
    key: Any = None,
    acc: Any = None,
    seeded: Callable[..., list[Any]] | None = None,
) -> tuple[dict[Address, Any], dict[Address, jax.Array], Any]:
    """Run a program with the values that ``visit`` says.

    ``seeded(jaxpr, operands, key)`` draws the choices of a nested program that is known by its
    densities; without it, such choices have to be given.

    Returns what it records, by address and as a user sees it (trees of arrays with the axes around
    the choice in front); whether the choices in branches are in one that is taken; and ``acc``.
    """
    by_path = {c.path: e for e in program for c in e.parts}

    @entering
    def rule(
        choice: Any, operands: list[Any], *, path: Path, key: Any, given: Record, acc: Any
    ) -> Any:
        if isinstance(choice, Factor):
            return [], acc, {}
        if isinstance(choice, Site) and choice.role == "hidden":  # noise
            noise = jax.random.key(0) if key is None else key
            return [vectorised_draw(choice, operands, noise, sampled)], acc, {}
        entry = by_path[path]
        if isinstance(choice, Site):
            value, made, acc = visit(entry, choice, operands, given.get(path), key, acc)
            outs = [value.astype(choice.dtype)]
        else:
            value = given.get(path)
            if value is None and seeded is not None:
                outs, made = _drawn(choice, seeded(choice.program.simulate, operands, key))
            else:
                outs, made = _call(choice, operands, value)
        return outs, acc, {path: (made, choice.taken(operands)) if entry.conditional else made}

    _, acc, made = interpret(closed, args, rule, key=key, given=given, acc=acc)
    values = {e.address: e.join(made) for e in program}
    return values, {e.address: e.made(made) for e in program if e.conditional}, acc


def _call(call: Any, operands: Sequence[Any], given: Any) -> tuple[list[Any], Any]:
    """What a nested program that is known by its densities returns, at given choices."""
    p = call.program
    assert isinstance(p, Densities)
    if given is None:
        raise UnsupportedError(
            f"{show(call.address)} at {call.source} is drawn from {p.name}, whose choices are "
            "known by their density alone, not by distributions with supports. Make it the "
            "whole program, ppl.marginal(g, keep, by) of a @ppl.gen program; give its choices in "
            "the data; or use the program inside of it."
        )
    outs = _jax.evaluate(p.log_density, *operands, *jax.tree.leaves(given))
    return outs[: p.n_retval], given


def _drawn(call: Any, outs: list[Any]) -> tuple[list[Any], Any]:
    p = call.program
    return outs[: p.n_retval], jax.tree.unflatten(
        jax.tree.structure(p.choices), outs[p.n_retval : -1]
    )


# --- the bijection of a support ------------------------------------------------------------------


def bijection(d: Any, site: Site) -> Any:
    """From unconstrained numbers to the support of a distribution."""
    try:
        return bijector(d)
    except NotImplementedError:
        raise UnsupportedError(
            f"the support of {show(site.address)} ~ {type(d).__name__} at {site.source}, "
            f"{d.support}, has no bijection to unconstrained numbers. Register one, "
            "numpyro.distributions.transforms.biject_to.register(type(constraint)), or make the "
            "choice of unconstrained numbers, and transform them in the program."
        ) from None


def bijector(d: Any) -> Any:
    """As :func:`bijection`; NotImplementedError where there is none."""
    part = d
    while type(part).__name__ in _WRAPPERS:
        part = part.base_dist
    if inside.narrowed(part):
        return ComposeTransform([bijector(part.base_dist), *(t for _, t in inside.links(part))])
    return biject_to(d.support)


_WRAPPERS = {"Independent", "ExpandedDistribution", "MaskedDistribution"}


def constrain(site: Site, operands: Sequence[Any], u: Any) -> tuple[jax.Array, jax.Array]:
    """The value at unconstrained ``u``, and the log Jacobian of all elements, a scalar."""

    def one(operands: list[Any], u: Any) -> tuple[Any, Any]:
        bijector = bijection(site.rebuild(site.live(operands)), site)
        value = bijector(u)
        return value, _log_jacobian(bijector, site, operands, u, value)

    value, log_jacobian = per_element(site.axes, one, 1)(list(operands), u)
    return value, jnp.sum(log_jacobian)


def unconstrain(site: Site, operands: Sequence[Any], value: Any) -> tuple[jax.Array, jax.Array]:
    """The unconstrained numbers of a value, and the log Jacobian that :func:`constrain` has."""

    def one(operands: list[Any], value: Any) -> tuple[Any, Any]:
        bijector = bijection(site.rebuild(site.live(operands)), site)
        if site.masked:  # in a branch that is not taken it need not be in the support
            u = jnp.zeros(jax.eval_shape(bijector.inv, value).shape, value.dtype)
            value = jnp.where(site.mask(operands), value, bijector(u))
        u = bijector.inv(value)
        log_jacobian = _log_jacobian(bijector, site, operands, u, value)
        return jnp.where(site.mask(operands), u, 0.0) if site.masked else u, log_jacobian

    u, log_jacobian = per_element(site.axes, one, 1)(list(operands), value)
    return u, jnp.sum(log_jacobian)


def _log_jacobian(bijector: Any, site: Site, operands: Any, u: Any, value: Any) -> jax.Array:
    total = jnp.sum(bijector.log_abs_det_jacobian(u, value))
    return jnp.where(site.mask(operands), total, 0.0) if site.masked else total


def instead(
    site: Site, operands: Sequence[Any], law: Callable[[Any, Any], Any], extra: Any
) -> tuple[Site, list[Any]]:
    """A choice in the place of a site, from ``law(its distribution, extra)``, and its operands.

    ``extra`` is a tree of arrays with the axes of the site in front.
    """
    found: dict[str, Any] = {}

    def leaves_of(operands: list[Any], extra: Any) -> list[Any]:
        d = law(site.rebuild(site.live(operands)), extra)
        leaves, tree = opened.flatten(d)
        static, kept = opened.set_apart(leaves)
        draw = jax.eval_shape(d.sample, jax.random.key(0))
        found.update(distribution=Opaque(tree), static=static, shape=draw.shape, dtype=draw.dtype)
        return list(map(jnp.asarray, kept))

    made = per_element(site.axes, leaves_of, 1)(list(operands), extra)
    masks = operands[len(operands) - site.masked :]
    axes = tuple(
        dataclasses.replace(
            a, mapped=(*[True] * len(made), *a.mapped[len(operands) - len(masks) :])
        )
        for a in site.axes
    )
    new = dataclasses.replace(site, axes=axes, estimator=None, n_estimator=0, **found)
    return new, [*made, *masks]


def is_discrete(choice: Choice) -> bool:
    """Whether the values of a site are separate ones, with probabilities."""
    d = abstract_distribution(choice)
    real = jnp.issubdtype(choice.site.dtype, jnp.inexact) and not d.support.is_discrete
    return not real or bool(getattr(d, "has_enumerate_support", False))


def is_fixed(d: Any) -> bool:
    """Whether a distribution has one value alone."""
    d = unmasked(d)
    while type(d).__name__ in ("Independent", "ExpandedDistribution"):
        d = d.base_dist
    return type(d).__name__ == "Delta"


def unconstrained_like(entry: Entry) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the unconstrained numbers of an address, with its axes in front.

    Raises:
        UnsupportedError: those of its branches have different shapes.
    """
    likes = [_own_like(c) for c in entry.parts]
    if any(a.shape[a.ndim - len(o) :] != o for (a, o) in likes[1:] for o in [likes[0][1]]):
        raise UnsupportedError(
            f"the choice {show(entry.address)} at {entry.source} stands in several branches, with "
            "supports of different dimensions. Give each its own address."
        )
    inner = {c.path: a for c, (a, _) in zip(entry.parts, likes, strict=True)}
    if entry.conditional:
        lead = {p: a.shape[: a.ndim - len(o)] for p, (a, o) in zip(inner, likes, strict=True)}
        taken = {p: jax.ShapeDtypeStruct(s, jnp.bool_) for p, s in lead.items()}
        inner = {p: (a, taken[p]) for p, a in inner.items()}
    return jax.eval_shape(entry.join, inner)


def _own_like(c: Choice) -> tuple[jax.ShapeDtypeStruct, tuple[int, ...]]:
    site = c.site

    def inverse(d: Any) -> Any:
        return bijection(d, site).inv(jnp.full(site.shape, 0.5, site.dtype))

    u = abstractly(c, inverse)
    return jax.ShapeDtypeStruct((*c.lengths, *site.sizes, *u.shape), u.dtype), u.shape


def refuse_unread(names: Sequence[Address], closed: _jax.ClosedJaxpr, first: int) -> None:
    """Refuse that a program reads the values of choices, its inputs from ``first`` on."""
    live = _jax.live(closed)
    read = {v for e in live.jaxpr.eqns for v in e.invars if isinstance(v, _jax.Var)}
    read |= {v for v in live.jaxpr.outvars if isinstance(v, _jax.Var)}
    for name, v in zip(names, live.jaxpr.invars[first:], strict=True):
        if v in read:
            raise UnsupportedError(
                f"supports depend on {show(name)}, which is integrated out ({_jax.user_line()}): "
                "what is left has no fixed map to unconstrained numbers. Keep it too."
            )


__all__ = [
    "Visit",
    "bijection",
    "constrain",
    "instead",
    "is_discrete",
    "is_fixed",
    "refuse_unread",
    "unconstrain",
    "unconstrained_like",
    "walk",
]
