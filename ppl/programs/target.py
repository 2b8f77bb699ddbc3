r"""Approximate marginals and posteriors: stochastic densities.

The contract that makes objectives built on them unbiased: ``simulate`` returns (x, w) with
E[exp(-w) | x] = 1 / p(x), and ``log_density(x)`` returns w with E[exp(w)] = p(x). So that they
nest to any depth, more holds: the two laws of w are size-biased versions of each other,

    P_simulate(dw | x) = exp(w) / p(x) · P_log_density(dw | x).

Source: Lew, Ghavamizadeh, Rinard & Mansinghka, "Probabilistic programming with stochastic
probabilities", PLDI 2023; ESTIMATE and conditional SIR as in Andrieu, Doucet & Holenstein 2010.

An :class:`Algorithm` approximates the normalizing constant Z(x) = ∫ p(x, u) du of a
:class:`Target`: ``sample`` returns a u with an estimate of Z, ``estimate`` the estimate alone,
given that one u was drawn already. Marginals and posteriors (``marginal.py``) are both made of
these two.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, final

import jax

from transforms import _jax
from transforms.errors import Address, UnsupportedError, show
from transforms.runs.addresses import flatten, nest
from transforms.runs.execute import Execution

from .generative import Generative
from .given import Choices, merge


@final
@dataclasses.dataclass(frozen=True)
class Target:
    """The unnormalized density of the choices of ``program`` that are not in ``fixed``.

    Example:
        >>> class Prior(ppl.Algorithm):
        ...     # one draw of the program itself
        ...     def sample(self, target):
        ...         run = target.draw()
        ...         return run, run.log_weight
        ...
        ...     def estimate(self, target, retained):
        ...         return target.score(retained).log_weight
    """

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

    Example:
        >>> isinstance(ppl.importance(5), ppl.Algorithm)
        True
    """

    @abc.abstractmethod
    def sample(self, target: Target) -> tuple[Execution, jax.Array]:
        """A run of the program that stands for the target, and log Z, f32[]."""

    @abc.abstractmethod
    def estimate(self, target: Target, retained: Execution | None = None) -> jax.Array:
        """log Z, f32[]: unbiased for Z without ``retained``; with it, given that this run of the
        program (with ``log_weight`` covering what is fixed) is one of the particles."""


def refuse_hidden(g: Generative, known: Callable[[Address], bool]) -> None:
    """Refuse to weigh masked choices of ``g`` whose own density it does not know."""
    for address in sorted(a for a in g.hidden if not known(a)):
        raise UnsupportedError(
            f"the choice {show(address)} of {g.name} is masked ({_jax.user_line()}): its density "
            "counts nowhere, but it is drawn from it, and an approximate marginal or posterior "
            "does not know it alone. Integrate it out in the program that draws it, or use "
            "ppl.importance(n), which proposes from that."
        )
