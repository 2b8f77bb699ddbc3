"""``ppl.importance``: a normalizing constant by importance sampling."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import logsumexp

from transforms import _jax
from transforms.errors import AddressError, UnsupportedError, describe, show
from transforms.program.site import sample as _sample
from transforms.runs.addresses import flatten
from transforms.runs.execute import Execution

from .generative import Generative
from .given import Choices, as_count
from .particles import as_chunk, particles
from .program import Program, check_branches
from .target import Algorithm, Target, refuse_hidden


@final
@dataclasses.dataclass(frozen=True)
class Importance(Algorithm):
    """Importance sampling with ``n`` particles, and resampling of one of them."""

    n: int
    proposal: Generative | Callable[[Any], Generative] | None = None
    chunk: int | None = None

    def sample(self, target: Target) -> tuple[Execution, jax.Array]:
        runs, weights = particles(lambda: self._fresh(target), self.n, self.chunk)
        log_z = logsumexp(weights) - math.log(self.n)
        if self.n == 1:
            return jax.tree.map(lambda a: a[0], runs), log_z
        index = _sample(("index",), dist.Categorical(logits=weights), drawn=True)
        return jax.tree.map(lambda a: a[index], runs), log_z

    def estimate(self, target: Target, retained: Execution | None = None) -> jax.Array:
        weight = lambda: self._fresh(target)[1]
        if retained is None:
            weights = [particles(weight, self.n, self.chunk)]
        else:  # it is one of the last chunk
            last = self.chunk or self.n
            whole = self.n - last
            weights = [particles(weight, whole, self.chunk)] if whole else []
            weights += [particles(weight, last - 1)] if last > 1 else []
            weights.append(self._weight(target, retained)[None])
        return logsumexp(jnp.concatenate(weights)) - math.log(self.n)

    def _fresh(self, target: Target) -> tuple[Execution, jax.Array]:
        """A particle, and its weight."""
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
        check_proposal(proposal, q.choices, target)
        run = target.score(q.choices)
        return run, _log_ratio(target, run, q)

    def _weight(self, target: Target, retained: Execution) -> jax.Array:
        if self.proposal is None:
            return retained.log_weight
        q = self._proposal(target).execute(target.free(retained.choices), exact=True)
        return _log_ratio(target, retained, q)

    def _proposal(self, target: Target) -> Generative:
        assert self.proposal is not None
        return proposal_of(self.proposal, target, "ppl.importance")


def proposal_of(q: Any, target: Target, who: str) -> Generative:
    """The proposal for a target, checked; ``who`` it is an argument of."""
    if not isinstance(q, Generative):
        q = q(target.fixed)
    if not isinstance(q, Generative):
        raise UnsupportedError(
            "a proposal is a generative function that was called, or a function from the "
            f"fixed choices to one; got {describe(q)} ({_jax.user_line()}). Put @ppl.gen above "
            f"the function of {who}(n, proposal)."
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


def check_proposal(proposal: Generative, choices: Choices, target: Target) -> None:
    """Refuse a proposal of other choices than those that are free."""
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


def importance(
    n: int,
    proposal: Generative | Callable[[Any], Generative] | None = None,
    chunk: int | None = None,
) -> Importance:
    """Importance sampling with ``n`` particles.

    Args:
        n: number of particles.
        proposal: a Generative over the free choices, or a function from the fixed choices to
            one; None proposes from the program itself. Its support must be that of the target.
        chunk: a divisor of ``n``: so many particles are in memory at a time, and each is computed
            a second time for a derivative; None takes all at once. Where one of them is drawn, the
            choices of all are kept.

    Example:
        >>> posterior = ppl.normalize(model(), data, by=ppl.importance(10, guide(phi)))
        >>> x = posterior.simulate(key)["x"]
    """
    n = as_count(n, "the number n of particles")
    return Importance(n, proposal, None if chunk is None else as_chunk(chunk, n, "particles"))
