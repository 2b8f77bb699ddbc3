"""Fitting: ascend or descend an objective with any optax optimizer.

The loop is compiled once and runs on the device in chunks; between chunks the host shows
progress, stores history and checkpoints. Step i uses the key ``fold_in(key, i)``, so a run that
is resumed draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from tqdm.auto import tqdm

from estimators.automatic import choose
from estimators.baselines import MovingAverage
from transforms.errors import NonFiniteError, UnsupportedError
from transforms.nonfinite import first_nonfinite
from transforms.surrogate import assign

from .expectation import Expectation, is_array, join, split
from .generative import as_key

CHUNK = 100
"""Steps between two visits to the host."""


@final
@dataclasses.dataclass(frozen=True)
class Fit:
    """What a fit returns.

    Attributes:
        params: the parameters after the last step, a pytree like the initial ones.
        history: f32[steps], the estimate of the objective at every step.
        state: what a continuation needs: the optimizer's state, the averages of
            ``ppl.moving_average`` baselines by decay, and the number of steps done.
    """

    params: Any
    history: np.ndarray
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
) -> Fit:
    """Ascend an objective; :func:`minimize` descends it.

    Args:
        objective: called as ``objective(params, *args)``, or ``objective(params, *args, batch)``
            with ``batches``.
        params: initial parameters, any pytree; its floating point arrays are fitted.
        optimizer: any optax optimizer (with the sign it has for descent).
        key: random key.
        steps: number of updates.
        samples: estimates averaged for each gradient.
        args: further arguments of the objective.
        batches: an iterable with the batch of each step (started anew when it ends, if it can
            be), or a function from a key to a batch, run on the device; see :func:`minibatches`.
        progress: whether to show a progress bar.
        callback: called as ``callback(step, params, history)`` every 100 steps and at the end;
            a true result stops the fit.
        checkpoint: file that is written every 100 steps and resumed from if it exists.

    Returns:
        A :class:`Fit`.

    Raises:
        NonFiniteError: a value or gradient became NaN or infinite; names the random choice at
            which this shows first.
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
) -> Fit:
    """Descend an objective; arguments and result as in :func:`maximize`."""
    return _fit(-1, **locals())


def minibatches(data: Any, size: int) -> Callable[[jax.Array], Any]:
    """Batches of ``size`` rows drawn uniformly with replacement, on the device.

    Args:
        data: a pytree of arrays ``[n, ...]`` with the same ``n``.
        size: rows in a batch. For an unbiased sum over the data scale the batch's by n / size.
    """
    sizes = {jnp.shape(a)[0] for a in jax.tree.leaves(data)}
    if len(sizes) != 1:
        raise ValueError(f"the arrays of data have different numbers of rows: {sorted(sizes)}.")
    (n,) = sizes

    def batch(key: jax.Array) -> Any:
        rows = jax.random.randint(key, (size,), 0, n)
        return jax.tree.map(lambda a: jnp.asarray(a)[rows], data)

    return batch


# --- the loop -----------------------------------------------------------------------------------


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
) -> Fit:
    if not isinstance(objective, Expectation):
        raise UnsupportedError(
            f"the objective is {type(objective).__name__}. Make it one with @ppl.expectation."
        )
    key = as_key(key)
    params = jax.tree.map(_strong, params)
    arrays, static, tree = split(params)
    arg_arrays, arg_static, arg_tree = split(args)
    on_device = batches if callable(batches) else None
    host = None if batches is None or on_device is not None else _cycle(batches)
    trainable = [jnp.issubdtype(a.dtype, jnp.floating) for a in arrays]

    def pick(arrays: list[Any], wanted: bool) -> list[Any]:
        return [a for a, t in zip(arrays, trainable, strict=True) if t == wanted]

    state: dict[str, Any] = {
        "optimizer": jax.tree.map(_strong, optimizer.init(pick(arrays, True))),
        "averages": {},
        "step": 0,
    }
    history = np.zeros((0,), np.float32)
    if checkpoint is not None and os.path.exists(checkpoint):
        arrays, state, history = _restore(checkpoint, arrays, state)
    if host is not None:
        for _ in range(state["step"]):
            next(host)
    first = next(host) if host is not None else None
    sample_args = jax.tree.unflatten(arg_tree, join(arg_arrays, arg_static))
    extra = () if batches is None else (first if on_device is None else jax.eval_shape(on_device, key),)
    if not state["averages"]:
        state["averages"] = _averages(objective, params, sample_args, extra, samples)

    spec = _Spec(
        optimizer=_ByContent(optimizer),
        direction=direction,
        samples=samples,
        tree=tree,
        static=static,
        arg_tree=arg_tree,
        arg_static=arg_static,
        trainable=tuple(trainable),
        batch=on_device,
        chunk=min(CHUNK, max(steps, 1)),
    )
    run = objective.compiled.setdefault("fit", jax.jit(_chunk, static_argnums=(0, 1)))
    bar = tqdm(total=steps, initial=state["step"], disable=not progress)
    with contextlib.closing(bar):
        while state["step"] < steps:
            start = state["step"]
            n = min(spec.chunk - start % spec.chunk, steps - start)
            stacked = None
            if host is not None:
                rows = [first, *(next(host) for _ in range(n - 1))]
                rows += [rows[-1]] * (spec.chunk - n)
                stacked = jax.tree.map(lambda *a: np.stack(a), *rows)
                first = next(host) if start + n < steps else None
            before = arrays
            arrays, opt_state, averages, values, done = run(
                spec, objective, arrays, state["optimizer"], state["averages"], arg_arrays, key,
                start, n, stacked,
            )  # fmt: skip
            done = int(done)
            if done < n:
                _explain_failure(
                    spec, objective, before, state, arg_arrays, key, start, done, stacked
                )
            history = np.concatenate([history, np.asarray(values)[:n]])
            state = {"optimizer": opt_state, "averages": averages, "step": start + n}
            bar.update(n)
            bar.set_postfix_str(f"{history[-n:].mean():.4g}")
            if checkpoint is not None:
                _save(checkpoint, arrays, state, history)
            params = jax.tree.unflatten(tree, join(arrays, static))
            if callback is not None and callback(state["step"], params, history):
                break
    return Fit(jax.tree.unflatten(tree, join(arrays, static)), history, state)


@dataclasses.dataclass(frozen=True)
class _Spec:
    """What the compiled loop depends on besides arrays."""

    optimizer: _ByContent
    direction: int
    samples: int
    tree: Any
    static: Any
    arg_tree: Any
    arg_static: Any
    trainable: tuple[bool, ...]
    batch: Any
    chunk: int


def _chunk(
    spec: _Spec,
    objective: Expectation,
    arrays: list[Any],
    opt_state: Any,
    averages: dict[float, Any],
    arg_arrays: list[Any],
    key: jax.Array,
    start: Any,
    n: Any,
    stacked: Any,
) -> tuple[Any, ...]:
    """Up to ``n`` steps; stops at the first value or gradient that is not finite."""

    def step(carry: Any) -> Any:
        i, arrays, opt_state, averages, values, _ = carry
        value, grads = _value_and_grad(
            spec, objective, arrays, averages, arg_arrays, key, start + i, i, stacked
        )
        finite = jnp.isfinite(value)
        for g in grads:
            finite &= jnp.all(jnp.isfinite(g))
        descent = [-spec.direction * g for g in grads]
        chosen = [a for a, t in zip(arrays, spec.trainable, strict=True) if t]
        updates, opt_state = spec.optimizer.value.update(descent, opt_state, chosen)
        left = iter(optax.apply_updates(chosen, updates))
        arrays = [
            next(left).astype(a.dtype) if t else a
            for a, t in zip(arrays, spec.trainable, strict=True)
        ]
        averages = {
            d: (d * a + (1 - d) * value).astype(a.dtype) for d, a in averages.items()
        }
        opt_state = jax.tree.map(lambda a, like: a.astype(like.dtype), opt_state, carry[2])
        return i + finite, arrays, opt_state, averages, values.at[i].set(value), finite

    def going(carry: Any) -> Any:
        return (carry[0] < n) & carry[-1]

    values = jnp.zeros((spec.chunk,), jnp.zeros(()).dtype)
    carry = (jnp.zeros((), int), arrays, opt_state, averages, values, jnp.asarray(True))
    done, arrays, opt_state, averages, values, _ = lax.while_loop(going, step, carry)
    return arrays, opt_state, averages, values, done


def _arguments(
    spec: _Spec, arrays: Any, arg_arrays: Any, key: Any, step: Any, i: Any, stacked: Any
) -> tuple[jax.Array, tuple[Any, ...]]:
    """The key and the arguments of the objective at a step."""
    key = jax.random.fold_in(key, step)
    args = jax.tree.unflatten(spec.arg_tree, join(arg_arrays, spec.arg_static))
    if spec.batch is not None:
        key, batch_key = jax.random.split(key)
        args = (*args, spec.batch(batch_key))
    elif stacked is not None:
        args = (*args, jax.tree.map(lambda a: a[i], stacked))
    return key, (jax.tree.unflatten(spec.tree, join(arrays, spec.static)), *args)


def _value_and_grad(
    spec: _Spec,
    objective: Expectation,
    arrays: list[Any],
    averages: Any,
    arg_arrays: Any,
    key: Any,
    step: Any,
    i: Any,
    stacked: Any,
) -> tuple[jax.Array, list[Any]]:
    def f(chosen: list[Any]) -> jax.Array:
        left = iter(chosen)
        full = [next(left) if t else a for a, t in zip(arrays, spec.trainable, strict=True)]
        k, args = _arguments(spec, full, arg_arrays, key, step, i, stacked)
        out = objective.surrogate(
            k, *args, samples=spec.samples, averages=averages, direction=spec.direction
        )
        return out[0] if isinstance(out, tuple) else out

    chosen = [a for a, t in zip(arrays, spec.trainable, strict=True) if t]
    return jax.value_and_grad(f)(chosen)


def _strong(leaf: Any) -> Any:
    """An array of fixed dtype, also from a Python number: weak types would compile twice."""
    return jnp.asarray(leaf, jnp.result_type(leaf)) if is_array(leaf) else leaf


def _averages(
    objective: Expectation, params: Any, args: Any, extra: Any, samples: int
) -> dict[float, jax.Array]:
    closed = objective.trace_abstractly(params, *args, *extra)
    baselines = [getattr(s.estimator, "baseline", None) for s in assign(closed, choose, samples)]
    return {b.decay: _strong(0.0) for b in baselines if isinstance(b, MovingAverage)}


def _cycle(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError(
                "batches has no more batches. Give an iterable that can be started again (a list, "
                "an array, a data loader; not a generator), or one batch for each step."
            )


def _explain_failure(
    spec: _Spec,
    objective: Expectation,
    arrays: list[Any],
    state: Any,
    arg_arrays: Any,
    key: Any,
    start: int,
    done: int,
    stacked: Any,
) -> None:
    """Run to the step that failed, then look for the choice at which it shows first."""
    run = objective.compiled["fit"]
    arrays = run(
        spec, objective, arrays, state["optimizer"], state["averages"], arg_arrays, key, start,
        done, stacked,
    )[0]  # fmt: skip
    k, args = _arguments(spec, arrays, arg_arrays, key, start + done, done, stacked)
    closed, consts, _ = objective.trace(*args)
    where = first_nonfinite(closed, consts, k, choose, spec.samples)
    raise NonFiniteError(
        f"the objective {objective.name} or its gradient is not finite at step {start + done}. "
        f"{where} Parameters before that step: {_summary(args[0])}. A smaller learning rate, "
        "parameters transformed to their support (jnp.exp, jax.nn.softplus), or log-space "
        "arithmetic are the usual cures."
    )


def _summary(params: Any) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shown = [
        f"{jax.tree_util.keystr(p) or 'params'} in [{np.min(a):.4g}, {np.max(a):.4g}]"
        for p, a in leaves
        if isinstance(a, jax.Array) and a.size
    ]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")


# --- checkpoints --------------------------------------------------------------------------------


def _save(path: Any, arrays: Any, state: Any, history: np.ndarray) -> None:
    leaves = [np.asarray(a) for a in jax.tree.leaves((arrays, state))]
    temporary = f"{os.fspath(path)}.partial"
    with open(temporary, "wb") as f:
        np.savez(f, *leaves, history=history)
    os.replace(temporary, path)


def _restore(path: Any, arrays: Any, state: Any) -> tuple[Any, Any, np.ndarray]:
    like, tree = jax.tree.flatten((arrays, state))
    with np.load(path) as saved:
        history = saved["history"]
        leaves = [saved[f"arr_{i}"] for i in range(len(saved.files) - 1)]
    shapes = [np.shape(a) for a in leaves]
    if shapes != [np.shape(a) for a in like]:
        raise ValueError(
            f"the checkpoint {os.fspath(path)} is of a fit with other parameters or another "
            "optimizer. Remove it, or give another file."
        )
    arrays, state = jax.tree.unflatten(tree, [jnp.asarray(a) for a in leaves])
    return arrays, {**state, "step": int(state["step"])}, history


# --- an optimizer as a static argument ----------------------------------------------------------


@final
class _ByContent:
    """An object compared by its content: closures by code and what they close over.

    ``optax.adam(1e-2)`` makes new functions at every call; a second fit with an equal optimizer
    must not compile again.
    """

    def __init__(self, value: Any):
        self.value = value
        self._content = _content(value, 0)

    def __hash__(self) -> int:
        return hash(self._content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByContent) and self._content == other._content


def _content(x: Any, depth: int) -> Any:
    if depth > 20:
        return id(x)
    if isinstance(x, types.FunctionType):
        cells = [c.cell_contents for c in x.__closure__ or () if _filled(c)]
        parts = (*cells, *(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values())
        return x.__code__, id(x.__globals__), tuple(_content(p, depth + 1) for p in parts)
    if isinstance(x, tuple | list):
        return type(x), tuple(_content(p, depth + 1) for p in x)
    if isinstance(x, dict):
        return tuple((k, _content(v, depth + 1)) for k, v in x.items())
    if isinstance(x, np.ndarray | jax.Array) and not isinstance(x, jax.core.Tracer):
        return pickle.dumps(np.asarray(x))
    if isinstance(x, str | bytes | bool | int | float | complex | type | None):
        return type(x), x
    return id(x)


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents
    except ValueError:
        return False
    return True
