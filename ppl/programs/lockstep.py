"""Many runs of a program, and of its proposal, side by side and step by step.

:class:`Lockstep` runs the stages of a target's program (``transforms/runs/stages.py``) for n
particles under ``jax.vmap``; with a proposal, each stage of that comes first and gives the choices,
whose ratio of densities is the weight. One of the particles may be kept: its choices are given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from transforms import _jax
from transforms.errors import UnsupportedError, show
from transforms.program.choices import Choice, Path
from transforms.program.interpret import Record, Rule
from transforms.program.site import Factor, Site
from transforms.runs.addresses import Entry, match
from transforms.runs.execute import scoring
from transforms.runs.stages import Loop, Plain, Stage, Stages, cut, run_plain, run_step

from .generative import Generative
from .given import Choices, merge
from .program import Program
from .sites import Written
from .target import Target


@dataclasses.dataclass(frozen=True)
class Side:
    """A program as it runs for a group of particles: what is given, by path, and the rule."""

    stages: Stages
    given: Record
    rule: Rule
    start: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Group:
    """Particles that run alike: ``size`` of them, by the program and by the proposal."""

    size: int
    model: Side
    guide: Side | None


Key = tuple[int, Any]
"""A variable of the program (0) or of the proposal (1); or a choice of the program, by its path."""


@jax.tree_util.register_pytree_node_class
class Env(dict[Key, Any]):
    """What depends on choices, ``[n, ...]``: a pytree whose keys need no order."""

    def tree_flatten(self) -> tuple[list[Any], tuple[Key, ...]]:
        return list(self.values()), tuple(self)

    @classmethod
    def tree_unflatten(cls, keys: Any, values: Any) -> Env:
        return cls(zip(keys, values, strict=True))

    def read(self, side: int, stages: Stages, v: Any) -> Any:
        """The value of a variable, or a literal."""
        if isinstance(v, _jax.Literal):
            return jnp.asarray(v.val, v.aval.dtype)  # type: ignore[attr-defined]
        return stages.known[v] if v in stages.known else self[side, v]


@dataclasses.dataclass(frozen=True)
class Particles:
    """All particles: what they computed, their log weights ``[n]``, and what they chose, by the
    path in the program (if it is recorded). The last one may be ``kept``."""

    groups: tuple[Group, ...]
    env: Env
    log_weights: jax.Array
    made: Record
    kept: bool
    record: bool

    def history(self, index: jax.Array) -> Record:
        """What one particle chose."""
        return jax.tree.map(lambda a: a[index], self.made)

    def by_group(self, f: Callable[..., Any], *trees: Any) -> Any:
        """``f(group, *trees)`` under ``vmap`` over the particles of each group."""
        parts, first = [], 0
        for group in self.groups:
            rows = slice(first, first + group.size)
            mine = jax.tree.map(lambda a, rows=rows: a[rows], trees)
            one = lambda *trees, group=group: f(group, *trees)
            parts.append(jax.vmap(one, axis_size=group.size)(*mine))
            first += group.size
        return parts[0] if len(parts) == 1 else jax.tree.map(_side_by_side, *parts)


def _side_by_side(*parts: jax.Array) -> jax.Array:
    return jnp.concatenate(parts)


class Lockstep:
    """See the module docstring."""

    def __init__(self, target: Target, proposal: Generative | None):
        self._target, self._name = target, target.program.name
        written = target.program.written()
        self._model = cut(written.closed, written.args)
        self.free = [e for e in self._model.entries if not target.covers(e.address)]
        if not any(isinstance(s, Loop) for s in self._model.stages):
            raise UnsupportedError(
                f"smc(n) at {_jax.user_line()} goes through a jax.lax.scan step by step, and "
                f"{self._name} has none that makes choices. Use ppl.importance(n, proposal)."
            )
        self._proposal: Written | None = None
        self._guide: Stages | None = None
        self.path_of: dict[Path, Path] = {}
        if proposal is not None:
            self._proposal = _program(proposal)
            self._guide = cut(self._proposal.closed, self._proposal.args)
            self.path_of = _pairs(self._guide, self.free, proposal.name)
        self.proposes = proposal is not None
        self.stages = self._paired()

    # --- the order of stages ---------------------------------------------------------------------

    def _paired(self) -> list[tuple[Stage, list[Stage]]]:
        """Each stage of the program, with those of the proposal that come before it; a loop has one
        that is its own, last."""
        if self._guide is None:
            return [(s, []) for s in self._model.stages]
        left, known = list(self._guide.stages), set[Path]()
        out: list[tuple[Stage, list[Stage]]] = []
        for stage in self._model.stages:
            wanted = {c.path for c in self._model.inside(stage)} & set(self.path_of.values())
            mine: list[Stage] = []
            while not wanted <= known:
                mine.append(left.pop(0))
                known |= {self.path_of[c.path] for c in self._guide.inside(mine[-1])}
            loops = [s for s in mine if isinstance(s, Loop)]
            inside = {self.path_of[c.path] for s in loops for c in self._guide.inside(s)}
            if isinstance(stage, Loop):
                shape = stage.length, stage.reverse
                alike = [(s.length, s.reverse) for s in loops] == [shape] and loops == mine[-1:]
                if wanted and not (alike and inside == wanted):
                    raise self._unlike(stage)
            elif loops:
                raise self._unlike(stage)
            out.append((stage, mine))
        return out

    def _unlike(self, stage: Stage) -> UnsupportedError:
        places = ", ".join(show(c.address) for c in self._model.inside(stage))
        assert self._proposal is not None
        return UnsupportedError(
            f"the proposal {self._proposal.name} of smc(n, proposal) ({_jax.user_line()}) has not "
            f"the steps of {self._name}: {places} should be drawn in a jax.lax.scan of as many "
            "steps, with the same choices in it, in the same order. Write it so, or use "
            "ppl.importance(n, proposal)."
        )

    def is_loop(self, stage: int) -> bool:
        return isinstance(self.stages[stage][0], Loop)

    def weighs_before(self, stage: int) -> bool:
        """Whether weights differ when a stage begins."""
        before = [c for s, _ in self.stages[:stage] for c in self._model.inside(s)]
        free = {c.path for e in self.free for c in e.parts}
        if self._guide is not None:
            return bool(before)
        return any(isinstance(c.random, Factor) or c.path not in free for c in before)

    # --- groups ----------------------------------------------------------------------------------

    def start(self, n: int, kept: Choices | None, record: bool) -> Particles:
        """Particles that have done nothing yet, the last of which has the choices ``kept``."""
        groups = [Group(n if kept is None else n - 1, *self._sides(None))]
        if kept is not None:
            groups.append(Group(1, *self._sides(kept)))
        groups = [g for g in groups if g.size]
        return Particles(tuple(groups), Env(), jnp.zeros(n), {}, kept is not None, record)

    def _sides(self, kept: Choices | None) -> tuple[Side, Side | None]:
        target, fixed = self._target, self._target.fixed
        known = dict(fixed) if kept is None else merge(fixed, kept)
        given = match(self._model.entries, known, self._name, exact=kept is not None)
        proposed = () if kept is not None else self.path_of.values()
        rule, start = scoring(
            self._model.entries, self._model.weights, {*given, *proposed}, target.covers
        )
        own = Side(self._model, given, rule, start)
        if self._guide is None or self._proposal is None:
            return own, None
        values = {} if kept is None else kept
        given = match(self._guide.entries, values, self._proposal.name, exact=kept is not None)
        rule, start = scoring(self._guide.entries, self._guide.weights, set(given), lambda _: False)
        return own, Side(self._guide, given, rule, start)

    # --- running ---------------------------------------------------------------------------------

    def plain(self, stage: int, particles: Particles) -> Particles:
        """The particles after a plain stage."""
        model, guides = self.stages[stage]
        return self._plain(particles, guides, model)

    def _plain(
        self, particles: Particles, guides: Sequence[Stage], model: Stage | None
    ) -> Particles:
        def one(group: Group, env: Env, made: Record) -> Any:
            env, own, other = Env(env), group.model.start, None
            for s in guides:
                assert isinstance(s, Plain) and group.guide is not None
                other = group.guide.start if other is None else other
                inputs = [env.read(1, group.guide.stages, v) for v in s.invars]
                side = group.guide
                outs, other, drawn = run_plain(s, inputs, side.rule, side.given, other)
                env.update({(1, v): x for v, x in zip(s.outvars, outs, strict=True)})
                env.update({(0, self.path_of[p]): v for p, v in drawn.items()})
            if isinstance(model, Plain):
                proposed = {p: v for (_, p), v in env.items() if isinstance(p, tuple)}
                inputs = [env.read(0, group.model.stages, v) for v in model.invars]
                given = {**proposed, **group.model.given}
                outs, own, drawn = run_plain(model, inputs, group.model.rule, given, own)
                env.update({(0, v): x for v, x in zip(model.outvars, outs, strict=True)})
                made = {**made, **self.recorded(particles, drawn)}
            return env, made, log_weight(own, other, self._guide is not None)

        env, made, weights = particles.by_group(one, particles.env, particles.made)
        return dataclasses.replace(
            particles, env=env, made=made, log_weights=particles.log_weights + weights
        )

    def recorded(self, particles: Particles, drawn: Record) -> Record:
        """Of what was drawn, what is to be known in the end."""
        free = {c.path for e in self.free for c in e.parts}
        return {p: v for p, v in drawn.items() if p in free} if particles.record else {}

    def loop(self, stage: int, particles: Particles) -> Running:
        """A loop that is about to start, after what the proposal draws before it."""
        model, guides = self.stages[stage]
        assert isinstance(model, Loop)
        before = [s for s in guides if isinstance(s, Plain)]
        if before:
            particles = self._plain(particles, before, None)
        own = next((s for s in guides if isinstance(s, Loop)), None)
        return Running(self, particles, (model, own), (self._model, self._guide))


def log_weight(model: Sequence[Any], guide: Sequence[Any] | None, proposed: bool) -> jax.Array:
    """What a part of a run adds to its log weight, from the log densities in it."""
    total, selected, *missing = model
    if not proposed:
        return jnp.asarray(selected, float)
    minus = sum((guide[0], *guide[2:])) if guide is not None else 0.0
    return jnp.asarray(sum(missing, total) - minus, float)


def _program(proposal: Generative) -> Written:
    if not isinstance(proposal, Program):
        raise UnsupportedError(
            f"the proposal {proposal.name} of smc(n, proposal) ({_jax.user_line()}) is no @ppl.gen "
            "program, so that it has no steps. Write one with a jax.lax.scan like the model's."
        )
    return proposal.written()


def _pairs(guide: Stages, free: Sequence[Entry], name: str) -> dict[Path, Path]:
    """The choices of the program that those of a proposal stand for, by their paths."""

    def alone(e: Entry) -> Choice:
        if len(e.parts) > 1 or e.conditional or not isinstance(e.choice.random, Site):
            raise UnsupportedError(
                f"the proposal {name} of smc(n, proposal) ({_jax.user_line()}) has "
                f"{show(e.address)} ({e.source}) in a branch, in a batched loop, or as a program "
                "that is known by its density. Use ppl.importance(n, proposal)."
            )
        return e.choice

    model = {e.address: alone(e) for e in free}
    pairs = {}
    for e in guide.entries:
        mine, other = alone(e), model[e.address]
        if _layout(mine) != _layout(other):
            raise UnsupportedError(
                f"the proposal {name} of smc(n, proposal) ({_jax.user_line()}) draws "
                f"{show(e.address)} at {e.source} in other loops and jax.vmaps than "
                f"{other.source} does. Nest them in the same order."
            )
        pairs[mine.path] = other.path
    return pairs


def _layout(c: Choice) -> Any:
    return c.lengths, tuple((a.size, a.loops) for a in c.site.axes), c.site.shape


class Running:
    """A loop of the program, and of the proposal, that runs for all particles.

    ``init`` is what they carry; ``xs`` the steps, each with its number first. What was computed
    before the loop stays where it is: each particle carries the place it comes from.
    """

    def __init__(
        self,
        steps: Lockstep,
        particles: Particles,
        loops: tuple[Loop, Loop | None],
        stages: tuple[Stages, Stages | None],
    ):
        self._steps, self._particles = steps, particles
        self._sides = [
            (i, loop, s)
            for i, (loop, s) in enumerate(zip(loops, stages, strict=True))
            if loop is not None and s is not None
        ]
        self._reverse = loops[0].reverse
        env, n = particles.env, len(particles.log_weights)
        self._consts, self._drawn, carries, rows = {}, {}, {}, {}
        for i, loop, s in self._sides:
            consts, carry, xs = loop.operands()
            self._consts[i] = [(env.read(i, s, v), self._is_drawn(i, v)) for v in consts]
            self._drawn[i] = [env.read(i, s, v) if self._is_drawn(i, v) else None for v in xs]
            rows[i] = [
                None if self._is_drawn(i, v) else self._in_order(env.read(i, s, v)) for v in xs
            ]
            starts = [(env.read(i, s, v), self._is_drawn(i, v)) for v in carry]
            avals = loop.control.body.jaxpr.outvars
            carries[i] = [
                (x if drawn else jnp.broadcast_to(x, (n, *jnp.shape(x)))).astype(a.aval.dtype)
                for (x, drawn), a in zip(starts, avals, strict=False)
            ]
        self.init = carries, jnp.arange(n)
        given = [
            [self._given(side, loop) for _, loop, side in self._of(group)]
            for group in particles.groups
        ]
        times = self._in_order(jnp.arange(loops[0].length))
        self.xs = jnp.arange(loops[0].length), times, rows, given

    def _is_drawn(self, side: int, v: Any) -> bool:
        return isinstance(v, _jax.Var) and (side, v) in self._particles.env

    def _in_order(self, x: jax.Array) -> jax.Array:
        return jnp.flip(x, axis=0) if self._reverse else x

    def _of(self, group: Group) -> list[tuple[int, Loop, Side]]:
        """The sides of a group that have this loop."""
        both = (group.model, group.guide)
        return [(i, loop, s) for i, loop, _ in self._sides for s in [both[i]] if s is not None]

    def _given(self, side: Side, loop: Loop) -> Record:
        mine = {p: v for p, v in side.given.items() if p[0] == loop.number}
        return jax.tree.map(self._in_order, mine)

    def at(self, inside: Any, ancestors: jax.Array) -> Any:
        """What particles carry, from their ancestors."""
        return jax.tree.map(lambda a: a[ancestors], inside)

    def step(self, inside: Any, x: Any) -> tuple[Any, jax.Array, Any]:
        """One step of all particles: what they carry, what it adds to their log weights, and what
        is stacked up."""
        _, t, rows, given = x
        groups = list(self._particles.groups)

        def one(group: Group, carries: Any, origin: jax.Array) -> Any:
            known = given[groups.index(group)]
            sums: dict[int, Any] = {}
            stacked: dict[int, Any] = {}
            proposed: Record = {}
            new = dict(carries)
            order = list(zip(self._of(group), known, strict=True))
            for (i, loop, side), mine in reversed(order):  # the proposal first
                consts = [c[origin] if drawn else c for c, drawn in self._consts[i]]
                drawn_rows = [d if d is None else d[origin, t] for d in self._drawn[i]]
                xs = [r if d is None else d for r, d in zip(rows[i], drawn_rows, strict=True)]
                values = {**proposed, **mine} if i == 0 else mine
                new[i], ys, sums[i], drawn = run_step(
                    loop, [*consts, *carries[i], *xs], side.rule, values, side.start
                )
                stacked[i] = [y for y, wanted in zip(ys, self._wanted(i), strict=True) if wanted]
                if i == 1:
                    proposed = {self._steps.path_of[p]: v for p, v in drawn.items()}
                else:
                    made = self._steps.recorded(self._particles, drawn)
            weight = log_weight(sums[0], sums.get(1), self._steps.proposes)
            return (new, origin), weight, (stacked, made)

        return self._particles.by_group(one, *inside)

    def _wanted(self, side: int) -> list[bool]:
        """Which of the stacked results are read later."""
        loop, stages = next((loop, s) for i, loop, s in self._sides if i == side)
        needed = stages.needed_after(loop)
        return [v in needed for v in loop.results()[1]]

    def finish(
        self, inside: Any, log_weights: jax.Array, ancestors: jax.Array, ys: Any
    ) -> Particles:
        """The particles after the loop, ``ancestors`` being i32[length, n]: each with the history
        of its own."""
        carries, origin = inside
        back = lambda b, a: (a[b], b)
        _, places = lax.scan(back, jnp.arange(len(origin)), ancestors, reverse=True)

        def traced(y: jax.Array) -> jax.Array:
            own = jax.vmap(lambda y, b: y[b])(y, places)
            return jnp.moveaxis(self._in_order(own), 0, 1)

        stacked, made = jax.tree.map(traced, ys)
        env, old = jax.tree.map(lambda a: a[origin], (self._particles.env, self._particles.made))
        for i, loop, _ in self._sides:
            last, ys_vars = loop.results()
            env.update({(i, v): x for v, x in zip(last, carries[i], strict=True)})
            kept = [v for v, w in zip(ys_vars, self._wanted(i), strict=True) if w]
            env.update({(i, v): y for v, y in zip(kept, stacked[i], strict=True)})
        return dataclasses.replace(
            self._particles, env=env, made={**old, **made}, log_weights=log_weights
        )
