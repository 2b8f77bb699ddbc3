"""Generative functions: programs with addressed random choices, and traces of their runs."""

from __future__ import annotations

import abc
import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, final

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from transforms import _jax
from transforms.errors import Address, AddressError, UnsupportedError, describe, nearest, show
from transforms.estimation.estimator import Estimator
from transforms.gradient.seed import seeded
from transforms.program.interpret import Choice
from transforms.program.interpret import choices as _choices
from transforms.program.site import Body, Call, Densities, Factor, call_p, with_operands_of
from transforms.runs.addresses import Entry, entries, flatten, likeness, nest
from transforms.runs.execute import (
    LOG_DENSITY,
    Execution,
    execute,
    hidden_masks,
    masked_choices,
    refuse_nested_density,
)
from transforms.runs.retarget import retarget

from .advice import bad_return, user_code

Choices = Mapping[str, Any]
Select = Callable[[Address], bool]


@final
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trace:
    """One run of a generative function (a pytree).

    Attributes:
        choices: nested dict from addresses to values; a site under ``jax.vmap`` or
            ``jax.lax.scan`` has their axes in front, outermost first.
        log_density: f32[], log density of the choices (for an approximate marginal or posterior,
            the estimate that its contract promises).
        retval: what the function returned, any pytree.
    """

    choices: dict[str, Any]
    log_density: jax.Array
    retval: Any

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
            f"a trace has no {name} ({_jax.user_line()}). It has trace.choices, trace.log_density "
            f"and trace.retval; the value at an address is trace[{name!r}]."
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
        return Trace(run.choices, _mark(run.log_density), run.retval)

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
        return _mark(self.execute(choices, exact=True).log_density)

    def generate(
        self, constraints: Choices, key: jax.Array | None = None
    ) -> tuple[Trace, jax.Array]:
        """Fix the addresses in ``constraints`` and draw the rest from the program.

        Returns:
            The trace, and the log weight f32[]: the log density of what was fixed (and of
            factors), which is that of the trace relative to how it was drawn.

        Raises:
            AddressError: an address is unknown. ShapeError: a value has the wrong shape.
        """
        if key is not None:
            return seed(lambda: self.generate(constraints))(key)
        fixed = set(flatten(constraints))
        run = self.execute(constraints, select=lambda a: _covers(fixed, a))
        return Trace(run.choices, _mark(run.log_density), run.retval), _mark(run.log_weight)

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
        simulate, log_density = with_operands_of([sim, den], [len(sim_consts), len(den_consts)])
        n = len(jax.tree.leaves(retval))
        masked = tuple(sorted(self.masked))
        program = Densities(simulate, log_density, n, choices, self.name, masked, self.weighted)
        call = Call((address,), _jax.user_line(), program)
        outs = call_p.bind(*sim_consts, *den_consts, call=call)
        return jax.tree.unflatten(jax.tree.structure(retval), outs)


def _covers(fixed: set[Address], address: Address) -> bool:
    return any(f[: len(address)] == address for f in fixed)


def _mark(log_density: jax.Array) -> jax.Array:
    return checkpoint_name(log_density, LOG_DENSITY)


@final
class Program(Generative):
    """What calling a ``@ppl.gen`` function returns; nothing has run yet."""

    def __init__(self, f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.name = getattr(f, "__qualname__", repr(f)).split("<locals>.")[-1]

        def run() -> Any:
            with user_code(self.name, f):
                out = f(*args, **kwargs)
                bad_return(_jax.definition(f), out)
                return out

        self._f = run

    def __repr__(self) -> str:
        return f"{self.name}(...)"

    @functools.cached_property
    def _traced(self) -> tuple[_jax.ClosedJaxpr, list[Any], Any]:
        closed, consts, retval = _jax.trace(self._f)
        refuse_nested_density(closed, self.name)
        entries(closed)
        return closed, consts, retval

    @property
    def entries(self) -> list[Entry]:
        """The addresses of the program, in its order."""
        return entries(self._traced[0])

    @property
    def choices_like(self) -> dict[str, Any]:
        return nest(likeness(self.entries).items())

    @property
    def masked(self) -> frozenset[Address]:
        return self.hidden | masked_choices(self.entries)

    @property
    def hidden(self) -> frozenset[Address]:
        return frozenset(hidden_masks(self.entries))

    @property
    def weighted(self) -> bool:
        return any(map(_weighs, _choices(self._traced[0])))

    @property
    def in_a_branch(self) -> frozenset[Address]:
        return frozenset(e.address for e in self.entries if e.conditional and not e.branches)

    def execute(
        self, given: Choices, *, exact: bool = False, select: Select = lambda address: False
    ) -> Execution:
        closed, consts, retval = self._traced
        run = execute(closed, consts, given, name=self.name, exact=exact, select=select)
        run.retval = jax.tree.unflatten(jax.tree.structure(retval), run.retval)
        return run

    def bind(self, address: str) -> Any:
        closed, consts, retval = self._traced
        call = Call((address,), _jax.user_line(), Body(closed))
        outs = call_p.bind(*consts, call=call)
        return jax.tree.unflatten(jax.tree.structure(retval), outs)

    def retargeted(self, table: Mapping[Address, Estimator]) -> Program:
        closed, consts, retval = self._traced
        known = [c.address for c in _choices(closed, densities=True)]
        for address in table:
            if address not in known:
                raise AddressError(
                    f"{self.name} has no random choice at address {show(address)} "
                    f"({_jax.user_line()})."
                    f"{nearest(address, known)} Its addresses: {', '.join(map(show, known))}."
                )
        tree = jax.tree.structure(retval)
        new = Program(lambda: jax.tree.unflatten(tree, retarget(closed, consts, table)), (), {})
        new.name = self.name
        return new


@final
class _Retargeted(Generative):
    """``with_estimators`` of a distribution that is not a program."""

    def __init__(self, inner: Generative, table: Mapping[Address, Estimator]):
        self.name, self._inner, self._table = inner.name, inner, table

    def execute(
        self, given: Choices, *, exact: bool = False, select: Select = lambda address: False
    ) -> Execution:
        inner = self._inner
        assert inner is not None

        def run() -> dict[str, Any]:
            run = inner.execute(given, exact=exact, select=select)
            return vars(run)

        closed, consts, out = _jax.trace(run)
        known = [c.address for c in _choices(closed, densities=True)]
        for address in self._table:
            if not exact and not given and address not in known:
                raise AddressError(
                    f"{self.name} makes no random choice at address {show(address)}."
                    f"{nearest(address, known)} Its choices: {', '.join(map(show, known))}."
                )
        outs = retarget(closed, consts, self._table)
        return Execution(**jax.tree.unflatten(jax.tree.structure(out), outs))


class NotCalledError(UnsupportedError, AttributeError):
    """A generative function stands where what it returns is needed."""


_OF_A_PROGRAM = ("simulate", "log_density", "generate", "choices_like", "execute", "name", "bind")


@final
class GenerativeFunction:
    """A function with random choices; calling it gives a :class:`Generative`."""

    def __init__(self, f: Callable[..., Any]):
        check_function(f, "@ppl.gen")
        self._f = f
        functools.update_wrapper(self, f)

    def __call__(self, *args: Any, **kwargs: Any) -> Program:
        return Program(self._f, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in _OF_A_PROGRAM:
            raise self.not_called()
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def not_called(self) -> NotCalledError:
        """The error where the function stands in place of what it returns."""
        return NotCalledError(
            f"the generative function {self.__name__} is used at {_jax.user_line()} without "  # type: ignore[attr-defined]
            f"being called. Call it with its arguments: {self.__name__}(...)."  # type: ignore[attr-defined]
        )

    def __get__(self, instance: Any, owner: type | None = None) -> GenerativeFunction:
        return self if instance is None else GenerativeFunction(self._f.__get__(instance, owner))


def check_function(f: Any, what: str) -> None:
    """Refuse what is no plain function: ``@ppl.gen`` and ``@ppl.expectation`` decorate one."""
    if isinstance(f, GenerativeFunction | Generative) or not callable(f):
        got = f"the generative function {f.__name__}" if _is_gen(f) else describe(f)
        raise UnsupportedError(
            f"{what} at {_jax.user_line()} decorates a plain function, and is given {got}. Write "
            "a function (def, with this line above it) that uses it."
        )


def _is_gen(f: Any) -> bool:
    return isinstance(f, GenerativeFunction)


def check_generative(g: Any, what: str) -> None:
    """Refuse what is no generative function that was called.

    Raises:
        NotCalledError: the call is missing. UnsupportedError: it is something else.
    """
    if isinstance(g, GenerativeFunction):
        raise g.not_called()
    if not isinstance(g, Generative):
        raise UnsupportedError(
            f"{what} at {_jax.user_line()} needs a generative function that was called, and is "
            f"given {describe(g)}. Put @ppl.gen above the function, and call it: g(...)."
        )


def _weighs(choice: Choice) -> bool:
    random = choice.random
    if isinstance(random, Call) and isinstance(random.program, Densities):
        return random.program.weighted or not jax.tree.leaves(random.program.choices)
    return isinstance(random, Factor)


def check_branches(p: Generative, q: Generative) -> None:
    """Refuse a guide or a proposal that makes a choice where the model has none, or none where it
    has one.

    Raises:
        UnsupportedError: a choice stands in one branch of one of them, and always in the other.
    """
    mine, others = (set(flatten(g.choices_like)) for g in (p, q))
    for address in sorted((p.in_a_branch ^ q.in_a_branch) & mine & others):
        once, always = (p, q) if address in p.in_a_branch else (q, p)
        raise UnsupportedError(
            f"the choice {show(address)} stands in one branch of {once.name}, and in {always.name} "
            f"it is not in one branch alone ({_jax.user_line()}). Where the branch is not taken it "
            f"is absent, and its density counts on one side only. Make it in the same branch of "
            "both (jax.lax.cond on the same choice), or always in both."
        )


def as_count(n: Any, what: str, least: int = 1) -> int:
    """``n`` as a Python integer of at least ``least``."""
    try:
        count = operator.index(n)
    except TypeError:
        count = least - 1
    if count < least or isinstance(n, bool):
        raise ValueError(
            f"{what} is {describe(n)} ({_jax.user_line()}), and is a count: an integer, {least} or "
            "more. Type 10, not 10.0."
        )
    return count


def gen(f: Callable[..., Any]) -> GenerativeFunction:
    """Make a generative function: calling it gives a distribution over traces.

    Inside, ``ppl.sample`` makes random choices, and ``jax.vmap``, ``jax.lax.scan``, ``cond``,
    ``switch``, ``map``, ``jax.jit`` and ``jax.checkpoint`` are used as always.

    Example:
        >>> @ppl.gen
        ... def model(scale):
        ...     x = ppl.sample("x", dist.Normal(0.0, scale))
        ...     ppl.sample("y", dist.Normal(x, 1.0))
        >>> model(2.0).simulate(jax.random.key(0)).choices
    """
    return GenerativeFunction(f)


def merge(a: Choices, b: Choices) -> dict[str, Any]:
    """The union of two nested dicts of choices.

    Raises:
        AddressError: an address is in both.
    """
    left, right = flatten(a), flatten(b)
    for address in right:
        clash = next((x for x in left if x[: len(address)] == address[: len(x)]), None)
        if clash is not None:
            raise AddressError(
                f"merge: the address {show(address)} is in both ({_jax.user_line()}), so it has "
                "two values. Remove it from one of them."
            )
    return nest({**left, **right}.items())


def seed(f: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a function that samples into a pure function of a key: ``seed(f)(key, *args)``.

    Draws made with an explicit key carry no score: only an ``Expectation`` estimates gradients
    through discrete choices.
    """
    name = getattr(f, "__name__", "the function")

    @functools.wraps(f)
    def of_key(key: jax.Array, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            with user_code(name, f):
                return f(*args, **kwargs)

        closed, consts, out = _jax.trace(run)
        outs = seeded(closed, consts, as_key(key))
        return jax.tree.unflatten(jax.tree.structure(out), outs)

    return of_key


def as_key(key: Any) -> jax.Array:
    """A typed key, also from the raw ``uint32`` form."""
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if typed and key.shape == ():
        return key
    if hasattr(key, "dtype") and key.dtype == jnp.uint32 and key.ndim == 1:
        return jax.random.wrap_key_data(key)
    several = "; for one run with each key use jax.vmap(f)(keys)" if typed else ""
    raise TypeError(
        f"a key is needed, as the first argument or as key=, like jax.random.key(0); got "
        f"{describe(key)} ({_jax.user_line()}){several}."
    )


def check_estimator(address: Address, estimator: Any) -> None:
    """Refuse what is no estimator object."""
    if not isinstance(estimator, Estimator):
        raise UnsupportedError(
            f"the estimator of {show(address)} at {_jax.user_line()} is "
            f"{describe(estimator)}. Type an estimator object, like ppl.reinforce() with its "
            "parentheses."
        )


def with_estimators(g: Generative, estimators: Mapping[str | Address, Estimator]) -> Generative:
    """The same distribution with other gradient estimators at some addresses.

    Args:
        g: a generative function that was called, or an approximate marginal or posterior.
        estimators: from addresses (``"x"``, or ``("inner", "k")`` for nested ones).

    Raises:
        AddressError: an address is not one of the program's.
    """
    check_generative(g, "ppl.with_estimators")
    if not isinstance(estimators, Mapping):
        raise UnsupportedError(
            f"the estimators at {_jax.user_line()} are {describe(estimators)}. Give a dict from "
            'addresses to estimators: ppl.with_estimators(g(...), {"x": ppl.reinforce()}).'
        )
    table = {(a,) if isinstance(a, str) else tuple(a): e for a, e in estimators.items()}
    for address, estimator in table.items():
        check_estimator(address, estimator)
    if isinstance(g, Program):
        return g.retargeted(table)
    return _Retargeted(g, table)
