"""``ppl.from_numpyro``: a NumPyro model or guide becomes a generative function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer import autoguide

from transforms import _jax
from transforms.errors import AddressError, UnsupportedError, describe, show
from transforms.program.compiled import computed
from transforms.program.improper import is_improper
from transforms.runs.addresses import flatten
from transforms.runs.execute import Execution

from ..programs.advice import user_code
from ..programs.generative import Generative, Select
from ..programs.given import Choices
from ..programs.program import Program, Uncalled
from .bridge import Bridge, Shared, constraint_of, refuse_mutable
from .control_flow import flow


@final
class Imported(Uncalled):
    """A NumPyro model or guide; calling it gives a :class:`Generative`.

    Example:
        >>> program = ppl.from_numpyro(lambda: numpyro.sample("x", dist.Normal(0.0, 1.0)))
        >>> list(program().simulate(key).choices)
        ['x']
    """

    def __init__(self, fn: Callable[..., Any], unconstrained: bool = False):
        self._fn, self._unconstrained = fn, unconstrained
        inner = next(f for f in _layers(fn) if not hasattr(f, "fn"))
        name = getattr(inner, "__qualname__", type(inner).__name__)
        self.__name__ = name.split("<locals>.")[-1]

    def __repr__(self) -> str:
        return f"from_numpyro({self.__name__})"

    def __call__(
        self, *args: Any, params: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Generative:
        """The distribution over traces.

        Args:
            args, kwargs: those of the model.
            params: values of its ``param`` and ``module`` statements, by name; other names are
                ignored, so that a model and its guide take the same dict.
        """
        guide = _autoguide(self._fn)
        if guide is not None and guide.prototype_trace is None:
            raise UnsupportedError(
                f"the guide {self.__name__} at {_jax.user_line()} does not know its model yet. "
                "Type params = guide.init(key, ...), with the arguments of the model, first."
            )
        shared = Shared(params or {}, self._unconstrained)
        program = self._program(shared, args, kwargs)
        point = isinstance(self._fn, autoguide.AutoLaplaceApproximation)
        if isinstance(self._fn, autoguide.AutoContinuous) and not point:
            again = functools.partial(self._program, args=args, kwargs=kwargs)
            return _Continuous(program, self._fn, shared, again)
        return program

    def _program(self, shared: Shared, args: Any, kwargs: Any) -> Program:
        fn = self._fn

        @functools.wraps(fn, updated=[])
        def run(*args: Any, **kwargs: Any) -> Any:
            with Bridge(Shared(shared.params, shared.unconstrained, shared.latents), flow):
                out = fn(*args, **kwargs)
            arrays = (hasattr(v, "dtype") or isinstance(v, complex) for v in jax.tree.leaves(out))
            return out if all(arrays) else None  # a model of NumPyro may return anything

        run.__qualname__ = self.__name__
        return Program(run, args, kwargs)

    def init(self, key: jax.Array, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Initial values of the ``param`` and ``module`` statements, by name; {} if there are none.

        They are where their constraints say; with ``from_numpyro(fn, unconstrained=True)`` they
        are not constrained, so that any step of an optimizer is a step to a value.
        """
        names: list[str] = []

        def run(key: jax.Array) -> list[Any]:
            start = handlers.substitute(handlers.seed(self._fn, key), substitute_fn=_start)
            trace = handlers.trace(start).get_trace(*args, **kwargs)
            for site in trace.values():
                if site["type"] == "mutable":
                    raise refuse_mutable(site["name"])
            found = {n: self._initial(s) for n, s in trace.items() if s["type"] == "param"}
            names[:] = found
            return list(found.values())

        with user_code(self.__name__, self._fn):
            _meet(_autoguide(self._fn), key, args, kwargs)
            values = computed(run, key)  # so that nothing but parameters is computed
        return dict(zip(names, values, strict=True))

    def _initial(self, site: Any) -> Any:
        value = jax.tree.map(jnp.asarray, site["value"])
        return biject_to(constraint_of(site)).inv(value) if self._unconstrained else value


def from_numpyro(fn: Callable[..., Any], *, unconstrained: bool = False) -> Imported:
    """A NumPyro model or guide, as it is, as a generative function.

    Args:
        fn: a function with ``numpyro`` statements, in handlers or not; or an autoguide (all but
            DAIS).
        unconstrained: ``params`` are those before ``biject_to`` of their constraints.

    Returns:
        ``model``: ``model(*args, params={...}, **kwargs)`` is a Generative whose choices are the
        ``sample`` statements without ``obs``, by name; ``model.init(key, *args, **kwargs)`` makes
        ``params``.

    Raises:
        UnsupportedError: what cannot be translated, with its line.

    Example:
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("n", len(y)):
        ...         numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> ppl.from_numpyro(model)(jnp.ones(3)).log_density({"mu": 0.5})
    """
    if isinstance(fn, Generative) or not callable(fn):
        raise UnsupportedError(
            f"ppl.from_numpyro at {_jax.user_line()} takes a function with numpyro statements, "
            f"and is given {describe(fn)}. Give the function itself, not what it returns."
        )
    refused = autoguide.AutoDAIS | autoguide.AutoSemiDAIS
    for f in _layers(fn):
        if isinstance(f, refused):
            raise UnsupportedError(
                f"the guide {type(f).__name__} at {_jax.user_line()} runs Hamiltonian dynamics on "
                "the model's density inside of its draws, which is not translated. Use another "
                "autoguide, like AutoMultivariateNormal or AutoIAFNormal."
            )
    return Imported(fn, unconstrained)


def _start(site: Any) -> Any:
    """A value for a choice that has no draws."""
    if site["type"] == "sample" and site["value"] is None and is_improper(site["fn"]):
        return site["fn"].support.feasible_like(jnp.zeros(site["fn"].shape()))
    return None


def _layers(fn: Any) -> Iterator[Any]:
    """A function, and those that its handlers are around."""
    while fn is not None:
        yield fn
        fn = getattr(fn, "fn", None)


def _meet(guide: Any, key: jax.Array, args: Any, kwargs: Any) -> None:
    """Let an autoguide, or several in a list, look at the model, which it does with numbers."""
    if isinstance(guide, autoguide.AutoGuide) and guide.prototype_trace is None:
        with handlers.seed(rng_seed=key):
            guide._setup_prototype(*args, **kwargs)
    for part in guide if isinstance(guide, autoguide.AutoGuideList) else ():
        _meet(_autoguide(part), key, args, kwargs)


def _autoguide(fn: Any) -> Any:
    return next((f for f in _layers(fn) if isinstance(f, autoguide.AutoGuide)), None)


@final
class _Continuous(Generative):
    """An autoguide with one joint latent vector, whose density at given values is found by taking
    them back to it."""

    def __init__(self, program: Program, guide: Any, shared: Shared, again: Callable[..., Program]):
        self.name, self._inner = program.name, program
        self._guide, self._shared, self._again = guide, shared, again

    def as_program(self) -> None:
        return None

    def execute(
        self, given: Choices, *, exact: bool = False, select: Select = lambda address: False
    ) -> Execution:
        program = self._inner
        assert program is not None
        if not given and not exact:
            return program.execute({}, select=select)
        flat = flatten(given)
        missing = [a for a in flatten(program.choices_like) if a not in flat]
        if missing and not exact:
            raise AddressError(
                f"{self.name} draws all of its choices together, and {show(missing[0])} is not "
                f"among those that are given at {_jax.user_line()}. Give all of them, or none."
            )
        latents = {} if missing else {f"_{self._guide.prefix}_latent": self._latent(given)}
        shared = Shared(self._shared.params, self._shared.unconstrained, latents)
        return self._again(shared).execute(given, exact=True, select=select)

    def _latent(self, given: Choices) -> jax.Array:
        """The latent vector ``f32[latent_dim]`` of given values."""
        sites = self._guide.prototype_trace
        names = self._guide._unpack_latent(jnp.zeros(self._guide.latent_dim))  # in its order
        parts = [biject_to(sites[n]["fn"].support).inv(jnp.asarray(given[n])) for n in names]
        return jnp.concatenate([jnp.reshape(p, -1) for p in parts])
