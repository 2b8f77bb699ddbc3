"""A guide: a program of coordinates, and its image under the bijections of a model's supports.

The coordinates are drawn by a program of their own. Those that could be drawn beforehand are; the
others stand where their choices do, in the loops and branches of the model. The program walks
through the model, without scoring it, and returns the choices and the log Jacobian. So a guide is
a :class:`Generative` like any other, whose choices are those of the model.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp

from transforms import _jax
from transforms.errors import Address, ShapeError, UnsupportedError, show
from transforms.program import marks
from transforms.program.site import Site, sample_p
from transforms.program.site import sample as _sample
from transforms.runs.addresses import Entry, flatten, match_shapes, nest
from transforms.runs.execute import Execution
from transforms.runs.parts import Group, Part
from transforms.runs.walk import instead

from ..programs.generative import Generative, Select
from ..programs.given import Choices, as_key
from ..programs.lawful import Lawful
from ..programs.program import Program, check_generative
from ..programs.sites import Written
from ..programs.space import Parts, Space
from .coordinates import Continuous, Coordinate, backward, coordinate, forward
from .joint import Joint


@final
class Family:
    """What a constructor of guides returns first: ``guide(params)`` is a :class:`Guide`.

    Attributes:
        name: which family.
        space: the unconstrained space of the model, see ``ppl.unconstrained``.
    """

    def __init__(
        self, name: str, space: Space, coordinates: Sequence[Coordinate], joint: Joint | None = None
    ):
        self.name, self.space, self.joint = f"{name}({space.g.name})", space, joint
        self.coordinates = {c.address: c for c in coordinates}
        self.label: Address = ("unconstrained",)
        while self.label in self.coordinates:
            self.label = (f"{self.label[0]}_",)

    def __repr__(self) -> str:
        return self.name

    def __call__(self, params: Any) -> Guide:
        return Guide(self, params)

    def on(self, g: Generative, data: Choices) -> Family:
        """The same family for a program of the same latent choices: with other arguments, another
        batch of data, or parameters of the model on which supports depend.

        So a network amortises a guide: ``guide.on(model(batch), data)(network(weights, batch))``,
        where the network returns a tree like ``params``.

        Raises:
            ShapeError: its latent choices are others, or have other shapes.
        """
        space = Space(g, data)
        mine, others = ({a: s.shape for a, s in s.like.items()} for s in (self.space, space))
        if mine != others or space.slices != self.space.slices:
            raise ShapeError(
                f"the guide {self.name} is for the latent choices {_in_words(mine)}, and those of "
                f"{g.name} at {_jax.user_line()} are {_in_words(others)}. Make a guide for them."
            )
        found = [
            dataclasses.replace(c, entry=space.entries[a]) for a, c in self.coordinates.items()
        ]
        name = self.name.partition("(")[0]
        return Family(name, space, found, self.joint)

    def own(self, params: Any) -> dict[Address, Any]:
        """The parameters of each coordinate."""
        out: dict[Address, Any] = {}
        for address in self.coordinates:
            if self.joint is None or address not in self.space.slices:
                out[address] = params if self.joint is None else params["discrete"]
                for name in address:
                    out[address] = out[address][name]
        return out


@final
class Guide(Generative):
    """A member of a :class:`Family`: a distribution over the latent choices of its model."""

    def __init__(self, family: Family, params: Any):
        self.name, self._family, self._params = family.name, family, params
        self._space = family.space

    def written(self) -> Written:
        written = self._space.g.written()
        fixed = {**flatten(written.fixed), **flatten(self._space.data)}
        return Written(
            written.name, written.closed, written.args, written.entries, nest(fixed.items())
        )

    @property
    def choices_like(self) -> dict[str, Any]:
        return nest(self._space.like.items())

    @property
    def masked(self) -> frozenset[Address]:
        return self._base.masked

    @property
    def in_a_branch(self) -> frozenset[Address]:
        return self._base.in_a_branch

    def execute(
        self, given: Choices, *, exact: bool = False, select: Select = lambda address: False
    ) -> Execution:
        if given or exact:
            z = match_shapes(given, self._space.like, self.name)
            with marks.mark(marks.DENSITY):
                x, allowed = self._preimage(z)
                run = self._base.execute(nest(x.items()), exact=True)
                log_q = run.log_density - run.retval[1]
                log_q = _inside(allowed, log_q)
                parts = self._parts(run, run.densities)
                parts = {a: Part(_inside(allowed, p.value)) for a, p in parts.items()}
            return Execution(z, z, log_q, log_q, made=run.made, parts=parts)
        run = self._base.execute({})
        z, log_jacobian = run.retval[:2]
        log_q = run.log_density - log_jacobian
        none = jnp.zeros_like(log_q)
        return Execution(z, z, log_q, none, made=run.made, parts=self._parts(run, run.densities))

    def lawful(self) -> Lawful:
        return Lawful(self._base, lambda run: run.retval[0], self._parts, self._is_drawn)

    def _is_drawn(self, address: Address) -> bool:
        c = self._family.coordinates.get(address)
        joint = self._family.joint is not None and address in self._space.slices
        return c is not None and not joint and c.is_itself

    def _parts(self, run: Execution, densities: Mapping[Group, Part]) -> dict[Group, Part]:
        """The log density of each choice, or of those together that have a joint law."""
        label = self._family.label
        volume = run.retval[3]
        out: dict[Group, Part] = {}
        for (a,), part in densities.items():
            group = tuple(self._space.slices) if a == label else (a,)
            below = [volume[b] for b in (label, *group) if b in volume]
            out[group] = Part(functools.reduce(jnp.subtract, below, part.total))
        return out

    @functools.cached_property
    def _base(self) -> Program:
        """The program of the coordinates; it returns the choices, the log Jacobian, what it draws
        beforehand, and the log Jacobian by address."""
        closed, consts, out = _jax.trace(self._run)
        closed = _jax.live(closed)
        tree = jax.tree.structure(out)
        base = Program(lambda: jax.tree.unflatten(tree, _jax.evaluate(closed, *consts)), (), {})
        base.name = self.name
        return base

    def _run(self) -> tuple[dict[str, Any], jax.Array, list[jax.Array], Parts]:
        family, space = self._family, self._space
        params = family.own(self._params)
        parts: dict[Address, Any] = {}
        volume: Parts = dict.fromkeys(space.slices, jnp.zeros(()))
        total, drawn = jnp.zeros(()), []
        if family.joint is not None:
            own = self._params["continuous"]
            x = _sample(family.label, family.joint.law(own), None, _jax.user_line())
            u, total = family.joint.push(own, x)
            volume[family.label] = total
            parts, drawn = dict(space.split(u)), [x]
        for a in params:
            c = family.coordinates[a]
            if not c.inside:
                parts[a] = _sample(a, c.law(None, params[a]), None, c.entry.source)
                drawn.append(parts[a])

        def visit(entry: Entry, site: Site, operands: Any, given: Any, key: Any, acc: Any) -> Any:
            c = family.coordinates.get(entry.address)
            if c is None:  # data, or a choice of one value
                value = space.known(site, operands, given)
                return value, value, acc
            if c.inside:
                new, drawn = instead(site, operands, c.placed, given)
                given = sample_p.bind(*drawn, site=new)[0]
            value, log_jacobian = forward(c, site, operands, given)
            total, volume = acc
            a = entry.address
            volume = {**volume, a: volume[a] + log_jacobian} if a in volume else volume
            return value, value, (total + log_jacobian, volume)

        inside = {a: params[a] for a, c in family.coordinates.items() if c.inside}
        made, _, (total, volume) = space.walk(visit, {}, {**parts, **inside}, acc=(total, volume))
        return nest((a, made[a]) for a in space.like), total, drawn, volume

    def _preimage(self, choices: Choices) -> tuple[dict[Address, Any], jax.Array]:
        """The choices of the program of the coordinates; and whether all are in their supports."""
        family, space = self._family, self._space

        def visit(entry: Entry, site: Site, operands: Any, given: Any, key: Any, acc: Any) -> Any:
            c = family.coordinates.get(entry.address)
            if c is None:
                return given, given, acc
            x, allowed = backward(c, site, operands, given)
            return given, x, acc & allowed

        made, _, allowed = space.walk(visit, flatten(choices), {}, acc=jnp.array(True))
        out = {a: made[a] for a in family.coordinates}
        if family.joint is not None:
            parts: Parts = {a: out.pop(a) for a in space.slices}
            x = family.joint.pull(self._params["continuous"], space.join(parts))
            out[family.label] = x
        return out, allowed


def _inside(allowed: jax.Array, log_q: jax.Array) -> jax.Array:
    return jnp.where(allowed & ~jnp.isnan(log_q), log_q, -jnp.inf)


def _in_words(shapes: Mapping[Address, tuple[int, ...]]) -> str:
    return ", ".join(f"{show(a)} {list(s)}" for a, s in shapes.items()) or "none"


def start(
    g: Generative, data: Choices, key: jax.Array, what: str
) -> tuple[Space, Parts, Mapping[Address, jax.Array]]:
    """The space of a model, and where a guide of it begins: numbers and discrete values.

    Raises:
        UnsupportedError: there is nothing to guide.
    """
    check_generative(g, what)
    space = Space(g, data)
    if not space.size and not space.discrete:
        raise UnsupportedError(
            f"{what} at {_jax.user_line()}: every choice of {g.name} is in the data, so that there "
            "is nothing left to infer."
        )
    parts, discrete = space.start(as_key(key))
    return space, parts, discrete


def coordinates(space: Space, kind: type[Continuous] = Continuous) -> list[Coordinate]:
    """What stands for each latent address, ``kind`` for continuous ones."""
    return [coordinate(space.entries[a], kind) for a in [*space.slices, *space.discrete]]
