"""``@ppl.gen``: a function becomes a generative function, and its calls programs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, final

import jax

from transforms import _jax
from transforms.errors import Address, AddressError, UnsupportedError, describe, nearest, show
from transforms.estimation.estimator import Estimator
from transforms.program.choices import Choice, random_of
from transforms.program.choices import choices as _choices
from transforms.program.marks import hold
from transforms.program.site import Body, Call, Densities, Factor, Site, call_p
from transforms.runs.addresses import Entry, entries, flatten, likeness, nest
from transforms.runs.execute import (
    Execution,
    Some,
    execute,
    hidden_masks,
    masked_choices,
    refuse_nested_density,
)
from transforms.runs.retarget import retarget

from .advice import bad_return, user_code
from .generative import Generative, Select
from .given import Choices
from .sites import Written


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
        closed = _without_unread_noise(closed)
        refuse_nested_density(closed, self.name)
        entries(closed)
        return closed, consts, retval

    @property
    def entries(self) -> list[Entry]:
        """The addresses of the program, in its order."""
        return entries(self._traced[0])

    def written(self) -> Written:
        closed, consts, _ = self._traced
        return Written(self.name, closed, consts, self.entries, {})

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

    def as_program(self) -> Program:
        return self

    def execute(
        self,
        given: Choices,
        *,
        exact: bool = False,
        select: Select = lambda address: False,
        laws: Collection[Address] = (),
        some: Mapping[Address, Some] | None = None,
    ) -> Execution:
        closed, consts, retval = self._traced
        how: dict[str, Any] = {"exact": exact, "select": select, "laws": laws, "some": some}
        run = execute(closed, consts, given, name=self.name, **how)
        run.retval = jax.tree.unflatten(jax.tree.structure(retval), run.retval)
        return run

    def bind(self, address: str) -> Any:
        closed, consts, retval = self._traced
        call = Call((address,), _jax.user_line(), Body(closed))
        outs = call_p.bind(*consts, call=call)
        return jax.tree.unflatten(jax.tree.structure(retval), outs)

    def retargeted(self, table: Mapping[Address, Estimator]) -> Program:
        closed, consts, _ = self._traced
        known = [c.address for c in _choices(closed, densities=True)]
        for address in table:
            if address not in known:
                raise AddressError(
                    f"{self.name} has no random choice at address {show(address)} "
                    f"({_jax.user_line()})."
                    f"{nearest(address, known)} Its addresses: {', '.join(map(show, known))}."
                )
        return self.rewritten(lambda: retarget(closed, consts, table))

    def detached(self) -> Program:
        """The same distribution, of constants."""
        closed, consts, _ = self._traced
        return self.rewritten(lambda: _jax.evaluate(closed, *hold(consts)))

    def rewritten(self, run: Callable[[], list[Any]]) -> Program:
        """A program with the return values of this one."""
        tree = jax.tree.structure(self._traced[2])
        new = Program(lambda: jax.tree.unflatten(tree, run()), (), {})
        new.name = self.name
        return new


def _without_unread_noise(closed: _jax.ClosedJaxpr) -> _jax.ClosedJaxpr:
    """The program without noise that nothing reads, for which a density would need a key."""
    eqns = closed.jaxpr.eqns
    read = {v for e in eqns for v in e.invars if isinstance(v, _jax.Var)}
    read |= {v for v in closed.jaxpr.outvars if isinstance(v, _jax.Var)}
    kept = [e for e in eqns if not _is_noise(e) or e.outvars[0] in read]
    return closed if len(kept) == len(eqns) else _jax.with_equations(closed, kept)


def _is_noise(eqn: _jax.JaxprEqn) -> bool:
    random = random_of(eqn)
    return isinstance(random, Site) and random.role == "hidden"


@final
class _Retargeted(Generative):
    """``with_estimators`` of a distribution that is not a program."""

    def __init__(self, inner: Generative, table: Mapping[Address, Estimator]):
        self.name, self._inner, self._table = inner.name, inner, table

    def as_program(self) -> Program | None:
        program = super().as_program()
        return None if program is None else program.retargeted(self._table)

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


class Uncalled:
    """What gives a :class:`Generative` when it is called, and is none."""

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


@final
class GenerativeFunction(Uncalled):
    """A function with random choices; calling it gives a :class:`Generative`."""

    def __init__(self, f: Callable[..., Any]):
        check_function(f, "@ppl.gen")
        self._f = f
        functools.update_wrapper(self, f)

    def __call__(self, *args: Any, **kwargs: Any) -> Program:
        return Program(self._f, args, kwargs)

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
    if isinstance(g, Uncalled):
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
    once_in_one = p.in_a_branch ^ q.in_a_branch
    if not once_in_one:  # the shapes of choices take a trace
        return
    mine, others = (set(flatten(g.choices_like)) for g in (p, q))
    for address in sorted(once_in_one & mine & others):
        once, always = (p, q) if address in p.in_a_branch else (q, p)
        raise UnsupportedError(
            f"the choice {show(address)} stands in one branch of {once.name}, and in {always.name} "
            f"it is not in one branch alone ({_jax.user_line()}). Where the branch is not taken it "
            f"is absent, and its density counts on one side only. Make it in the same branch of "
            "both (jax.lax.cond on the same choice), or always in both."
        )


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

    Example:
        >>> by_score = ppl.with_estimators(guide(phi), {"x": ppl.reinforce()})
        >>> f = ppl.expectation(lambda: ppl.elbo(model(), by_score, data))
        >>> value = f.value(key)
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
