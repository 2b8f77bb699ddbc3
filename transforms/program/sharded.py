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
from .varying import run

_SIGNS = ("varying", "pcast", "pvary", "vma")
"""What errors of JAX about the axes along which a value varies speak of."""


def partitioned(name: str, f: Callable[..., list[Any]], arrays: Sequence[Any]) -> list[Any]:
    """``f(*arrays)``, a list of arrays, where types may say how values are divided."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.manual_axes:
        with _inside_shard_map(name, mesh.manual_axes):
            kinds = [_jax.unvarying(jax.typeof(a)) for a in arrays]
            closed, consts, _ = _jax.trace(f, *kinds)
            return run(closed, [*consts, *arrays])
    if mesh.explicit_axes:
        return jax.sharding.auto_axes(f, out_sharding=PartitionSpec())(*arrays)
    return f(*arrays)


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
            "(check_vma=True, the default) does not follow this program. Its "
            "estimates are the same without that check: type jax.shard_map(f, ..., "
            "check_vma=False), and take gradients inside of f, with jax.lax.psum(grads, axis) "
            "for their sum over devices."
        ) from error
