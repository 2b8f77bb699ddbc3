"""What the equations of a program are to NumPy: tables of primitives.

A value may have axes of lines and points in front of its own, as many as ``lines`` says (0 or 2).
A rule returns None where it does not apply.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import lax

from .. import _jax


def spread(x: Any, more: int) -> Any:
    """``x`` with more axes of length 1 behind its own."""
    return x.reshape((*x.shape, *[1] * more)) if more > 0 else x


def over(x: Any, front: Sequence[int]) -> Any:
    """``x`` with ``front`` in the place of its first axes."""
    shape = (*front, *x.shape[len(front) :])
    return jnp.broadcast_to(x, shape) if _jax.is_key(x) else np.broadcast_to(x, shape)


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


ELEMENTWISE: dict[str, Callable[..., Any]] = {
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
    "stop_gradient": _same,
}


# --- arrays -------------------------------------------------------------------------------------


def _integer_pow(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any] | None:
    x, y = ins[0], eqn.params["y"]
    if np.issubdtype(x.dtype, np.integer) and y < 0:
        return None
    out, base, n = np.ones_like(x), x, abs(y)
    while n:
        out, base, n = (out * base if n & 1 else out), base * base, n >> 1
    return [1 / out if y < 0 else out]


def _round(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any]:
    x = ins[0]
    if eqn.params["rounding_method"] == lax.RoundingMethod.TO_NEAREST_EVEN:
        return [np.rint(x)]
    whole = np.trunc(x)
    return [np.where(np.abs(x - whole) >= 0.5, whole + np.sign(x), whole)]


def _convert(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any]:
    x, new = ins[0], np.dtype(eqn.params["new_dtype"])
    if x.dtype.kind == "f" and new.kind in "iu":
        limits = np.iinfo(new)  # XLA saturates
        x = np.clip(np.nan_to_num(x.astype(np.float64)), limits.min, limits.max)
        top = x >= limits.max
        return [np.where(top, limits.max, np.where(top, 0, x).astype(new))]
    return [np.real(x) if x.dtype.kind == "c" and new.kind != "c" else x]


def _bitcast(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any] | None:
    new = np.dtype(eqn.params["new_dtype"])
    same = new.itemsize == ins[0].dtype.itemsize
    return [np.ascontiguousarray(ins[0]).view(new).reshape(ins[0].shape)] if same else None


def _broadcast(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any] | None:
    shape, dimensions = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    if len(ins) > 1:
        return None
    x, at = ins[0], [1] * len(shape)
    for d, n in zip(dimensions, x.shape[lines:], strict=True):
        at[d] = n
    front = x.shape[:lines]
    return [np.broadcast_to(x.reshape(*front, *at), (*front, *shape))]


def _reshape(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any] | None:
    shape = eqn.outvars[0].aval.shape  # type: ignore[attr-defined]
    return None if len(ins) > 1 else [ins[0].reshape((*ins[0].shape[:lines], *shape))]


def _after(lines: int, axes: Sequence[int]) -> tuple[int, ...]:
    return (*range(lines), *(lines + i for i in axes))


def _transpose(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any]:
    return [ins[0].transpose(_after(lines, eqn.params["permutation"]))]


def _slice(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any]:
    p = eqn.params
    steps = p["strides"] or [1] * len(p["start_indices"])
    parts = zip(p["start_indices"], p["limit_indices"], steps, strict=True)
    return [ins[0][(..., *(slice(*part) for part in parts))]]


def _rev(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any]:
    return [np.flip(ins[0], tuple(lines + i for i in eqn.params["dimensions"]))]


def _concatenate(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any]:
    front = np.broadcast_shapes(*(x.shape[:lines] for x in ins))
    return [np.concatenate([over(x, front) for x in ins], lines + eqn.params["dimension"])]


def _stack(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any]:
    front = np.broadcast_shapes(*(x.shape[:lines] for x in ins))
    return [np.stack([over(x, front) for x in ins], lines + eqn.params["axis"])]


def _unstack(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any]:
    return list(np.moveaxis(ins[0], lines + eqn.params["axis"], 0))


def _tile(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any]:
    return [np.tile(ins[0], (*[1] * lines, *eqn.params["reps"]))]


def _split(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any]:
    p = eqn.params
    return np.split(ins[0], np.cumsum(p["sizes"])[:-1], lines + p["axis"])


def _iota(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any] | None:
    p = eqn.params
    at = [1] * len(p["shape"])
    at[p["dimension"]] = -1
    numbers = np.arange(p["shape"][p["dimension"]]).reshape(at)
    return None if ins else [np.broadcast_to(numbers, p["shape"])]


def _pad(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any] | None:
    config, (x, value) = eqn.params["padding_config"], ins
    if any(low < 0 or high < 0 for low, high, _ in config):
        return None
    front = np.broadcast_shapes(x.shape[:lines], value.shape[:lines])
    shape = eqn.outvars[0].aval.shape  # type: ignore[attr-defined]
    out = np.broadcast_to(spread(value, len(shape)), (*front, *shape)).copy()
    inside = [
        slice(low, low + (n - 1) * (between + 1) + 1 if n else low, between + 1)
        for n, (low, _, between) in zip(x.shape[lines:], config, strict=True)
    ]
    out[(..., *inside)] = x
    return [out]


def _reduction(f: Any, none: Callable[[Any], Any]) -> Callable[..., Any]:
    """``none(dtype)`` is the result of no numbers."""

    def reduce(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any]:
        dtype = ins[0].dtype
        options = {"dtype": dtype} if f in (np.add, np.multiply) else {}
        axes = tuple(lines + i for i in eqn.params["axes"])
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
    return lambda eqn, ins, lines: [f(ins[0], axis=lines + eqn.params["axes"][0])]


def _cumulative(f: Any) -> Callable[..., Any]:
    def accumulate(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any]:
        axis, x = lines + eqn.params["axis"], ins[0]
        turn = (lambda x: np.flip(x, axis)) if eqn.params["reverse"] else _same
        options = {"dtype": x.dtype} if f in (np.add, np.multiply) else {}
        return [turn(f.accumulate(turn(x), axis=axis, **options))]

    return accumulate


def _sort(eqn: _jax.JaxprEqn, ins: Sequence[Any], lines: int) -> list[Any]:
    axis = lines + eqn.params["dimension"]
    if len(ins) == 1:
        return [np.sort(ins[0], axis=axis, kind="stable")]
    ins = np.broadcast_arrays(*ins)
    order = np.lexsort(ins[: eqn.params["num_keys"]][::-1], axis=axis)
    return [np.take_along_axis(x, order, axis) for x in ins]


def _dot(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any]:
    """Products of matrices, one for each of the axes that both have."""
    contracted, batch = eqn.params["dimension_numbers"]
    dtype = eqn.outvars[0].aval.dtype  # type: ignore[attr-defined]
    parts, free = [], []
    for x, c, b, left in zip(ins, contracted, batch, (True, False), strict=True):
        others = [i for i in range(x.ndim - lines) if i not in c and i not in b]
        size = lambda axes: [x.shape[lines + i] for i in axes]
        inner = (others, c) if left else (c, others)
        free.append(size(others))
        shape = [*x.shape[:lines], *size(b), *(math.prod(size(axes)) for axes in inner)]
        moved = x.transpose(_after(lines, [*b, *inner[0], *inner[1]])).reshape(shape)
        parts.append(moved.astype(dtype, copy=False))
    out = np.matmul(*parts)
    return [out.reshape([*out.shape[:-2], *free[0], *free[1]])]


def _dynamic_slice(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any] | None:
    x, sizes = ins[0], eqn.params["slice_sizes"]
    if len(ins) != 1 + len(sizes):
        return None
    index = []
    for d, (start, n, k) in enumerate(zip(ins[1:], x.shape[lines:], sizes, strict=True)):
        start = spread(np.clip(start.astype(np.int64), 0, n - k), len(sizes))
        index.append(start + _along(np.arange(k), d, len(sizes)))
    return [_read(x, index, lines)]


def _along(numbers: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    return numbers.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _read(x: np.ndarray, index: list[np.ndarray], lines: int) -> np.ndarray:
    """The elements at an index that is different on each line."""
    front = np.broadcast_shapes(*(i.shape for i in index))[:lines] if index else ()
    ndim = max((i.ndim for i in index), default=0)
    own = [
        _along(np.arange(n) if x.shape[a] == n else np.zeros(n, int), a, ndim)
        for a, n in enumerate(np.broadcast_shapes(front, x.shape[:lines]))
    ]
    return x[(*own, *index)]


def _gather(eqn: _jax.JaxprEqn, ins: list[Any], lines: int) -> list[Any] | None:
    x, starts, p = ins[0], ins[1].astype(np.int64), eqn.params
    d, sizes, mode = p["dimension_numbers"], p["slice_sizes"], p["mode"]
    ndim = eqn.outvars[0].aval.ndim  # type: ignore[attr-defined]
    batch = [i for i in range(ndim) if i not in d.offset_dims]
    hidden = {*d.collapsed_slice_dims, *d.operand_batching_dims}
    offsets = dict(
        zip((i for i in range(len(sizes)) if i not in hidden), d.offset_dims, strict=True)
    )
    place = lambda a, axis: _along(a, axis, ndim)
    inside, index = True, []
    for i, (n, k) in enumerate(zip(x.shape[lines:], sizes, strict=True)):
        at = np.zeros([1] * (lines + ndim), np.int64)
        if i in d.start_index_map:
            start = starts[..., d.start_index_map.index(i)]
            inside &= (start >= 0) & (start <= n - k)
            shape = [1] * ndim
            for axis, m in zip(batch, start.shape[lines:], strict=True):
                shape[axis] = m
            at = np.clip(start, 0, n - k).reshape(*start.shape[:lines], *shape)
        elif i in d.operand_batching_dims:
            axis = d.start_indices_batching_dims[d.operand_batching_dims.index(i)]
            at = place(np.arange(n), batch[axis])
        index.append(at + place(np.arange(k), offsets[i]) if i in offsets else at)
    out = _read(x, index, lines)
    if mode == lax.GatherScatterMode.FILL_OR_DROP and not np.all(inside):
        return None
    return [out]


RULES: dict[str, Callable[..., Any]] = {
    "integer_pow": _integer_pow,
    "round": _round,
    "convert_element_type": _convert,
    "bitcast_convert_type": _bitcast,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "rev": _rev,
    "concatenate": _concatenate,
    "split": _split,
    "stack": _stack,
    "tile": _tile,
    "unstack": _unstack,
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
    "gather": _gather,
    "optimization_barrier": lambda eqn, ins, lines: ins,
}
