"""The compiled part of a fit: its steps, and what they carry.

Step i uses the key ``fold_in(key, i)``, so a run that is resumed draws what an uninterrupted one
would have drawn. The optimizer sees the parameters as they were typed, ``optax.MaskedNode()`` in
place of what is not fitted, and may ask for the value and the function that it descends.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from estimators.automatic import choose
from estimators.baselines import MovingAverage
from transforms import _jax
from transforms.errors import NonFiniteError, UnsupportedError
from transforms.gradient.nonfinite import first_nonfinite
from transforms.plan.assignment import assign
from transforms.program.compiled import with_numbers
from transforms.program.content import ByContent, arguments_of, reachable
from transforms.program.varying import unvarying

from ..objectives.expectation import Expectation
from ..objectives.leaves import Form, join, split
from ..programs.given import is_array
from .averaging import include, narrow
from .keys import folded, mean_over, parted


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What changes from step to step; ``values`` are the parameters that are fitted.

    ``means`` are those of the iterates in windows, by name; ``rate`` multiplies the updates of the
    optimizer, where it is not None.
    """

    values: Any
    optimizer: Any
    averages: dict[float, jax.Array]
    step: Any
    means: dict[str, Any] = dataclasses.field(default_factory=dict)
    rate: Any = None


@dataclasses.dataclass(frozen=True)
class Loop:
    """What a fit depends on besides arrays; equal loops share their compiled code.

    ``together``: how many of the samples are in memory at a time, all if it is None;
    ``metrics``: whether auxiliary data of the objective are returned; ``guarded``: whether a step
    that is not finite leaves the state as it was, which costs a selection of every array.
    ``tree`` and ``static`` are those of ``(params, args, batch function)``, whose arrays are
    separated into those that are ``trained`` and the rest.
    """

    objective: Expectation
    optimizer: ByContent
    direction: int
    samples: int
    together: int | None
    tree: Form
    static: Any
    trained: tuple[bool, ...]
    chunk: int
    strict: bool
    metrics: bool = False
    guarded: bool = False

    def seen(self, state: State) -> Any:
        """The values that the objective sees; ``optax.lookahead`` keeps two of each."""
        return state.values.fast if self._wrapped(state) else state.values

    def settled(self, state: State) -> Any:
        """The values that are the result."""
        return state.values.slow if self._wrapped(state) else state.values

    def _wrapped(self, state: State) -> bool:
        return _keeps_two(state.optimizer) and self._given_one

    @property
    def _given_one(self) -> bool:
        leaves = range(self.tree.num_leaves)
        return not isinstance(self.tree.unflatten(leaves)[0], optax.LookaheadParams)

    def join(self, values: Any, fixed: list[Any]) -> tuple[Any, tuple[Any, ...], Any]:
        """Parameters, arguments and batch function."""
        left, rest = iter(jax.tree.leaves(values)), iter(fixed)
        arrays = [next(left if t else rest) for t in self.trained]
        return self.tree.unflatten(join(arrays, self.static))

    def params(self, state: State, fixed: list[Any]) -> Any:
        return self.join(self.settled(state), fixed)[0]

    def averaged(self, state: State, fixed: list[Any], name: str) -> Any:
        """The mean of the parameters over a window."""
        return self.join(narrow(state.means[name], self.settled(state)), fixed)[0]

    def arguments(
        self, values: Any, fixed: list[Any], key: Any, batch: Any
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        """Key and arguments of the objective for one step, whose key is ``key``."""
        params, args, draw_batch = self.join(values, fixed)
        if draw_batch is not None:
            key, batch_key = parted(key)
            return key, (params, *args, draw_batch(batch_key))
        return key, (params, *args, *([] if batch is None else [batch]))

    def program(
        self, values: Any, fixed: list[Any], key: Any, batch: Any
    ) -> tuple[_jax.ClosedJaxpr, list[Any]]:
        """The objective as a function of these, and the values that it closes over."""

        def f(values: Any, fixed: list[Any], key: Any, batch: Any) -> Any:
            closed, consts, _ = self.objective.trace(*self.arguments(values, fixed, key, batch)[1])
            return _jax.evaluate(closed, *consts)

        shapes = jax.tree.map(_shape, (values, fixed, key, batch))  # without how they are divided
        return _jax.trace(f, *shapes)[:2]

    def averages(self, closed: _jax.ClosedJaxpr) -> dict[float, jax.Array]:
        """Averages for the ``ppl.moving_average`` baselines of the objective, at 0."""
        chosen = assign(closed, choose, self.together or self.samples)
        baselines = [getattr(s.estimator, "baseline", None) for s in chosen]
        return {b.decay: strong(0.0) for b in baselines if isinstance(b, MovingAverage)}

    def how(self, averages: Any) -> dict[str, Any]:
        """How the objective is estimated."""
        count = {"samples": self.samples, "chunk": self.together}
        return {**count, "averages": averages, "direction": self.direction}

    def cost(self, values: Any, state: State, fixed: Any, key: Any, batch: Any, **rest: Any) -> Any:
        """What is descended, at the step of ``state``, and the auxiliary data of the objective."""
        step_key = folded(key, state.step)
        k, args = self.arguments(values, fixed, step_key, batch)
        how = self.how(state.averages)
        out = mean_over(lambda k: self.objective.surrogate(k, *args, **how, **rest), k)
        value, aux = out if isinstance(out, tuple) else (out, None)
        return -self.direction * value, aux if self.metrics else None

    def explain_failure(self, state: State, fixed: list[Any], key: Any, batch: Any) -> None:
        """Raise, naming the choice at which a value that is not finite shows first."""
        step = int(state.step)
        values = self.seen(state)
        step_key = folded(key, step)
        k, args = self.arguments(values, fixed, step_key, batch)
        k = self._failing(k, values, state, fixed, args)
        closed, consts, _ = self.objective.trace(*args)
        where = first_nonfinite(
            closed,
            consts,
            k,
            choose,
            self.how(state.averages),
            jax.tree.leaves(args[0]),
        )
        objective = self.objective
        what = objective.title or f"the objective {_jax.definition(inspect.unwrap(objective))}"
        raise NonFiniteError(
            f"{what} or its gradient is not finite at step {step}. "
            f"{where} Parameters before that step: {_summary(args[0])}."
        )

    def _failing(self, key: jax.Array, values: Any, state: State, fixed: Any, args: Any) -> Any:
        """Of several keys, the first at which the value or gradient is not finite."""
        if key.ndim == 0:
            return key
        how = self.how(state.averages)

        def finite(key: jax.Array) -> jax.Array:
            def f(values: Any) -> Any:
                params = self.join(values, fixed)[0]
                return self.objective.surrogate(key, params, *args[1:], **how)

            found = jax.value_and_grad(f, has_aux=self.objective.has_aux)(values)
            whole = [jnp.all(jnp.isfinite(a)) for a in jax.tree.leaves(found)]
            return jnp.all(jnp.stack(whole))

        return key[jnp.argmin(jax.vmap(finite)(key))]


def separate(trees: tuple[Any, ...]) -> tuple[Any, list[Any], dict[str, Any]]:
    """The values that are fitted, other arrays, and the fields of a :class:`Loop` that say which.

    ``trees``: parameters, arguments, batch function.
    """
    arrays, static, tree = split(trees)
    params = split(trees[0])[0]
    trained = tuple(i < len(params) and _is_fitted(a) for i, a in enumerate(arrays))
    values = fitted(trees[0])
    fixed = [a for a, t in zip(arrays, trained, strict=True) if not t]
    return values, fixed, {"tree": tree, "static": static, "trained": trained}


def fitted(tree: Any) -> Any:
    """The arrays of a tree that are fitted, as an optimizer sees it."""
    return jax.tree.map(lambda a: a if _is_fitted(a) else optax.MaskedNode(), tree)


def completed(values: Any, tree: Any) -> Any:
    """A tree with new values of what is fitted."""
    masked = lambda v: isinstance(v, optax.MaskedNode)
    return jax.tree.map(lambda v, a: a if masked(v) else v, values, tree, is_leaf=masked)


def _is_fitted(leaf: Any) -> bool:
    return is_array(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def strong(leaf: Any) -> Any:
    """An array of fixed dtype, also from a Python number: weak types would compile twice."""
    return jnp.asarray(leaf, jnp.result_type(leaf)) if is_array(leaf) else leaf


# --- the optimizer --------------------------------------------------------------------------------


def begin(optimizer: Any, values: Any) -> tuple[Any, Any]:
    """The values as an optimizer keeps them, and its state."""
    lookahead = optax.lookahead.__module__
    two = any(f.__module__ == lookahead for f in reachable(optimizer.init))
    if two and not isinstance(values, optax.LookaheadParams):
        values = optax.LookaheadParams.init_synced(values)
    return values, jax.tree.map(strong, optimizer.init(values))


def _holds(state: Any, test: Any) -> bool:
    leaves = jax.tree.leaves(state, is_leaf=test)
    return any(map(test, leaves))


def _keeps_two(state: Any) -> bool:
    return _holds(state, lambda s: isinstance(s, optax.LookaheadState))


def _tolerates(state: Any) -> bool:
    """Whether an optimizer is made for gradients that are not finite."""
    made = optax.ApplyIfFiniteState | optax.ZeroNansState
    return _holds(state, lambda s: isinstance(s, made) or _collecting(s) is True)


def _collects(state: Any) -> bool:
    """Whether an optimizer takes gradients that show in the parameters at a later step only."""
    return _holds(state, lambda s: _collecting(s) is False)


def _collecting(state: Any) -> bool | None:
    """Of ``optax.MultiSteps``, whether it skips gradients that are not finite; None of others."""
    if not isinstance(state, optax.MultiStepsState):
        return None
    return bool(jax.tree.leaves(state.skip_state))


def update(
    optimizer: Any,
    grads: Any,
    state: Any,
    values: Any,
    value: Any,
    function: Any,
    rate: Any = None,
) -> Any:
    """New values and state; ``value`` and ``grads`` are those of ``function`` at ``values``."""
    parameters = inspect.signature(optimizer.update).parameters.values()
    asked = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        asked |= {"value", "grad", "value_fn"}
        asked |= {name for f in reachable(optimizer.update) for name in arguments_of(f)}
    given = {
        "value": value,
        "grad": grads,
        "value_fn": function,
        "obj_fn": function,
        "grad_fn": lambda params, *_: jax.grad(function)(params),
    }
    extra = {name: v for name, v in given.items() if name in asked}
    step = functools.partial(optimizer.update, **extra)
    updates, state = _with_numbers(step)(grads, state, values)
    if rate is not None:
        updates = jax.tree.map(lambda u: u * rate.astype(u.dtype), updates)
    return optax.apply_updates(values, updates), state


def _with_numbers(f: Any) -> Any:
    """``f`` with the numbers written in it as an array: another rate is another value of it."""

    def g(*args: Any) -> Any:
        closed, consts, out = _jax.trace(f, *args)
        closed, numbers = with_numbers(closed)
        types = [a.dtype for a in closed.in_avals[: len(numbers)]]
        array = np.array(numbers, jnp.zeros(()).dtype)
        given = [lax.index_in_dim(array, i, keepdims=False).astype(t) for i, t in enumerate(types)]
        outs = _jax.evaluate(closed, *given, *consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(out), outs)

    return g


# --- steps ----------------------------------------------------------------------------------------


def run_chunk(
    loop: Loop,
    state: State,
    fixed: list[Any],
    key: jax.Array,
    n: Any,
    rows: Any,
    starts: dict[str, Any],
) -> tuple[State, jax.Array, jax.Array, Any]:
    """Up to ``n`` steps; stops at the first whose value or gradient is not finite.

    That step is not counted; the state is the one before it if ``loop.guarded``. ``starts`` are the
    numbers of steps before the windows of ``state.means``. Returns the state, f32[chunk] estimates
    (NaN after the last), how many steps were done, and the mean over these of the auxiliary data of
    the objective (None without ``loop.metrics``).
    """

    def step(carry: Any) -> Any:
        i, state, estimates, _, total = carry
        batch = jax.tree.map(lambda a: a[i], rows)
        new, value, finite, aux = _step(loop, state, fixed, key, batch, starts)
        total = jax.tree.map(lambda t, a: t + jnp.where(finite, a, 0), total, aux)
        return i + finite, new, estimates.at[i].set(value), finite, total

    estimates = jnp.full((loop.chunk,), jnp.nan)
    state = jax.tree.map(jnp.asarray, state)
    start = (jnp.zeros((), int), state, estimates, jnp.asarray(True))
    total = _nothing(loop, state, fixed, key, rows) if loop.metrics else None
    running = lambda c: (c[0] < n) & c[3]
    done, state, estimates, _, total = lax.while_loop(running, step, (*start, total))
    return state, estimates, done, jax.tree.map(lambda t: t / done, total)


def _nothing(loop: Loop, state: State, fixed: list[Any], key: jax.Array, rows: Any) -> Any:
    """A sum of no auxiliary data."""
    batch = jax.tree.map(lambda a: a[0], rows)
    silent = {"report": lambda check, inputs: None}
    aux = jax.eval_shape(lambda: loop.cost(loop.seen(state), state, fixed, key, batch, **silent)[1])
    dtype = jnp.zeros(()).dtype
    return jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.promote_types(a.dtype, dtype)), aux)


def _step(
    loop: Loop, state: State, fixed: list[Any], key: jax.Array, batch: Any, starts: dict[str, Any]
) -> tuple[State, jax.Array, jax.Array, Any]:
    """One step: the state after it, the estimate, and whether all of it is finite."""
    given = (state, fixed, key, batch)
    seen = loop.seen(state)
    (cost, aux), grads = jax.value_and_grad(loop.cost, has_aux=True)(seen, *given)
    value = -loop.direction * cost
    if isinstance(grads, optax.LookaheadParams):
        grads = grads.fast

    def function(values: Any) -> jax.Array:  # what it finds was reported by the gradient
        return loop.cost(values, *given, report=lambda check, inputs: None)[0]

    optimizer = loop.optimizer.value
    values, opt = update(
        optimizer, grads, state.optimizer, state.values, cost, function, state.rate
    )
    # a gradient that is not finite shows in the parameters, where fewer arrays are read again
    finite = jnp.asarray(True) if _tolerates(state.optimizer) else jnp.isfinite(value)
    for v in jax.tree.leaves((values, grads if _collects(state.optimizer) else None)):
        finite &= jnp.all(jnp.isfinite(v))
    averages = {d: d * a + (1 - d) * value for d, a in state.averages.items()}
    averages = {
        d: jnp.where(jnp.isfinite(value), a, state.averages[d]) for d, a in averages.items()
    }
    new = State(values, opt, averages, state.step + 1, state.means, state.rate)
    _check_same(new, state)
    means = include(state.means, starts, new.step, loop.settled(new))
    new = dataclasses.replace(new, means=means)
    keep = finite if loop.guarded else None
    new = jax.tree.map(lambda a, old: _kept(keep, a, old), new, state)
    return new, value, finite, aux


def _kept(finite: Any, new: Any, old: Any) -> Any:
    """A value with its type of before, or that one where something is not finite."""
    if not jnp.issubdtype(jnp.result_type(old), jax.dtypes.prng_key):
        new = jnp.asarray(new).astype(jnp.result_type(old))
    return new if finite is None else jnp.where(finite, new, old)


def _check_same(new: State, old: State) -> None:
    if jax.tree.structure(new) != jax.tree.structure(old):
        raise UnsupportedError(
            f"the optimizer of the fit at {_jax.user_line()} changes the structure of its state or "
            f"of the parameters, from {jax.tree.structure(old)} to {jax.tree.structure(new)}, and "
            "every step of a compiled loop takes the same. Let its update return the structure "
            "that its init made."
        )


def _shape(a: Any) -> jax.ShapeDtypeStruct:
    return unvarying(jax.typeof(a))


def is_traced(*trees: Any) -> bool:
    """Whether any value is known only when a transformation of JAX around the fit runs."""
    return any(isinstance(a, _jax.Tracer) for a in jax.tree.leaves(trees))


def _summary(params: Any) -> str:
    shown: Sequence[str] = [
        f"{jax.tree_util.keystr(path) or 'params'} in [{np.min(a):.4g}, {np.max(a):.4g}]"
        for path, a in jax.tree_util.tree_leaves_with_path(params)
        if isinstance(a, jax.Array) and a.size
    ]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
