"""Terms that read a chain at places known beforehand.

Each number of ``f(zs[10])`` or ``f(zs[::2], ys)``, of the steps ``zs`` of a chain, is one of a
single step (``static_reads.py``). Added up at the steps that they read, and 0 at all others, such
terms run along with the chain: ``where(step == 10, f(z), 0)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from ..analyses.dependence import LAST, Along, Dependence
from .classes import Plan, Variable
from .static_reads import Reads, reads_of_each


@dataclasses.dataclass(frozen=True, eq=False)
class _Along:
    """A term laid along an axis of ``n`` elements, which stands in front: its numbers along
    ``axes`` are those of the elements ``at``."""

    axes: tuple[int, ...]
    at: np.ndarray
    n: int
    dependence: Dependence

    def laid(self, x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, self.axes, range(len(self.axes)))
        x = x.reshape(-1, *x.shape[len(self.axes) :])
        return jnp.zeros((self.n, *x.shape[1:]), x.dtype).at[self.at].add(x)


def along_chains(
    program: _jax.ClosedJaxpr,
    outs: Sequence[Dependence],
    terms: int,
    variables: Sequence[Variable],
    known: Sequence[Any],
    plan_of: Callable[[Sequence[Dependence]], Plan],
) -> tuple[_jax.ClosedJaxpr, Sequence[Dependence], Plan]:
    """The program, what its outputs depend on, and the plan for them, with those of the first
    ``terms`` laid along chains that read them at one step each, where that leaves chains."""
    if not any(a and (a.lag or a.axis == LAST) for d in outs for own in d.values() for a in own):
        return program, outs, plan_of(outs)
    found = _found(program, outs, terms, variables, known)
    while found:
        new = [found[k].dependence if k in found else d for k, d in enumerate(outs)]
        plan = plan_of(new)
        joint = [k for k in found if any(None in plan.classes[i] for i in new[k])]
        if not joint:
            return _laid(program, found), new, plan
        found = {k: x for k, x in found.items() if k not in joint}
    return program, outs, plan_of(outs)


def _laid(program: _jax.ClosedJaxpr, found: dict[int, _Along]) -> _jax.ClosedJaxpr:
    def run(*args: Any) -> list[Any]:
        outs = enumerate(_jax.evaluate(program, *args))
        return [found[k].laid(x) if k in found else x for k, x in outs]

    return _jax.traced(run, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in program.in_avals))


def _found(
    program: _jax.ClosedJaxpr,
    outs: Sequence[Dependence],
    terms: int,
    variables: Sequence[Variable],
    known: Sequence[Any],
) -> dict[int, _Along]:
    """The terms that can be laid along an axis, by their numbers."""
    mixed = [k for k, d in enumerate(outs[:terms]) if any(None in own for own in d.values())]
    axis = {i: own.index(None) for k in mixed for i, own in outs[k].items() if None in own}
    elements = [_numbers(v.shape, axis[i]) if i in axis else None for i, v in enumerate(variables)]
    reads = reads_of_each(program, known, elements) if mixed else []
    found = {k: _along(outs[k], reads[k], axis, variables, program.out_avals[k]) for k in mixed}
    return {k: x for k, x in found.items() if x is not None}


def _numbers(shape: Sequence[int], axis: int) -> np.ndarray:
    own = [n if a == axis else 1 for a, n in enumerate(shape)]
    return np.broadcast_to(np.arange(shape[axis]).reshape(own), shape)


def _along(
    d: Dependence,
    reads: Reads | None,
    axis: dict[int, int],
    variables: Sequence[Variable],
    aval: Any,
) -> _Along | None:
    """A term laid along the one axis of variables that it is not along; None if a number of it
    reads different elements, or such of steps before."""
    shape, mixed = aval.shape, [i for i, own in d.items() if None in own]
    sizes = {variables[i].shape[axis[i]] for i in mixed}
    others = [[a for a, x in enumerate(d[i]) if x is None] != [axis[i]] for i in mixed]
    if reads is None or len(sizes) > 1 or any(others) or not aval.size:
        return None
    at = np.full(shape, -1)
    for r in reads:
        if np.any((r.at >= 0) & (at >= 0) & (r.at != at)):
            return None
        at = np.maximum(at, r.at)
    at = np.maximum(at, 0)  # of what depends on none, anywhere
    axes = tuple(a for a in range(len(shape)) if np.any(at != at.take([0], a)))
    along = [x for own in d.values() for x in own if x is not None]
    if any(x.lag or x.axis < 0 or x.axis in axes for x in along):
        return None
    rest = [a for a in range(len(shape)) if a not in axes]
    index = tuple(slice(None) if a in axes else 0 for a in range(len(shape)))
    to = {a: 1 + n for n, a in enumerate(rest)}
    new = {
        i: tuple(Along(0) if x is None else Along(to[x.axis]) for x in own) for i, own in d.items()
    }
    return _Along(axes, at[index].ravel(), sizes.pop(), new)


__all__ = ["along_chains"]
