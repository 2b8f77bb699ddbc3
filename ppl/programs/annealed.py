r"""``ppl.ais``: a normalizing constant by annealed importance sampling, with a kernel of yours.

A chain starts from a proposal q, and goes through densities q^(1 - β) p^β that lead to p while β
grows from 0 to 1. At each β a kernel that leaves that density as it is moves the chain; the weight

    log w = sum_t (β_t - β_{t-1}) log (p / q)(u_{t-1}),    u_t ~ K_{β_t}(u_{t-1})

has E[w] = Z, whatever the kernel does. The other half of the contract (``target.py``): given where
a chain ended, it is run backwards, by the reverses of the kernels, from there. A kernel that is
*reversible* (π(u) K(v | u) = π(v) K(u | v): one step of Metropolis and Hastings, of Hamiltonian
Monte Carlo, of Gibbs for one choice) is its own reverse; others are given theirs. Of n chains one
is drawn by its weight, as in ``importance.py``.

Source: Neal, "Annealed importance sampling", 2001; for the conditional one Andrieu, Doucet &
Holenstein 2010.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import logsumexp

from transforms import _jax
from transforms.errors import UnsupportedError, describe
from transforms.program.site import sample as _sample
from transforms.runs.execute import Execution

from .generative import Generative
from .given import as_count
from .importance import check_proposal, proposal_of
from .program import Program
from .resampling import Among, finite
from .target import Algorithm, Target

Kernel = Callable[[Callable[[Any], jax.Array], Any], Any]


@final
@dataclasses.dataclass(frozen=True)
class AIS(Algorithm):
    """Annealed importance sampling; see the module docstring."""

    n: int
    kernel: Kernel
    betas: Any
    proposal: Generative | Callable[[Any], Generative] | None = None
    reverse: Kernel | None = None

    def sample(self, target: Target) -> tuple[Execution, jax.Array]:
        bridge = self._bridge(target)
        ends, weights = jax.vmap(lambda: self._forwards(bridge), axis_size=self.n)()
        index = _sample(("index",), Among(logits=finite(weights)), drawn=True)
        free = jax.tree.map(lambda a: a[index], ends)
        return target.score(free), _log_mean(weights)

    def estimate(self, target: Target, retained: Execution | None = None) -> jax.Array:
        bridge = self._bridge(target)
        fresh = self.n - (retained is not None)
        weights = []
        if fresh:
            weights.append(jax.vmap(lambda: self._forwards(bridge)[1], axis_size=fresh)())
        if retained is not None:
            weights.append(self._backwards(bridge, target.free(retained.choices))[None])
        return _log_mean(jnp.concatenate(weights))

    def _bridge(self, target: Target) -> Bridge:
        if self.proposal is None:
            if not isinstance(target.program, Program):
                raise UnsupportedError(
                    f"{target.program.name} cannot propose for itself at {_jax.user_line()}, since "
                    "it is no @ppl.gen program. Give ppl.ais a proposal."
                )
            return Bridge(target, None)
        proposal = proposal_of(self.proposal, target, "ppl.ais")
        check_proposal(proposal, proposal.choices_like, target)
        return Bridge(target, proposal)

    def _forwards(self, bridge: Bridge) -> tuple[Any, jax.Array]:
        """Where a chain ends, and its log weight."""
        start = bridge.draw()
        betas = jnp.asarray(self.betas)
        weight = betas[1] * bridge.log_ratio(start)

        def step(u: Any, beta: Any) -> Any:
            here, after = beta
            u = _like(u, self.kernel(bridge.at(here), u))
            return u, (after - here) * bridge.log_ratio(u)

        end, parts = lax.scan(step, start, (betas[1:-1], betas[2:]))
        return end, weight + jnp.sum(parts)

    def _backwards(self, bridge: Bridge, end: Any) -> jax.Array:
        """The log weight of a chain that ended there."""
        kernel = self.kernel if self.reverse is None else self.reverse
        betas = jnp.asarray(self.betas)

        def step(u: Any, beta: Any) -> Any:
            here, after = beta
            part = (after - here) * bridge.log_ratio(u)
            return _like(u, kernel(bridge.at(here), u)), part

        start, parts = lax.scan(step, end, (betas[1:-1], betas[2:]), reverse=True)
        return betas[1] * bridge.log_ratio(start) + jnp.sum(parts)


@dataclasses.dataclass(frozen=True)
class Bridge:
    """A target and where its chains start: a proposal, or the program itself."""

    target: Target
    proposal: Generative | None

    def draw(self) -> Any:
        if self.proposal is not None:
            return self.target.free(self.proposal.execute({}).choices)
        return self.target.free(self.target.draw().choices)

    def log_ratio(self, u: Any) -> jax.Array:
        """log p / q."""
        return self._both(u)[1]

    def at(self, beta: Any) -> Callable[[Any], jax.Array]:
        """The log of q^(1 - β) p^β, as a function of choices."""

        def log_density(u: Any) -> jax.Array:
            log_q, ratio = self._both(u)
            return log_q + beta * ratio

        return log_density

    def _both(self, u: Any) -> tuple[jax.Array, jax.Array]:
        """log q, and log p / q."""
        run = self.target.score(u)
        if self.proposal is None:
            return run.log_integrand - run.log_weight, run.log_weight
        log_q = self.proposal.execute(u, exact=True).log_integrand
        return log_q, run.log_integrand - log_q


def _like(before: Any, after: Any) -> Any:
    """What a kernel returns, in the types of what it was given."""
    if jax.tree.structure(before) != jax.tree.structure(after) or any(
        jnp.shape(a) != jnp.shape(b)
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=False)
    ):
        raise UnsupportedError(
            f"the kernel of ppl.ais ({_jax.user_line()}) is given the choices {describe(before)}, "
            f"and returns {describe(after)}. It returns choices of the same names and shapes."
        )
    return jax.tree.map(lambda a, b: jnp.asarray(b, jnp.result_type(a)), before, after)


def _log_mean(log_weights: jax.Array) -> jax.Array:
    return logsumexp(log_weights) - math.log(len(log_weights))


def ais(
    n: int,
    kernel: Kernel,
    betas: Any = 10,
    proposal: Generative | Callable[[Any], Generative] | None = None,
    *,
    reverse: Kernel | None = None,
) -> AIS:
    """Annealed importance sampling with ``n`` chains, moved by a kernel of yours.

    Args:
        n: number of chains.
        kernel: ``kernel(log_density, choices)`` returns new choices, nested like those that it is
            given, and leaves the law of (unnormalized) ``log_density`` as it is. What it draws are
            choices, ``ppl.sample``, also whether a move is accepted: so its gradients are right.
        betas: how many densities there are after the first, evenly spaced; or all of them, f32[t]
            from 0 to 1, also from parameters. There is a move at each but the first and the last.
        proposal: a Generative over the free choices, or a function from the fixed choices to one;
            None starts from the program itself.
        reverse: the reverse of a kernel that is not reversible (several steps in a row; a sweep of
            Gibbs in a fixed order).

    Raises:
        ValueError: betas that do not lead from 0 to 1.
        UnsupportedError: a kernel that returns other choices.

    Example:
        >>> def kernel(log_density, u):
        ...     x = u["x"] + ppl.sample("step", dist.Normal(0.0, 0.5))
        ...     better = log_density({"x": x}) - log_density(u)
        ...     accept = ppl.sample("accept", dist.Bernoulli(jnp.exp(jnp.minimum(better, 0.0))))
        ...     return {"x": jnp.where(accept == 1, x, u["x"])}
        >>> evidence = ppl.marginal(model(), ["y"], by=ppl.ais(5, kernel, 20))
        >>> value = evidence.log_density({"y": 1.0}, key)
    """
    if isinstance(betas, int):
        betas = np.linspace(0.0, 1.0, as_count(betas, "the number betas of densities") + 1)
    known = not isinstance(betas, _jax.Tracer)
    if jnp.ndim(betas) != 1 or len(betas) < 2 or (known and not _leads(np.asarray(betas))):
        raise ValueError(
            f"the betas of ppl.ais at {_jax.user_line()} are {describe(betas)}, and lead from 0 to "
            "1. Type ppl.ais(n, kernel, 10), or jnp.linspace(0.0, 1.0, 11)."
        )
    return AIS(as_count(n, "the number n of chains"), kernel, betas, proposal, reverse)


def _leads(betas: np.ndarray) -> bool:
    return bool(betas[0] == 0.0 and betas[-1] == 1.0)
