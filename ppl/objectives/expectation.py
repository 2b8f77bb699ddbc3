"""Objectives: expectations whose value and gradient are estimated without bias."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from estimators.automatic import choose
from transforms import _jax
from transforms.checker.alarm import is_strict
from transforms.checker.findings import Finding
from transforms.checker.soundness import Soundness
from transforms.errors import UnsupportedError
from transforms.estimation.unknown import refuse_value
from transforms.gradient.lost import lost_draws
from transforms.gradient.surrogate import surrogate
from transforms.program.averaged import averaged
from transforms.program.sharded import partitioned
from transforms.program.site import Expect, expect_p

from ..programs.advice import bad_return, user_code
from ..programs.given import as_count, as_key, is_array
from ..programs.particles import as_chunk
from ..programs.program import check_function
from .audit import Audit, audit
from .declared import check_target, shown
from .explain import Explanation, explain
from .leaves import join, split, split_arrays


@final
class Expectation:
    """The expected value of a function that makes random choices.

    Calling it inside another expectation gives one unbiased draw, to be used linearly, and is a
    *scope*: what follows the call is not part of the continuation of its choices, so
    ``jax.vmap(inner)(xs).mean()`` enumerates each element by itself, at linear cost.

    Example:
        >>> value, grad = elbo.value_and_grad(key, phi, samples=100)
        >>> sorted(grad)
        ['m', 's']
    """

    def __init__(self, f: Any, has_aux: bool = False, strict: bool = False, target: Any = None):
        check_function(f, "@ppl.expectation")
        check_target(target, Expectation)
        self._f, self.has_aux, self.strict, self.target = f, has_aux, strict, target
        functools.update_wrapper(self, f)
        self.name: str = getattr(f, "__name__", "expectation")
        self.title = ""
        static = ("tree", "static", "samples", "chunk")
        self._value = jax.jit(self._value_flat, static_argnames=static)
        self._value_and_grad = jax.jit(
            self._value_and_grad_flat, static_argnames=(*static, "argnums", "strict")
        )
        self.compiled: dict[Any, Any] = {}

    def __get__(self, instance: Any, owner: type | None = None) -> Expectation:
        if instance is None:
            return self
        target = self.target and self.target.__get__(instance, owner)
        return Expectation(self._f.__get__(instance, owner), self.has_aux, self.strict, target)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One unbiased draw, inside another expectation."""
        closed, consts, out = self.trace(*args, **kwargs)
        expect = Expect(_jax.user_line(), self.name, closed, choose)
        outs = expect_p.bind(*consts, expect=expect)
        return jax.tree.unflatten(jax.tree.structure(out), outs)

    def trace(self, *args: Any, **kwargs: Any) -> tuple[_jax.ClosedJaxpr, list[Any], Any]:
        """The jaxpr of the objective, the values it closes over, its output with shapes."""

        def run() -> Any:
            with user_code(self.name, self._f):
                out = self._f(*args, **kwargs)
                bad_return(where, out)
                return out

        where = _jax.definition(self._f)
        closed, consts, out = _jax.trace(run)
        closed = averaged(closed)
        value = out[0] if self.has_aux and isinstance(out, tuple) and len(out) == 2 else out
        if self.has_aux and value is out:
            raise UnsupportedError(
                f"the objective {where} was made with has_aux=True, so it must return a pair "
                "(value, aux)."
            )
        dtype = getattr(value, "dtype", np.dtype(object))
        if getattr(value, "shape", None) != () or not jnp.issubdtype(dtype, jnp.floating):
            got = jax.tree.map(lambda s: f"{s.dtype}[{','.join(map(str, s.shape))}]", value)
            raise UnsupportedError(
                f"the objective {where} must return a scalar of floating point type, whose "
                f"expected value is estimated; it returns {got}. {_scalar(value)}"
            )
        return closed, consts, out

    def surrogate(
        self,
        key: jax.Array,
        *args: Any,
        samples: int = 1,
        chunk: int | None = None,
        averages: Any = None,
        direction: int = 1,
        report: Callable[[Soundness, Sequence[int]], None] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The plain differentiable function behind the objective.

        Its value is an unbiased estimate of the objective, its derivative (``jax.grad``,
        ``jax.jvp``) an unbiased estimate of the objective's.

        Args:
            key: random key.
            *args, **kwargs: the arguments of the objective, any pytrees.
            samples: how many independent estimates are averaged.
            chunk: how many of them are in memory at a time; see :meth:`value_and_grad`.
            averages: state of ``ppl.moving_average`` baselines, by decay; kept by the fit.
            direction: 1 where the result is ascended, -1 where it is descended; only
                baselines that learn use it.
            report: told what the soundness checker finds when the function is differentiated;
                by default that is a warning.

        Warns:
            SoundnessWarning: the gradient would be biased; names the choice, the operation, and
                what to type instead.

        Raises:
            SoundnessError: the same, with ``strict``.

        Returns:
            f32[], or ``(f32[], aux)`` with ``has_aux``, where aux is averaged like the value.
        """
        how = {"averages": averages, "direction": direction, "report": report}
        return self._surrogate(key, args, kwargs, **counts(samples, chunk), **how)

    def _surrogate(
        self,
        key: jax.Array,
        args: Any,
        kwargs: Any,
        *,
        refuse: Callable[[_jax.ClosedJaxpr], None] = lambda closed: None,
        **how: Any,
    ) -> Any:
        args, kwargs = self._bind(args, kwargs)
        arrays, static, tree = split_arrays((args, kwargs))
        shape: list[Any] = []

        def trace(*arrays: Any) -> tuple[_jax.ClosedJaxpr, list[Any]]:
            args, kwargs = jax.tree.unflatten(tree, join(arrays, static))
            closed, consts, out = self.trace(*args, **kwargs)
            refuse(closed)
            shape[:] = [jax.tree.structure(out)]
            return closed, consts

        def estimate(closed: Any, consts: Any, key: Any, averages: Any) -> list[Any]:
            about = {"name": self.name, "strict": self.strict, "averages": averages}
            return surrogate(closed, consts, key, choose, **about, **how)

        more = as_key(key), how.pop("averages", None)
        outs = partitioned(self.name, trace, estimate, arrays, *more)
        found = jax.tree.unflatten(shape[0], outs)
        same = {name: how[name] for name in ("samples", "chunk")}
        return shown(found, self.target, key, (args, kwargs), same)

    def value(
        self,
        key: jax.Array,
        *args: Any,
        samples: int = 1,
        chunk: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """An unbiased estimate of the objective, f32[] (with ``has_aux``: ``(f32[], aux)``)."""
        arrays, static, tree = split(self._bind(args, kwargs))
        how = counts(samples, chunk)
        return self._value(as_key(key), arrays, static=static, tree=tree, **how)

    def value_and_grad(
        self,
        key: jax.Array,
        *args: Any,
        samples: int = 1,
        chunk: int | None = None,
        argnums: int | Sequence[int] = 0,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """Unbiased estimates of the objective and of its gradient.

        Args:
            key: random key.
            *args, **kwargs: the arguments of the objective, any pytrees. The gradient of integers
                is float0; leaves that are no arrays (functions, strings) must be hashable, and
                their gradient is None.
            samples: how many independent estimates are averaged.
            chunk: a divisor of ``samples``: so many of them are in memory at a time, and each is
                computed a second time for the derivative. The result is the mean, over i below
                ``samples // chunk``, of what ``samples=chunk`` gives with the key
                ``jax.random.fold_in(key, i)``: other draws than without, of the same law (with
                ``chunk=samples``, which is one chunk, those without).
            argnums: which argument(s) to differentiate, by their place in the function's signature
                where they are given by keyword.

        Raises:
            ValueError: ``samples`` is no whole number of chunks.
        """
        args, kwargs = self._bind(args, kwargs)
        arrays, static, tree = split((args, kwargs))
        nums = argnums if isinstance(argnums, int) else tuple(argnums)
        key = as_key(key)
        check_differentiable(args, nums)
        value, grads = self._value_and_grad(
            key,
            arrays,
            static=static,
            tree=tree,
            **counts(samples, chunk),
            argnums=nums,
            strict=self.strict or is_strict(),  # so that what is compiled already is checked again
        )
        full, _ = tree.unflatten(join(grads, tuple((i, None) for i, _ in static)))
        return value, full[nums] if isinstance(nums, int) else tuple(full[i] for i in nums)

    def grad(
        self,
        key: jax.Array,
        *args: Any,
        samples: int = 1,
        chunk: int | None = None,
        argnums: int | Sequence[int] = 0,
        **kwargs: Any,
    ) -> Any:
        """An unbiased estimate of the gradient; see :meth:`value_and_grad`."""
        how: dict[str, Any] = {"samples": samples, "chunk": chunk, "argnums": argnums}
        return self.value_and_grad(key, *args, **how, **kwargs)[1]

    def explain(
        self,
        *args: Any,
        samples: int = 1,
        chunk: int | None = None,
        argnums: int | Sequence[int] = 0,
        kinks: bool = False,
        **kwargs: Any,
    ) -> Explanation:
        """What the gradient costs, and whether to trust it: a table of the random choices.

        Args:
            *args, **kwargs: the arguments of the objective; shapes (``jax.ShapeDtypeStruct``) will
                do.
            samples, chunk: how many estimates are averaged, and are in memory at a time.
            argnums: which argument(s) to differentiate.
            kinks: whether to list where the derivative exists almost everywhere only.

        Returns:
            An :class:`Explanation`: prints as text, shows as HTML in a notebook. ``.sites`` has a
            row for each choice, ``.findings`` what the soundness checker has to say.
        """
        arrays, static, tree = split(self._bind(args, kwargs))
        nums = argnums if isinstance(argnums, int) else tuple(argnums)
        seen: list[Any] = []

        def f(key: jax.Array, arrays: Any) -> Any:
            return self._value_and_grad_flat(
                key,
                arrays,
                static=static,
                tree=tree,
                **counts(samples, chunk),
                argnums=nums,
                strict=False,
                report=lambda check, inputs: seen.append((check, inputs)),
            )

        traced = jax.jit(f).trace(jax.eval_shape(lambda: jax.random.key(0)), arrays)
        lost: list[Finding] = []
        shapes = any(isinstance(a, jax.ShapeDtypeStruct | _jax.Tracer) for a in arrays)
        if not shapes and any(check.rounds for check, _ in seen):
            bound, keywords = tree.unflatten(join(arrays, static))
            lost = lost_draws(*self.trace(*bound, **keywords)[:2])
        return explain(self.name, traced, seen, kinks, lost)

    def audit(
        self,
        key: jax.Array,
        *args: Any,
        samples: int = 10_000,
        argnums: int | Sequence[int] = 0,
        target: Expectation | None = None,
        **kwargs: Any,
    ) -> Audit:
        """Check the gradient numerically: is its mean the derivative of the expectation?

        The mean of the estimates is compared with finite differences of the value under common
        random numbers, or, at the border of a domain, with enumeration or REINFORCE. Parameters
        of at most 8 elements are checked one by one, larger ones in two random directions. Where
        a derivative is off, the estimators of the choices are exchanged one by one to find those
        that explain it.

        Args:
            key: random key.
            *args, **kwargs: the arguments of the objective, any pytrees.
            samples: how many samples; at ``n`` a bias of about ``8 / sqrt(n)`` standard deviations
                of an estimate is found. Each costs one gradient and six values for each
                derivative.
            argnums: which argument(s) to check.
            target: an objective of the same arguments whose derivative is meant, of a surrogate;
                by default that of ``@ppl.expectation(target=)``.

        Returns:
            A table with a z-score for each derivative; prints as text. ``.ok`` says whether all of
            them pass (a right objective does with probability 0.999), ``.suspects`` names choices.

        Raises:
            UnsupportedError: the arguments in ``argnums`` hold no floating-point numbers.

        Example:
            >>> assert objective.audit(jax.random.key(0), params).ok
        """
        objective, args = self.bound(args, kwargs)
        nums = (argnums,) if isinstance(argnums, int) else tuple(argnums)
        wanted = [i % max(1, len(args)) for i in nums]
        return audit(objective, as_key(key), args, samples, wanted, target or self.target)

    def bound(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Expectation, tuple[Any, ...]]:
        """An objective of positional arguments alone, and these."""
        args, kwargs = self._bind(args, kwargs)
        if not kwargs:
            return self, args

        @functools.wraps(self._f, updated=())
        def f(*args: Any) -> Any:
            return self._f(*args, **kwargs)

        target = self.target and self.target.bound(args, kwargs)[0]
        return Expectation(f, self.has_aux, self.strict, target), args

    def _bind(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments with as many of them by position as the function's signature allows."""
        if not kwargs:
            return args, kwargs
        try:
            signature = inspect.signature(self._f)
        except ValueError:  # of a function that is not written in Python
            return args, kwargs
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(
                f"the objective {_jax.definition(self._f)} is called at {_jax.user_line()} with "
                f"arguments that are not its own: {error}. It takes {signature}, by position or by "
                "keyword; samples=, argnums= and the like stand beside them."
            ) from None
        return given.args, given.kwargs

    def _value_flat(self, key: Any, arrays: Any, *, static: Any, tree: Any, **how: Any) -> Any:
        args, kwargs = tree.unflatten(join(arrays, static))
        return self._surrogate(key, args, kwargs, refuse=refuse_value, **how)

    def _value_and_grad_flat(
        self,
        key: Any,
        arrays: Any,
        *,
        static: Any,
        tree: Any,
        argnums: Any,
        strict: bool,
        **how: Any,
    ) -> Any:
        args, _ = tree.unflatten(join(arrays, static))
        wanted = {argnums} if isinstance(argnums, int) else set(argnums)
        wanted = {i % len(args) for i in wanted} if args else wanted
        owner = [i for i, a in enumerate(args) for _ in jax.tree.leaves(a)]
        owner += [None] * (tree.num_leaves - len(owner))  # of those given by keyword
        kept = set(range(len(owner))) - {i for i, _ in static}
        which = [owner[i] in wanted for i in sorted(kept)]

        def f(chosen: list[Any]) -> Any:
            left = iter(chosen)
            full = [next(left) if w else a for a, w in zip(arrays, which, strict=True)]
            args, kwargs = tree.unflatten(join(full, static))
            return self.surrogate(key, *args, **how, **kwargs)

        chosen = [a for a, w in zip(arrays, which, strict=True) if w]
        value, grads = jax.value_and_grad(f, has_aux=self.has_aux, allow_int=True)(chosen)
        left = iter(grads)
        return value, [next(left) if w else None for w in which]


def expectation(
    f: Any = None, *, has_aux: bool = False, strict: bool = False, target: Any = None
) -> Any:
    """Make an objective: the expected value of a function that makes random choices.

    Args:
        f: returns a scalar, or ``(scalar, aux)`` with ``has_aux``.
        has_aux: whether ``f`` also returns auxiliary data; it is averaged like the value.
        strict: whether a gradient that would be biased is an error, ``ppl.SoundnessError``,
            instead of a warning. ``ppl.strict()`` is the same for all objectives.
        target: of a surrogate, the objective (of the same arguments) whose derivative it has: what
            ``value``, the history of a fit and ``audit`` show. Inside another expectation it
            counts for nothing.

    Example:
        >>> @ppl.expectation
        ... def objective(m):
        ...     x = ppl.sample("x", dist.Normal(m, 1.0))
        ...     return x**2
        >>> objective.value_and_grad(jax.random.key(0), 1.5, samples=1000)
    """
    if f is None:
        return functools.partial(expectation, has_aux=has_aux, strict=strict, target=target)
    return Expectation(f, has_aux, strict, target)


def counts(samples: Any, chunk: Any) -> dict[str, Any]:
    """How many estimates are averaged, and are in memory at a time (None: all), checked."""
    n = as_count(samples, "samples")
    return {"samples": n, "chunk": None if chunk is None else as_chunk(chunk, n, "samples")}


def _scalar(value: Any) -> str:
    """What to do about an objective that returns ``value``."""
    if value is None:
        return "Add a return to it."
    if getattr(value, "shape", None) == ():
        return "Multiply by 1.0, which makes it a float."
    return (
        "Take .sum() or .mean(), or for a pair (value, aux) use ppl.expectation(f, has_aux=True)."
    )


def check_differentiable(args: Sequence[Any], argnums: int | tuple[int, ...]) -> None:
    for i in (argnums,) if isinstance(argnums, int) else argnums:
        if not -len(args) <= i < len(args):
            raise ValueError(
                f"argnums is {argnums} ({_jax.user_line()}), and the objective is given "
                f"{len(args)} argument(s) after the key. Type the argument to differentiate, "
                "objective.grad(key, params), or its number, counted from 0."
            )
        leaves = [v for v in jax.tree.leaves(args[i]) if is_array(v)]
        if leaves and all(jnp.issubdtype(jnp.result_type(v), jnp.integer) for v in leaves):
            raise UnsupportedError(
                f"the gradient at {_jax.user_line()} is with respect to argument {i}, which holds "
                "integers only: they have no derivative. Type 2.0 for 2, or .astype(float)."
            )
