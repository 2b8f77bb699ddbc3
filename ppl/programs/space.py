"""``ppl.unconstrained``: the latent choices of a program as one vector without constraints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import jax
import jax.numpy as jnp

from transforms import _jax
from transforms.errors import Address, ShapeError, UnsupportedError, describe, show
from transforms.estimation.draws import sampled
from transforms.program.choices import abstract_distribution
from transforms.program.compiled import computed
from transforms.program.site import Site, element_keys, per_element
from transforms.runs import walk
from transforms.runs.addresses import Entry, flatten, likeness, match_shapes, nest

from .generative import Generative
from .given import Choices, as_key, merge
from .program import check_generative
from .sites import draw

Parts = dict[Address, jax.Array]
MEDIAN_OF = 15
"""Draws of the prior whose median a start is, as in NumPyro."""


@final
class Space:
    """The choices of ``g`` that are not in ``data``, see :func:`unconstrained`.

    Attributes:
        size: the number n of unconstrained numbers.
        slices: where the numbers of each address stand in the vector, ``(slice, shape)``.
        like: shape and dtype of every latent choice, by address.
        discrete: the latent addresses that have none; :func:`unconstrained` refuses them.
    """

    def __init__(self, g: Generative, data: Choices):
        self.g, self.data = g, dict(data)
        self._written = g.written()
        known = flatten(g.choices_like)
        drawn = {*flatten(data), *(e.address for e in self._written.entries if e.optional)}
        self.like = {a: s for a, s in known.items() if a not in drawn}
        sources = {e.address: e.source for e in self._written.entries}
        match_shapes(data, known, g.name, exact=False, sources=sources)
        entries = {e.address: e for e in self._written.entries if e.address in self.like}
        laws = {a: abstract_distribution(e.choice) for a, e in entries.items() if _has_law(e)}
        self.entries: dict[Address, Entry] = entries
        several = [a for a, d in laws.items() if not walk.is_fixed(d)]
        self.discrete = [a for a in several if walk.is_discrete(entries[a].choice)]
        free = [a for a in several if a not in self.discrete]
        self.slices: dict[Address, tuple[slice, tuple[int, ...]]] = {}
        self.size = 0
        for a in free:
            shape = walk.unconstrained_like(entries[a]).shape
            end = self.size + math.prod(shape)
            self.slices[a] = slice(self.size, end), shape
            self.size = end
        self._placed = self._placing()

    def __repr__(self) -> str:
        parts = ", ".join(f"{show(a)}: f{list(s)}" for a, (_, s) in self.slices.items())
        return f"Space(size={self.size}, {{{parts}}})"

    # --- what a user calls ---

    def init(self, key: jax.Array) -> jax.Array:
        """A start, f[size]: the median of 15 draws of each prior, given the medians before it.

        It is 0 where a prior cannot be drawn, or draws what is not finite.
        """
        return self.join(self.start(key)[0])

    def constrain(self, u: jax.Array) -> dict[str, Any]:
        """The choices at ``u`` f[size]: a nested dict of all that are not in the data."""
        return self.place(self.split(u), {})[0]

    def unconstrain(self, choices: Choices) -> jax.Array:
        """The vector f[size] of ``choices``, a nested dict of all that are not in the data."""
        return self.join(self.lift(choices)[0])

    def log_density(self, u: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Log density f[] of the program at ``u`` f[size] and the data, with the log Jacobian.

        ``key`` is for densities that are estimates, as in ``Generative.log_density``.
        """
        choices, log_jacobian = self.place(self.split(u), {})
        return self.g.log_density(merge(choices, self.data), key) + log_jacobian

    # --- what guides are made of ---

    def split(self, u: jax.Array) -> Parts:
        """The numbers of each address, with its axes in front."""
        if jnp.shape(u) != (self.size,):
            raise ShapeError(
                f"the unconstrained vector of {self.g.name} is f[{self.size}], and is given as "
                f"{describe(u)} ({_jax.user_line()}). For several at once use jax.vmap."
            )
        u = jnp.asarray(u, float)
        return {a: u[at].reshape(shape) for a, (at, shape) in self.slices.items()}

    def join(self, parts: Mapping[Address, jax.Array]) -> jax.Array:
        """The vector of the numbers of all addresses."""
        flat = [jnp.ravel(parts[a]) for a in self.slices]
        return jnp.concatenate(flat) if flat else jnp.zeros(0)

    def start(self, key: jax.Array) -> tuple[Parts, dict[Address, Any]]:
        """What :meth:`init` joins, and draws of the discrete choices."""

        def visit(entry: Entry, site: Site, operands: Any, given: Any, key: Any, acc: Any) -> Any:
            if entry.address not in self.slices:
                value = draw(site, operands, key) if given is None else given
                return value, value, acc
            u = _median(site, operands, key)
            return walk.constrain(site, operands, u)[0], u, acc

        run = lambda key, data: self.walk(visit, data, {}, key=key)[0]
        made = computed(run, as_key(key), flatten(self.data))
        return {a: made[a] for a in self.slices}, {a: made[a] for a in self.discrete}

    def place(
        self, parts: Parts, discrete: Mapping[Address, Any]
    ) -> tuple[dict[str, Any], jax.Array]:
        """The choices at unconstrained numbers and discrete values, and the log Jacobian f[]."""
        closed, consts, like = self._placed
        dropped = [jnp.zeros(s.shape, s.dtype) for s in like]
        given = [*(parts[a] for a in self.slices), *(discrete[a] for a in self.discrete)]
        outs = _jax.evaluate(closed, *consts, *given, *dropped)
        return nest(zip(self.like, outs[:-1], strict=True)), outs[-1]

    def _placing(self) -> Any:
        """What :meth:`place` evaluates: the walk without what it does not need."""
        known = likeness(self._written.entries)
        seen = {*self.like, *flatten(self.data), *flatten(self._written.fixed)}
        dropped = {a: s for a, s in known.items() if a not in seen}

        def visit(entry: Entry, site: Site, operands: Any, given: Any, key: Any, acc: Any) -> Any:
            if entry.address in self.slices:
                value, log_jacobian = walk.constrain(site, operands, given)
                return value, value, acc + log_jacobian
            value = self.known(site, operands, given)
            return value, value, acc

        def run(parts: list[Any], discrete: list[Any], rest: list[Any]) -> Any:
            values = dict(zip([*self.discrete, *dropped], [*discrete, *rest], strict=True))
            free = dict(zip(self.slices, parts, strict=True))
            made, _, total = self.walk(visit, values, free, acc=jnp.zeros(()))
            return [made[a] for a in self.like], total

        real = jnp.zeros(()).dtype
        parts = [jax.ShapeDtypeStruct(shape, real) for _, shape in self.slices.values()]
        discrete = [self.like[a] for a in self.discrete]
        closed, consts, _ = _jax.trace(run, parts, discrete, list(dropped.values()))
        n = len(closed.in_avals) - len(dropped)
        walk.refuse_unread(list(dropped), closed, n)
        return _jax.live(closed), consts, list(dropped.values())

    def known(self, site: Site, operands: Any, given: Any) -> Any:
        """The value of a choice that has no numbers: it is given, or has one value alone."""
        return draw(site, operands, jax.random.key(0)) if given is None else given

    def lift(self, choices: Choices) -> tuple[Parts, jax.Array]:
        """The unconstrained numbers of choices, and the log Jacobian f[] of :meth:`place`."""
        match_shapes(choices, self.like, self.g.name)

        def visit(entry: Entry, site: Site, operands: Any, given: Any, key: Any, acc: Any) -> Any:
            if entry.address not in self.slices:
                return given, given, acc
            u, log_jacobian = walk.unconstrain(site, operands, given)
            return given, u, acc + log_jacobian

        made, _, total = self.walk(visit, flatten(choices), {}, acc=jnp.zeros(()))
        return {a: made[a] for a in self.slices}, total

    def walk(
        self, visit: walk.Visit, values: Mapping[Address, Any], parts: Parts, **state: Any
    ) -> tuple[dict[Address, Any], dict[Address, jax.Array], Any]:
        """Walk through the program, with data and ``values`` given, and ``parts`` given in place
        of values at their addresses. Returns as ``transforms.runs.walk.walk``."""
        written = self._written
        fixed = {**flatten(self.data), **flatten(written.fixed), **values}
        given = written.given(nest(fixed.items()))
        for a, u in parts.items():
            given |= self.entries[a].split(u)
        return walk.walk(written.closed, written.args, written.entries, visit, given=given, **state)


def _has_law(entry: Entry) -> bool:
    return isinstance(entry.choice.random, Site)


def _median(site: Site, operands: Any, key: jax.Array) -> jax.Array:
    """The median of unconstrained draws, with the axes of a site in front."""

    def one(operands: list[Any], key: jax.Array) -> jax.Array:
        d = site.rebuild(site.live(operands))
        inverse = walk.bijection(d, site).inv
        try:
            u = jax.vmap(inverse)(sampled(d, key, (MEDIAN_OF,)))
        except NotImplementedError:  # an improper distribution
            return jnp.zeros(jax.eval_shape(inverse, jnp.full(site.shape, 0.5)).shape)
        middle = jnp.median(u, axis=0)
        return jnp.where(jnp.isfinite(middle), middle, 0.0)

    return per_element(site.axes, one, 1)(list(operands), element_keys(key, site.axes))


def unconstrained(g: Generative, data: Choices) -> Space:
    """The latent choices of a program as one vector of real numbers.

    Args:
        g: a generative function that was called; or ``ppl.marginal`` or ``ppl.normalize`` of one.
        data: nested dict of the choices that are observed.

    Returns:
        A space with ``.size``, ``.init(key) -> u``, ``.constrain(u) -> choices``,
        ``.unconstrain(choices) -> u`` and ``.log_density(u)``, which has the log Jacobian. ``u`` is
        f[size], and all are functions for ``jax.jit``, ``vmap`` and ``grad``. Each choice is mapped
        by numpyro's ``biject_to(support)``, with the support that it has given those before it.
        Where a branch is not taken, its numbers count nowhere.

    Raises:
        AddressError: ``data`` has an unknown address. ShapeError: one of a wrong shape.
        UnsupportedError: a latent choice is discrete, or its support has no bijection.

    Example:
        >>> space = ppl.unconstrained(model(), {"y": 1.0})
        >>> jax.grad(space.log_density)(space.init(jax.random.key(0)))
    """
    check_generative(g, "ppl.unconstrained")
    space = Space(g, data)
    for a in space.discrete:
        e = space.entries[a]
        kept = [b[0] if len(b) == 1 else b for b in flatten(g.choices_like) if b != a]
        raise UnsupportedError(
            f"the latent choice {show(a)} at {e.source} is discrete, and has no unconstrained "
            f"numbers ({_jax.user_line()}). Sum it out, ppl.unconstrained(ppl.marginal(g, {kept}, "
            "by=ppl.enumeration()), data); give it in the data; or use a guide, which gives it a "
            "distribution of its own: ppl.guides.mean_field(g, data, key=key)."
        )
    return space
