r"""``ppl.smc``: a normalizing constant by sequential Monte Carlo.

n runs of the program go side by side, one step of its ``scan`` at a time (``transforms/runs/
stages.py``). A step multiplies each run's weight by how probable what is given is, or, with a
proposal, by the ratio of the densities; before the next step the runs are resampled in proportion
to their weights, which start again from 1. The product of the mean weights is unbiased for Z.

*Conditional* SMC, in which one of the runs is given and survives, is the other half of the
contract (``target.py``): the law of the runs around one that was drawn by SMC is that of
conditional SMC, times Z / p, with the schemes of ``resampling.py``, and adaptive too, which a
symmetric function of the weights decides.

Sources: Gordon, Salmond & Smith 1993; Del Moral 2004; Andrieu, Doucet & Holenstein, "Particle
Markov chain Monte Carlo", 2010; as objectives: Maddison et al. (FIVO) 2017, Naesseth et al. (VSMC),
Le et al. (AESMC) 2018.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import logsumexp

from transforms import _jax
from transforms.errors import UnsupportedError, describe
from transforms.estimation.estimator import Estimator
from transforms.program.site import sample as _sample
from transforms.runs.addresses import nest
from transforms.runs.execute import Execution

from .generative import Generative
from .given import as_count
from .importance import check_proposal, proposal_of
from .lockstep import Lockstep, Particles
from .program import Program, check_estimator
from .resampling import SCHEMES, Among, ancestors, finite
from .target import Algorithm, Target


@final
@dataclasses.dataclass(frozen=True)
class SMC(Algorithm):
    """Sequential Monte Carlo; see the module docstring."""

    n: int
    proposal: Generative | Callable[[Any], Generative] | None = None
    resampling: Estimator | None = None
    threshold: float | None = None
    scheme: str = "multinomial"

    def sample(self, target: Target) -> tuple[Execution, jax.Array]:
        steps = self._steps(target)
        particles, log_z = self._run(steps, None, record=True)
        logits = finite(particles.log_weights)
        index = _sample(("index",), Among(logits=logits), self.resampling, drawn=True)
        made = particles.history(index)
        free = nest((e.address, e.join(made)) for e in steps.free)
        return target.score(free), log_z

    def estimate(self, target: Target, retained: Execution | None = None) -> jax.Array:
        kept = None if retained is None else target.free(retained.choices)
        return self._run(self._steps(target), kept, record=False)[1]

    def _steps(self, target: Target) -> Lockstep:
        if not isinstance(target.program, Program):
            raise UnsupportedError(
                f"smc(n) at {_jax.user_line()} needs a @ppl.gen program, and "
                f"{target.program.name} is none. Use ppl.importance(n, proposal)."
            )
        proposal = None
        if self.proposal is not None:
            proposal = proposal_of(self.proposal, target, "ppl.smc")
            check_proposal(proposal, proposal.choices_like, target)
        return Lockstep(target, proposal)

    def _run(self, steps: Lockstep, kept: Any, record: bool) -> tuple[Particles, jax.Array]:
        """All stages, and log Z."""
        particles = steps.start(self.n, kept, record)
        log_z = jnp.zeros(())
        for stage in range(len(steps.stages)):
            if steps.is_loop(stage):
                particles, log_z = self._loop(steps, stage, particles, log_z)
            else:
                particles = steps.plain(stage, particles)
        return particles, log_z + _log_mean(particles.log_weights)

    def _loop(
        self, steps: Lockstep, stage: int, particles: Particles, log_z: jax.Array
    ) -> tuple[Particles, jax.Array]:
        loop = steps.loop(stage, particles)
        weighted = steps.weighs_before(stage)
        own = jnp.arange(self.n)

        def step(state: Any, x: Any) -> Any:
            inside, log_weights, log_z = state
            t = x[0]
            resampled = lambda: self._ancestors(log_weights, particles.kept)
            if self.threshold is None and weighted:
                ancestors, now = resampled(), jnp.asarray(True)
            else:
                now = jnp.asarray(True) if weighted else t > 0
                if self.threshold is not None:
                    now &= _ess(log_weights) < self.threshold * self.n
                ancestors = lax.cond(now, resampled, lambda: own)
            log_z = log_z + jnp.where(now, _log_mean(log_weights), 0.0)
            log_weights = jnp.where(now, 0.0, log_weights)
            inside, increments, ys = loop.step(loop.at(inside, ancestors), x)
            return (inside, log_weights + increments, log_z), (ancestors, ys)

        start = loop.init, particles.log_weights, log_z
        (inside, log_weights, log_z), (ancestors, ys) = lax.scan(step, start, loop.xs)
        return loop.finish(inside, log_weights, ancestors, ys), log_z

    def _ancestors(self, log_weights: jax.Array, kept: bool) -> jax.Array:
        """Which run each of them goes on from; the one that is kept, the last, from itself."""
        fresh = self.n - kept
        if not fresh:
            return jnp.arange(self.n)
        return ancestors(log_weights, kept, self.scheme, self.resampling)


def _log_mean(log_weights: jax.Array) -> jax.Array:
    return logsumexp(log_weights) - math.log(len(log_weights))


def _ess(log_weights: jax.Array) -> jax.Array:
    """The effective sample size of weights, between 1 and n."""
    w = finite(log_weights)
    return jnp.exp(2.0 * logsumexp(w) - logsumexp(2.0 * w))


def smc(
    n: int,
    proposal: Generative | Callable[[Any], Generative] | None = None,
    *,
    resampling: Estimator | None = None,
    threshold: float | None = None,
    scheme: str = "multinomial",
) -> SMC:
    """Sequential Monte Carlo with ``n`` particles, for programs with a ``jax.lax.scan``.

    ``ppl.marginal(g, ["y"], by=ppl.smc(n, q)).log_density({"y": y})`` in an objective is FIVO
    (VSMC, AESMC); ``ppl.normalize(g, data, by=ppl.smc(n, q))`` draws from the posterior.

    Args:
        n: number of particles.
        proposal: a Generative over the free choices, or a function from the fixed choices to one,
            with a ``scan`` of the same length: each of its steps proposes for the program's step.
            None proposes from the program itself.
        resampling: the estimator of the discrete choices of ancestors, like ``ppl.reinforce()``;
            by default chosen automatically, as for any other choice. They are never detached.
        threshold: resample only where the effective sample size is below ``threshold * n``; by
            default always. That decision jumps, which pathwise draws do not see: automatic
            estimators are scores then, and a chosen ``ppl.reparam()`` is reported as biased.
        scheme: ``"multinomial"``; or ``"stratified"`` or ``"systematic"``, of less variance: all
            ancestors of a step are one choice then (``resampling.py``), with a score.

    Raises:
        UnsupportedError: the program has no ``scan`` that makes choices, or the proposal none like
            it.

    Example:
        >>> @ppl.gen
        ... def walk():
        ...     def step(z, _):
        ...         z = ppl.sample("z", dist.Normal(z, 1.0))
        ...         ppl.sample("y", dist.Normal(z, 0.5))
        ...         return z, None
        ...     jax.lax.scan(step, 0.0, length=5)
        >>> evidence = ppl.marginal(walk(), ["y"], by=ppl.smc(20))
        >>> fivo = ppl.expectation(lambda y: evidence.log_density({"y": y}))
        >>> value = fivo.value(key, jnp.ones(5))
    """
    if resampling is not None:
        check_estimator(("ancestor",), resampling)
    if threshold is not None and not 0.0 < threshold <= 1.0:
        raise ValueError(
            f"threshold is {describe(threshold)} ({_jax.user_line()}), and is a share of the "
            "particles: more than 0, at most 1. Type ppl.smc(n, threshold=0.5)."
        )
    if scheme not in SCHEMES:
        raise ValueError(
            f"the scheme of ppl.smc at {_jax.user_line()} is {describe(scheme)}, and is one of "
            f"{', '.join(map(repr, SCHEMES))}."
        )
    return SMC(as_count(n, "the number n of particles"), proposal, resampling, threshold, scheme)
