"""A fit that goes on: from the state of another one, or from a file."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transforms import _jax
from transforms.errors import UnsupportedError, describe
from transforms.program.warned import warn

from .averaging import FINAL
from .checkpoint import VERSIONS, Checkpoint
from .devices import agreed, whole
from .fingerprint import digest, program_digest
from .plan import Plan, bytes_of, opened
from .steps import State, is_traced, strong, update
from .stopping import Judged

Kept = dict[str, Any]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows of the means of a state, which are not traced."""

    starts: tuple[tuple[str, int], ...]


def kept(plan: Plan, state: State, history: Any, judged: Judged | None, anchors: Any) -> Kept:
    """What ``state=`` of a continuation needs."""
    return {
        "params": state.values,
        "optimizer": state.optimizer,
        "averages": state.averages,
        "step": state.step,
        "history": history,
        "initial": plan.initial,
        "means": state.means,
        "rate": state.rate,
        "windows": Windows(tuple(plan.ending.windows(np.shape(history)[-1]).items())),
        "judged": judged,
        "anchors": anchors,
    }


def continued(plan: Plan, state: Any) -> Plan:
    """The plan from where another fit ended."""
    where = f"state at {_jax.user_line()}"
    here = kept(plan, plan.start, plan.history, None, ())
    if not isinstance(state, dict) or set(state) != set(here):
        raise UnsupportedError(f"{where} is {describe(state)}. Give fit.state of a fit.")
    for name in ("params", "optimizer", "averages"):
        was, now = shapes(state[name]), shapes(here[name])
        if was != now:
            raise ValueError(
                f"{where} is of another fit: its {name} are {was}, and here {now}. Give the same "
                "parameters, optimizer and objective, or leave out state=."
            )
    steps, done = plan.ending.steps, len(state["history"])
    if done >= steps:
        raise ValueError(
            f"{where} has {done} steps behind it, and steps, here {steps}, counts from the very "
            f"start. Type steps={done + steps} for {steps} more."
        )
    traced = plan.traced or is_traced(state)
    step = state["step"] if traced else int(state["step"])  # less where a traced fit failed
    if not traced and np.any(state["initial"]):
        begun = plan.initial.tobytes()
        ended = bytes_of(plan.loop.settled(State(state["params"], state["optimizer"], {}, 0)))
        if begun not in (np.asarray(state["initial"]).tobytes(), ended.tobytes()):
            raise ValueError(
                f"the parameters at {_jax.user_line()} are neither those that the fit of state= "
                "began with nor those that it ended with, and it goes on from the latter. Give "
                "fit.params, or leave out state= to start from others."
            )
    values, optimizer, averages = state["params"], state["optimizer"], state["averages"]
    end = State(values, optimizer, averages, step, state["means"], state["rate"])
    found, judged = _with_windows(plan, done, end, state)
    found = dataclasses.replace(jax.tree.map(strong, found), step=found.step)
    history = state["history"]
    again = len(history) if traced else int(found.step)
    return dataclasses.replace(
        plan,
        start=opened(plan.loop, plan.ending, found),
        step=again,
        history=history if traced else np.asarray(history)[:again],
        initial=state["initial"],
        judged=_open_end(plan.judged, judged),
        anchors=tuple(a for a in state["anchors"] if a[0].step <= again) if not traced else (),
        traced=traced,
    )


def _open_end(fresh: Judged | None, judged: Judged | None) -> Judged | None:
    """What was judged, for a fit that is to go on."""
    if fresh is None or judged is None:
        return fresh
    return dataclasses.replace(judged, converged=np.bool_(False))


def _with_windows(plan: Plan, done: int, end: State, state: Kept) -> tuple[State, Judged | None]:
    """The latest state from which the windows of the plan can be averaged."""
    windows, before = plan.ending.windows(done), dict(state["windows"].starts)
    lost = [s for name, s in windows.items() if s < done and before.get(name) != s]
    if not lost:
        return end, state["judged"]
    for anchor, judged in reversed(state["anchors"]):
        if anchor.step <= min(lost):
            return anchor, judged
    raise ValueError(
        f"the iterates that the fit at {_jax.user_line()} is to average begin after step "
        f"{min(lost)}, and those of state= are gone: it is at step {done}, of a fit inside jax.jit "
        f"or without average=. Type steps={_enough(plan, done)} or more, or leave out average=."
    )


def _enough(plan: Plan, done: int) -> int:
    return int(np.ceil(done / (1.0 - (plan.ending.average or 0.0) + 1e-9))) + 1


# --- files ----------------------------------------------------------------------------------------


def saved(plan: Plan, state: State, step: int, judged: Judged | None) -> list[Any]:
    """The arrays of a file."""
    window = plan.ending.windows(step).get(FINAL)
    final = None if window is None else np.int64(window)
    return jax.tree.leaves((state, plan.initial, judged, final))


def resumed(plan: Plan, file: Checkpoint) -> Plan:
    """The plan from where a checkpoint was written, unless it is further already."""
    window = plan.ending.windows(0).get(FINAL)
    like = (plan.start, plan.initial, plan.judged, None if window is None else np.int64(window))
    leaves, tree = jax.tree.flatten(like)
    found = file.restore(leaves)
    if found is None:
        agreed(-1, file.path)
        return plan
    state, initial, judged, final = jax.tree.unflatten(tree, found[0])
    step = int(np.max(state.step))
    agreed(step, file.path)
    if step < plan.step:
        return plan
    if window is not None and window < step and int(final) != window:
        warn(
            f"the checkpoint {file.path} ({_jax.user_line()}) is of {step} steps, and the iterates "
            f"to average begin after step {window} now that steps is {plan.ending.steps}: these "
            "are gone, so the fit starts anew.",
        )
        return plan
    if plan.ending.restarts is None:
        state = dataclasses.replace(state, step=step)
    if judged is not None:
        judged = jax.tree.map(np.asarray, judged)
    return dataclasses.replace(
        plan,
        start=state,
        step=step,
        history=found[1],
        initial=np.asarray(initial, np.uint8),
        judged=judged,
        anchors=tuple(a for a in plan.anchors if a[0].step <= step),
    )


def identity(plan: Plan) -> dict[str, str]:
    """What must be the same for a fit to be resumed, in words or as a digest."""
    loop, start, ending = plan.loop, plan.single, plan.ending

    def optimize(values: Any, state: Any, value: Any) -> Any:
        function = lambda v: sum(jnp.sum(a**2) for a in jax.tree.leaves(v))
        return update(loop.optimizer.value, loop.seen(start), state, values, value, function)

    closed, consts, _ = _jax.trace(optimize, start.values, start.optimizer, jnp.zeros(()))
    libraries = ("jax", "numpyro", "optax")
    asked = {n: getattr(ending, n) for n in ("average", "tolerance", "restarts")}
    asked["chunk"] = loop.together
    return {
        "the parameters": shapes(start.values),
        "the optimizer's state": shapes(start.optimizer),
        "optimizer": program_digest(closed, consts),
        "objective": program_digest(*plan.program),
        "args, data and integers of the parameters": digest(plan.fixed),
        "direction": "maximize" if loop.direction > 0 else "minimize",
        "samples": str(loop.samples),
        "key": str(whole(jax.random.key_data(plan.key)).tolist()),
        VERSIONS: " ".join(f"{n} {importlib.metadata.version(n)}" for n in libraries),
        **{name: str(value) for name, value in asked.items() if value is not None},
    }


def shapes(tree: Any) -> str:
    """The arrays of a tree, by their paths; a class of the user's may have no name for itself."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
    shape = lambda a: f"{jnp.result_type(a)}{list(jnp.shape(a))}"
    return ", ".join(f"{name(path)} {shape(a)}".strip() for path, a in leaves) or "none"
