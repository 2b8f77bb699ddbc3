"""The density outside a support is 0.

Many densities are finite formulas that know no end of their support. :func:`log_prob` scores a
value with a check: the primitive :data:`inside_p` returns the value, replaced where it is outside
by one that is inside (so that no derivative becomes NaN), and whether it is inside.
``contained.py`` takes the checks away that a program passes by construction. A support without
ends has none.

A draw that rounds to the end of an open support counts as inside, except where the distribution is
a transformed one, whose density there is not a number.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _jax
from ..errors import Address
from ..program import marks, opened
from ..program.site import Axis, Opaque, advance, per_element


@dataclasses.dataclass(frozen=True)
class Check:
    """Whether a value is in the support of a distribution, all but the numbers.

    Of the operands the value is the first, the others are leaves of the distribution. ``partial``
    says that it does not count for all elements.
    """

    address: Address
    source: str
    name: str
    distribution: Opaque
    static: tuple[tuple[int, Any], ...]
    partial: bool
    axes: tuple[Axis, ...] = ()

    def rebuild(self, leaves: Any) -> Any:
        """The distribution, from operands without the value and ``vmap`` axes."""
        return jax.tree.unflatten(self.distribution.value, opened.put_back(self.static, leaves))

    def evaluate(self, *operands: Any) -> list[Any]:
        """The value, made harmless where it is outside, and whether it is inside."""

        def one(operands: list[Any]) -> list[Any]:
            return _checked(self.rebuild(operands[1:]), operands[0])

        return per_element(self.axes, one, 0)(list(operands))


def log_prob(d: Any, value: Any, address: Address, source: str, partial: bool = False) -> Any:
    """``d.log_prob(value)``, minus infinity outside the support; masked elements are ignored."""
    kind = type(d).__name__
    if not has_ends(d):
        return d.log_prob(value)
    if kind == "MaskedDistribution":
        if isinstance(d._mask, bool):
            return (
                d.log_prob(value) if not d._mask else log_prob(d.base_dist, value, address, source)
            )
        inner = log_prob(d.base_dist, value, address, source, True)
        return jnp.where(d._mask, inner, 0.0)
    if kind == "Independent":
        inner = log_prob(d.base_dist, value, address, source, partial)
        return jnp.sum(inner, axis=tuple(range(-d.reinterpreted_batch_ndims, 0)))
    if kind == "ExpandedDistribution":
        inner = log_prob(d.base_dist, value, address, source, partial)
        shape = jnp.shape(value)[: jnp.ndim(value) - len(d.event_shape)]
        return jnp.broadcast_to(inner, jnp.broadcast_shapes(d.batch_shape, shape))
    leaves, tree = opened.flatten(d)
    static, kept = opened.set_apart(leaves)
    check = Check(address, source, kind, Opaque(tree), static, partial)
    safe, inside = inside_p.bind(*map(jnp.asarray, [value, *kept]), check=check)
    log_density = d.log_prob(safe)
    if inside.shape != log_density.shape:
        inside = jnp.broadcast_to(inside, log_density.shape)
    with marks.mark(marks.OUTSIDE):
        return lax.select_n(inside, jnp.full_like(log_density, -jnp.inf), log_density)


def has_ends(d: Any) -> bool:
    """Whether there are values outside the support of a distribution (that its class tells)."""
    return _bounds(support_of(d)) or narrowed(d)


def _bounds(constraint: Any) -> bool:
    return constraint is not None and type(base_of(constraint)).__name__ not in _EVERYWHERE


def narrowed(d: Any) -> bool:
    """Whether a transformed distribution reaches less than its support, the codomain of its last
    transform, says: a transform before it, or what is transformed, ends inside of a domain."""
    return any(_ends_inside(given, t.domain) for given, t in links(d))


def _ends_inside(given: Any, domain: Any) -> bool:
    """Whether a support is not known to be the domain that it is mapped from."""
    if not _bounds(given):
        return False
    given, domain = base_of(given), base_of(domain)
    ends = [getattr(given, name, None) for name in ("lower_bound", "upper_bound")]
    plain = all(e is None or isinstance(e, int | float) for e in ends)
    return type(given) is not type(domain) or not plain or vars(given) != vars(domain)


def links(d: Any) -> list[tuple[Any, Any]]:
    """The transforms of a distribution whose support is that of the last one, in order, each with
    the support of what it is given."""
    says = next((k for k in type(d).__mro__ if "support" in vars(k)), None)
    if says is None or says.__name__ != "TransformedDistribution":
        return []
    given, found = support_of(d.base_dist), []
    for transform in d.transforms:
        for t in getattr(transform, "parts", [transform]):
            found.append((given, t))
            given = t.codomain
    return found


_EVERYWHERE = {"_Real", "_Complex", "_Dependent", "dependent_property"}


def support_of(d: Any) -> Any:
    """The support of a distribution, None if it does not say."""
    try:
        return d.support
    except Exception:  # a property of the user's, or one that needs numbers
        return None


def base_of(constraint: Any) -> Any:
    """The constraint on an element of independent ones."""
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint


def _checked(d: Any, value: Any) -> list[Any]:
    constraint = support_of(d)
    inside = allows(constraint, value, strict=hasattr(d, "transforms"))
    inside = jnp.broadcast_to(inside, _shape(d, value))
    if narrowed(d):
        return _in_image(d, value, inside)
    here = inside.reshape(*inside.shape, *[1] * len(d.event_shape))
    if type(base_of(constraint)).__name__ == "_Boolean":  # such densities are finite everywhere
        return [jnp.broadcast_to(value, jnp.broadcast_shapes(here.shape, jnp.shape(value))), inside]
    try:
        harmless = jnp.asarray(constraint.feasible_like(value)).astype(value.dtype)
    except Exception:  # a constraint of the user's
        harmless = value
    return [jnp.where(here, value, harmless), inside]


def _in_image(d: Any, value: Any, inside: Any) -> list[Any]:
    """As ``_checked``, where the inverse of each transform must be in what it is given."""
    chain = links(d)
    back = value
    for given, transform in reversed(chain):
        back = transform.inv(back)
        if given is not None:
            allowed = allows(given, back)
            axes = tuple(range(inside.ndim, jnp.ndim(allowed)))
            inside = inside & jnp.all(allowed, axis=axes)
    harmless = jnp.zeros_like(back) if chain[0][0] is None else chain[0][0].feasible_like(back)
    for _, transform in chain:
        harmless = transform(harmless)
    here = inside.reshape(*inside.shape, *[1] * len(d.event_shape))
    return [jnp.where(here, value, harmless).astype(value.dtype), inside]


def _shape(d: Any, value: Any) -> tuple[int, ...]:
    batch = jnp.shape(value)[: jnp.ndim(value) - len(d.event_shape)]
    return tuple(np.broadcast_shapes(d.batch_shape, batch))


def allows(constraint: Any, x: Any, strict: bool = False) -> Any:
    """Whether values are in a support: bool without its event axes."""
    kind = type(constraint).__name__
    if kind == "_IndependentConstraint":
        inner = allows(constraint.base_constraint, x, strict)
        return jnp.all(inner, axis=tuple(range(-constraint.reinterpreted_batch_ndims, 0)))
    if kind in _CLOSED and not strict:
        return _CLOSED[kind](constraint, x)
    if kind in _TOLERANT:
        return _TOLERANT[kind](x)
    if kind == "_Multinomial":
        whole = jnp.all((x >= 0) & (x == jnp.floor(x)), axis=-1)
        return whole & (jnp.sum(x, axis=-1) == constraint.upper_bound)
    inside = constraint(x)
    return jnp.all(inside, axis=-1) if kind == "_PositiveDefiniteCirculantVector" else inside


def _above(c: Any, x: Any) -> Any:
    return x >= c.lower_bound


def _ordered(x: Any) -> Any:
    return jnp.all(x[..., 1:] >= x[..., :-1], axis=-1)


_CLOSED = {
    "_GreaterThan": _above,
    "_Positive": _above,
    "_SoftplusPositive": _above,
    "_LessThan": lambda c, x: x <= c.upper_bound,
    "_OpenInterval": lambda c, x: (x >= c.lower_bound) & (x <= c.upper_bound),
    "_OrderedVector": lambda c, x: _ordered(x),
    "_PositiveOrderedVector": lambda c, x: _ordered(x) & (x[..., 0] >= 0),
}


def _rounding(x: Any, size: int) -> float:
    eps = float(jnp.finfo(jnp.result_type(x, float)).eps)
    return max(1e-6, eps * (32.0 + 4.0 * math.sqrt(size)))


def _simplex(x: Any) -> Any:
    off = jnp.abs(jnp.sum(x, axis=-1) - 1.0)
    return jnp.all(x >= 0, axis=-1) & (off <= _rounding(x, x.shape[-1]))


def _positive_definite(x: Any) -> Any:
    top = jnp.max(jnp.abs(x), axis=(-2, -1))
    tol = 10 * x.shape[-1] * float(jnp.finfo(x.dtype).eps) * top
    symmetric = jnp.max(jnp.abs(x - jnp.swapaxes(x, -2, -1)), axis=(-2, -1)) <= tol
    return symmetric & (jnp.linalg.eigvalsh(x)[..., 0] >= -tol)


def _correlation(x: Any) -> Any:
    diagonal = jnp.diagonal(x, axis1=-2, axis2=-1)
    near = jnp.all(jnp.abs(diagonal - 1.0) <= _rounding(x, x.shape[-1] ** 2), axis=-1)
    return near & _positive_definite(x)


_TOLERANT = {
    "_Simplex": _simplex,
    "_PositiveDefinite": _positive_definite,
    "_PositiveSemiDefinite": _positive_definite,
    "_CorrMatrix": _correlation,
}


# --- the primitive ------------------------------------------------------------------------------


def _abstract(value: Any, *leaves: Any, check: Check) -> list[Any]:
    sizes = tuple(a.size for a in check.axes)
    skip = [sum(a.mapped[j] for a in check.axes) for j in range(1 + len(leaves))]
    like = [
        jax.ShapeDtypeStruct(a.shape[n:], a.dtype)
        for a, n in zip([value, *leaves], skip, strict=True)
    ]
    d = check.rebuild(like[1:])
    shape = _shape(d, like[0])
    safe = jnp.broadcast_shapes((*shape, *[1] * len(d.event_shape)), like[0].shape)
    return [
        _jax.ShapedArray((*sizes, *safe), value.dtype),
        _jax.ShapedArray((*sizes, *shape), jnp.dtype(bool)),
    ]


def _batch(axis_size: int, args: Any, dims: Any, *, check: Check) -> Any:
    axis, args = advance(axis_size, args, dims)
    check = dataclasses.replace(check, axes=(axis, *check.axes))
    return inside_p.bind(*args, check=check), [0, 0]


inside_p = _jax.define_function(
    "inside",
    lambda *operands, check: check.evaluate(*operands),
    abstract=_abstract,
    batch=_batch,
)
