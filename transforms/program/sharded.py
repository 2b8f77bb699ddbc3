"""Objectives that are one part of a computation on many devices.

Under automatic partitioning (sharded arguments of ``jax.jit``) an objective is like any other
function. Where types say how values are divided, it is traced without these types:

- inside ``jax.shard_map`` it runs again with what varies (``varying.py``);
- under explicit sharding the axes are automatic inside of it: its result is one number, the same on
  all devices, and the derivative of an argument is divided as the argument is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from .. import _jax
from ..errors import UnsupportedError
from .varying import plain, run, unvarying

_SIGNS = ("varying", "pcast", "pvary", "vma")
"""What errors of JAX about the axes along which a value varies speak of."""


def partitioned(
    name: str,
    trace: Callable[..., tuple[_jax.ClosedJaxpr, list[Any]]],
    f: Callable[..., list[Any]],
    given: Sequence[Any],
    *more: Any,
) -> list[Any]:
    """``f(*trace(*given), *more)``, arrays, where types may say how values are divided.

    ``trace`` returns a program and the values for its first inputs.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.manual_axes:
        with _inside_shard_map(name, mesh.manual_axes):
            try:
                return _retyped(lambda given, more: f(*_alike(*trace(*given)), *more), given, more)
            except _ClosesOver:
                closed, consts = trace(*given)
                return _retyped(lambda *given: f(plain(closed), *given), consts, *more)
    own = _explicit(mesh, (given, more))
    if own is not None:
        inside = lambda given, more: f(*trace(*given), *more)
        with _under_explicit_sharding(name), jax.sharding.use_abstract_mesh(own):
            whole: Any = jax.sharding.auto_axes(inside, out_sharding=PartitionSpec())
            return whole(given, more)
    return f(*trace(*given), *more)


def _explicit(mesh: Any, arrays: Any) -> Any:
    """The mesh with explicit axes that is set, or that arrays are divided over; None without."""
    meshes = [jax.typeof(a).sharding.mesh for a in jax.tree.leaves(arrays)] if mesh.empty else []
    return next((m for m in (mesh, *meshes) if m.explicit_axes), None)


class _ClosesOver(Exception):
    """A program closes over values that vary between devices."""


def _alike(closed: _jax.ClosedJaxpr, consts: list[Any]) -> tuple[_jax.ClosedJaxpr, list[Any]]:
    if any(_jax.varying(jax.typeof(c)) for c in consts):
        raise _ClosesOver
    return closed, consts


def _retyped(f: Callable[..., list[Any]], *given: Any) -> list[Any]:
    """``f(*given)``, traced as if nothing varied."""
    arrays, tree = jax.tree.flatten(given)
    kinds = [unvarying(jax.typeof(a)) for a in arrays]
    closed, consts, _ = _jax.trace(lambda *xs: f(*jax.tree.unflatten(tree, xs)), *kinds)
    return run(closed, [*consts, *arrays])


@contextlib.contextmanager
def _inside_shard_map(name: str, axes: Sequence[Any]) -> Iterator[None]:
    """Say what to type where JAX's check of what varies between devices stops an objective."""
    try:
        yield
    except (AssertionError, TypeError, ValueError) as error:
        known = isinstance(error, AssertionError) or any(sign in str(error) for sign in _SIGNS)
        if not known or isinstance(error, UnsupportedError):
            raise
        raise UnsupportedError(
            f"the objective {name} at {_jax.user_line()} runs inside jax.shard_map over the mesh "
            f"axes {', '.join(map(str, axes))}, whose check of what varies between devices "
            "(check_vma=True, the default) does not follow this program. Where it closes over "
            "arrays, give them as arguments of the objective. Or type jax.shard_map(f, ..., "
            "check_vma=False): the estimates are the same, and gradients inside of f are those of "
            "one device, jax.lax.psum(grads, axis) their sum over devices."
        ) from error


@contextlib.contextmanager
def _under_explicit_sharding(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "mesh" not in str(error) and "shard" not in str(error):
            raise
        raise UnsupportedError(
            f"the objective {name} at {_jax.user_line()} runs under explicit sharding "
            "(jax.set_mesh with AxisType.Explicit). The mesh is automatic inside of it, so arrays "
            "that are divided explicitly must be its arguments, not values that it closes over, "
            "and it cannot say out_sharding= or jax.sharding.reshard itself. Type "
            "objective.value_and_grad(key, params, x) for the array x."
        ) from error
