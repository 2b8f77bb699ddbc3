"""Fits on many devices and in many processes: where arrays are, and what each process does.

Nothing here divides anything: a fit computes where its arguments are, and JAX divides the work as
they are divided. Every process runs the same program; the first one writes and shows progress.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from transforms import _jax
from transforms.errors import PPLError


def placed(tree: Any, like: Any) -> Any:
    """The arrays of a tree, on all the devices on which those of ``like`` are divided.

    What is on several devices stays. Otherwise the first step would move what it is given, and the
    second one would be compiled anew.
    """
    meshes = [a.sharding.mesh for a in jax.tree.leaves(like) if _is_divided(a)]
    if not meshes:
        return tree
    everywhere = NamedSharding(meshes[0], PartitionSpec())

    def one(a: Any) -> Any:
        here = isinstance(a, jax.Array) and not isinstance(a, _jax.Tracer) and not _is_divided(a)
        return _put(a, everywhere) if here else a

    return jax.tree.map(one, tree)


def _is_divided(a: Any) -> bool:
    known = isinstance(a, jax.Array) and not isinstance(a, _jax.Tracer)
    return known and isinstance(a.sharding, NamedSharding) and a.sharding.mesh.size > 1


def _put(a: jax.Array, sharding: Any) -> jax.Array:
    """An array of this process, equal in all, on devices that may be of others too."""
    if sharding.is_fully_addressable:
        return jax.device_put(a, sharding)
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(a), NamedSharding(sharding.mesh, PartitionSpec()))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(a))
    host = np.asarray(a)
    return jax.make_array_from_callback(host.shape, sharding, lambda where: host[where])


def put_like(a: Any, like: Any) -> Any:
    """An array on the devices of another one, divided as it is."""
    return _put(a, like.sharding) if _is_divided(like) else a


def is_elsewhere(a: Any) -> bool:
    """Whether parts of an array are in other processes alone."""
    return isinstance(a, jax.Array) and not (a.is_fully_addressable or a.is_fully_replicated)


def whole(a: Any) -> np.ndarray:
    """An array on the host, also where its parts are in several processes, which all ask for it."""
    return np.asarray(multihost_utils.process_allgather(a, tiled=True) if is_elsewhere(a) else a)


@jax.jit
def checksum(a: jax.Array) -> jax.Array:
    """A number u32[] of the content of an array, wherever it is: exact, and so of any order."""
    parts = lax.bitcast_convert_type(a.astype(jnp.uint8) if a.dtype == bool else a, jnp.uint8)
    place = jnp.zeros(parts.shape, jnp.uint32)
    for axis, n in enumerate(parts.shape):
        place = place * np.uint32(n) + lax.broadcasted_iota(jnp.uint32, parts.shape, axis)
    weight = place * np.uint32(2654435761) ^ (place >> 13) | np.uint32(1)
    return jnp.sum((parts.astype(jnp.uint32) + np.uint32(1)) * weight, dtype=jnp.uint32)


def is_first() -> bool:
    """Whether this is the process that writes and shows."""
    return jax.process_index() == 0


def agreed(step: int, path: str) -> None:
    """Raise where processes found different checkpoints; none goes on before all have read."""
    if jax.process_count() == 1:
        return
    steps = np.ravel(multihost_utils.process_allgather(np.int32(step)))
    if len(set(steps.tolist())) > 1:
        raise PPLError(
            f"the processes find different checkpoints at {path} ({_jax.user_line()}), of "
            f"{', '.join(map(str, steps))} steps. The first process writes it and all read it: "
            "give a path on a file system that they share."
        )


@contextlib.contextmanager
def among_processes(checkpoint: str | None) -> Iterator[None]:
    """Say what has happened where another process is gone."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        again = (
            f"resumes from {checkpoint}" if checkpoint else 'could resume with checkpoint="fit.npz"'
        )
        raise PPLError(
            f"the fit at {_jax.user_line()}, process {jax.process_index()} of "
            f"{jax.process_count()}, has stopped: another process has failed or is gone "
            f"({str(error).splitlines()[0][:200]}). Start all processes again: the fit {again}."
        ) from error
