"""The steps of a fit, chunk by chunk, and what the host does between two chunks.

It shows progress, keeps the history, writes the checkpoint, checks for convergence.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from transforms import _jax
from transforms.errors import UnsupportedError
from transforms.program.compiled import compiled, shape_of

from ..objectives.leaves import split
from .averaging import CHECK, FINAL, narrow
from .checkpoint import Checkpoint
from .devices import among_processes, is_first
from .plan import CHUNK, Plan
from .restarts import best, one, pick, run_side_by_side
from .resuming import kept, saved
from .steps import State, run_chunk
from .stopping import Judged, estimates, judge, next_check, verdict

LONGEST_WAIT = 0.5
"""Seconds between two sights of the progress."""

STARTED = 1
"""Parts of the steps that are started before the one before them has ended."""


@dataclasses.dataclass
class _Progress:
    """Where a fit is."""

    state: State
    step: int
    estimates: np.ndarray
    judged: Judged | None
    anchors: tuple[tuple[State, Judged | None], ...]

    @property
    def history(self) -> np.ndarray:
        """The estimates so far."""
        return self.estimates[..., : self.step]

    @property
    def converged(self) -> bool:
        """Whether the last check said so."""
        return self.judged is not None and bool(self.judged.converged)


def run(plan: Plan, progress: bool, callback: Any, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Do the steps of a plan: the fields of a fit."""
    loop, fixed, steps = plan.loop, plan.fixed, plan.ending.steps
    shape = (*plan.history.shape[:-1], max(steps, plan.step))
    known = np.full(shape, np.nan, plan.history.dtype)
    known[..., : plan.step] = plan.history
    at = _Progress(plan.start, plan.step, known, plan.judged, plan.anchors)
    plan.feed.skip(at.step)
    plan.feed.read_ahead(_all_parts(plan, at.step), loop.chunk)
    often = slow = bool(callback or checkpoint or progress)
    if at.step == 0:
        _drop_anchor(plan, at)
    bar = tqdm(total=steps, initial=at.step, disable=not (progress and is_first()))
    path = None if checkpoint is None else checkpoint.path
    with bar, contextlib.closing(plan.feed), among_processes(path):
        while at.step < steps and not at.converged:
            began = time.perf_counter()
            n, metrics = _chunk(plan, at, CHUNK if slow or plan.feed else loop.chunk)
            if not (callback or checkpoint):  # else every chunk is asked for
                slow = often and (time.perf_counter() - began) / n * loop.chunk > LONGEST_WAIT
            bar.update(n)
            recent = at.history[..., -n:].mean(-1)
            shown = loop.direction * np.fmax.reduce(np.ravel(loop.direction * recent))
            bar.set_postfix_str(f"{shown:.4g}", refresh=False)
            if plan.ending.tolerance is not None and next_check(at.step - 1) == at.step:
                _check(plan, at, plan.ending.tolerance)
            if next_check(at.step - 1) == at.step:
                _drop_anchor(plan, at)
            if checkpoint is not None:
                checkpoint.save(saved(plan, at.state, at.step, at.judged), at.history)
            seen = {"metrics": metrics} if loop.metrics else {}
            params = None if callback is None else loop.params(at.state, fixed)
            if callback is not None and callback(at.step, params, at.history, **seen):
                break
    return _finish(plan, at)


def _all_parts(plan: Plan, step: int) -> list[int]:
    """The steps that are done at once where the batches come from the host."""
    counts: list[int] = []
    while step < plan.ending.steps:
        counts += plan.parts(step, CHUNK)
        step = step - step % CHUNK + CHUNK
    return counts


def _run(plan: Plan, one: Any, all_of_them: Any, *args: Any) -> Any:
    """A function of one fit, or of all restarts, as compiled code that the objective keeps."""
    f = one if plan.ending.restarts is None else all_of_them
    known = plan.loop.objective.compiled
    arrays, _, form = split(args)
    which = f, plan.loop, form, tuple(map(shape_of, arrays))
    if which not in known:
        known[which] = compiled(functools.partial(f, plan.loop), *args)
    return known[which](*args)


@dataclasses.dataclass
class _Part:
    """Steps whose code was started: how many, their batches, and what they compute."""

    n: int
    rows: Any
    after: State
    estimates: jax.Array
    finite: jax.Array
    metrics: Any


def _chunk(plan: Plan, at: _Progress, visit: int) -> tuple[int, Any]:
    """Run some steps, up to the next visit to the host: how many, and their metrics."""
    several = plan.ending.restarts is not None
    run = functools.partial(_run, plan, run_chunk, run_side_by_side)
    counts, windows = plan.parts(at.step, visit), plan.ending.windows(at.step)
    state, step = at.state, at.step
    ahead: collections.deque[_Part] = collections.deque()
    metrics: list[Any] = []
    for n in counts:
        rows = plan.feed.take()
        found = _Part(n, rows, *run(state, plan.fixed, plan.key, n, rows, windows))
        step += n
        state = found.after if several else dataclasses.replace(found.after, step=step)
        ahead.append(dataclasses.replace(found, after=state))
        metrics.append(found.metrics)
        if len(ahead) > STARTED:
            _end(plan, at, run, windows, ahead.popleft())
    for part in ahead:
        _end(plan, at, run, windows, part)
    total = sum(counts)
    mean = lambda *ms: sum(n * m for n, m in zip(counts, ms, strict=True)) / total
    return total, jax.tree.map(mean, *metrics) if len(metrics) > 1 else metrics[0]


def _end(plan: Plan, at: _Progress, run: Any, windows: Any, part: _Part) -> None:
    """Wait for some steps and go on from there; raise where one of them is not finite."""
    counts = np.asarray(part.finite)  # one, or one for each restart
    n, finite = part.n, int(counts.max())
    if finite < n:
        state = run(at.state, plan.fixed, plan.key, finite, part.rows, windows)[0]
        i, batch = int(counts.argmax()), jax.tree.map(lambda a: a[finite], part.rows)
        state = state if plan.ending.restarts is None else pick(state, i)
        plan.loop.explain_failure(state, plan.fixed, plan.key, batch)
    at.estimates[..., at.step : at.step + n] = np.asarray(part.estimates)[..., :n]
    at.state, at.step = part.after, at.step + n


def _drop_anchor(plan: Plan, at: _Progress) -> None:
    """Keep a state from which the mean of a longer fit can be found; two will always do."""
    if plan.ending.average is not None:
        at.anchors = (*at.anchors, (at.state, at.judged))[-2:]


def _check(plan: Plan, at: _Progress, tolerance: float) -> None:
    """See whether the fit has converged; lower the rate where the objective fell."""
    assert at.judged is not None
    values = _estimates(plan, at.state, CHECK)
    at.judged, factor = judge(at.judged, values, at.step, tolerance, plan.loop.direction)
    at.state = dataclasses.replace(at.state, rate=at.state.rate * factor.astype(np.float32))


def _estimates(plan: Plan, state: State, name: str) -> np.ndarray:
    """Estimates of the objective at the end of a window, or where nothing is averaged."""
    loop = plan.loop
    like = loop.settled(state)
    values = narrow(state.means[name], like) if state.means else like
    args = values, state.averages, plan.fixed, plan.key, plan.held
    return np.asarray(_run(plan, estimates, _estimates_of_all, *args))


def _estimates_of_all(loop: Any, values: Any, averages: Any, fixed: Any, key: Any, rows: Any):
    return jax.vmap(lambda v, a: estimates(loop, v, a, fixed, key, rows))(values, averages)


def _finish(plan: Plan, at: _Progress) -> dict[str, Any]:
    """The fields of a fit."""
    loop, ending = plan.loop, plan.ending
    state, name = at.state, CHECK if at.converged else FINAL
    history = np.array(at.history)
    found: dict[str, Any] = {}
    if ending.restarts is not None:
        i, found["restarts"] = best(state, _estimates(plan, state, name), loop.direction)
        at.anchors = tuple((one(s, i), j and _pick_judged(j, i)) for s, j in at.anchors)
        at.judged = at.judged and _pick_judged(at.judged, i)
        state, history = one(state, i), history[i]
    if ending.average is not None:
        found["averaged"] = loop.averaged(state, plan.fixed, name)
    if ending.tolerance is not None:
        found["converged"] = at.converged
    return {
        "params": loop.params(state, plan.fixed),
        "history": history,
        "state": kept(plan, state, history, at.judged, at.anchors),
        "verdict": verdict(at.judged, ending.tolerance, at.step, state.rate),
        **found,
    }


def _pick_judged(judged: Judged, i: int) -> Judged:
    return dataclasses.replace(judged, values=judged.values[i])


def run_traced(plan: Plan, asked: dict[str, Any]) -> dict[str, Any]:
    """The whole fit as a part of what is traced around it."""
    for name, given in asked.items():
        if given is not None:
            raise UnsupportedError(
                f"the fit at {_jax.user_line()} runs inside jax.jit, jax.vmap or a relative, where "
                f"the host has no part in it, so {name} cannot be used. Leave it out, or call the "
                "fit outside, for several of them in a loop."
            )
    done, ending = len(plan.history), plan.ending
    left = max(ending.steps - done, 0)
    loop = dataclasses.replace(plan.loop, chunk=max(left, 1), guarded=True)
    plan.feed.skip(done)
    rows = plan.feed.stacked(left, left) if left else None
    windows = ending.windows(done)
    state, found, _, _ = run_chunk(loop, plan.start, plan.fixed, plan.key, left, rows, windows)
    history = jnp.concatenate([plan.history, found[:left]])
    averaged = None if ending.average is None else loop.averaged(state, plan.fixed, FINAL)
    return {
        "params": loop.params(state, plan.fixed),
        "history": history,
        "state": kept(plan, state, history, None, ()),
        "averaged": averaged,
    }
