"""Which values are positive, or never negative, as the equations tell that make them."""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import _jax
from ..analyses import primitives
from ..program.flat import Flat, Op

TINY = 1e-30


class Sign(enum.IntEnum):
    """What is known of all numbers of a value."""

    ANY = 0
    NEVER_NEGATIVE = 1
    POSITIVE = 2


def signs(flat: Flat, positive: Collection[int] = ()) -> dict[int, Sign]:
    """What is known of each value that something is known of; of some, that they are positive."""
    found = dict.fromkeys(positive, Sign.POSITIVE)

    def of(v: Any) -> Sign:
        if isinstance(v, int):
            return found.get(v, Sign.ANY)
        if _jax.is_key(v.val):
            return Sign.ANY
        least = np.min(np.real(np.asarray(v.val)).astype(float), initial=np.inf)
        return Sign((least > -TINY) + (least > 0.0))

    for op in flat.ops:
        data = op.ins[primitives.data(op.eqn)]
        sign = _of_result(flat, op, [of(v) for v in data]) if data else Sign.ANY
        if sign:
            found.update((v, max(sign, found.get(v, sign))) for v in op.outs)
    return found


def _of_result(flat: Flat, op: Op, ins: list[Sign]) -> Sign:
    known, least, most = primitives.of(op.eqn), min(ins), max(ins)
    same = len(op.ins) == 2 and op.ins[0] is op.ins[1]
    if known.sign == "positive":
        return Sign.POSITIVE
    if op.name == "integer_pow":
        return max(least, Sign(op.eqn.params["y"] % 2 == 0))
    if known.sign or (op.name == "mul" and same):
        return max(least, Sign.NEVER_NEGATIVE)
    if op.name == "dot_general" and same:
        return Sign(flat.avals[op.outs[0]].shape == ())
    if op.name == "max":
        return most
    if op.name == "pow":
        return ins[0]
    if op.name in ("add", "add_any"):
        return most if least else Sign.ANY
    if not (known.keeps_sign or known.moves) or _may_be_filled(op):
        return Sign.ANY
    return min(least, Sign.POSITIVE if _is_float(flat, op.outs[0]) else Sign.NEVER_NEGATIVE)


def _may_be_filled(op: Op) -> bool:
    """Whether integers that are read out of bounds are the least one."""
    return op.name == "gather" and not jnp.issubdtype(op.eqn.outvars[0].aval.dtype, jnp.inexact)  # type: ignore[attr-defined]


def _is_float(flat: Flat, v: int) -> bool:
    return jnp.issubdtype(flat.avals[v].dtype, jnp.floating)
