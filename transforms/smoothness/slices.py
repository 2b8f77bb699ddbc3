"""The few equations between a fault and where its paths meet again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from ..analyses import primitives
from ..numeric.run import STEPS
from ..program.flat import Flat, Op
from .domains import Domain
from .tapped import Tap

MEETS = 12
"""Most places that are tried, from the fault on."""
MAX_OPS = 400
MAX_WORK = 2**21
"""Most numbers that a slice may compute, with those in loops."""
MAX_SIZE = 2**20
"""Most numbers that a slice may hold, for all lines together."""
ENOUGH = 4


SMALL = 2048
"""Most numbers in the factors of a product of matrices, or in a loop, a sort, that is computed."""


@dataclasses.dataclass
class Budget:
    """What may still be spent on the questions of one objective, each of which is paid for once.

    The unit is an equation on few numbers. What is spent depends on the program alone, not on how
    fast it is evaluated.
    """

    left: int = 2000
    paid: set[Any] = dataclasses.field(default_factory=set)

    exhausted: bool = False

    def spend(self, n: int, question: Any) -> bool:
        """Whether a question may be asked that costs ``n``; after the first that may not be, only
        those that are paid for."""
        if question in self.paid:
            return True
        self.exhausted |= n > self.left
        if not self.exhausted:
            self.paid.add(question)
            self.left -= n
        return not self.exhausted


def cost(ops: Sequence[Op], lines: int, derivatives: bool) -> int:
    """What the evaluation of a slice costs, in units of the budget."""
    loops = sum(_rounds(op) for op in ops)
    return count(ops) * (3 if derivatives else 1) + loops + lines * work(ops) // 2**11


def _rounds(op: Op) -> int:
    """How many equations are evaluated one after the other in loops."""
    return _trips(op) * sum(len(body.ops) + sum(map(_rounds, body.ops)) for body in op.bodies) // 8


@dataclasses.dataclass(frozen=True)
class Place:
    """A fault of equation ``index``, or of the one at ``tap`` inside it, and what is known of it.

    ``carrying`` are the values that the fault reaches, ``varied`` those that change with the
    parameters or with pathwise draws, ``sunk`` those that are parameters of sites, ``given``
    constants that are inputs of the program, ``domains`` where draws are.
    """

    flat: Flat
    index: int
    kind: str
    tap: Tap
    carrying: Collection[int]
    varied: Collection[int]
    sunk: Collection[int]
    given: Mapping[int, Any]
    domains: Mapping[int, Domain]

    @property
    def op(self) -> Op:
        return self.flat.ops[self.index]

    def constant(self, v: int) -> Any:
        """The value of ``v``, if it is known."""
        value = self.given.get(v)
        known = value is not None and jnp.shape(value) == self.flat.avals[v].shape
        return value if known else None


def meets(fault: Place) -> list[int]:
    """The values that all paths of the fault lead through, in order."""
    flat, carrying = fault.flat, fault.carrying
    last = flat.last
    forever = {v for v in flat.outputs if isinstance(v, int)} | set(fault.sunk)
    live: set[int] = set()
    found: list[int] = []
    for j in range(fault.index, len(flat.ops)):
        op = flat.ops[j]
        live.update(v for v in op.outs if v in carrying and (v in last or v in forever))
        live -= {v for v in live if v not in forever and last[v] <= j}
        whole = any(not jnp.issubdtype(flat.avals[v].dtype, jnp.inexact) for v in live)
        if len(live) == 1 and not whole and not live <= set(found):
            found += live
            if live <= forever or len(found) == MEETS:
                break
    return found


def slice_to(fault: Place, places: Sequence[int], near: int, waist: bool) -> list[Op] | None:
    """The equations that lead to ``places``; None if they cannot be evaluated by themselves.

    Of those that the fault does not reach, the ``near`` closest ones, and constants; with
    ``waist`` only down to where all of them depend on one value.
    """
    flat, carrying = fault.flat, fault.carrying
    pending: set[int] = set()
    needed = {*places, *fault.op.outs}
    ops: list[Op] = []
    left, numbers = MAX_OPS, MAX_SIZE // ENOUGH
    for j in range(max(flat.makers[v] for v in places), -1, -1):
        op = flat.ops[j]
        if needed.isdisjoint(op.outs) or (op is fault.op and op.is_random):
            continue
        carries = op is fault.op or any(v in carrying for v in op.outs)
        if carries and op.is_random:
            return None
        if not carries and (op.is_random or _is_heavy(op)):
            continue
        free = not carries and flat.known.isdisjoint(op.outs)
        if free and near <= 0:
            continue
        near -= free
        ops.append(op)
        left -= count([op])
        numbers -= sum(math.prod(flat.avals[v].shape) for v in op.outs)
        if left < 0 or numbers < 0:
            return None
        needed.update(op.operands)
        pending.update(v for v in op.operands if v in fault.varied)
        pending.difference_update(op.outs)
        if waist and j <= fault.index and len(pending) == 1:
            near = 0
    return None if work(ops) * ENOUGH > MAX_WORK else ops[::-1]


def work(ops: Sequence[Op]) -> int:
    """How many numbers are computed at most, with those in loops."""
    return sum(
        sum(map(_size, op.eqn.outvars)) + _trips(op) * sum(work(body.ops) for body in op.bodies)
        for op in ops
    )


def _size(v: Any) -> int:
    return math.prod(v.aval.shape)


def count(ops: Sequence[Op]) -> int:
    return sum(1 + sum(count(body.ops) for body in op.bodies) for op in ops)


def _trips(op: Op) -> int:
    return STEPS if op.name == "while" else op.eqn.params.get("length", 1)


def _is_heavy(op: Op) -> bool:
    """Whether the results of an equation are better left free than computed."""
    if op.name in ("dot_general", "conv_general_dilated"):
        return sum(map(_size, op.eqn.invars)) > SMALL
    heavy = primitives.of(op.eqn).heavy or op.name in ("custom_lin", "pure_callback")
    return (heavy or bool(op.bodies)) and work([op]) > SMALL
