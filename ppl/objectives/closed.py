"""Log densities of a model and a guide by choices, those with a closed form integrated out.

At an address where both programs have a law of their own, and numpyro a divergence of these, the
difference log p(a) - log q(a) has the mean -KL(q || p) given what the guide draws before ``a``. It
is put in its place where the model's law depends on nothing else
(``transforms/analyses/order.py``). Elsewhere log q(a) has the mean -H(q) given what the guide draws
before, which is put in its place where numpyro has an entropy. What is left stays as it is drawn.
So the expectation is the same, and its derivative too, whatever the estimators.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import distributions as dist
from numpyro.distributions.kl import kl_divergence

from transforms.analyses.order import settled
from transforms.errors import Address
from transforms.estimation.elements import is_masked
from transforms.program import marks
from transforms.program.choices import Choice, abstract_distribution
from transforms.program.site import Site
from transforms.runs.addresses import Entry
from transforms.runs.execute import Execution
from transforms.runs.parts import Part

from ..programs.generative import Generative
from ..programs.given import Choices, merge
from ..programs.lawful import Parts
from ..programs.program import Program
from ..programs.sites import whole_distribution


@dataclasses.dataclass(frozen=True)
class Pair:
    """The log densities of a model and a guide at a draw of the guide; in ``p``, at the addresses
    ``closed``, minus a divergence, and in ``q`` nothing there; elsewhere in ``q`` minus an entropy
    where there is one."""

    p: Parts
    q: Parts
    factors_p: dict[Address, jax.Array]
    factors_q: dict[Address, jax.Array]
    closed: frozenset[Address] = frozenset()

    @property
    def addresses(self) -> list[Address]:
        """All that may have a weight."""
        parts = [a for group in (*self.p, *self.q) for a in group]
        return [*parts, *self.factors_p, *self.factors_q]


def drawn(p: Generative, q: Generative, data: Choices) -> Pair:
    """Both at a draw of the guide."""
    z = q.execute({})
    x = p.execute(merge(z.choices, data), exact=True)
    return Pair(x.densities, z.densities, x.factors, z.factors)


def closed(p: Generative, q: Generative, data: Choices) -> Pair:
    """As :func:`drawn`, with closed forms where there are any."""
    model, guide = p.as_program(), q.lawful()
    if not isinstance(model, Program) or guide is None:
        return drawn(p, q, data)
    shared = {a: e for a, e in _candidates(model, guide.program).items() if guide.is_drawn(a)}
    own = _entropic(guide.program)
    z = guide.program.execute({}, laws=list({**shared, **own}))
    x = model.execute(merge(guide.choices(z), data), exact=True, laws=list(shared))
    found = {}
    for a, (mine, theirs) in shared.items():
        part = _divergence((mine, x.laws[a]), (theirs, z.laws[a]))
        if part is not None:
            found[a] = part
    parts = {g: found.get(g[0], part) for g, part in x.densities.items()}
    left = {a: e for a, e in own.items() if a not in found}
    rest = guide.parts(z, _with_entropies(z.densities, left, z))
    rest = {g: part for g, part in rest.items() if g[0] not in found}
    return Pair(parts, rest, x.factors, z.factors, frozenset(found))


def entropies(q: Generative) -> Parts:
    """The log densities of a program at a draw of it, minus an entropy where there is one."""
    guide = q.lawful()
    if guide is None:
        return q.execute({}).densities
    own = _entropic(guide.program)
    z = guide.program.execute({}, laws=list(own))
    return guide.parts(z, _with_entropies(z.densities, own, z))


def _entropic(q: Program) -> dict[Address, Entry]:
    """The addresses of which a program knows a law with an entropy."""
    known = [e for e in q.written().entries if _known(e)]
    has = lambda e: type(_core(abstract_distribution(e.choice))).entropy in _ENTROPIES
    return {e.address: e for e in known if has(e)}


def _with_entropies(parts: Parts, entries: dict[Address, Entry], z: Execution) -> Parts:
    new = {(a,): _entropy(e, z.laws[a]) for a, e in entries.items() if (a,) in parts}
    return {**parts, **new}


def _entropy(e: Entry, law: Any) -> Part:
    """-H for each element of the axes around the choice."""
    n = e.n_axes
    each: Callable[..., jax.Array] = lambda ops: (
        -jnp.sum(_whole(e.choice, ops, e.like.shape[n:]).entropy())
    )
    for _ in range(n):
        each = jax.vmap(each)
    with marks.mark(marks.DENSITY):
        return Part(each(law), n)


def _candidates(p: Program, q: Program) -> dict[Address, tuple[Entry, Entry]]:
    """The addresses of which both programs know a law with a divergence."""
    a, b = p.written(), q.written()
    fixed = settled((a.closed, a.entries), (b.closed, b.entries))
    theirs = {e.address: e for e in b.entries}
    pairs = [(e, theirs[e.address]) for e in a.entries if e.address in fixed]
    return {e.address: (e, f) for e, f in pairs if _known(e) and _known(f) and _has_form(e, f)}


def _known(e: Entry) -> bool:
    if e.conditional or not isinstance(e.choice.random, Site) or e.choice.site.role:
        return False
    return not is_masked(abstract_distribution(e.choice))


def _has_form(e: Entry, f: Entry) -> bool:
    law = lambda c: type(_core(abstract_distribution(c)))
    return (law(f.choice), law(e.choice)) in kl_divergence.funcs.keys() - _NOT_EXACT


_NOT_EXACT = {(dist.Kumaraswamy, dist.Beta)}
"""Truncated series in numpyro."""


_ENTROPIES = {
    d.entropy
    for d in (
        *(dist.BernoulliProbs, dist.BernoulliLogits, dist.CategoricalProbs, dist.CategoricalLogits),
        *(dist.GeometricProbs, dist.GeometricLogits, dist.DiscreteUniform),
        *(dist.Normal, dist.LogNormal, dist.MultivariateNormal, dist.LowRankMultivariateNormal),
        *(dist.Beta, dist.Dirichlet, dist.Exponential, dist.Gamma, dist.InverseGamma, dist.Weibull),
        *(dist.Cauchy, dist.Laplace, dist.Logistic, dist.Pareto, dist.StudentT, dist.Uniform),
    )
}
"""Those that were measured right (tests/objectives/test_closed.py), by the method: a subclass that
replaces it is not taken for its parent."""


def _core(d: Any) -> Any:
    while type(d) in (dist.Independent, dist.ExpandedDistribution):
        d = d.base_dist
    return d


class _OtherShape(Exception):
    """The laws of a choice in the two programs are of values of different sizes."""


def _divergence(p: tuple[Entry, Any], q: tuple[Entry, Any]) -> Part | None:
    """-KL(q || p) for each element of the axes that both have around the choice."""
    n = min(p[0].n_axes, q[0].n_axes)

    def one(of_p: list[Any], of_q: list[Any]) -> jax.Array:
        laws = [_whole(e.choice, ops, e.like.shape[n:]) for e, ops in ((q[0], of_q), (p[0], of_p))]
        if any(math.prod(d.shape()) != math.prod(p[0].like.shape[n:]) for d in laws):
            raise _OtherShape
        divergence = kl_divergence(*laws)
        shape = jnp.broadcast_shapes(*(d.batch_shape for d in laws))
        return -jnp.sum(jnp.broadcast_to(divergence, shape))

    each: Callable[..., jax.Array] = one
    for _ in range(n):
        each = jax.vmap(each)
    try:
        with marks.mark(marks.DENSITY):
            return Part(each(p[1], q[1]), n)
    except (NotImplementedError, _OtherShape):  # the first is numpyro's, of such a pair
        return None


def _whole(choice: Choice, operands: list[Any], shape: tuple[int, ...]) -> Any:
    """The law of all that stands behind the axes that are taken apart."""
    d = whole_distribution(choice.site, operands, shape)
    while type(d) is dist.Independent:
        d = d.base_dist
    return d
