"""Fitting: ascend or descend an objective with any optax optimizer.

The loop is compiled once and runs on the device in chunks; between chunks the host shows
progress, stores history and checkpoints. Step i uses the key ``fold_in(key, i)``, so a run that
is resumed draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import os
import types
import zipfile
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
from transforms import _jax
from transforms.alarm import is_strict
from transforms.assignment import assign
from transforms.errors import NonFiniteError, UnsupportedError, describe
from transforms.nonfinite import first_nonfinite

from .expectation import Expectation, is_array, join, split
from .generative import as_count, as_key

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


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Minibatches:
    """A function from a key to ``size`` random rows of ``data``; see :func:`minibatches`."""

    data: Any
    size: int = dataclasses.field(metadata={"static": True})

    def __call__(self, key: jax.Array) -> Any:
        rows = jax.random.randint(key, (self.size,), 0, _rows(self.data))
        return jax.tree.map(lambda a: jnp.asarray(a)[rows], self.data)


def minibatches(data: Any, size: int) -> Minibatches:
    """Batches of ``size`` rows drawn uniformly with replacement, on the device.

    Args:
        data: a pytree of arrays ``[n, ...]`` with the same ``n``.
        size: rows in a batch. For an unbiased sum over the data scale the batch's by n / size.
    """
    _rows(data)
    return Minibatches(data, as_count(size, "size"))


def _rows(data: Any) -> int:
    sizes = {jnp.shape(a)[:1] for a in jax.tree.leaves(data)}
    if len(sizes) != 1 or () in sizes:
        rows = ", ".join(str(*s) if s else "a number without rows" for s in sorted(sizes))
        raise ValueError(
            f"the arrays of data ({_jax.user_line()}) have the numbers of rows: {rows or 'none'}. "
            "Give arrays [n, ...] with the same n."
        )
    return sizes.pop()[0]


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
            f"the objective at {_jax.user_line()} is {describe(objective)}. Put @ppl.expectation "
            "above the function that returns it, and give that function, uncalled."
        )
    key, steps, samples = as_key(key), as_count(steps, "steps", 0), as_count(samples, "samples")
    _check_arguments(params, optimizer, args, batches, callback, checkpoint)
    on_device = batches if callable(batches) else None
    host = None if batches is None or callable(batches) else _cycle(batches)
    arrays, static, tree = split((jax.tree.map(_strong, params), tuple(args), on_device))
    floating = [jnp.issubdtype(jnp.result_type(a), jnp.floating) for a in arrays]
    n_params = len(split(params)[0])
    trained = tuple(f and i < n_params for i, f in enumerate(floating))
    loop = _Loop(
        objective=objective,
        optimizer=_ByContent(optimizer),
        direction=direction,
        samples=samples,
        tree=tree,
        static=static,
        trained=trained,
        chunk=min(CHUNK, max(steps, 1)),
        strict=objective.strict or is_strict(),
    )
    values, fixed = loop.separate(arrays)
    peeked = [] if host is None else [next(host)]
    state = _State(
        values=values,
        optimizer=jax.tree.map(_strong, optimizer.init(values)),
        averages=loop.averages(values, fixed, key, peeked),
        step=0,
    )
    history = np.zeros((0,), jnp.zeros(()).dtype)
    if checkpoint is not None and os.path.exists(checkpoint):
        state, history = _restore(checkpoint, state)
    stream = itertools.chain(peeked, host) if host is not None else iter(())
    next(itertools.islice(stream, state.step, state.step), None)
    run = objective.compiled.setdefault("fit", jax.jit(_chunk, static_argnums=0))
    with tqdm(total=steps, initial=state.step, disable=not progress) as bar:
        while state.step < steps:
            n = min(loop.chunk - state.step % loop.chunk, steps - state.step)
            rows = None if host is None else _stack(list(itertools.islice(stream, n)), loop.chunk)
            after, estimates, done = run(loop, state, fixed, key, n, rows)
            if int(done) < n:
                failed = run(loop, state, fixed, key, done, rows)[0]
                loop.explain_failure(failed, fixed, key, int(done), rows)
            state = dataclasses.replace(after, step=int(after.step))
            history = np.concatenate([history, np.asarray(estimates)[:n]])
            bar.update(n)
            bar.set_postfix_str(f"{history[-n:].mean():.4g}")
            if checkpoint is not None:
                _save(checkpoint, state, history)
            if callback is not None and callback(
                state.step, loop.params(state.values, fixed), history
            ):
                break
    kept = {"optimizer": state.optimizer, "averages": state.averages, "step": state.step}
    return Fit(loop.params(state.values, fixed), history, kept)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    """What changes from step to step."""

    values: list[jax.Array]
    optimizer: Any
    averages: dict[float, jax.Array]
    step: Any


@dataclasses.dataclass(frozen=True)
class _Loop:
    """What a fit depends on besides arrays; equal loops share their compiled code.

    ``tree`` and ``static`` are those of ``(params, args, batch function)``, whose arrays are
    separated into those that are ``trained`` and the rest.
    """

    objective: Expectation
    optimizer: _ByContent
    direction: int
    samples: int
    tree: Any
    static: Any
    trained: tuple[bool, ...]
    chunk: int
    strict: bool

    def separate(self, arrays: list[Any]) -> tuple[list[Any], list[Any]]:
        """The arrays that are trained, and the rest."""
        pairs = list(zip(arrays, self.trained, strict=True))
        return [a for a, t in pairs if t], [a for a, t in pairs if not t]

    def join(self, values: list[Any], fixed: list[Any]) -> tuple[Any, tuple[Any, ...], Any]:
        """Parameters, arguments and batch function."""
        left, rest = iter(values), iter(fixed)
        arrays = [next(left if t else rest) for t in self.trained]
        return jax.tree.unflatten(self.tree, join(arrays, self.static))

    def params(self, values: list[Any], fixed: list[Any]) -> Any:
        return self.join(values, fixed)[0]

    def arguments(
        self, values: list[Any], fixed: list[Any], key: Any, batch: Any
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        """Key and arguments of the objective for one step, whose key is ``key``."""
        params, args, draw_batch = self.join(values, fixed)
        if draw_batch is not None:
            key, batch_key = jax.random.split(key)
            return key, (params, *args, draw_batch(batch_key))
        return key, (params, *args, *([] if batch is None else [batch]))

    def averages(
        self, values: list[Any], fixed: list[Any], key: Any, peeked: list[Any]
    ) -> dict[float, jax.Array]:
        """Averages for the ``ppl.moving_average`` baselines of the objective, at 0."""

        def f(values: list[Any]) -> Any:
            _, args = self.arguments(values, fixed, key, peeked[0] if peeked else None)
            return self.objective.trace(*args)[0]

        found: list[Any] = []
        jax.eval_shape(lambda values: found.append(f(values)), values)
        chosen = assign(found[0], choose, self.samples)
        baselines = [getattr(s.estimator, "baseline", None) for s in chosen]
        return {b.decay: _strong(0.0) for b in baselines if isinstance(b, MovingAverage)}

    def explain_failure(self, state: _State, fixed: list[Any], key: Any, i: int, rows: Any) -> None:
        """Raise, naming the choice at which a value that is not finite shows first."""
        step = int(state.step)
        batch = jax.tree.map(lambda a: a[i], rows)
        k, args = self.arguments(state.values, fixed, jax.random.fold_in(key, step), batch)
        closed, consts, _ = self.objective.trace(*args)
        where = first_nonfinite(closed, consts, k, choose, self.samples)
        raise NonFiniteError(
            f"the objective {_jax.definition(inspect.unwrap(self.objective))} or its gradient is "
            f"not finite at step {step}. "
            f"{where} Parameters before that step: {_summary(args[0])}. A smaller learning rate, "
            "parameters transformed to their support (jnp.exp, jax.nn.softplus), or log-space "
            "arithmetic are the usual cures."
        )


def _check_arguments(
    params: Any, optimizer: Any, args: Any, batches: Any, callback: Any, checkpoint: Any
) -> None:
    """Refuse what could not be fitted, before anything is compiled."""
    line = _jax.user_line()
    if not hasattr(optimizer, "init") or not hasattr(optimizer, "update"):
        raise UnsupportedError(
            f"the optimizer at {line} is {describe(optimizer)}. Give an optax optimizer, called "
            "with its learning rate, after the parameters: ppl.maximize(objective, params, "
            "optax.adam(1e-2), ...)."
        )
    leaves = jax.tree_util.tree_leaves_with_path(params)
    whole = [(path, v) for path, v in leaves if type(v) is int]
    if whole:
        path, v = whole[0]
        raise UnsupportedError(
            f"the parameter {jax.tree_util.keystr(path) or 'params'} of the fit at {line} is the "
            f"integer {v}, which has no derivative and would never change. Type {v}.0."
        )
    if not any(is_array(v) and jnp.issubdtype(jnp.result_type(v), jnp.floating) for _, v in leaves):
        raise UnsupportedError(
            f"the parameters of the fit at {line} are {describe(params)} without any number of "
            "floating point, so there is nothing to fit. Give a number, an array, or a dict like "
            '{"m": 0.0}.'
        )
    if not isinstance(args, tuple | list):
        raise UnsupportedError(
            f"args at {line} is {describe(args)}, and is a tuple of the arguments of the objective "
            "after the parameters. Type args=(x,), with the comma."
        )
    if batches is not None and not callable(batches) and not hasattr(batches, "__iter__"):
        raise UnsupportedError(
            f"batches at {line} is {describe(batches)}. Give a list of batches, or "
            "ppl.minibatches(data, size)."
        )
    if callback is not None and not callable(callback):
        raise UnsupportedError(
            f"callback at {line} is {describe(callback)}. Give a function (step, params, history)."
        )
    if checkpoint is None:
        return
    if not isinstance(checkpoint, str | os.PathLike):
        raise UnsupportedError(
            f"checkpoint at {line} is {describe(checkpoint)}. Give the path of a file, "
            'checkpoint="fit.npz".'
        )
    folder = os.path.dirname(os.path.abspath(checkpoint))
    if os.path.isdir(checkpoint) or not os.path.isdir(folder):
        raise UnsupportedError(
            f"checkpoint at {line} is {os.fspath(checkpoint)!r}, where no file can be written: "
            "it is a folder, or is in one that does not exist. Give a file in a folder that exists."
        )


def _chunk(
    loop: _Loop, state: _State, fixed: list[Any], key: jax.Array, n: Any, rows: Any
) -> tuple[_State, jax.Array, jax.Array]:
    """Up to ``n`` steps; stops before the first whose value or gradient is not finite."""
    ascent = loop.direction

    def step(carry: Any) -> Any:
        i, state, estimates, _ = carry
        batch = jax.tree.map(lambda a: a[i], rows)
        step_key = jax.random.fold_in(key, state.step)

        def f(values: list[Any]) -> jax.Array:
            k, args = loop.arguments(values, fixed, step_key, batch)
            out = loop.objective.surrogate(
                k, *args, samples=loop.samples, averages=state.averages, direction=ascent
            )
            return out[0] if isinstance(out, tuple) else out

        value, grads = jax.value_and_grad(f)(state.values)
        finite = jnp.isfinite(value)
        for g in grads:
            finite &= jnp.all(jnp.isfinite(g))
        updates, opt = loop.optimizer.value.update(
            [-ascent * g for g in grads], state.optimizer, state.values
        )
        values: Any = optax.apply_updates(state.values, updates)
        averages = {d: d * a + (1 - d) * value for d, a in state.averages.items()}
        new = _State(values, opt, averages, state.step + 1)
        new = jax.tree.map(lambda a, old: a.astype(jnp.result_type(old)), new, state)
        new = jax.tree.map(lambda a, old: jnp.where(finite, a, old), new, state)
        return i + finite, new, estimates.at[i].set(value), finite

    estimates = jnp.zeros((loop.chunk,))
    start = (jnp.zeros((), int), jax.tree.map(jnp.asarray, state), estimates, jnp.asarray(True))
    done, state, estimates, _ = lax.while_loop(lambda c: (c[0] < n) & c[-1], step, start)
    return state, estimates, done


def _strong(leaf: Any) -> Any:
    """An array of fixed dtype, also from a Python number: weak types would compile twice."""
    return jnp.asarray(leaf, jnp.result_type(leaf)) if is_array(leaf) else leaf


def _stack(rows: list[Any], length: int) -> Any:
    shapes = {str(jax.tree.map(np.shape, row)) for row in rows}
    if len(shapes) > 1:
        raise ValueError(
            f"the batches ({_jax.user_line()}) have different shapes, "
            f"{' and '.join(sorted(shapes))}, and every step of a compiled loop takes the same. "
            "Leave out the last, smaller one (drop_last=True of a data loader), or use "
            "ppl.minibatches(data, size)."
        )
    rows = [*rows, *[rows[-1]] * (length - len(rows))]
    return jax.tree.map(lambda *a: np.stack(a), *rows)


def _cycle(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError(
                f"batches has no more batches ({_jax.user_line()}). Give an iterable that can be "
                "started again (a list, an array, a data loader; not a generator), or one batch "
                "for each step."
            )


def _summary(params: Any) -> str:
    shown = [
        f"{jax.tree_util.keystr(path) or 'params'} in [{np.min(a):.4g}, {np.max(a):.4g}]"
        for path, a in jax.tree_util.tree_leaves_with_path(params)
        if isinstance(a, jax.Array) and a.size
    ]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")


# --- checkpoints --------------------------------------------------------------------------------


def _save(path: str | os.PathLike[str], state: _State, history: np.ndarray) -> None:
    leaves = [np.asarray(a) for a in jax.tree.leaves(state)]
    partial = f"{os.fspath(path)}.partial"
    with open(partial, "wb") as f:
        np.savez(f, *leaves, history=history)
    os.replace(partial, path)


def _restore(path: str | os.PathLike[str], like: _State) -> tuple[_State, np.ndarray]:
    leaves, tree = jax.tree.flatten(like)
    try:
        with np.load(path) as saved:
            history = saved["history"]
            found = [saved[f"arr_{i}"] for i in range(len(saved.files) - 1)]
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"the file {os.fspath(path)} ({_jax.user_line()}) is no checkpoint of a fit. Remove "
            "it, or give another file."
        ) from error
    if [np.shape(a) for a in found] != [np.shape(a) for a in leaves]:
        raise ValueError(
            f"the checkpoint {os.fspath(path)} ({_jax.user_line()}) is of a fit with other "
            "parameters or another optimizer. Remove it, or give another file."
        )
    state = jax.tree.unflatten(tree, [jnp.asarray(a) for a in found])
    return dataclasses.replace(state, step=int(state.step)), history


# --- an optimizer as a static argument ----------------------------------------------------------


@final
class _ByContent:
    """An object compared by its content: closures by code and what they close over.

    ``optax.adam(1e-2)`` makes new functions at every call; a second fit with an equal optimizer
    must not compile again.
    """

    def __init__(self, value: Any):
        self.value = value
        self._content = _content(value)

    def __hash__(self) -> int:
        return hash(self._content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByContent) and self._content == other._content


def _content(x: Any, around: tuple[int, ...] = ()) -> Any:
    if id(x) in around:  # a function that closes over itself
        return around.index(id(x))
    inside = (*around, id(x))
    if isinstance(x, types.FunctionType):
        cells = inspect.getclosurevars(x).nonlocals
        parts = (cells, x.__defaults__ or (), x.__kwdefaults__ or {})
        return x.__code__, id(x.__globals__), tuple(_content(p, inside) for p in parts)
    if isinstance(x, tuple | list):
        return type(x), tuple(_content(p, inside) for p in x)
    if isinstance(x, dict):
        return tuple((k, _content(v, inside)) for k, v in x.items())
    if isinstance(x, np.ndarray | jax.Array):
        return x.dtype, x.shape, np.asarray(x).tobytes()
    if isinstance(x, str | bytes | bool | int | float | complex | type | None):
        return type(x), x
    return _Same(x)


@dataclasses.dataclass(frozen=True, eq=False)
class _Same:
    """Anything else is equal to itself alone."""

    x: Any

    def __hash__(self) -> int:
        return id(self.x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.x is other.x
