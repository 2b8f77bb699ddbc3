"""``numpyro.contrib.control_flow``: its loops and branches are those of JAX.

The body of a ``scan`` runs by itself: handlers around the loop see its statements afterwards, each
with an axis of steps in front, as NumPyro has it. The branches of a ``cond`` run inside of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.contrib.control_flow.cond import cond_wrapper
from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.ops.pytree import PytreeTrace

from transforms import _jax
from transforms.errors import ShapeError, UnsupportedError

from .bridge import Bridge, Known, Message, Seen


def flow(bridge: Bridge, msg: Message) -> Any:
    """The value of a ``control_flow`` message."""
    if msg["fn"] is scan_wrapper:
        return _scan(bridge, msg)
    if msg["fn"] is cond_wrapper:
        return _cond(bridge, msg)
    raise UnsupportedError(
        f"control flow of an unknown kind at {_jax.called_at()}. Use scan and cond of "
        "numpyro.contrib.control_flow, or jax.lax without choices in it."
    )


# --- scan ----------------------------------------------------------------------------------------


def _scan(bridge: Bridge, msg: Message) -> Any:
    f, init, xs, length, reverse = msg["args"]
    if length is None:
        length = jnp.shape(jax.tree.leaves(xs)[0])[0]
    around = bridge.around()
    rename: list[Any] = [h for h in around if isinstance(h, handlers.scope)]
    told = bridge.told or any(not isinstance(h, _SILENT) for h in around)
    given = msg["kwargs"]["substitute_stack"]

    factors = dict(bridge.shared.factors)

    def body(carry: Any, step: Any) -> Any:
        t, x = step
        bridge.shared.factors = dict(factors)  # it may be traced more than once
        with bridge.alone(told) as inner:
            run: Any = _given_step(f, given, t, length)
            for h in rename:
                run = handlers.scope(run, h.prefix, h.divider, hide_types=list(h.hide_types))
            carry, y = run(carry, x)
        return carry, (y, inner.seen)

    steps = (jnp.arange(length), xs)
    init = _promoted(body, init, steps)
    carry, (ys, seen) = jax.lax.scan(body, init, steps, length=length, reverse=reverse)
    trace = {n: _message(n, s) for n, s in seen.items()}
    return (length, None, carry), (PytreeTrace(trace), ys)


_SILENT = (
    handlers.seed,
    handlers.substitute,
    handlers.condition,
    handlers.replay,
    handlers.infer_config,
    handlers.scope,
)
"""These change nothing of a loop afterwards."""


def _message(name: str, seen: Seen) -> Message:
    """What a choice of a loop is to the handlers around it."""
    event = jnp.shape(seen.value)[jnp.ndim(seen.log_prob) :]
    if seen.scale is not None:  # a number for each step
        more = [1] * (seen.log_prob.ndim - seen.scale.ndim)
        seen.scale = jnp.reshape(seen.scale, (*seen.scale.shape, *more))
    return {
        "type": "sample",
        "name": name,
        "fn": Known(seen.log_prob, event),
        "args": (),
        "kwargs": {"rng_key": None, "sample_shape": ()},
        "value": seen.value,
        "scale": seen.scale,
        "is_observed": True,
        "intermediates": [],
        "cond_indep_stack": [],
        "infer": seen.static["infer"],
        "_control_flow_done": True,
        "seen": seen,
    }


def _promoted(body: Callable[..., Any], init: Any, steps: Any) -> Any:
    """The carry that a loop begins with, of the types that a step returns where they are wider."""
    one = jax.tree.map(lambda x: x[0], steps)
    init = jax.tree.map(jnp.asarray, init)
    after = jax.eval_shape(lambda c, x: body(c, x)[0], init, one)
    if jax.tree.structure(after) != jax.tree.structure(init):
        return init  # an error of lax.scan, which says more
    return jax.tree.map(lambda i, o: i.astype(jnp.promote_types(i.dtype, o.dtype)), init, after)


# --- values that are given to a loop ---


def _given_step(f: Callable[..., Any], given: Sequence[Any], t: Any, length: int) -> Any:
    """The body of a loop with what ``substitute``, ``condition`` and ``replay`` give it."""
    for kind, values in given:
        if kind == "replay":
            values = {
                n: site["value"]
                for n, site in values.items()
                if site["type"] == "sample" and not site["is_observed"]
            }
        pick = functools.partial(_step_of, values, t, length)
        if kind == "condition":
            f = handlers.condition(f, condition_fn=pick)
        else:
            f = handlers.substitute(f, substitute_fn=pick)
    return f


def _step_of(values: Any, t: Any, length: int, msg: Message) -> Any:
    """The value for one step, of those for all."""
    if msg["type"] != "sample":
        return None
    value = values(msg) if callable(values) else values.get(msg["name"])
    if value is None:
        return None
    own = (*msg["kwargs"].get("sample_shape", ()), *msg["fn"].shape())
    value = jnp.asarray(value)
    if value.ndim == len(own):
        return value
    if value.shape[:1] != (length,):
        raise ShapeError(
            f"the value given for {msg['name']!r} at {_jax.called_at()} has shape {value.shape}, "
            f"and stands in a scan of {length} steps, in each of which it has shape {own}. Give "
            f"one for each step: shape {(length, *own)}."
        )
    return value[t]


# --- cond ----------------------------------------------------------------------------------------


def _cond(bridge: Bridge, msg: Message) -> Any:
    pred, true_fun, false_fun, operand = msg["args"]

    def branch(f: Callable[..., Any]) -> Callable[..., Any]:
        def run(operand: Any) -> Any:
            with bridge.branch():
                return f(operand)

        return run

    value = jax.lax.cond(pred, branch(true_fun), branch(false_fun), operand)
    return value, PytreeTrace({})
