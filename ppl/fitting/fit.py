"""Fitting: ascend or descend an objective with any optax optimizer.

The loop is compiled once and runs on the device in chunks (``steps.py``); between chunks the host
shows progress, stores history and checkpoints (``checkpoint.py``).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from transforms import _jax
from transforms.checker.alarm import is_strict
from transforms.errors import UnsupportedError, describe

from ..objectives.expectation import Expectation
from ..programs.given import as_count, as_key
from .arguments import check_arguments, check_objective
from .batches import cycle, stack
from .checkpoint import VERSIONS, Checkpoint
from .content import ByContent
from .fingerprint import digest, program_digest
from .steps import Loop, State, begin, is_traced, run_chunk, separate, strong, update

CHUNK = 100
"""Steps between two visits to the host."""


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fit:
    """What a fit returns.

    Attributes:
        params: the parameters after the last step, a pytree like the initial ones.
        history: f32[steps], the estimate of the objective at every step.
        state: what ``state=`` of a continuation needs: the fitted parameters as the optimizer
            keeps them, its state, the averages of ``ppl.moving_average`` baselines by decay, the
            number of steps done, the history, and a digest of the first parameters.
    """

    params: Any
    history: Any
    state: dict[str, Any]


def maximize(
    objective: Expectation,
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    key: jax.Array,
    steps: int,
    samples: int = 1,
    args: tuple[Any, ...] = (),
    batches: Iterable[Any] | Callable[[jax.Array], Any] | None = None,
    progress: bool = True,
    callback: Callable[[int, Any, np.ndarray], Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    state: dict[str, Any] | None = None,
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
        key: random key.
        steps: number of updates.
        samples: estimates averaged for each gradient.
        args: further arguments of the objective.
        batches: an iterable with the batch of each step (started anew when it ends, if it can
            be), or a function from a key to a batch, run on the device; see :func:`minibatches`.
        progress: whether to show a progress bar.
        callback: called as ``callback(step, params, history)`` every 100 steps and at the end;
            a true result stops the fit.
        checkpoint: file that is written every 100 steps and resumed from if it exists, from its
            parameters; the one before is kept as ``<file>.previous``, should it be damaged.
        state: ``fit.state`` of a fit, to go on where it ended, as if it had not stopped; ``steps``
            counts from the very start.

    Inside ``jax.jit`` or ``jax.vmap`` (restarts) the fit is a part of what is compiled, without
    progress, callback and checkpoint. It cannot raise then: from a step that is not finite on,
    ``history`` is NaN, and ``params`` are those before it.

    Returns:
        A :class:`Fit`.

    Raises:
        NonFiniteError: a value or gradient became NaN or infinite; names the random choice at
            which this shows first.
        ValueError: the checkpoint, or the state, is damaged or of another fit; says what differs.
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
    args: tuple[Any, ...] = (),
    batches: Iterable[Any] | Callable[[jax.Array], Any] | None = None,
    progress: bool = True,
    callback: Callable[[int, Any, np.ndarray], Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    state: dict[str, Any] | None = None,
) -> Fit:
    """Descend an objective; arguments and result as in :func:`maximize`."""
    return _fit(-1, **locals())


# --- the fit ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A fit before its first step: the loop, and what it starts from.

    ``rows`` are the batches from the host, the first step's first; ``program`` is that of the
    objective with what it closes over.
    """

    loop: Loop
    start: State
    history: Any
    initial: np.ndarray
    fixed: list[Any]
    key: jax.Array
    rows: Iterator[Any] | None
    program: tuple[_jax.ClosedJaxpr, list[Any]]
    example: Any
    traced: bool

    def take(self, n: int, length: int) -> Any:
        """The next ``n`` batches of the host, in an array for ``length``."""
        return None if self.rows is None else stack(list(itertools.islice(self.rows, n)), length)

    def finish(self, state: State, history: Any) -> Fit:
        kept = {
            "params": state.values,
            "optimizer": state.optimizer,
            "averages": state.averages,
            "step": state.step,
            "history": history,
            "initial": self.initial,
        }
        return Fit(self.loop.params(state, self.fixed), history, kept)


def _fit(
    direction: int,
    objective: Expectation,
    params: Any,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    steps: int,
    samples: int,
    args: tuple[Any, ...],
    batches: Any,
    progress: bool,
    callback: Callable[[int, Any, np.ndarray], Any] | None,
    checkpoint: str | os.PathLike[str] | None,
    state: dict[str, Any] | None,
) -> Fit:
    check_objective(objective)
    key, steps, samples = as_key(key), as_count(steps, "steps", 0), as_count(samples, "samples")
    check_arguments(params, optimizer, args, batches, callback, checkpoint)
    how = {
        "objective": objective,
        "optimizer": ByContent(optimizer),
        "direction": direction,
        "samples": samples,
        "chunk": min(CHUNK, max(steps, 1)),
        "strict": objective.strict or is_strict(),
    }
    plan = _plan(how, params, key, args, batches)
    plan = plan if state is None else _continued(plan, state, steps)
    if plan.traced:
        return _traced(plan, steps, callback, checkpoint)
    file = None if checkpoint is None else Checkpoint(checkpoint, _identity(plan))
    plan = plan if file is None else _resumed(plan, file)
    return _run(plan, steps, progress, callback, file)


def _plan(how: dict[str, Any], params: Any, key: Any, args: Any, batches: Any) -> _Plan:
    on_device = batches if callable(batches) else None
    host = None if batches is None or callable(batches) else cycle(batches)
    trees = (jax.tree.map(strong, params), tuple(args), on_device)
    values, fixed, which = separate(trees)
    loop = Loop(**how, **which)
    first = [] if host is None else [next(host)]
    example = first[0] if first else None
    program = loop.program(values, fixed, key, example)
    kept, state = begin(how["optimizer"].value, values)
    start = State(kept, state, loop.averages(program[0]), 0)
    traced = is_traced(start, fixed, key, first, program[1], jnp.zeros(()) + 0)
    return _Plan(
        loop=loop,
        start=start,
        history=np.zeros((0,), jnp.zeros(()).dtype),
        initial=np.zeros(16, np.uint8) if traced else _bytes_of(values),
        fixed=fixed,
        key=key,
        rows=None if host is None else itertools.chain(first, host),
        program=program,
        example=example,
        traced=traced,
    )


def _run(
    plan: _Plan, steps: int, progress: bool, callback: Any, checkpoint: Checkpoint | None
) -> Fit:
    loop, state, history, fixed = plan.loop, plan.start, plan.history, plan.fixed
    if plan.rows is not None:
        next(itertools.islice(plan.rows, state.step, state.step), None)
    run = loop.objective.compiled.setdefault("fit", jax.jit(run_chunk, static_argnums=0))
    with tqdm(total=steps, initial=state.step, disable=not progress) as bar:
        while state.step < steps:
            n = min(loop.chunk - state.step % loop.chunk, steps - state.step)
            rows = plan.take(n, loop.chunk)
            after, estimates, done = run(loop, state, fixed, plan.key, n, rows)
            if int(done) < n:
                failed = run(loop, state, fixed, plan.key, done, rows)[0]
                batch = jax.tree.map(lambda a, i=int(done): a[i], rows)
                loop.explain_failure(failed, fixed, plan.key, batch)
            state = dataclasses.replace(after, step=int(after.step))
            history = np.concatenate([history, np.asarray(estimates)[:n]])
            bar.update(n)
            bar.set_postfix_str(f"{history[-n:].mean():.4g}")
            if checkpoint is not None:
                checkpoint.save(jax.tree.leaves((state, plan.initial)), history)
            if callback is not None and callback(state.step, loop.params(state, fixed), history):
                break
    return plan.finish(state, history)


def _traced(plan: _Plan, steps: int, callback: Any, checkpoint: Any) -> Fit:
    """The whole fit as a part of what is traced around it."""
    for name, given in (("callback", callback), ("checkpoint", checkpoint)):
        if given is not None:
            raise UnsupportedError(
                f"the fit at {_jax.user_line()} runs inside jax.jit, jax.vmap or a relative, where "
                f"the host has no part in it, so {name} cannot be used. Leave it out, or call the "
                "fit outside, for several of them in a loop."
            )
    done = len(plan.history)
    left = max(steps - done, 0)
    loop = dataclasses.replace(plan.loop, chunk=max(left, 1))
    if plan.rows is not None:
        next(itertools.islice(plan.rows, done, done), None)
    rows = plan.take(left, left) if left else None
    state, estimates, _ = run_chunk(loop, plan.start, plan.fixed, plan.key, left, rows)
    return plan.finish(state, jnp.concatenate([plan.history, estimates[:left]]))


# --- going on -----------------------------------------------------------------------------------


def _continued(plan: _Plan, state: Any, steps: int) -> _Plan:
    """The plan from where another fit ended."""
    where = f"state at {_jax.user_line()}"
    kept = plan.finish(plan.start, plan.history).state
    if not isinstance(state, dict) or set(state) != set(kept):
        raise UnsupportedError(f"{where} is {describe(state)}. Give fit.state of a fit.")
    changing = ("params", "optimizer", "averages")
    for name in changing:
        was, now = _shapes(state[name]), _shapes(kept[name])
        if was != now:
            raise ValueError(
                f"{where} is of another fit: its {name} are {was}, and here {now}. Give the same "
                "parameters, optimizer and objective, or leave out state=."
            )
    history = state["history"]
    done = len(history)
    if done >= steps:
        raise ValueError(
            f"{where} has {done} steps behind it, and steps, here {steps}, counts from the very "
            f"start. Type steps={done + steps} for {steps} more."
        )
    traced = plan.traced or is_traced(state)
    step = state["step"] if traced else int(state["step"])  # less where a traced fit failed
    if not traced and np.any(state["initial"]):
        here = plan.initial.tobytes()
        ended = _bytes_of(plan.loop.settled(State(state["params"], state["optimizer"], {}, 0)))
        if here not in (np.asarray(state["initial"]).tobytes(), ended.tobytes()):
            raise ValueError(
                f"the parameters at {_jax.user_line()} are neither those that the fit of state= "
                "began with nor those that it ended with, and it goes on from the latter. Give "
                "fit.params, or leave out state= to start from others."
            )
    values, optimizer, averages = (jax.tree.map(strong, state[name]) for name in changing)
    return dataclasses.replace(
        plan,
        start=State(values, optimizer, averages, step),
        history=history if traced else np.asarray(history)[:step],
        initial=state["initial"],
        traced=traced,
    )


def _resumed(plan: _Plan, file: Checkpoint) -> _Plan:
    """The plan from where a checkpoint was written, unless it is further already."""
    leaves, tree = jax.tree.flatten((plan.start, plan.initial))
    found = file.restore(leaves)
    if found is None:
        return plan
    state, initial = jax.tree.unflatten(tree, found[0])
    if int(state.step) < plan.start.step:
        return plan
    state = dataclasses.replace(state, step=int(state.step))
    return dataclasses.replace(
        plan, start=state, history=found[1], initial=np.asarray(initial, np.uint8)
    )


def _identity(plan: _Plan) -> dict[str, str]:
    """What must be the same for a fit to be resumed, in words or as a digest."""
    loop, start = plan.loop, plan.start

    def optimize(values: Any, state: Any, value: Any) -> Any:
        function = lambda v: sum(jnp.sum(a**2) for a in jax.tree.leaves(v))
        return update(loop.optimizer.value, loop.seen(start), state, values, value, function)

    closed, consts, _ = _jax.trace(optimize, start.values, start.optimizer, jnp.zeros(()))
    libraries = ("jax", "numpyro", "optax")
    return {
        "the parameters": _shapes(start.values),
        "the optimizer's state": _shapes(start.optimizer),
        "optimizer": program_digest(closed, consts),
        "objective": program_digest(*plan.program),
        "args, data and integers of the parameters": digest(plan.fixed),
        "direction": "maximize" if loop.direction > 0 else "minimize",
        "samples": str(loop.samples),
        "key": str(np.asarray(jax.random.key_data(plan.key)).tolist()),
        VERSIONS: " ".join(f"{n} {importlib.metadata.version(n)}" for n in libraries),
    }


def _shapes(tree: Any) -> str:
    """The structure of a tree with the shapes of its arrays."""
    shape = lambda a: f"{jnp.result_type(a)}{list(jnp.shape(a))}"
    return str(jax.tree.map(shape, tree)).replace("'", "")


def _bytes_of(values: Any) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(digest(jax.tree.leaves(values))), np.uint8)
