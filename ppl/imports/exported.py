"""``ppl.to_numpyro``: a generative function becomes a NumPyro model.

Each latent choice is a site whose values are where the program allows them, given the choices
before it: its support is known by the map from unconstrained numbers, which a walk through the
program is. All of the density is one factor. So ``vmap``, ``scan``, ``cond`` and nested programs
need nothing of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import Transform

from transforms import _jax
from transforms.errors import Address, UnsupportedError, show
from transforms.program.choices import choices
from transforms.program.site import Site
from transforms.runs import walk
from transforms.runs.addresses import Entry, flatten, nest

from ..programs.generative import Generative
from ..programs.given import Choices, merge
from ..programs.space import Space, unconstrained


def to_numpyro(g: Generative, data: Choices | None = None) -> Callable[[], None]:
    """A NumPyro model, without arguments, of the choices of ``g`` that are not in ``data``.

    Its sites have the addresses, those of nested programs joined by "/", and
    ``numpyro.infer.util.log_density`` of it is the log density of ``g``. Algorithms that work with
    gradients run on it, like NUTS; it cannot be drawn from (``g.simulate`` does that).

    Args:
        g: a generative function that was called.
        data: nested dict of the choices that are observed.

    Raises:
        AddressError: ``data`` has an unknown address. ShapeError: one of a wrong shape.
        UnsupportedError: a latent choice is discrete, or its support has no bijection; the program
            draws noise in every run; supports of two choices depend on one another.

    Example:
        >>> nuts = NUTS(ppl.to_numpyro(model(), {"y": 1.0}))
        >>> mcmc = MCMC(nuts, num_warmup=50, num_samples=50)
        >>> mcmc.run(jax.random.key(0))
    """
    data = data or {}
    space = unconstrained(g, data)
    _refuse_noise(g)
    before = _before(space)

    def model() -> None:
        values: dict[Address, Any] = {}
        for a in space.slices:
            reached = Reached(space, a, {b: values[b] for b in before[a]})
            values[a] = numpyro.sample("/".join(a), Latent(reached))
        latent = _complete(space, values)
        for a in space.like:
            if a not in values:
                numpyro.deterministic("/".join(a), latent[a])
        log_density = g.log_density(merge(nest(latent.items()), data))
        numpyro.factor("log density", log_density)

    model.__name__ = f"to_numpyro({g.name})"
    return model


def _refuse_noise(g: Generative) -> None:
    for c in choices(g.written().closed, densities=True):
        if isinstance(c.random, Site) and c.random.role in ("hidden", "optional"):
            raise UnsupportedError(
                f"{g.name} draws {show(c.address)} at {c.source} in every run, which makes its "
                f"density random, and ppl.to_numpyro at {_jax.user_line()} needs the density "
                "itself. Give the subsample's indices as data; make noise an argument of the model."
            )


def _complete(space: Space, values: Mapping[Address, Any]) -> dict[Address, Any]:
    """All latent values, those of points too."""

    def visit(entry: Entry, site: Site, operands: Any, given: Any, key: Any, acc: Any) -> Any:
        value = space.known(site, operands, given)
        return value, value, acc

    if len(values) == len(space.like):
        return dict(values)
    made, _, _ = space.walk(visit, values, {})
    return {a: made[a] for a in space.like}


def _before(space: Space) -> dict[Address, list[Address]]:
    """The addresses whose values decide the support of each."""
    names = list(space.slices)
    like = [jnp.zeros(shape) for _, shape in space.slices.values()]

    def run(parts: list[Any]) -> list[Any]:
        made = flatten(space.place(dict(zip(names, parts, strict=True)), {})[0])
        return [made[a] for a in names]

    closed, _, _ = _jax.trace(run, like)
    jaxpr, first = closed.jaxpr, len(closed.in_avals) - len(names)
    found: dict[Address, list[Address]] = {}
    for i, a in enumerate(names):
        one = _jax.live(_jax.open_jaxpr(jaxpr, jaxpr.invars, [jaxpr.outvars[i]], jaxpr.eqns))
        read = {v for e in one.jaxpr.eqns for v in e.invars if isinstance(v, _jax.Var)}
        read |= {v for v in one.jaxpr.outvars if isinstance(v, _jax.Var)}
        found[a] = [b for b, v in zip(names, one.jaxpr.invars[first:], strict=True) if v in read]
        for b in found[a][found[a].index(a) + 1 :] if a in found[a] else found[a]:
            if names.index(b) > i:
                raise UnsupportedError(
                    f"the support of {show(a)} depends on {show(b)}, which comes after it in a "
                    f"loop, and NumPyro makes one choice of all steps ({_jax.user_line()}). Make "
                    "one choice of both, or choose unconstrained numbers and transform them."
                )
        found[a] = [b for b in found[a] if b != a]
    return found


# --- a support, as NumPyro needs it ---


class Reached(constraints._GreaterThan):
    """Where values of an address are, given ``before``: those of others that decide it.

    NumPyro takes it for a half-line, and so, if others decide it, for one that is not known
    beforehand.
    """

    def __init__(self, space: Space, address: Address, before: Mapping[Address, Any]):
        super().__init__(jnp.zeros(()) if before else 0.0)
        self.space, self.address, self.before = space, address, before
        self.shape = space.like[address].shape

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        return len(self.shape)

    def __call__(self, x: Any) -> jax.Array:
        return jnp.array(True)  # the density is minus infinity elsewhere

    def walk(self, value: Any, *, inverse: bool) -> tuple[jax.Array, jax.Array]:
        """The image of a value, and the log Jacobian f[] from unconstrained numbers."""
        space, address = self.space, self.address
        bijection = walk.unconstrain if inverse else walk.constrain

        def visit(entry: Entry, site: Site, operands: Any, given: Any, key: Any, acc: Any) -> Any:
            if entry.address == address:
                image, log_jacobian = bijection(site, operands, given)
                return given if inverse else image, image, acc + log_jacobian
            if entry.address in zeros:
                value = walk.constrain(site, operands, given)[0]
            else:
                value = space.known(site, operands, given)
            return value, value, acc

        zeros = {
            a: jnp.zeros(shape)
            for a, (_, shape) in space.slices.items()
            if a != address and a not in self.before
        }
        values = {**self.before, address: value} if inverse else self.before
        parts = zeros if inverse else {**zeros, address: value}
        made, _, log_jacobian = space.walk(visit, values, parts, acc=jnp.zeros(()))
        return made[address], log_jacobian


@final
class Walked(Transform):
    """From unconstrained numbers to values, by a walk through the program."""

    def __init__(self, reached: Reached):
        self.reached = reached
        self.size = reached.space.slices[reached.address][1]

    @property
    def domain(self) -> Any:
        return constraints.independent(constraints.real, len(self.size))

    @property
    def codomain(self) -> Any:
        return self.reached

    def __call__(self, x: Any) -> jax.Array:
        return self.reached.walk(x, inverse=False)[0]

    def _inverse(self, y: Any) -> jax.Array:
        return self.reached.walk(y, inverse=True)[0]

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> jax.Array:
        return self.reached.walk(x, inverse=False)[1]

    def forward_shape(self, shape: Any) -> Any:
        return (*shape[: len(shape) - len(self.size)], *self.reached.shape)

    def inverse_shape(self, shape: Any) -> Any:
        return (*shape[: len(shape) - len(self.reached.shape)], *self.size)


@biject_to.register(Reached)
def _(reached: Reached) -> Walked:
    return Walked(reached)


@final
class Latent(dist.Distribution):
    """A choice whose density is counted elsewhere."""

    def __init__(self, reached: Reached):
        self.reached = reached
        super().__init__((), reached.shape)

    @property
    def support(self) -> Any:
        return self.reached

    def log_prob(self, value: Any) -> jax.Array:
        return jnp.zeros(jnp.shape(value)[: jnp.ndim(value) - len(self.event_shape)])
