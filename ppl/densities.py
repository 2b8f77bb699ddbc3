r"""Approximate marginals and posteriors: stochastic densities.

The contract that makes objectives built on them unbiased: ``simulate`` returns (x, w) with
E[exp(-w) | x] = 1 / p(x), and ``log_density(x)`` returns w with E[exp(w)] = p(x). So that they
nest to any depth, more holds: the two laws of w are size-biased versions of each other,

    P_simulate(dw | x) = exp(w) / p(x) · P_log_density(dw | x).

Source: Lew, Ghavamizadeh, Rinard & Mansinghka, "Probabilistic programming with stochastic
probabilities", PLDI 2023; ESTIMATE and conditional SIR as in Andrieu, Doucet & Holenstein 2010.

An :class:`Algorithm` approximates the normalizing constant Z(x) = ∫ p(x, u) du of a
:class:`Target`: ``sample`` returns a u with an estimate of Z, ``estimate`` the estimate alone,
given that one u was drawn already. Marginals and posteriors are both made of these two.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp

from estimators.enumeration import Enum
from transforms import _jax
from transforms.errors import Address, AddressError, UnsupportedError, describe, nearest, show
from transforms.estimation.elements import apart
from transforms.exact.elimination import draw, log_sum
from transforms.exact.tables import Variable
from transforms.program.interpret import Choice, abstract_distribution
from transforms.program.marks import hold
from transforms.program.site import Site
from transforms.program.site import sample as _sample
from transforms.runs.addresses import Entry, flatten, match_shapes, nest
from transforms.runs.execute import Execution

from .branches import made_of
from .generative import (
    Choices,
    Generative,
    Program,
    Select,
    as_count,
    check_branches,
    check_generative,
    merge,
)


@final
@dataclasses.dataclass(frozen=True)
class Target:
    """The unnormalized density of the choices of ``program`` that are not in ``fixed``."""

    program: Generative
    fixed: Choices

    def covers(self, address: Address) -> bool:
        """Whether an address is fixed."""
        return any(f[: len(address)] == address for f in flatten(self.fixed))

    def draw(self) -> Execution:
        """The free choices drawn from the program; the log weight is that of the fixed ones."""
        return self.program.execute(self.fixed, select=self.covers)

    def score(self, free: Choices) -> Execution:
        """The program at ``free``; ``log_density`` is that of the target."""
        return self.program.execute(merge(self.fixed, free), exact=True, select=self.covers)

    def free(self, choices: Choices) -> dict[str, Any]:
        """The part of ``choices`` that is not fixed."""
        fixed = flatten(self.fixed)
        return nest((a, v) for a, v in flatten(choices).items() if a not in fixed)


class Algorithm(abc.ABC):
    """An estimator of the normalizing constant of a target, that can also draw from it.

    The contract: with (u, log p(u), log Z) from ``sample``, the law of (u, Z) is p(u) / Z times
    that of Z from ``estimate`` given u. Importance sampling with resampling, exact enumeration,
    and (conditional) sequential Monte Carlo fulfil it.
    """

    @abc.abstractmethod
    def sample(self, target: Target) -> tuple[Execution, jax.Array]:
        """A run of the program that stands for the target, and log Z, f32[]."""

    @abc.abstractmethod
    def estimate(self, target: Target, retained: Execution | None = None) -> jax.Array:
        """log Z, f32[]: unbiased for Z without ``retained``; with it, given that this run of the
        program (with ``log_weight`` covering what is fixed) is one of the particles."""


# --- importance sampling ------------------------------------------------------------------------


@final
@dataclasses.dataclass(frozen=True)
class Importance(Algorithm):
    """Importance sampling with ``n`` particles, and resampling of one of them."""

    n: int
    proposal: Generative | Callable[[Any], Generative] | None = None

    def sample(self, target: Target) -> tuple[Execution, jax.Array]:
        runs, weights = self._fresh(target, self.n)
        log_z = logsumexp(weights) - math.log(self.n)
        if self.n == 1:
            return jax.tree.map(lambda a: a[0], runs), log_z
        index = _sample(("index",), dist.Categorical(logits=weights), drawn=True)
        return jax.tree.map(lambda a: a[index], runs), log_z

    def estimate(self, target: Target, retained: Execution | None = None) -> jax.Array:
        fresh = self.n if retained is None else self.n - 1
        weights = [self._fresh(target, fresh)[1]] if fresh else []
        if retained is not None:
            weights.append(self._weight(target, retained)[None])
        return logsumexp(jnp.concatenate(weights)) - math.log(self.n)

    def _fresh(self, target: Target, n: int) -> tuple[Execution, jax.Array]:
        def one() -> tuple[Execution, jax.Array]:
            if self.proposal is None:
                if not isinstance(target.program, Program):
                    raise UnsupportedError(
                        f"{target.program.name} cannot propose for itself at {_jax.user_line()}, "
                        "since it is no @ppl.gen program. Give a proposal: "
                        "ppl.importance(n, proposal)."
                    )
                run = target.draw()
                return run, run.log_weight
            proposal = self._proposal(target)
            q = proposal.execute({})
            _check_proposal(proposal, q.choices, target)
            run = target.score(q.choices)
            return run, _log_ratio(target, run, q)

        return jax.vmap(one, axis_size=n)()

    def _weight(self, target: Target, retained: Execution) -> jax.Array:
        if self.proposal is None:
            return retained.log_weight
        q = self._proposal(target).execute(target.free(retained.choices), exact=True)
        return _log_ratio(target, retained, q)

    def _proposal(self, target: Target) -> Generative:
        q = self.proposal
        if not isinstance(q, Generative):
            assert q is not None
            q = q(target.fixed)
        if not isinstance(q, Generative):
            raise UnsupportedError(
                "a proposal is a generative function that was called, or a function from the "
                f"fixed choices to one; got {describe(q)} ({_jax.user_line()}). Put @ppl.gen above "
                "the function of ppl.importance(n, proposal)."
            )
        check_branches(target.program, q)
        if q.weighted:
            raise UnsupportedError(
                f"{q.name} is a proposal at {_jax.user_line()}, and has weights (ppl.factor, "
                "ppl.observe): its draws come from the program without them, its density has them. "
                "Move them into the model; or type the data as a choice, ppl.sample, and propose "
                "from ppl.normalize(g, data)."
            )
        return q


def _check_proposal(proposal: Generative, choices: Choices, target: Target) -> None:
    wanted = flatten(target.free(target.program.choices_like))
    made = flatten(choices)
    refuse_hidden(target.program, target.covers)
    refuse_hidden(proposal, lambda _: False)
    if set(made) != set(wanted):
        raise AddressError(
            f"the proposal {proposal.name} of importance(n, proposal) chooses "
            f"{', '.join(map(show, made)) or 'nothing'}, and the choices of {target.program.name} "
            f"to propose are {', '.join(map(show, wanted)) or 'none'}. Give it these addresses."
        )


def _log_ratio(target: Target, run: Execution, q: Execution) -> jax.Array:
    """log p / q of a run of a target; no number where other choices of it are absent than of q."""
    ratio = run.log_integrand - q.log_integrand
    for address in sorted({*run.made, *q.made}):
        if target.covers(address):
            continue
        made, other = (jnp.asarray(r.made.get(address, True)) for r in (run, q))
        same = made == other if made.shape == other.shape else jnp.all(made) & jnp.all(other)
        ratio = jnp.where(jnp.all(same), ratio, jnp.nan)
    return ratio


def refuse_hidden(g: Generative, known: Callable[[Address], bool]) -> None:
    """Refuse to weigh masked choices of ``g`` whose own density it does not know."""
    for address in sorted(a for a in g.hidden if not known(a)):
        raise UnsupportedError(
            f"the choice {show(address)} of {g.name} is masked ({_jax.user_line()}): its density "
            "counts nowhere, but it is drawn from it, and an approximate marginal or posterior "
            "does not know it alone. Integrate it out in the program that draws it, or use "
            "ppl.importance(n), which proposes from that."
        )


def importance(
    n: int, proposal: Generative | Callable[[Any], Generative] | None = None
) -> Importance:
    """Importance sampling with ``n`` particles.

    Args:
        n: number of particles.
        proposal: a Generative over the free choices, or a function from the fixed choices to
            one; None proposes from the program itself. Its support must be that of the target.
    """
    return Importance(as_count(n, "the number n of particles"), proposal)


# --- exact enumeration --------------------------------------------------------------------------


@final
@dataclasses.dataclass(frozen=True)
class Enumeration(Algorithm):
    """All values of the free choices, which must have finite supports: exact.

    They are summed out one by one, and drawn backwards (``transforms/elimination.py``).
    """

    def sample(self, target: Target) -> tuple[Execution, jax.Array]:
        free = self._free(target)
        addresses, run = list(free), _run(target, free)

        def pick(i: int, logits: jax.Array) -> jax.Array:
            return _sample(("index", *addresses[i]), dist.Categorical(logits=logits), drawn=True)

        digits, log_z = draw(_integrand(run, free), _variables(free), pick)
        return run(*digits), log_z

    def estimate(self, target: Target, retained: Execution | None = None) -> jax.Array:
        free = self._free(target)
        return log_sum(_integrand(_run(target, free), free), _variables(free))

    def _free(self, target: Target) -> dict[Address, _Free]:
        program = target.program
        if not isinstance(program, Program):
            raise UnsupportedError(
                f"enumeration() at {_jax.user_line()} needs a @ppl.gen program, and {program.name} "
                "is none. Use ppl.importance(n, proposal)."
            )
        free: dict[Address, _Free] = {}
        for e in program.entries:
            if target.covers(e.address):
                continue
            problem, values = _support(e)
            if problem is not None:
                why = problem.partition(". ")[0].rstrip(".")  # the advice is for a choice
                raise UnsupportedError(
                    f"enumeration() cannot enumerate {show(e.address)} at {e.source}: {why}. Use "
                    "ppl.importance(n, proposal)."
                )
            shape = e.like.shape[: e.like.ndim - (values.ndim - 1)]
            free[e.address] = _Free(values, shape, e.source)
        return free


def _support(e: Entry) -> tuple[str | None, jax.Array]:
    """Why a choice cannot be enumerated, or None; and the values of an element of it."""
    none = jnp.zeros(0)
    if len(e.windows) > 1 or not all(isinstance(c.random, Site) for c in e.parts):
        return "it is no single choice.", none
    for choice in e.parts:
        problem = Enum().unsuitable(apart(abstract_distribution(choice)))
        if problem is not None:
            return problem, none
    values = _values(e.choice)
    for choice in e.parts[1:]:  # other branches
        if not np.array_equal(values, _values(choice)):
            return "its support differs from branch to branch.", none
    return None, values


def _values(choice: Choice) -> jax.Array:
    """All values of an element of a choice."""
    with jax.ensure_compile_time_eval():
        zeros = [jnp.zeros(a.shape, a.dtype) for a in choice.own_avals]
        d = apart(choice.site.rebuild(zeros))
        return Enum().support(d).astype(choice.site.dtype)


@dataclasses.dataclass(frozen=True)
class _Free:
    """A choice to enumerate: the values of an element, ``[K, *event_shape]``, its elements, and
    where it stands."""

    values: jax.Array
    shape: tuple[int, ...]
    source: str


def _run(target: Target, free: Mapping[Address, _Free]) -> Callable[..., Execution]:
    """The program at the values that digits stand for."""

    def run(*digits: jax.Array) -> Execution:
        values = [f.values[d] for f, d in zip(free.values(), digits, strict=True)]
        return target.score(nest(zip(free, values, strict=True)))

    return run


def _integrand(
    run: Callable[..., Execution], free: Mapping[Address, _Free]
) -> Callable[..., jax.Array]:
    """The log of what is summed: the values of a choice that is absent weigh 1 together."""

    def log_integrand(*digits: jax.Array) -> jax.Array:
        out = run(*digits)
        total = out.log_integrand
        for address, f in free.items():
            if address in out.made:
                made = out.made[address]
                each = math.prod(f.shape[made.ndim :]) * math.log(len(f.values))
                total = total + jnp.sum(jnp.where(made, 0.0, -each))
        return total

    return log_integrand


def _variables(free: Mapping[Address, _Free]) -> list[Variable]:
    return [Variable(f.shape, len(f.values), f"{show(a)} at {f.source}") for a, f in free.items()]


def enumeration() -> Enumeration:
    """Exact marginals and posteriors over finite supports."""
    return Enumeration()


# --- marginal and normalize ---------------------------------------------------------------------


@final
class Marginal(Generative):
    """See :func:`marginal`."""

    def __init__(self, g: Generative, keep: Sequence[Address], by: Algorithm):
        self.name = f"marginal({g.name})"
        self._g, self._keep, self._by = g, keep, by

    @property
    def masked(self) -> frozenset[Address]:
        return frozenset(a for a in self._g.masked if self._kept(a))

    @property
    def in_a_branch(self) -> frozenset[Address]:
        return frozenset(a for a in self._g.in_a_branch if self._kept(a))

    @property
    def weighted(self) -> bool:
        return self._g.weighted

    def _kept(self, address: Address) -> bool:
        return any(address[: len(k)] == k for k in self._keep)

    @functools.cached_property
    def _like(self) -> dict[Address, Any]:
        like = flatten(self._g.choices_like)
        for k in self._keep:
            if not any(a[: len(k)] == k for a in like):
                raise AddressError(
                    f"{self.name}: {self._g.name} has no choice at address {show(k)} to keep "
                    f"({_jax.user_line()}).{nearest(k, like)} Its addresses: "
                    f"{', '.join(map(show, like))}."
                )
        return {a: s for a, s in like.items() if self._kept(a)}

    def execute(
        self, given: Choices, *, exact: bool = False, select: Select = lambda address: False
    ) -> Execution:
        if given or exact or not self._keep:  # the evidence is a weight, drawn or not
            x = match_shapes(given, self._like, self.name)
            made = made_of(self._g, x, self._kept)
            log_p = self._by.estimate(Target(self._g, x))
            return Execution(x, x, log_p, log_p, made=made)
        if self.weighted and not isinstance(self._by, Enumeration):
            raise UnsupportedError(
                f"{self.name} is drawn from at {_jax.user_line()}, and {self._g.name} has weights "
                "(ppl.factor, ppl.observe). Its draws come from the program without them, so that "
                "they do not go with an estimate of the density that has them. Take the density at "
                "given values (log_density); use ppl.enumeration() where supports are finite; or "
                "type the data as a choice, ppl.sample, and use ppl.normalize(g, data)."
            )
        return self.drawn()

    def drawn(self) -> Execution:
        if not self._keep:
            return self.execute({})
        assert self._like is not None
        run = self._g.execute({}, select=self._kept)
        x = nest((a, v) for a, v in flatten(run.choices).items() if self._kept(a))
        made = made_of(self._g, x, self._kept)
        log_p = self._by.estimate(Target(self._g, x), run)
        return Execution(x, x, log_p, jnp.zeros_like(log_p), made=made)


@final
class Normalized(Generative):
    """See :func:`normalize`."""

    def __init__(self, g: Generative, data: Choices, by: Algorithm):
        self.name = f"normalize({g.name})"
        self._target, self._by = Target(g, data), by

    @property
    def masked(self) -> frozenset[Address]:
        return frozenset(a for a in self._target.program.masked if not self._target.covers(a))

    @property
    def in_a_branch(self) -> frozenset[Address]:
        inside = self._target.program.in_a_branch
        return frozenset(a for a in inside if not self._target.covers(a))

    def _made(self, run: Execution) -> dict[Address, jax.Array]:
        return {a: made for a, made in run.made.items() if not self._target.covers(a)}

    @functools.cached_property
    def _like(self) -> dict[Address, Any]:
        like = flatten(self._target.program.choices_like)
        match_shapes(self._target.fixed, like, self.name, exact=False)
        data = flatten(self._target.fixed)
        return {a: s for a, s in like.items() if a not in data}

    def execute(
        self, given: Choices, *, exact: bool = False, select: Select = lambda address: False
    ) -> Execution:
        if given or exact:
            z = match_shapes(given, self._like, self.name)
            run = self._target.score(z)
            log_p = run.log_density - self._by.estimate(self._target, run)
            return Execution(z, z, log_p, log_p, made=self._made(run))
        assert self._like is not None
        run, log_z = self._by.sample(self._target)
        z = self._target.free(run.choices)
        log_p = run.log_density - log_z
        return Execution(z, z, log_p, jnp.zeros_like(log_p), made=self._made(run))


def marginal(
    g: Generative, keep: str | Address | Sequence[str | Address], by: Algorithm | None = None
) -> Generative:
    """The distribution of some choices of ``g`` alone, with an estimated density.

    Args:
        g: a generative function that was called.
        keep: the addresses to keep; an outer address keeps all that is nested below it. ``[]``
            keeps none: the density is the evidence of what the program observes (``ppl.observe``,
            ``ppl.factor``).
        by: how the other choices are integrated out, ``ppl.importance(n, proposal)`` (default:
            one particle from the program itself) or ``ppl.enumeration()``. The proposal gets
            the kept choices.

    Returns:
        A Generative over ``keep``; its ``retval`` is the dict of kept choices.
    """
    check_generative(g, "ppl.marginal")
    return Marginal(g, _addresses(keep), _algorithm(by))


def normalize(g: Generative, data: Choices, by: Algorithm | None = None) -> Generative:
    """An approximation to the posterior of ``g`` given ``data``.

    Args:
        g: a generative function that was called.
        data: nested dict of observed choices.
        by: ``ppl.importance(n, proposal)`` (default: one particle from the program itself; the
            proposal gets ``data``) or ``ppl.enumeration()``, which is exact.

    Returns:
        A Generative over the addresses not in ``data``; its ``retval`` is the dict of them.
    """
    check_generative(g, "ppl.normalize")
    flatten(data)
    return Normalized(g, data, _algorithm(by))


def _addresses(keep: Any) -> list[Address]:
    if isinstance(keep, str):
        return [(keep,)]
    if not isinstance(keep, list | tuple | set | frozenset):
        raise AddressError(
            f"keep is {keep!r} ({_jax.user_line()}). Give the addresses to keep, 'x' or "
            "['x', 'y'], or [] for the evidence."
        )
    return [(k,) if isinstance(k, str) else tuple(k) for k in keep]


def _algorithm(by: Any) -> Algorithm:
    if by is None:
        return Importance(1)
    if not isinstance(by, Algorithm):
        raise UnsupportedError(
            f"by is {describe(by)} ({_jax.user_line()}). Give an algorithm, ppl.importance(10) or "
            "ppl.enumeration(), with its parentheses."
        )
    return by


def detach(x: Any) -> Any:
    """Hold something constant on purpose: a generative function, or any pytree of arrays.

    Of a Generative: the same distribution with everything that it closes over held constant. No
    gradient flows into its parameters, neither through its draws nor through its density;
    gradients still flow through the choices at which a density is taken. This is what the
    sticking-the-landing, doubly reparameterised and wake-sleep objectives are made of.

    Of arrays: ``jax.lax.stop_gradient``, which the soundness checker takes for a mistake where it
    drops the derivative of a pathwise draw or of a parameter; what is detached is taken as meant.
    """
    return _Detached(x) if isinstance(x, Generative) else hold(x)


@final
class _Detached(Generative):
    def __init__(self, inner: Generative):
        self.name, self._inner = inner.name, inner

    def execute(
        self, given: Choices, *, exact: bool = False, select: Select = lambda address: False
    ) -> Execution:
        inner = self._inner
        assert inner is not None

        def run(given: Mapping[str, Any]) -> Execution:
            return inner.execute(given, exact=exact, select=select)

        given = jax.tree.map(jnp.asarray, dict(given))
        closed, consts, out = _jax.trace(run, given)
        constants = hold(consts)
        outs = _jax.evaluate(closed, *constants, *jax.tree.leaves(given))
        return jax.tree.unflatten(jax.tree.structure(out), outs)
