"""Objectives: expectations whose value and gradient are estimated without bias."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np

from estimators.automatic import choose
from transforms import _jax
from transforms.errors import UnsupportedError
from transforms.site import Expect, expect_p
from transforms.surrogate import surrogate

from .explain import Explanation, explain
from .generative import as_key


@final
class Expectation:
    """The expected value of a function that makes random choices.

    Calling it inside another expectation gives one unbiased draw, to be used linearly, and is a
    *scope*: what follows the call is not part of the continuation of its choices, so
    ``jax.vmap(inner)(xs).mean()`` enumerates each element by itself, at linear cost.
    """

    def __init__(self, f: Callable[..., Any], has_aux: bool = False):
        self._f, self._has_aux = f, has_aux
        functools.update_wrapper(self, f)
        self.name: str = getattr(f, "__name__", "expectation")
        static = ("tree", "static", "samples")
        self._value = jax.jit(self._value_flat, static_argnames=static)
        self._value_and_grad = jax.jit(
            self._value_and_grad_flat, static_argnames=(*static, "argnums")
        )
        self.compiled: dict[Any, Any] = {}

    def __get__(self, instance: Any, owner: type | None = None) -> Expectation:
        if instance is None:
            return self
        return Expectation(self._f.__get__(instance, owner), self._has_aux)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One unbiased draw, inside another expectation."""
        closed, consts, out = self.trace(*args, **kwargs)
        expect = Expect(_jax.user_line(), self.name, closed, choose)
        outs = expect_p.bind(*consts, expect=expect)
        return jax.tree.unflatten(jax.tree.structure(out), outs)

    def trace(self, *args: Any, **kwargs: Any) -> tuple[_jax.ClosedJaxpr, list[Any], Any]:
        """The jaxpr of the objective, the values it closes over, its output with shapes."""
        closed, consts, out = _jax.trace(lambda: self._f(*args, **kwargs))
        value = out[0] if self._has_aux and isinstance(out, tuple) and len(out) == 2 else out
        if self._has_aux and value is out:
            raise UnsupportedError(
                f"the objective {self.name} was made with has_aux=True, so it must return a pair "
                "(value, aux)."
            )
        dtype = getattr(value, "dtype", np.dtype(object))
        if getattr(value, "shape", None) != () or not jnp.issubdtype(dtype, jnp.floating):
            got = jax.tree.map(lambda s: f"{s.dtype}[{','.join(map(str, s.shape))}]", value)
            raise UnsupportedError(
                f"the objective {self.name} must return a scalar of floating point type; it "
                f"returns {got}. Take .sum() or .mean(), or for a pair (value, aux) use "
                "ppl.expectation(f, has_aux=True)."
            )
        return closed, consts, out

    def surrogate(
        self,
        key: jax.Array,
        *args: Any,
        samples: int = 1,
        averages: Any = None,
        direction: int = 1,
    ) -> Any:
        """The plain differentiable function behind the objective.

        Its value is an unbiased estimate of the objective, its derivative (``jax.grad``,
        ``jax.jvp``) an unbiased estimate of the objective's.

        Args:
            key: random key.
            *args: the arguments of the objective, any pytrees.
            samples: how many independent estimates are averaged.
            averages: state of ``ppl.moving_average`` baselines, by decay; kept by the fit.
            direction: 1 where the result is ascended, -1 where it is descended; only
                baselines that learn use it.

        Returns:
            f32[], or ``(f32[], aux)`` with ``has_aux``, where aux is averaged like the value.
        """
        closed, consts, out = self.trace(*args)
        outs = surrogate(
            closed,
            consts,
            as_key(key),
            choose,
            samples=samples,
            averages=averages,
            direction=direction,
        )
        return jax.tree.unflatten(jax.tree.structure(out), outs)

    def value(self, key: jax.Array, *args: Any, samples: int = 1) -> Any:
        """An unbiased estimate of the objective, f32[] (with ``has_aux``: ``(f32[], aux)``)."""
        arrays, static, tree = split(args)
        return self._value(as_key(key), arrays, static=static, tree=tree, samples=samples)

    def value_and_grad(
        self,
        key: jax.Array,
        *args: Any,
        samples: int = 1,
        argnums: int | Sequence[int] = 0,
    ) -> tuple[Any, Any]:
        """Unbiased estimates of the objective and of its gradient.

        Args:
            key: random key.
            *args: the arguments of the objective, any pytrees. The gradient of integers is
                float0; leaves that are no arrays (functions, strings) must be hashable, and
                their gradient is None.
            samples: how many independent estimates are averaged.
            argnums: which argument(s) to differentiate.
        """
        arrays, static, tree = split(args)
        nums = argnums if isinstance(argnums, int) else tuple(argnums)
        value, grads = self._value_and_grad(
            as_key(key), arrays, static=static, tree=tree, samples=samples, argnums=nums
        )
        full = jax.tree.unflatten(tree, join(grads, tuple((i, None) for i, _ in static)))
        return value, full[nums] if isinstance(nums, int) else tuple(full[i] for i in nums)

    def grad(
        self,
        key: jax.Array,
        *args: Any,
        samples: int = 1,
        argnums: int | Sequence[int] = 0,
    ) -> Any:
        """An unbiased estimate of the gradient; see :meth:`value_and_grad`."""
        _, grads = self.value_and_grad(key, *args, samples=samples, argnums=argnums)
        return grads

    def explain(self, *args: Any, samples: int = 1) -> Explanation:
        """A table of the random choices: estimator and why, cost, source line."""
        closed, _, _ = self.trace(*args)
        return explain(self.name, closed, choose, samples)

    def _value_flat(self, key: Any, arrays: Any, *, static: Any, tree: Any, samples: int) -> Any:
        args = jax.tree.unflatten(tree, join(arrays, static))
        return self.surrogate(key, *args, samples=samples)

    def _value_and_grad_flat(
        self, key: Any, arrays: Any, *, static: Any, tree: Any, samples: int, argnums: Any
    ) -> Any:
        args = jax.tree.unflatten(tree, join(arrays, static))
        wanted = {argnums} if isinstance(argnums, int) else set(argnums)
        wanted = {i % len(args) for i in wanted} if args else wanted
        owner = [i for i, a in enumerate(args) for _ in jax.tree.leaves(a)]
        kept = set(range(len(owner))) - {i for i, _ in static}
        which = [owner[i] in wanted for i in sorted(kept)]

        def f(chosen: list[Any]) -> Any:
            left = iter(chosen)
            full = [next(left) if w else a for a, w in zip(arrays, which, strict=True)]
            args = jax.tree.unflatten(tree, join(full, static))
            return self.surrogate(key, *args, samples=samples)

        chosen = [a for a, w in zip(arrays, which, strict=True) if w]
        value, grads = jax.value_and_grad(f, has_aux=self._has_aux, allow_int=True)(chosen)
        left = iter(grads)
        return value, [next(left) if w else None for w in which]


def expectation(f: Callable[..., Any] | None = None, *, has_aux: bool = False) -> Any:
    """Make an objective: the expected value of a function that makes random choices.

    Args:
        f: returns a scalar, or ``(scalar, aux)`` with ``has_aux``.
        has_aux: whether ``f`` also returns auxiliary data; it is averaged like the value.

    Example:
        >>> @ppl.expectation
        ... def objective(m):
        ...     x = ppl.sample("x", dist.Normal(m, 1.0))
        ...     return x**2
        >>> objective.value_and_grad(jax.random.key(0), 1.5, samples=1000)
    """
    if f is None:
        return functools.partial(expectation, has_aux=has_aux)
    return Expectation(f, has_aux)


def is_array(leaf: Any) -> bool:
    """Leaves that are traced; anything else is static."""
    return isinstance(
        leaf,
        jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct | float | int | complex,
    )


def split(tree: Any) -> tuple[list[Any], tuple[tuple[int, Any], ...], Any]:
    """Arrays, static leaves by position, and the tree of a pytree."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = [v for v in leaves if is_array(v)]
    static = tuple((i, v) for i, v in enumerate(leaves) if not is_array(v))
    for _, v in static:
        try:
            hash(v)
        except TypeError:
            raise UnsupportedError(
                f"an argument of type {type(v).__name__} is neither an array nor hashable. Close "
                "over it, or register its type as a pytree."
            ) from None
    return arrays, static, structure


def join(arrays: Sequence[Any], static: Sequence[tuple[int, Any]]) -> list[Any]:
    """The leaves that :func:`split` took apart."""
    leaves = list(arrays)
    for i, v in static:
        leaves.insert(i, v)
    return leaves
