"""What a guide draws in the place of a choice, and the choice as the image of it.

A continuous choice is the image of unconstrained numbers under ``biject_to(support)``, a discrete
one that of an integer: a Categorical one for a finite support, a Binomial one below an end that is
not known beforehand, a negative binomial one where there is no end; what has another support is
drawn as the program draws it. So supports that depend on
earlier choices are followed too.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.transforms import IdentityTransform as Identity
from numpyro.distributions.transforms import IndependentTransform

from estimators.enumeration import enum, support
from transforms.errors import Address
from transforms.estimation import inside
from transforms.estimation.elements import is_masked
from transforms.program.choices import abstract_distribution
from transforms.program.site import Site, per_element
from transforms.runs import walk
from transforms.runs.addresses import Entry

Params = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Coordinate(abc.ABC):
    """What stands for one address. ``inside`` says that it is drawn where the choice stands in the
    program: its law depends on other choices, or it may be absent there."""

    entry: Entry
    inside: bool

    @property
    def address(self) -> Address:
        return self.entry.address

    @property
    def is_itself(self) -> bool:
        """Whether the value is the coordinate."""
        return False

    @abc.abstractmethod
    def law(self, d: Any, params: Params) -> dist.Distribution:
        """The law of a coordinate, in the place of ``d`` (None outside of the program)."""

    @abc.abstractmethod
    def image(self, d: Any, x: Any, site: Site) -> tuple[jax.Array, Any]:
        """The value at a coordinate, and the log Jacobian by elements (0 for a discrete one)."""

    @abc.abstractmethod
    def preimage(self, d: Any, value: Any, site: Site) -> jax.Array:
        """The coordinate of a value."""

    @abc.abstractmethod
    def start(self, point: jax.Array, scale: float) -> Params:
        """Parameters to begin with, given a value that the program would draw (of a continuous
        choice its coordinates)."""

    def placed(self, d: Any, params: Params) -> dist.Distribution:
        """As :meth:`law`, with the masks of ``d``."""
        law = self.law(d, params)
        return _masked_like(d, law, self.event_dim) if is_masked(d) else law

    def event_dim(self, d: Any) -> int:
        """How many axes of a coordinate belong to one event of the unwrapped ``d``."""
        return 0


class Continuous(Coordinate):
    """Unconstrained numbers, independent normal ones.

    ``dependent`` says that the law is one given other choices.
    """

    dependent: ClassVar[bool] = False

    @property
    def is_itself(self) -> bool:
        return isinstance(_base(walk.bijector(abstract_distribution(self.entry.choice))), Identity)

    def law(self, d: Any, params: Params) -> dist.Distribution:
        return dist.Normal(params["loc"], jnp.exp(params["log_scale"]))

    def image(self, d: Any, x: Any, site: Site) -> tuple[jax.Array, Any]:
        value = walk.bijection(d, site)(x)
        return value, _log_jacobian(d, x, value, site)

    def preimage(self, d: Any, value: Any, site: Site) -> jax.Array:
        return walk.bijection(d, site).inv(value)

    def start(self, point: jax.Array, scale: float) -> Params:
        return {"loc": point, "log_scale": jnp.full(point.shape, math.log(scale), point.dtype)}

    def event_dim(self, d: Any) -> int:
        return walk.bijector(d).domain.event_dim


class Discrete(Coordinate):
    """Integers, on from the lowest value of the support."""

    @property
    def is_itself(self) -> bool:
        return _is_static(self.entry) and _lowest(abstract_distribution(self.entry.choice)) == 0

    def image(self, d: Any, x: Any, site: Site) -> tuple[jax.Array, Any]:
        return x + _lowest(d), 0.0

    def preimage(self, d: Any, value: Any, site: Site) -> jax.Array:
        return value - _lowest(d)


class Two(Discrete):
    """A Bernoulli one."""

    def law(self, d: Any, params: Params) -> dist.Distribution:
        return dist.BernoulliLogits(params["logits"])

    def start(self, point: jax.Array, scale: float) -> Params:
        return {"logits": jnp.zeros(point.shape)}


@dataclasses.dataclass(frozen=True)
class Finite(Discrete):
    """A Categorical one of ``k`` values."""

    k: int

    def law(self, d: Any, params: Params) -> dist.Distribution:
        return dist.CategoricalLogits(params["logits"])

    def start(self, point: jax.Array, scale: float) -> Params:
        return {"logits": jnp.zeros((*point.shape, self.k))}


class UpTo(Discrete):
    """A Binomial one, up to an end that other choices decide."""

    def law(self, d: Any, params: Params) -> dist.Distribution:
        ends = _constraint(d)
        return dist.BinomialLogits(params["logits"], ends.upper_bound - ends.lower_bound)

    def start(self, point: jax.Array, scale: float) -> Params:
        return {"logits": jnp.zeros(point.shape)}


class Unbounded(Discrete):
    """A negative binomial one: mean and concentration, a Poisson one where the latter is large."""

    def law(self, d: Any, params: Params) -> dist.Distribution:
        mean, concentration = jnp.exp(params["log_mean"]), jnp.exp(params["log_concentration"])
        return dist.NegativeBinomial2(mean, concentration)

    def start(self, point: jax.Array, scale: float) -> Params:
        log_mean = jnp.log(jnp.asarray(point, float) + 0.5)
        return {"log_mean": log_mean, "log_concentration": jnp.full_like(log_mean, math.log(10.0))}


class Counts(Discrete):
    """A Multinomial one."""

    def law(self, d: Any, params: Params) -> dist.Distribution:
        n = _constraint(d).upper_bound
        return dist.MultinomialLogits(params["logits"], n)

    @property
    def is_itself(self) -> bool:
        return True

    def image(self, d: Any, x: Any, site: Site) -> tuple[jax.Array, Any]:
        return x, 0.0

    def preimage(self, d: Any, value: Any, site: Site) -> jax.Array:
        return value

    def start(self, point: jax.Array, scale: float) -> Params:
        return {"logits": jnp.zeros(point.shape)}


class Own(Discrete):
    """As the program draws it: there is no family for its support."""

    @property
    def is_itself(self) -> bool:
        return True

    def law(self, d: Any, params: Params) -> dist.Distribution:
        return d

    def placed(self, d: Any, params: Params) -> dist.Distribution:
        return d

    def image(self, d: Any, x: Any, site: Site) -> tuple[jax.Array, Any]:
        return x, 0.0

    def preimage(self, d: Any, value: Any, site: Site) -> jax.Array:
        return value

    def start(self, point: jax.Array, scale: float) -> Params:
        return {}


# --- which one ------------------------------------------------------------------------------------


def coordinate(entry: Entry, continuous: type[Continuous] = Continuous) -> Coordinate:
    """What stands for an address; ``continuous`` says by what for a continuous choice."""
    d = abstract_distribution(entry.choice)
    absent = entry.conditional or is_masked(d)
    if not walk.is_discrete(entry.choice):
        return continuous(entry, absent or continuous.dependent)
    kinds = {_kind(abstract_distribution(c)) for c in entry.parts}
    kind, k = kinds.pop() if len(kinds) == 1 else (Own, 0)
    if issubclass(kind, Finite):
        return kind(entry, absent, k)
    moves = kind in (UpTo, Counts, Own) or not _is_static(entry)
    return kind(entry, absent or moves)


def _kind(d: Any) -> tuple[Any, int]:
    constraint = _constraint(d)
    if constraint is constraints.boolean:
        return Two, 2
    interval = isinstance(constraint, constraints.integer_interval)
    if interval and enum().unsuitable(leaf(d)) is None:
        k = jax.eval_shape(lambda: support(leaf(d))).shape[0]
        return Finite, k
    if interval:
        return UpTo, 0
    if isinstance(constraint, constraints.integer_greater_than):
        return Unbounded, 0
    if isinstance(constraint, constraints.multinomial):
        return Counts, 0
    return Own, 0


def leaf(d: Any) -> Any:
    """A distribution without what is wrapped around it."""
    while type(d).__name__ in ("Independent", "ExpandedDistribution", "MaskedDistribution"):
        d = d.base_dist
    return d


def _constraint(d: Any) -> Any:
    constraint = getattr(d, "support", None)
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def _base(transform: Any) -> Any:
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return transform


def _lowest(d: Any) -> Any:
    return getattr(_constraint(d), "lower_bound", 0)


def _is_static(entry: Entry) -> bool:
    """Whether the lowest value is a number that is known beforehand."""
    return all(
        not isinstance(_lowest(abstract_distribution(c)), jax.ShapeDtypeStruct) for c in entry.parts
    )


# --- masks ------------------------------------------------------------------------------------


def _masked_like(d: Any, law: Any, event_dim: Callable[[Any], int]) -> Any:
    """A law of elements with the masks, and the events, that ``d`` has."""
    kind = type(d).__name__
    if kind == "MaskedDistribution":
        return _masked_like(d.base_dist, law, event_dim).mask(d._mask)
    if kind == "Independent":
        inner = _masked_like(d.base_dist, law, event_dim)
        return inner.to_event(d.reinterpreted_batch_ndims)
    if kind == "ExpandedDistribution":
        return _masked_like(d.base_dist, law, event_dim)
    return law.to_event(event_dim(d))


def _log_jacobian(d: Any, x: Any, value: Any, site: Site) -> jax.Array:
    """By events of ``d``; what a mask hides counts nowhere."""
    kind = type(d).__name__
    if kind == "MaskedDistribution":
        return jnp.where(d._mask, _log_jacobian(d.base_dist, x, value, site), 0.0)
    if kind == "Independent":
        inner = _log_jacobian(d.base_dist, x, value, site)
        return jnp.sum(inner, axis=tuple(range(-d.reinterpreted_batch_ndims, 0)))
    if kind == "ExpandedDistribution":
        return _log_jacobian(d.base_dist, x, value, site)
    return walk.bijection(d, site).log_abs_det_jacobian(x, value)


# --- all elements of a site -----------------------------------------------------------------------


def forward(c: Coordinate, site: Site, operands: Any, x: Any) -> tuple[jax.Array, jax.Array]:
    """The value of a site at its coordinates, and the log Jacobian of all elements, f[]."""

    def one(operands: list[Any], x: Any) -> tuple[Any, Any]:
        value, log_jacobian = c.image(site.rebuild(site.live(operands)), x, site)
        return value, _taken(site, operands, jnp.sum(log_jacobian))

    value, log_jacobian = per_element(site.axes, one, 1)(list(operands), x)
    return value, jnp.sum(log_jacobian)


def backward(c: Coordinate, site: Site, operands: Any, value: Any) -> tuple[jax.Array, jax.Array]:
    """The coordinates of the value of a site, and whether all of it is in the support, bool[]."""

    def one(operands: list[Any], value: Any) -> tuple[Any, Any]:
        d = site.rebuild(site.live(operands))
        allowed = inside.allows(d.support, value) if inside.has_ends(d) else True
        allowed = jnp.all(allowed) | ~jnp.asarray(site.mask(operands))
        return _taken(site, operands, c.preimage(d, value, site)), allowed

    x, allowed = per_element(site.axes, one, 1)(list(operands), value)
    return x, jnp.all(allowed)


def _taken(site: Site, operands: Any, x: jax.Array) -> jax.Array:
    return jnp.where(site.mask(operands), x, jnp.zeros((), x.dtype)) if site.masked else x
