"""The axes around a choice, as a user has them and as the interpreter has them.

A user sees an axis for each ``vmap`` and ``scan``, outermost first; the interpreter has those of
the ``scan``\\s in front. ``jax.lax.map(f, xs, batch_size=b)`` with a remainder runs its body in two
places, whose axes are one to a user.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..program.choices import Choice
from ..program.site import Axis, Call, Factor, Site


def axes_of(choice: Choice) -> tuple[Axis, ...]:
    assert isinstance(choice.random, Site | Call)
    return choice.random.axes


def order(choice: Choice, ndim: int) -> list[int]:
    """The axes of the interpreter in the order of a user: outermost first."""
    k, axes = len(choice.lengths), axes_of(choice)
    depth = [(i, 1) for i in range(k)] + [(max(k - a.loops, 0), 0) for a in axes]
    front = sorted(range(len(depth)), key=lambda i: depth[i])
    return [*front, *range(len(front), ndim)]


def inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


# --- the two parts of a batched lax.map ---------------------------------------------------------


def own_loop(batches: Choice, rest: Choice) -> int:
    """Which of the loops around the batches is that of the ``lax.map``."""
    common = 0
    while batches.path[common] == rest.path[common]:
        common += 1
    return sum(len(p) <= common for p in batches.loops)


def batch_size(batches: Choice, rest: Choice) -> int:
    return axes_of(batches)[_own_axis(batches, rest)].size


def _own_axis(batches: Choice, rest: Choice) -> int:
    sizes = [(a.size, b.size) for a, b in zip(axes_of(batches), axes_of(rest), strict=True)]
    return next(i for i, (a, b) in enumerate(sizes) if a != b)


def split_axis(batches: Choice, rest: Choice) -> int:
    """The axis of a user's value that the two parts share."""
    return order(batches, len(batches.lengths) + len(axes_of(batches))).index(
        own_loop(batches, rest)
    )


def halves(windows: Sequence[Sequence[Choice]]) -> tuple[Choice, Choice]:
    """A choice of the batches, and the same one of the remainder."""
    return next((a, b) for a in windows[0] for b in windows[1] if same_map(a, b))


def same_map(a: Choice, b: Choice) -> bool:
    """Whether b is the remainder of the ``lax.map`` in batches that a is in."""
    if a.source != b.source or type(a.random) is not type(b.random):
        return False
    if isinstance(a.random, Factor) or len(axes_of(a)) != len(axes_of(b)):
        return False
    own = own_loop(a, b)
    differing = [s for s, t in zip(axes_of(a), axes_of(b), strict=True) if s.size != t.size]
    return a.lengths[:own] + a.lengths[own + 1 :] == b.lengths and len(differing) == 1
