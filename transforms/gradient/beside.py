"""Replays side by side: one pass over what they reach, with an axis of replays.

The equations are as many as those of the program, however many choices are replaced. Each replay
takes part in those alone that its choice reaches (``reach.py``), and what they cost is what the
replays would cost one after the other. Random keys are those of the first run.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from ..program.choices import Path
from ..program.interpret import Record, Rule, handler_of, kept_of, keys_of
from ..program.operands import constant_of
from ..program.segments import Run
from .reach import Reach, Replays


class Other(NamedTuple):
    """The values that a replay gives to a choice, ``[rows, ...]``, and where: all of it if None,
    else the steps of the loops around it, bool ``[rows, *lengths]``."""

    value: jax.Array
    there: jax.Array | None = None


class Rows(NamedTuple):
    """A value for each row of the replays that reach it, which are one after the other."""

    replays: Replays
    values: Any


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How many rows each replay has."""

    rows: Mapping[int, int]

    def of(self, replays: Replays) -> int:
        return sum(n for r, n in self.rows.items() if replays >> r & 1)

    @functools.cached_property
    def all(self) -> Replays:
        return functools.reduce(operator.or_, (1 << r for r in self.rows), 0)

    def places(self, of: Replays, among: Replays) -> np.ndarray:
        """Where the rows of some replays are among those of others; -1 if they are not there."""
        start, found = 0, []
        for r, n in sorted(self.rows.items()):
            there = among >> r & 1
            if of >> r & 1:
                found.append(np.arange(start, start + n) if there else np.full(n, -1))
            start += n if there else 0
        return np.concatenate(found) if found else np.zeros(0, int)

    def onto(self, rows: Rows, replays: Replays, common: Any) -> jax.Array:
        """The values of other replays; those that have no row have the common one."""
        if rows.replays == replays:
            return rows.values
        places = self.places(replays, rows.replays)
        there = places >= 0
        n = int(there.sum())
        kept = places[:n]
        whole = n == len(rows.values) and bool((kept == np.arange(n)).all())
        if not there[:n].all():  # the new ones are not the last
            last = jnp.concatenate([rows.values, common[None]])
            return last[np.where(there, places, len(rows.values))]
        first = rows.values if whole else rows.values[_slice(kept)]
        if n == len(places):
            return first
        more = jnp.broadcast_to(common, (len(places) - n, *jnp.shape(common)))
        return jnp.concatenate([first, more])


def _slice(places: np.ndarray) -> Any:
    """The same places, as a slice if they are one."""
    first, n = int(places[0]), len(places)
    together = bool((places == np.arange(first, first + n)).all())
    return slice(first, first + n) if together else places


def over_rows(f: Callable[..., Any], n: int, args: Sequence[Any], rows: Sequence[bool]) -> Any:
    """``f`` of each of ``n`` rows of the arguments that have them."""
    if n > 1:
        return jax.vmap(f, [0 if r else None for r in rows], axis_size=n)(*args)
    one = lambda x: jax.tree.map(lambda a: jnp.squeeze(a, 0), x)
    out = f(*(one(x) if r else x for x, r in zip(args, rows, strict=True)))
    return jax.tree.map(lambda a: jnp.expand_dims(a, 0), out)


class Pass:
    """One pass of the replays that replace choices by ``others``.

    ``kept`` are the common values that count, as the first run recorded them; ``made`` is what
    enumerated choices record, of those that are reached.
    """

    def __init__(
        self,
        reach: Reach,
        rule: Rule,
        given: Record,
        kept: Record,
        others: Mapping[int, Other],
    ) -> None:
        self._reach, self._rule, self._given, self._kept = reach, rule, given, kept
        self._others = others
        self.sizes = Sizes({r: len(other.value) for r, other in others.items()})
        self.made: dict[Path, Rows] = {}

    def run(self, key: jax.Array) -> list[Rows | None]:
        """What the outputs are in the replays; None for those that none reaches."""
        return self._through(self._reach, {}, key)

    def _through(self, reach: Reach, env: dict[Any, Rows], key: Any) -> list[Rows | None]:
        common = dict(zip(reach.met, self._kept.get(kept_of(reach.path), ()), strict=True))
        keys = keys_of(key, reach.segments.choices, False)
        for m, segment in enumerate(reach.segments.all):
            if isinstance(segment, Run):
                for replays, run in reach.groups[m]:
                    self._equations(run, replays & self.sizes.all, env, common)
                continue
            own_key, (i, eqn) = next(keys), segment
            if m in reach.inside:
                outs = self._inside(reach.inside[m], eqn, env, own_key)
            else:
                outs = self._choice(reach, (*reach.path, i), eqn, env, common, own_key)
            env.update((v, o) for v, o in zip(eqn.outvars, outs, strict=False) if o is not None)
        return [env.get(v) if isinstance(v, _jax.Var) else None for v in reach.outputs]

    def _read(
        self, variables: Sequence[Any], replays: Replays, env: Mapping[Any, Rows], common: Any
    ) -> tuple[list[Any], list[bool]]:
        """Values, and which of them have rows."""
        values, rows = [], []
        for v in variables:
            known = env.get(v) if isinstance(v, _jax.Var) else None
            rows.append(known is not None)
            if known is not None:
                values.append(self.sizes.onto(known, replays, common.get(v)))
            else:
                values.append(common[v] if isinstance(v, _jax.Var) else constant_of(v))
        return values, rows

    def _equations(
        self, run: Run, replays: Replays, env: dict[Any, Rows], common: Mapping[Any, Any]
    ) -> None:
        if not replays:
            return
        values, rows = self._read(run.invars, replays, env, common)
        f = functools.partial(_jax.evaluate, run.jaxpr)
        outs = over_rows(f, self.sizes.of(replays), values, rows)
        env.update((v, Rows(replays, o)) for v, o in zip(run.outvars, outs, strict=True))

    def _inside(
        self, reach: Reach, eqn: _jax.JaxprEqn, env: Mapping[Any, Rows], key: Any
    ) -> list[Rows | None]:
        replays = functools.reduce(operator.or_, reach.own.values(), 0)
        known = [env.get(v) if isinstance(v, _jax.Var) else None for v in eqn.invars]
        if not replays & self.sizes.all and not any(k is not None for k in known):
            return [None] * len(eqn.outvars)
        n = len(reach.inputs) - len(known)
        pairs = zip(reach.inputs[n:], known, strict=True)
        return self._through(reach, {v: k for v, k in pairs if k is not None}, key and key())

    def _choice(
        self, reach: Reach, path: Path, eqn: Any, env: Any, common: Any, key: Any
    ) -> list[Rows | None]:
        """The results of an equation that makes a choice or hides one."""
        own = {p: r & self.sizes.all for p, r in reach.below(path).items() if r & self.sizes.all}
        before = [env[v].replays for v in eqn.invars if isinstance(v, _jax.Var) and v in env]
        replays = functools.reduce(operator.or_, before, 0)
        if path in own:
            return [self._replaced(path, eqn, own[path], replays, env, common, key)]
        replays = functools.reduce(operator.or_, own.values(), replays)
        if not replays:
            return [None] * len(eqn.outvars)
        return [Rows(replays, o) for o in self._handled(path, eqn, replays, own, env, common, key)]

    def _replaced(
        self,
        path: Path,
        eqn: Any,
        own: Replays,
        before: Replays,
        env: Any,
        common: Any,
        key: Any,
    ) -> Rows:
        """A choice that is drawn anew in the replays of choices before it, and has the given value
        in its own."""
        (value,) = (o.value for r, o in self._others.items() if own >> r & 1)
        if not before:
            return Rows(own, value)
        (drawn,) = self._handled(path, eqn, before, {}, env, common, key)
        assert before < own  # choices are numbered in the order of the program
        return Rows(before | own, jnp.concatenate([drawn, value.astype(drawn.dtype)]))

    def _handled(
        self,
        path: Path,
        eqn: Any,
        replays: Replays,
        own: Mapping[Path, Replays],
        env: Any,
        common: Any,
        key: Any,
    ) -> list[Any]:
        """The results of an equation by the rule, for each row, with the values of ``own``."""
        handler, what = handler_of(eqn)
        values, rows = self._read(eqn.invars, replays, env, common)
        below = {p: v for p, v in self._given.items() if p[: len(path)] == path}
        replaced = {p: self._given_rows(r, replays) for p, r in own.items()}

        def one(replaced: Record, *operands: Any) -> Any:
            given = {**below, **replaced}
            state = {"key": key and key(), "given": given, "acc": None, "path": path}
            outs, _, made = handler(what, list(operands), self._rule, **state)
            return outs, made

        n = self.sizes.of(replays)
        outs, made = over_rows(one, n, [replaced, *values], [bool(replaced), *rows])
        self.made |= {p: Rows(replays, v) for p, v in made.items()}
        return outs

    def _given_rows(self, own: Replays, replays: Replays) -> tuple[jax.Array, jax.Array]:
        """Where a choice is given, and what, in the rows of replays; not given in the others'."""
        ((value, there),) = (o for r, o in self._others.items() if own >> r & 1)
        there = jnp.ones(len(value), bool) if there is None else there
        absent = lambda a: jnp.zeros(a.shape[1:], a.dtype)
        wider = lambda a: self.sizes.onto(Rows(own, a), replays, absent(a))
        return wider(there), wider(value)


__all__ = ["Other", "Pass", "Rows", "Sizes", "over_rows"]
