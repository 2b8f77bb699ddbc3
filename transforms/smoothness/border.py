"""Comparisons with the end of a range: whether a norm is 0, or less than almost nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..analyses import primitives
from ..program.flat import Flat, Op
from .signs import signs

TINY = 1.1e-4

_COMPARISONS = {"lt", "le", "gt", "ge"}


def is_at_border(flat: Flat, op: Op) -> bool:
    """Whether ``op`` compares what cannot be negative with 0, or a norm with next to nothing.

    A single number that crosses 0 comes as close to it as one likes; a norm of several does not.
    """
    if op.name not in _COMPARISONS:
        return False
    known = signs(flat)
    for number, other in (op.ins, reversed(op.ins)):
        bound = _number(flat, number)
        if bound is not None and isinstance(other, int) and known.get(other):
            return bound == 0.0 or (0.0 < bound <= TINY and _is_of_several(flat, other))
    return False


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
        through = primitives.keeps_all(op.eqn) or op.name in ("sqrt", "square")
        if not through or not isinstance(op.ins[0], int):
            return False
        v = op.ins[0]
    return False
