"""Programs evaluated by NumPy, equation by equation, without compilation.

What is evaluated once, on few numbers, takes XLA longer to compile than NumPy to compute. What
the tables here do not know is left to JAX.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import lax

from . import _jax
from .interpret import INLINED


def evaluate(closed: _jax.ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    """The results of a program; numbers are arrays of NumPy, keys are as JAX has them."""
    typed = [
        x if _jax.is_key(x) else np.asarray(x).astype(a.dtype, copy=False)
        for x, a in zip(args, closed.in_avals, strict=True)
    ]
    with np.errstate(all="ignore"):
        return _run(closed, typed)


def _run(closed: _jax.ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, map(_array, closed.consts), strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    read = lambda v: _array(v.val) if isinstance(v, _jax.Literal) else env[v]
    last = {v: i for i, e in enumerate(jaxpr.eqns) for v in e.invars if isinstance(v, _jax.Var)}
    kept = {v for v in jaxpr.outvars if isinstance(v, _jax.Var)}
    for i, eqn in enumerate(jaxpr.eqns):
        env.update(zip(eqn.outvars, _equation(eqn, list(map(read, eqn.invars))), strict=True))
        for v in eqn.invars:
            if isinstance(v, _jax.Var) and last[v] == i and v not in kept:
                env.pop(v, None)
    return [read(v) for v in jaxpr.outvars]


def _array(x: Any) -> Any:
    return x if _jax.is_key(x) else np.asarray(x)


def _equation(eqn: _jax.JaxprEqn, operands: list[Any]) -> Sequence[Any]:
    name = eqn.primitive.name
    if name in _ELEMENTWISE and not any(map(_jax.is_key, operands)):
        return [_typed(eqn, 0, _ELEMENTWISE[name](*operands))]
    rule = _RULES.get(name)
    outs = None if rule is None else rule(eqn, operands)
    if outs is not None:
        return [_typed(eqn, i, x) for i, x in enumerate(outs)]
    return list(map(_array, _jax.evaluate_equation(eqn, operands)))


def _typed(eqn: _jax.JaxprEqn, i: int, x: Any) -> Any:
    if _jax.is_key(x):
        return x
    return np.asarray(x).astype(eqn.outvars[i].aval.dtype, copy=False)  # type: ignore[attr-defined]


# --- element by element -------------------------------------------------------------------------


def _div(x: Any, y: Any) -> Any:
    if not np.issubdtype(x.dtype, np.integer):
        return np.divide(x, y)
    safe = np.where(y == 0, 1, y)
    quotient = np.trunc(x / safe) if x.dtype.itemsize < 8 else x // safe
    if x.dtype.itemsize == 8:
        quotient = quotient + ((x % safe != 0) & ((x < 0) != (safe < 0)))
    return np.where(y == 0, -1, quotient)


def _rem(x: Any, y: Any) -> Any:
    if not np.issubdtype(x.dtype, np.integer):
        return np.fmod(x, y)
    return np.where(y == 0, x, np.fmod(x, np.where(y == 0, 1, y)))


def _sign(x: Any) -> Any:
    if np.iscomplexobj(x):
        return np.where(x == 0, 0, x / np.abs(x))
    return np.sign(x)


def _select(which: Any, *cases: Any) -> Any:
    if which.dtype.kind == "b":
        return np.where(which, cases[1], cases[0]) if len(cases) == 2 else cases[0]
    index = np.clip(which, 0, len(cases) - 1)
    out = cases[0]
    for i, case in enumerate(cases[1:], 1):
        out = np.where(index == i, case, out)
    return out


def _logistic(x: Any) -> Any:
    return 1 / (1 + np.exp(-x)) if np.iscomplexobj(x) else scipy.special.expit(x)


def _clamp(low: Any, x: Any, high: Any) -> Any:
    return np.minimum(np.maximum(x, low), high)


def _not(x: Any) -> Any:
    return np.logical_not(x) if x.dtype.kind == "b" else np.invert(x)


def _pow(x: Any, y: Any) -> Any:
    return np.power(x, y.astype(x.dtype) if np.issubdtype(x.dtype, np.inexact) else y)


def _same(x: Any, *_: Any) -> Any:
    return x


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": _div,
    "rem": _rem,
    "neg": np.negative,
    "max": np.maximum,
    "min": np.minimum,
    "abs": np.abs,
    "sign": _sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "cbrt": np.cbrt,
    "square": np.square,
    "pow": _pow,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "logistic": _logistic,
    "erf": scipy.special.erf,
    "erfc": scipy.special.erfc,
    "erf_inv": scipy.special.erfinv,
    "lgamma": scipy.special.gammaln,
    "digamma": scipy.special.digamma,
    "is_finite": np.isfinite,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": _not,
    "select_n": _select,
    "clamp": _clamp,
    "real": np.real,
    "imag": np.imag,
    "conj": np.conj,
    "complex": lambda x, y: x + 1j * y,
    "nextafter": np.nextafter,
    "copy": _same,
    "copy_p": _same,
    "name": _same,
}


# --- arrays -------------------------------------------------------------------------------------


def _integer_pow(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any] | None:
    x, y = ins[0], eqn.params["y"]
    if np.issubdtype(x.dtype, np.integer) and y < 0:
        return None
    out = np.ones((), x.dtype)
    base, n = x, abs(y)
    while n:
        out, base, n = (out * base if n & 1 else out), base * base, n >> 1
    return [1 / out if y < 0 else np.broadcast_to(out, x.shape)]


def _round(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any]:
    x = ins[0]
    if eqn.params["rounding_method"] == lax.RoundingMethod.TO_NEAREST_EVEN:
        return [np.rint(x)]
    whole = np.trunc(x)
    return [np.where(np.abs(x - whole) >= 0.5, whole + np.sign(x), whole)]


def _convert(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any] | None:
    old, new = ins[0].dtype, eqn.params["new_dtype"]
    if np.issubdtype(old, np.inexact) and np.issubdtype(new, np.integer):
        limits = np.iinfo(new)  # XLA saturates
        x = np.clip(np.nan_to_num(ins[0].astype(np.float64)), limits.min, limits.max)
        top = x >= limits.max
        return [np.where(top, limits.max, np.where(top, 0, x).astype(new))]
    if np.issubdtype(old, np.complexfloating) and not np.issubdtype(new, np.complexfloating):
        return [np.real(ins[0])]
    return [ins[0].astype(new)]


def _broadcast(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any] | None:
    if len(ins) > 1 or _jax.is_key(ins[0]):
        return None
    shape, dimensions = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    at = [1] * len(shape)
    for d, n in zip(dimensions, ins[0].shape, strict=True):
        at[d] = n
    return [np.broadcast_to(ins[0].reshape(at), shape)]


def _reshape(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any] | None:
    if len(ins) > 1 or _jax.is_key(ins[0]):
        return None
    return [ins[0].reshape(eqn.outvars[0].aval.shape)]  # type: ignore[attr-defined]


def _transpose(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any] | None:
    return None if _jax.is_key(ins[0]) else [ins[0].transpose(eqn.params["permutation"])]


def _slice(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any] | None:
    p = eqn.params
    steps = p["strides"] or [1] * len(p["start_indices"])
    parts = zip(p["start_indices"], p["limit_indices"], steps, strict=True)
    return None if _jax.is_key(ins[0]) else [ins[0][tuple(slice(*part) for part in parts)]]


def _rev(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any]:
    return [np.flip(ins[0], eqn.params["dimensions"])]


def _concatenate(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any] | None:
    return None if _jax.is_key(ins[0]) else [np.concatenate(ins, eqn.params["dimension"])]


def _split(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any]:
    p = eqn.params
    return np.split(ins[0], np.cumsum(p["sizes"])[:-1], p["axis"])


def _iota(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any] | None:
    p = eqn.params
    if ins:
        return None
    at = [1] * len(p["shape"])
    at[p["dimension"]] = -1
    return [np.broadcast_to(np.arange(p["shape"][p["dimension"]]).reshape(at), p["shape"])]


def _pad(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any] | None:
    config = eqn.params["padding_config"]
    if any(low < 0 or high < 0 for low, high, _ in config):
        return None
    out = np.full(eqn.outvars[0].aval.shape, ins[1])  # type: ignore[attr-defined]
    inside = [
        slice(low, low + (n - 1) * (between + 1) + 1 if n else low, between + 1)
        for n, (low, _, between) in zip(ins[0].shape, config, strict=True)
    ]
    out[tuple(inside)] = ins[0]
    return [out]


def _reduction(f: Any, none: Callable[[Any], Any]) -> Callable[..., Any]:
    """``none(dtype)`` is the result of no numbers."""

    def reduce(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any]:
        dtype = ins[0].dtype
        options = {"dtype": dtype} if f in (np.add, np.multiply) else {}
        axes = tuple(eqn.params["axes"])
        return [f.reduce(ins[0], axis=axes, initial=none(dtype), **options)]

    return reduce


def _least(dtype: Any) -> Any:
    if dtype.kind == "b":
        return False
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def _greatest(dtype: Any) -> Any:
    if dtype.kind == "b":
        return True
    return np.iinfo(dtype).max if dtype.kind in "iu" else np.inf


def _arg(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda eqn, ins: [f(ins[0], axis=eqn.params["axes"][0])]


def _cumulative(f: Any) -> Callable[..., Any]:
    def accumulate(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any]:
        p, x = eqn.params, ins[0]
        turn = (lambda x: np.flip(x, p["axis"])) if p["reverse"] else _same
        same = {"dtype": x.dtype} if f in (np.add, np.multiply) else {}
        return [turn(f.accumulate(turn(x), axis=p["axis"], **same))]

    return accumulate


def _sort(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any]:
    p = eqn.params
    keys, axis = ins[: p["num_keys"]], p["dimension"]
    if len(ins) == 1:
        return [np.sort(ins[0], axis=axis, kind="stable")]
    order = np.lexsort(keys[::-1], axis=axis)
    return [np.take_along_axis(x, order, axis) for x in ins]


def _dot(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any]:
    """Products of matrices, one for each of the axes that both have."""
    contracted, batch = eqn.params["dimension_numbers"]
    dtype = eqn.outvars[0].aval.dtype  # type: ignore[attr-defined]
    parts, free = [], []
    for x, c, b, last in zip(ins, contracted, batch, (True, False), strict=True):
        others = [i for i in range(x.ndim) if i not in c and i not in b]
        order = [*b, *others, *c] if last else [*b, *c, *others]
        sizes = [[x.shape[i] for i in axes] for axes in (b, others, c)]
        inner = sizes[1:] if last else sizes[:0:-1]
        free.append(sizes[1])
        shape = [*sizes[0], *(math.prod(n) for n in inner)]
        parts.append(x.transpose(order).reshape(shape).astype(dtype, copy=False))
    out = np.matmul(*parts)
    return [out.reshape(*out.shape[:-2], *free[0], *free[1])]


def _dynamic_slice(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any] | None:
    x, sizes = ins[0], eqn.params["slice_sizes"]
    if _jax.is_key(x) or len(ins) != 1 + x.ndim:
        return None
    starts = [np.clip(i, 0, n - k) for i, n, k in zip(ins[1:], x.shape, sizes, strict=True)]
    return [x[tuple(slice(int(i), int(i) + k) for i, k in zip(starts, sizes, strict=True))]]


# --- programs inside ----------------------------------------------------------------------------


def _inline(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any]:
    name = INLINED.get(eqn.primitive)
    return _run(next(_jax.sub_jaxprs(eqn)) if name is None else eqn.params[name], ins)


def _while(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any]:
    p = eqn.params
    n, m = p["cond_nconsts"], p["body_nconsts"]
    test, step, carry = ins[:n], ins[n : n + m], ins[n + m :]
    while np.any(go := _run(p["cond_jaxpr"], [*test, *carry])[0]):
        new = _run(p["body_jaxpr"], [*step, *carry])
        carry = [_where(go, x, old) for x, old in zip(new, carry, strict=True)]
    return carry


def _where(go: Any, new: Any, old: Any) -> Any:
    """Of many loops side by side, those that have ended stay as they are."""
    if go.ndim == 0:
        return new
    if _jax.is_key(new):
        return jnp.where(jnp.reshape(go, go.shape + (1,) * (new.ndim - go.ndim)), new, old)
    return np.where(go.reshape(go.shape + (1,) * (new.ndim - go.ndim)), new, old)


def _cond(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any]:
    branches = eqn.params["branches"]
    return _run(branches[int(np.clip(ins[0], 0, len(branches) - 1))], ins[1:])


def _scan(eqn: _jax.JaxprEqn, ins: list[Any]) -> list[Any]:
    n, m = _jax.scan_layout(eqn)
    body, consts, carry, xs = eqn.params["jaxpr"], ins[:n], ins[n : n + m], ins[n + m :]
    steps = range(eqn.params["length"])
    rows = []
    for i in reversed(steps) if eqn.params["reverse"] else steps:
        outs = _run(body, [*consts, *carry, *(x[i] for x in xs)])
        carry = outs[:m]
        rows.append(outs[m:])
    if eqn.params["reverse"]:
        rows.reverse()
    if not rows:
        return [*carry, *(np.zeros(v.aval.shape, v.aval.dtype) for v in eqn.outvars[m:])]  # type: ignore[attr-defined]
    return [*carry, *map(_stacked, zip(*rows, strict=True))]


def _stacked(rows: Sequence[Any]) -> Any:
    return jnp.stack(rows) if _jax.is_key(rows[0]) else np.stack(rows)


_RULES: dict[str, Callable[..., Any]] = {
    "integer_pow": _integer_pow,
    "round": _round,
    "convert_element_type": _convert,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "rev": _rev,
    "concatenate": _concatenate,
    "split": _split,
    "iota": _iota,
    "pad": _pad,
    "reduce_sum": _reduction(np.add, lambda _: 0),
    "reduce_prod": _reduction(np.multiply, lambda _: 1),
    "reduce_max": _reduction(np.maximum, _least),
    "reduce_min": _reduction(np.minimum, _greatest),
    "reduce_and": _reduction(
        np.bitwise_and, lambda dtype: dtype.type(True) if dtype.kind == "b" else ~dtype.type(0)
    ),
    "reduce_or": _reduction(np.bitwise_or, lambda dtype: dtype.type(0)),
    "argmax": _arg(np.argmax),
    "argmin": _arg(np.argmin),
    "cumsum": _cumulative(np.add),
    "cumprod": _cumulative(np.multiply),
    "cummax": _cumulative(np.maximum),
    "cummin": _cumulative(np.minimum),
    "sort": _sort,
    "dot_general": _dot,
    "dynamic_slice": _dynamic_slice,
    "optimization_barrier": lambda eqn, ins: ins,
    "while": _while,
    "cond": _cond,
    "scan": _scan,
    "jit": _inline,
    "pjit": _inline,
    "closed_call": _inline,
    "checkpoint": _inline,
    "remat": _inline,
    "custom_jvp_call": _inline,
    "custom_vjp_call": _inline,
}
