"""Fitting: ascend or descend an objective with any optax optimizer.

The loop is compiled once and runs on the device in chunks (``steps.py``); between chunks the host
shows progress, stores history and checkpoints (``checkpoint.py``).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from typing import Any, final

import jax
import numpy as np
import optax

from transforms.checker.alarm import is_strict
from transforms.program.content import ByContent

from ..objectives.expectation import Expectation, counts
from ..programs.given import as_count
from ..programs.shown import Shown
from .arguments import check_arguments, check_ending, check_objective, takes_metrics
from .checkpoint import Checkpoint
from .keys import as_keys
from .plan import CHUNK, LONGEST, Ending, make
from .restarts import starts
from .resuming import continued, identity, resumed
from .running import run, run_traced


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fit(Shown):
    """What a fit returns.

    Attributes:
        params: the parameters after the last step, a pytree like the initial ones.
        history: f32[steps], the estimate of the objective at every step.
        state: what ``state=`` of a continuation needs: the fitted parameters as the optimizer
            keeps them, its state, the averages of ``ppl.moving_average`` baselines by decay, the
            number of steps done, the history, a digest of the first parameters, and what
            ``average`` and ``tolerance`` keep.
        averaged: with ``average``, the mean of the iterates over that last part of the steps.
        restarts: with ``restarts``, f32[restarts], the objective at the end of each; NaN where
            one failed.
        converged: with ``tolerance``, whether the fit converged.
        verdict: a sentence on whether it did.

    Example:
        >>> fit = ppl.maximize(elbo, phi, optax.adam(0.1), key=key, steps=10, progress=False)
        >>> fit.history.shape
        (10,)
    """

    parts = "params", "averaged", "history", "restarts"

    params: Any
    history: Any
    state: dict[str, Any]
    averaged: Any = None
    restarts: Any = None
    converged: bool | None = dataclasses.field(default=None, metadata={"static": True})
    verdict: str = dataclasses.field(default="", metadata={"static": True})

    def __repr__(self) -> str:
        names = ["params"] + ["averaged"] * (self.averaged is not None)
        values = [f"{n}={_brief(getattr(self, n))}" for n in names]
        n = np.shape(self.history)[-1]
        return f"Fit({', '.join(values)}, {n:,} steps)" + (f": {self.verdict}" * bool(self.verdict))


def maximize(
    objective: Expectation,
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    key: jax.Array,
    steps: int,
    samples: int = 1,
    chunk: int | None = None,
    args: tuple[Any, ...] = (),
    batches: Iterable[Any] | Callable[[jax.Array], Any] | None = None,
    progress: bool = True,
    callback: Callable[..., Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    state: dict[str, Any] | None = None,
    average: float | None = None,
    tolerance: float | None = None,
    restarts: int | None = None,
) -> Fit:
    """Ascend an objective; :func:`minimize` descends it.

    Args:
        objective: called as ``objective(params, *args)``, or ``objective(params, *args, batch)``
            with ``batches``.
        params: initial parameters, any pytree; its floating point arrays are fitted.
        optimizer: any optax optimizer (with the sign it has for descent). It sees the parameters
            as they are typed here, so labels, masks and paths work, with ``optax.MaskedNode()`` in
            place of what is not fitted. Where it asks for ``value``, ``grad`` or ``value_fn`` it
            gets what it descends, at this step's draws and batch.
        key: random key, or an array of keys ``[n]``: the objective is then its mean over them, and
            where they are divided over devices, so are its draws.
        steps: number of updates.
        samples: estimates averaged for each gradient.
        chunk: how many of them are in memory at a time; see :meth:`ppl.Expectation.value_and_grad`.
        args: further arguments of the objective.
        batches: an iterable with the batch of each step (started anew when it ends, if it can
            be), or a function from a key to a batch, run on the device; see :func:`minibatches`.
        progress: whether to show a progress bar.
        callback: called as ``callback(step, params, history)`` every 100 steps and at the end;
            a true result stops the fit. If it has an argument ``metrics`` it gets the mean of
            the auxiliary data of the objective (``has_aux``) since the last call.
        checkpoint: file that is written every 100 steps and resumed from if it exists, from its
            parameters; the one before is kept as ``<file>.previous``, should it be damaged.
        state: ``fit.state`` of a fit, to go on where it ended, as if it had not stopped; ``steps``
            counts from the very start.
        average: 0.5 for ``fit.averaged``, the mean of the iterates over the last half of the
            steps (of those that were done of it, where a callback ends the fit). A fit that goes
            on may repeat some steps for it.
        tolerance: stop when a doubling of the steps, from 500 on, gains less than this at the
            averaged parameters; ``steps`` is then the most the fit may take. ``average`` is 0.5
            if it is not given. Where the objective falls, the updates are made smaller.
        restarts: number of fits side by side, from parameters with a leading axis of that size or
            from a function from a key to parameters; the best at the end is kept. ``callback``
            gets the parameters and the history of all.

    Inside ``jax.jit`` or ``jax.vmap`` the fit is a part of what is compiled, without progress,
    callback, checkpoint, tolerance and restarts. It cannot raise then: from a step that is not
    finite on, ``history`` is NaN, and ``params`` are those before it.

    Returns:
        A :class:`Fit`.

    Raises:
        NonFiniteError: a value or gradient became NaN or infinite; names the random choice at
            which this shows first.
        ValueError: the checkpoint, or the state, is damaged or of another fit; says what differs.

    Example:
        >>> fit = ppl.maximize(elbo, phi, optax.adam(0.1), key=key, steps=10, progress=False)
        >>> fit.history.shape
        (10,)
    """
    return _fit(1, **locals())


def minimize(
    objective: Expectation,
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    key: jax.Array,
    steps: int,
    samples: int = 1,
    chunk: int | None = None,
    args: tuple[Any, ...] = (),
    batches: Iterable[Any] | Callable[[jax.Array], Any] | None = None,
    progress: bool = True,
    callback: Callable[..., Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    state: dict[str, Any] | None = None,
    average: float | None = None,
    tolerance: float | None = None,
    restarts: int | None = None,
) -> Fit:
    """Descend an objective; arguments and result as in :func:`maximize`.

    Example:
        >>> loss = ppl.expectation(lambda phi: -ppl.elbo(model(), guide(phi), data))
        >>> fit = ppl.minimize(loss, phi, optax.adam(0.1), key=key, steps=10, progress=False)
    """
    return _fit(-1, **locals())


# --- the fit ------------------------------------------------------------------------------------


def _fit(
    direction: int,
    objective: Expectation,
    params: Any,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    steps: int,
    samples: int,
    chunk: int | None,
    args: tuple[Any, ...],
    batches: Any,
    progress: bool,
    callback: Callable[..., Any] | None,
    checkpoint: str | os.PathLike[str] | None,
    state: dict[str, Any] | None,
    average: float | None,
    tolerance: float | None,
    restarts: int | None,
) -> Fit:
    check_objective(objective)
    key, steps, count = as_keys(key), as_count(steps, "steps", 0), counts(samples, chunk)
    check_ending(objective, average, tolerance, restarts, state, callback)
    given = [params] if restarts is None else starts(params, restarts, key)
    check_arguments(given[0], optimizer, args, batches, callback, checkpoint)
    host = batches is not None and not callable(batches)
    average = 0.5 if average is None and tolerance is not None else average
    how = {
        "objective": objective,
        "optimizer": ByContent(optimizer),
        "direction": direction,
        "samples": count["samples"],
        "together": count["chunk"],
        "chunk": CHUNK if host else LONGEST,
        "strict": objective.strict or is_strict(),
        "metrics": callback is not None and takes_metrics(callback),
    }
    plan = make(how, Ending(steps, average, tolerance, restarts), given, key, args, batches)
    plan = plan if state is None else continued(plan, state)
    if plan.traced:
        asked = {"callback": callback, "checkpoint": checkpoint}
        return Fit(**run_traced(plan, {**asked, "tolerance": tolerance, "restarts": restarts}))
    file = None if checkpoint is None else Checkpoint(checkpoint, identity(plan))
    plan = plan if file is None else resumed(plan, file)
    return Fit(**run(plan, progress, callback, file))


def _brief(tree: Any) -> str:
    """A tree with arrays of one number as numbers, and the shapes of others."""
    text = lambda a: f"{float(a):.4g}" if np.size(a) == 1 else f"{a.dtype}{list(np.shape(a))}"
    brief = lambda a: _Text(text(a) if isinstance(a, jax.Array | np.ndarray) else repr(a))
    return str(jax.tree.map(brief, tree))


class _Text(str):
    __slots__ = ()
    __repr__ = str.__str__
