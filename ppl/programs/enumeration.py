"""``ppl.enumeration``: a normalizing constant exactly, by sums over finite supports."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from estimators.enumeration import Enum
from transforms import _jax
from transforms.errors import Address, UnsupportedError, show
from transforms.estimation.elements import apart
from transforms.exact.classes import Variable
from transforms.exact.elimination import draw, log_sum
from transforms.program.choices import Choice, abstract_distribution
from transforms.program.site import Site
from transforms.program.site import sample as _sample
from transforms.runs.addresses import Entry, nest
from transforms.runs.execute import Execution

from .program import Program
from .target import Algorithm, Target


@final
@dataclasses.dataclass(frozen=True)
class Enumeration(Algorithm):
    """All values of the free choices, which must have finite supports: exact.

    They are summed out one by one, and drawn backwards (``transforms/exact/elimination.py``).
    """

    def sample(self, target: Target) -> tuple[Execution, jax.Array]:
        free = free_choices(target, "enumeration()", _IMPORTANCE)
        addresses, run = list(free), run_at(target, free)

        def pick(i: int, name: str, logits: jax.Array) -> jax.Array:
            address = ("index", *addresses[i], *([name] if name else []))
            law = dist.Categorical(logits=logits, validate_args=False)  # which wants elements
            return _sample(address, law, drawn=True)

        digits, log_z = draw(log_integrand(run, free), variables_of(free), pick)
        return run(*digits), log_z

    def estimate(self, target: Target, retained: Execution | None = None) -> jax.Array:
        free = free_choices(target, "enumeration()", _IMPORTANCE)
        return log_sum(log_integrand(run_at(target, free), free), variables_of(free))


_IMPORTANCE = "Use ppl.importance(n, proposal)."


def free_choices(target: Target, who: str, instead: str) -> dict[Address, Free]:
    """The choices to enumerate, by address.

    Raises:
        UnsupportedError: the support of one is not finite. The message begins with ``who``
            enumerates, and ends with what to do ``instead``.
    """
    program = target.program
    if not isinstance(program, Program):
        raise UnsupportedError(
            f"{who} at {_jax.user_line()} needs a @ppl.gen program, and {program.name} is none. "
            f"{instead}"
        )
    free: dict[Address, Free] = {}
    for e in program.entries:
        if target.covers(e.address):
            continue
        problem, values = _support(e)
        if problem is not None:
            why = problem.partition(". ")[0].rstrip(".")  # the advice is for a choice
            raise UnsupportedError(
                f"{who} cannot enumerate {show(e.address)} at {e.source}: {why}. {instead}"
            )
        shape = e.like.shape[: e.like.ndim - (values.ndim - 1)]
        free[e.address] = Free(values, shape, e.source)
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
        zeros = [np.zeros(a.shape, a.dtype) for a in choice.own_avals]
        d = apart(choice.site.rebuild(zeros))
        return Enum().support(d).astype(choice.site.dtype)


@dataclasses.dataclass(frozen=True)
class Free:
    """A choice to enumerate: the values of an element, ``[K, *event_shape]``, its elements, and
    where it stands."""

    values: jax.Array
    shape: tuple[int, ...]
    source: str


def run_at(target: Target, free: Mapping[Address, Free]) -> Callable[..., Execution]:
    """The program at the values that digits stand for."""

    def run(*digits: jax.Array) -> Execution:
        values = [f.values[d] for f, d in zip(free.values(), digits, strict=True)]
        return target.score(nest(zip(free, values, strict=True)))

    return run


def log_integrand(
    run: Callable[..., Execution], free: Mapping[Address, Free]
) -> Callable[..., jax.Array]:
    """The log of what is summed: the values of a choice that is absent weigh 1 together."""

    def log_of(*digits: jax.Array) -> jax.Array:
        out = run(*digits)
        total = out.log_integrand
        for address, f in free.items():
            if address in out.made:
                made = out.made[address]
                each = math.prod(f.shape[made.ndim :]) * math.log(len(f.values))
                total = total + jnp.sum(jnp.where(made, 0.0, -each))
        return total

    return log_of


def variables_of(free: Mapping[Address, Free]) -> list[Variable]:
    return [Variable(f.shape, len(f.values), f"{show(a)} at {f.source}") for a, f in free.items()]


def enumeration() -> Enumeration:
    """Exact marginals and posteriors over finite supports.

    Example:
        >>> @ppl.gen
        ... def coin():
        ...     fair = ppl.sample("fair", dist.Bernoulli(0.5))
        ...     ppl.sample("heads", dist.Bernoulli(jnp.where(fair == 1, 0.5, 1.0)))
        >>> heads = ppl.marginal(coin(), ["heads"], by=ppl.enumeration())
        >>> round(float(jnp.exp(heads.log_density({"heads": 1}, key))), 6)
        0.75
    """
    return Enumeration()
