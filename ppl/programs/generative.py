"""What every generative program can do: simulate, log_density, generate; and traces of its runs."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, final

import jax
from jax.ad_checkpoint import checkpoint_name

from transforms import _jax
from transforms.errors import Address, AddressError, UnsupportedError, nearest, show
from transforms.program.compiled import at_once
from transforms.program.site import Call, Densities, call_p
from transforms.runs.addresses import flatten, nest
from transforms.runs.execute import LOG_DENSITY, Execution, Some
from transforms.runs.parts import Group, Part, by_address

from .given import Choices, is_array, seed
from .lawful import Lawful
from .partly import Partly
from .shown import Shown
from .sites import ProgramSite, Written, sites

Select = Callable[[Address], bool]


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trace(Shown):
    """One run of a generative function (a pytree).

    Attributes:
        choices: nested dict from addresses to values; a site under ``jax.vmap`` or
            ``jax.lax.scan`` has their axes in front, outermost first.
        log_density: f32[], log density of the choices (for an approximate marginal or posterior,
            the estimate that its contract promises).
        retval: what the function returned, any pytree.
        log_densities: the log density by address, nested like ``choices``, f32[] at each: that of
            a choice given those before it, summed over its axes. They add up to ``log_density``,
            less factors. Choices that have a joint density alone (of a nested marginal) have one
            number, at the address that holds them.
        densities: behind these, by the groups of addresses that share a density.

    Example:
        >>> trace = model().simulate(key)
        >>> sorted(trace.choices), trace["x"].shape
        (['x', 'y'], ())
    """

    parts = "choices", "log_density", "retval"

    choices: dict[str, Any]
    log_density: jax.Array
    retval: Any
    densities: dict[Group, Part] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def log_densities(self) -> dict[str, Any]:
        return by_address(self.densities, "the trace")

    def __getitem__(self, address: str | Address) -> Any:
        """The value at an address: ``trace["x"]``, ``trace["inner", "x"]``."""
        at: Any = self.choices
        path = address if isinstance(address, tuple) else (address,)
        for name in path:
            if not isinstance(at, Mapping) or name not in at:
                known = list(flatten(self.choices))
                raise AddressError(
                    f"the trace has no choice at address {show(path)} ({_jax.user_line()})."
                    f"{nearest(path, known)} Its addresses: "
                    f"{', '.join(show(a) for a in known) or 'none'}."
                )
            at = at[name]
        return at

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a trace has no {name} ({_jax.user_line()}). It has trace.choices, trace.log_density, "
            f"trace.log_densities and trace.retval; the value at an address is trace[{name!r}]."
        )


class _Elsewhere:
    """An attribute that a newcomer looks for; reading it says where it is."""

    def __init__(self, instead: str):
        self._instead = instead

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        raise AttributeError(
            f"a generative function that was called has no {self._name} ({_jax.user_line()}): it "
            f"is a distribution over traces. Use {self._instead}."
        )


class Generative(abc.ABC):
    """A distribution over traces.

    ``simulate``, ``log_density`` and ``generate`` take no key inside ``@ppl.expectation`` and
    ``ppl.seed(f)``, where randomness is implicit; elsewhere they need one.

    Example:
        >>> trace = model().simulate(key)
        >>> bool(model().log_density(trace.choices) == trace.log_density)
        True
    """

    name: str = "generative"
    _inner: Generative | None = None  # of a wrapper
    sample = _Elsewhere("g(...).simulate(key); in a program, ppl.sample(address, g(...))")
    log_prob = _Elsewhere("g(...).log_density(choices)")
    choices = _Elsewhere("g(...).simulate(key).choices")
    retval = _Elsewhere("g(...).simulate(key).retval")

    @abc.abstractmethod
    def execute(
        self, given: Choices, *, exact: bool = False, select: Select = lambda address: False
    ) -> Execution:
        """Run with the choices in ``given`` fixed (all of them if ``exact``), the rest drawn.

        The protocol behind the three methods below. ``Execution.log_density`` covers all choices,
        ``Execution.log_weight`` those whose address ``select`` accepts, and factors.
        ``Execution.retval`` is a pytree.
        """

    def simulate(self, key: jax.Array | None = None) -> Trace:
        """Draw a trace: ``.choices``, their ``.log_density`` f32[], and the ``.retval``.

        Raises:
            KeyRequiredError: no key is given where randomness is not implicit.
        """
        if key is not None:
            return seed(self.simulate)(key)
        run = self.execute({})
        return _trace(run)

    def log_density(self, choices: Choices, key: jax.Array | None = None) -> jax.Array:
        """Log density f32[] at ``choices``: exactly the addresses of the program.

        Args:
            choices: nested dict from addresses to values.
            key: for densities that are estimates; a program without approximate marginals
                or posteriors needs none.

        Raises:
            AddressError: an address is missing or unknown.
            ShapeError: a value does not have the shape of its choice (nothing is broadcast).
        """
        if key is not None:
            return seed(lambda: self.log_density(choices))(key)
        return self._at(choices, lambda run: run.log_density)

    def log_densities(
        self, choices: Choices, key: jax.Array | None = None, *, plates: bool = False
    ) -> dict[str, Any]:
        """Log densities by address, nested like ``choices``: f32[] at each address, that of the
        choice given those before it. They add up to :meth:`log_density`, less factors.

        Args:
            choices: nested dict from addresses to values, exactly those of the program.
            key: for densities that are estimates.
            plates: f32[*axes] instead, with the axes of the ``vmap``\\s and ``scan``\\s around a
                choice, outermost first, as its value has them.

        Raises:
            AddressError, ShapeError: as :meth:`log_density`.
            UnsupportedError: choices are known by a joint density alone, and no address holds them.
        """
        if key is not None:
            return seed(lambda: self.log_densities(choices, plates=plates))(key)
        return self._at(choices, lambda run: by_address(run.densities, self.name, plates=plates))

    def _at(self, choices: Choices, read: Callable[[Execution], Any]) -> Any:
        """What ``read`` finds in a run at ``choices``, marked as densities."""
        flat = flatten(choices)

        def run(values: list[Any]) -> Any:
            at = nest(zip(flat, values, strict=True))
            return jax.tree.map(_mark, read(self.execute(at, exact=True)))

        values = [*flat.values()]
        known = all(map(is_array, jax.tree.leaves(values)))
        return at_once(run, values) if known else run(values)  # which refuses them

    def generate(
        self, constraints: Choices, key: jax.Array | None = None
    ) -> tuple[Trace, jax.Array]:
        """Fix the addresses in ``constraints`` and draw the rest from the program.

        Of a choice under ``scan`` or ``vmap`` some elements may be fixed, ``ppl.partly``; the rest
        is drawn given what stands before it (see also :func:`ppl.forecast`).

        Returns:
            The trace, and the log weight f32[]: the log density of what was fixed (and of
            factors), which is that of the trace relative to how it was drawn.

        Raises:
            AddressError: an address is unknown. ShapeError: a value has the wrong shape.
            UnsupportedError: elements of one draw are fixed, or of a program known by its density.
        """
        if key is not None:
            return seed(lambda: self.generate(constraints))(key)
        flat = flatten(constraints)
        fixed = set(flat)
        select = lambda a: _covers(fixed, a)
        parts = {a: Some(v.values, v.observed) for a, v in flat.items() if isinstance(v, Partly)}
        if parts:
            whole = nest((a, v) for a, v in flat.items() if a not in parts)
            run = self._lawful_program().execute(whole, select=select, some=parts)
        else:
            run = self.execute(constraints, select=select)
        return _trace(run), _mark(run.log_weight)

    @property
    def masked(self) -> frozenset[Address]:
        """Addresses whose density a mask hides in part."""
        return frozenset() if self._inner is None else self._inner.masked

    @property
    def hidden(self) -> frozenset[Address]:
        """Of these, those that ``Execution.log_absent`` does not cover."""
        return self.masked if self._inner is None else self._inner.hidden

    @property
    def weighted(self) -> bool:
        """Whether weights (``ppl.factor``, ``ppl.observe``) make the density another than that of
        its draws."""
        return self._inner is not None and self._inner.weighted

    @property
    def in_a_branch(self) -> frozenset[Address]:
        """Addresses that stand in one branch alone, and so may be absent."""
        return frozenset() if self._inner is None else self._inner.in_a_branch

    @property
    def choices_like(self) -> dict[str, Any]:
        """The choices with shapes in place of values (``jax.ShapeDtypeStruct``)."""
        return _jax.trace(lambda: self.drawn().choices)[2]

    def written(self) -> Written:
        """The ``@ppl.gen`` program whose choices these are.

        Raises:
            UnsupportedError: there is none.
        """
        if self._inner is None:
            raise UnsupportedError(
                f"{self.name} is no @ppl.gen program and made of none ({_jax.user_line()}), so "
                "the distributions and supports of its choices are not known. Give such a program."
            )
        return self._inner.written()

    def as_program(self) -> Any:
        """The ``@ppl.gen`` program that this is, with the laws of its choices; None where it is
        known by its density alone."""
        return None if self._inner is None else self._inner.as_program()

    def _lawful_program(self) -> Any:
        program = self.as_program()
        if program is None:
            raise UnsupportedError(
                f"{self.name} is known by its density alone ({_jax.user_line()}), so that no "
                "elements of its choices can be drawn given others (ppl.partly). Give values of "
                "whole choices, or the @ppl.gen program of which it is made."
            )
        return program

    def lawful(self) -> Lawful | None:
        """The program that draws the choices, or what they are images of, with its laws."""
        program = self.as_program()
        return None if program is None else Lawful(program)

    def sites(self, choices: Choices | None = None) -> dict[str | Address, ProgramSite]:
        """What the program chooses: by address, each site's ``.distribution``, ``.support``,
        ``.shape`` (of the whole value), ``.address`` and ``.observed``.

        Args:
            choices: values of some of them, which are then observed. Distributions that depend on
                others are those of one draw, by a fixed key.

        Returns:
            A dict from addresses, ``"x"`` or ``("inner", "x")``, in the order of the program.

        Raises:
            AddressError: an address is unknown. ShapeError: a value has the wrong shape.

        Example:
            >>> model().sites()["scale"].support
            Positive(lower_bound=0.0)
        """
        return sites(self.written(), choices or {}, list(flatten(self.choices_like)))

    def drawn(self) -> Execution:
        """A run that is only looked at: it may break the contract of a density."""
        return self.execute({})

    def bind(self, address: str) -> Any:
        """Use this as the site ``address`` of the program that is being traced."""

        def run(given: Choices, exact: bool) -> tuple[Any, Any, jax.Array]:
            run = self.execute(given, exact=True) if exact else self.drawn()
            return run.retval, run.choices, run.log_density

        sim, sim_consts, (retval, choices, _) = _jax.trace(lambda: run({}, False))
        leaves, tree = jax.tree.flatten(choices)

        def density(*xs: Any) -> tuple[Any, jax.Array]:
            retval, _, value = run(jax.tree.unflatten(tree, xs), True)
            return retval, value

        den, den_consts, _ = _jax.trace(density, *leaves)
        simulate, log_density = _jax.with_operands_of(
            [sim, den], [len(sim_consts), len(den_consts)]
        )
        n = len(jax.tree.leaves(retval))
        masked = tuple(sorted(self.masked))
        program = Densities(simulate, log_density, n, choices, self.name, masked, self.weighted)
        call = Call((address,), _jax.user_line(), program)
        outs = call_p.bind(*sim_consts, *den_consts, call=call)
        return jax.tree.unflatten(jax.tree.structure(retval), outs)


def _covers(fixed: set[Address], address: Address) -> bool:
    return any(f[: len(address)] == address for f in fixed)


def _trace(run: Execution) -> Trace:
    return Trace(run.choices, _mark(run.log_density), run.retval, run.densities)


def _mark(log_density: jax.Array) -> jax.Array:
    return checkpoint_name(log_density, LOG_DENSITY)
