"""What a program chooses: its choices with their distributions, supports and shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.batch_util import promote_batch_shape

from transforms import _jax
from transforms.errors import Address
from transforms.estimation.draws import sampled, vectorised_draw
from transforms.gradient.seed import seeded
from transforms.program.compiled import computed
from transforms.program.site import Site
from transforms.runs.addresses import Entry, flatten, likeness, match
from transforms.runs.execute import broadcast_operands
from transforms.runs.walk import walk

from .given import Choices


@dataclasses.dataclass(frozen=True)
class Written:
    """The ``@ppl.gen`` program behind a Generative.

    ``closed`` with ``args`` is its jaxpr, ``entries`` its addresses, ``fixed`` choices that a
    wrapper has fixed.
    """

    name: str
    closed: _jax.ClosedJaxpr
    args: Sequence[Any]
    entries: Sequence[Entry]
    fixed: Choices

    def given(self, values: Choices) -> dict[Any, Any]:
        """Values by the paths of their choices; checks addresses and shapes."""
        return match(self.entries, values, self.name, exact=False)


@dataclasses.dataclass(frozen=True)
class ProgramSite:
    """One choice of a program.

    Attributes:
        address: ``"x"``, or ``("inner", "x")`` for a nested one.
        distribution: the numpyro distribution that the program gives it; axes of ``vmap`` and
            ``scan`` around it are in front of its batch shape. None for a choice of a nested
            marginal or posterior, which is known by its density.
        support: the constraint of that distribution, or None.
        shape: of the whole value, those axes included.
        dtype: of the value.
        observed: whether its value was given.
        source: the line of the program.
    """

    address: str | Address
    distribution: dist.Distribution | None
    support: Any
    shape: tuple[int, ...]
    dtype: Any
    observed: bool
    source: str


def sites(
    written: Written, choices: Choices, counted: Sequence[Address]
) -> dict[str | Address, ProgramSite]:
    """The sites of a program with ``choices`` fixed and the rest drawn with one key."""
    given = written.given({**written.fixed, **choices})
    seen = set(flatten(choices))
    templates: dict[Address, tuple[Site, list[int]]] = {}

    def visit(entry: Entry, site: Site, operands: Any, given: Any, key: Any, acc: Any) -> Any:
        value = draw(site, operands, key) if given is None else given
        templates.setdefault(entry.address, (site, []))
        return value, broadcast_operands(site, operands), acc

    def run(args: Sequence[Any], given: Any, key: jax.Array) -> Any:
        state: dict[str, Any] = {"given": given, "key": key, "seeded": seeded}
        return walk(written.closed, args, written.entries, visit, **state)[0]

    made = computed(run, list(written.args), given, jax.random.key(0))
    out: dict[str | Address, ProgramSite] = {}
    for entry in written.entries:
        for address, like in likeness([entry]).items():
            if address not in counted:
                continue
            d = None
            if isinstance(entry.choice.random, Site):
                site = templates[entry.address][0]
                d = whole_distribution(site, made[entry.address], like.shape)
            name = address[0] if len(address) == 1 else address
            support = None if d is None else d.support
            out[name] = ProgramSite(
                name, d, support, like.shape, like.dtype, address in seen, entry.source
            )
    return out


def draw(site: Site, operands: Sequence[Any], key: jax.Array) -> jax.Array:
    """A draw of a choice, ``[*sizes, *shape]``."""
    return vectorised_draw(site, operands, key, sampled)


def whole_distribution(
    site: Site, operands: list[Any], shape: tuple[int, ...]
) -> dist.Distribution:
    """The distribution of the whole value, from operands with its axes in front."""
    lead = shape[: len(shape) - len(site.shape)]
    if not lead:
        return site.rebuild(operands)
    stacked = Stacked(site, operands, lead)
    build = site.rebuild
    for _ in lead:
        build = jax.vmap(build)
    try:  # numpyro does not know how to move the axes of all of its distributions
        d = promote_batch_shape(build(operands))
        value = jax.eval_shape(d.sample, jax.random.key(0))
        density = jax.eval_shape(d.log_prob, value)
        if d.shape() == shape == value.shape and density.shape == d.batch_shape:
            return d
    except Exception:
        return stacked
    return stacked


@final
class Stacked(dist.Distribution):
    """Copies of a distribution side by side, with axes ``lead`` in front of its batch shape."""

    def __init__(self, site: Site, operands: list[Any], lead: tuple[int, ...]):
        self._site, self._operands, self._lead = site, operands, lead
        one = site.rebuild([v[(0,) * len(lead)] for v in operands])
        self.one = one
        super().__init__((*lead, *one.batch_shape), one.event_shape)

    def _each(self, f: Callable[..., Any], *values: Any) -> Any:
        for _ in self._lead:
            f = jax.vmap(f)
        return f(self._operands, *values)

    @property
    def support(self) -> Any:
        """That of the copies, its numbers with the axes in front."""

        def wide(v: jax.Array) -> jax.Array:
            n, own = len(self._lead), len(self._site.shape)
            return v.reshape(*v.shape[:n], *(1,) * (own + n - v.ndim), *v.shape[n:])

        each = self._each(lambda ops: jax.tree.map(jnp.asarray, self._site.rebuild(ops).support))
        return jax.tree.map(wide, each)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        def draws(key: jax.Array) -> jax.Array:
            keys = jax.random.split(key, self._lead)
            return self._each(lambda ops, k: self._site.rebuild(ops).sample(k), keys)

        keys = jax.random.split(key, sample_shape) if sample_shape else key
        for _ in sample_shape:
            draws = jax.vmap(draws)
        return draws(keys)

    def log_prob(self, value: Any) -> jax.Array:
        one = lambda value: self._each(lambda ops, v: self._site.rebuild(ops).log_prob(v), value)
        for _ in range(jnp.ndim(value) - len(self.batch_shape) - len(self.event_shape)):
            one = jax.vmap(one)
        return one(value)
