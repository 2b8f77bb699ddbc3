"""A fit before its first step: its loop, what it starts from, and its windows."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transforms import _jax

from .averaging import CHECK, FINAL, wide, window
from .devices import placed
from .feed import Feed, length
from .fingerprint import digest
from .restarts import stack as stack_trees
from .steps import Loop, State, begin, is_traced, separate, strong
from .stopping import Judged, next_check, unjudged

CHUNK, LONGEST = 100, 500
"""Steps between two visits to the host: where it has something to do, and where it has not."""


@dataclasses.dataclass(frozen=True)
class Ending:
    """When a fit ends, and what of its iterates is averaged."""

    steps: int
    average: float | None
    tolerance: float | None
    restarts: int | None

    def windows(self, step: int) -> dict[str, int]:
        """The number of steps before each window, seen from ``step``."""
        if self.average is None:
            return {}
        starts = {FINAL: window(self.steps, self.average)}
        if self.tolerance is not None:
            starts[CHECK] = window(next_check(step), self.average)
        return starts


@dataclasses.dataclass(frozen=True)
class Plan:
    """A fit before its first step.

    ``feed`` has the batches from the host, the first step's first, ``held`` some of them for
    comparisons; ``program`` is that of the objective with what it closes over. ``anchors`` are
    earlier states with what was judged there, from which a longer fit can find its mean.
    """

    loop: Loop
    ending: Ending
    start: State
    step: int
    history: Any
    initial: np.ndarray
    judged: Judged | None
    anchors: tuple[tuple[State, Judged | None], ...]
    fixed: list[Any]
    key: jax.Array
    feed: Feed
    held: Any
    program: tuple[_jax.ClosedJaxpr, list[Any]]
    single: State
    traced: bool

    def parts(self, step: int, visit: int) -> list[int]:
        """How many steps are done at once, from ``step`` to the next visit to the host."""
        left = min(visit - step % visit, self.ending.steps - step)
        whole, rest = divmod(left, self.loop.chunk)
        return [self.loop.chunk] * whole + [rest] * bool(rest)


def make(how: dict[str, Any], ending: Ending, given: list[Any], key: Any, args: Any, batches: Any):
    """The plan of a fit from the parameters ``given``, one tree for each restart."""
    on_device = batches if callable(batches) else None
    feed = Feed(None if callable(batches) else batches)
    trees = [(jax.tree.map(strong, p), tuple(args), on_device) for p in given]
    values, fixed, which = separate(trees[0])
    loop = Loop(**how, **which)
    compares = ending.tolerance is not None or ending.restarts is not None
    ahead = min(CHUNK, max(ending.steps, 1)) if compares else 1
    first = feed.first(ahead)
    if first:
        loop = dataclasses.replace(loop, chunk=length(first[0], CHUNK))
    program = loop.program(values, fixed, key, first[0] if first else None)

    def state(values: Any) -> State:
        kept, optimizer = begin(loop.optimizer.value, values)
        start = State(kept, optimizer, loop.averages(program[0]), 0)
        return opened(loop, ending, start)

    single = placed(state(values), (fixed, first))
    start = single
    if ending.restarts is not None:
        others = [placed(state(separate(t)[0]), (fixed, first)) for t in trees[1:]]
        start = stack_trees([single, *others])
    traced = is_traced(start, fixed, key, first, program[1], jnp.zeros(()) + 0)
    width = () if ending.restarts is None else (ending.restarts,)
    return Plan(
        loop=loop,
        ending=ending,
        start=start,
        step=0,
        history=np.zeros((*width, 0), jnp.zeros(()).dtype),
        initial=np.zeros(16, np.uint8) if traced or width else bytes_of(values),
        judged=None if ending.tolerance is None else unjudged(loop, ending.restarts),
        anchors=(),
        fixed=fixed,
        key=placed(key, (fixed, first)),
        feed=feed,
        held=feed.stack(first, len(first)) if first and compares else None,
        program=program,
        single=single,
        traced=traced,
    )


def opened(loop: Loop, ending: Ending, state: State) -> State:
    """A state with the windows and the rate that a fit needs."""
    settled = loop.settled(state)
    means = {name: state.means.get(name, wide(settled)) for name in ending.windows(0)}
    rate = state.rate
    if ending.tolerance is not None and rate is None:
        rate = jnp.float32(1.0)
    return dataclasses.replace(state, means=means, rate=rate)


def bytes_of(values: Any) -> np.ndarray:
    """A digest of values as an array."""
    return np.frombuffer(bytes.fromhex(digest(jax.tree.leaves(values))), np.uint8)
