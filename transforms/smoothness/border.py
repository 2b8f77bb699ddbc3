"""Comparisons with the end of a range: whether a norm is 0, or less than almost nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..program.flat import Flat, Op

TINY = 1.1e-4
DEPTH = 40

_COMPARISONS = {"lt", "le", "gt", "ge"}
_NEVER_BELOW = {"abs", "exp", "exp2", "sqrt", "square", "logistic"}
_ALL = {"add", "add_any", "mul", "div", "min", "concatenate", "reduce_sum", "reduce_max"}
_ALL |= {"reduce_min", "reduce_prod", "cumsum", "broadcast_in_dim", "reshape", "squeeze", "copy"}
_ALL |= {"transpose", "slice", "convert_element_type", "stop_gradient", "real", "split", "rev"}
_THROUGH = {"sqrt", "square", "broadcast_in_dim", "reshape", "squeeze", "convert_element_type"}


def is_at_border(flat: Flat, op: Op) -> bool:
    """Whether ``op`` compares what cannot be negative with 0, or a norm with next to nothing.

    A single number that crosses 0 comes as close to it as one likes; a norm of several does not.
    """
    if op.name not in _COMPARISONS:
        return False
    for number, other in (op.ins, reversed(op.ins)):
        bound = _number(flat, number)
        if bound is not None and isinstance(other, int) and is_nonnegative(flat, other):
            return bound == 0.0 or (0.0 < bound <= TINY and _is_of_several(flat, other))
    return False


def is_nonnegative(flat: Flat, v: Any, depth: int = DEPTH) -> bool:
    """Whether the equations that make a value show that it is never negative."""
    if not isinstance(v, int):
        return bool(np.all(np.asarray(v.val) >= 0))
    if v not in flat.makers or depth == 0:
        return False
    op = flat.ops[flat.makers[v]]
    each = lambda ins: all(is_nonnegative(flat, u, depth - 1) for u in ins)
    same = len(op.ins) == 2 and op.ins[0] is op.ins[1]
    if op.name in _NEVER_BELOW or (op.name == "mul" and same):
        return True
    if op.name == "integer_pow":
        return op.eqn.params["y"] % 2 == 0 or each(op.ins)
    if op.name == "dot_general" and same:
        return flat.avals[v].shape == ()
    if op.name == "max":
        return any(is_nonnegative(flat, u, depth - 1) for u in op.ins)
    if op.name in ("select_n", "pow"):
        return each(op.ins[1:] if op.name == "select_n" else op.ins[:1])
    return op.name in _ALL and each(op.ins)


def _number(flat: Flat, v: Any) -> float | None:
    """The largest element of a constant."""
    if isinstance(v, int):
        maker = flat.ops[flat.makers[v]] if v in flat.makers else None
        if maker is None or maker.name not in ("broadcast_in_dim", "convert_element_type"):
            return None
        return _number(flat, maker.ins[0])
    return float(np.max(np.asarray(v.val), initial=-math.inf))


def _is_of_several(flat: Flat, v: int) -> bool:
    while v in flat.makers:
        op = flat.ops[flat.makers[v]]
        if op.name in ("reduce_sum", "dot_general") and isinstance(op.ins[0], int):
            into = math.prod(flat.avals[op.ins[0]].shape)
            return into >= 2 * max(math.prod(flat.avals[v].shape), 1)
        if op.name not in _THROUGH or not isinstance(op.ins[0], int):
            return False
        v = op.ins[0]
    return False
