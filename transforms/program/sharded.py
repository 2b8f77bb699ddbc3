"""Objectives inside ``jax.shard_map``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from .. import _jax
from ..errors import UnsupportedError

_SIGNS = ("varying", "pcast", "vma")
"""What errors of JAX about the axes along which a value varies speak of."""


@contextlib.contextmanager
def inside_shard_map(name: str) -> Iterator[None]:
    """Say what to type where JAX's check of what varies between devices stops an objective.

    Programs are traced and run again with other values, which may vary where the traced ones did
    not, and the check takes no account of that.
    """
    try:
        yield
    except (AssertionError, TypeError, ValueError) as error:
        axes = jax.sharding.get_abstract_mesh().manual_axes
        known = isinstance(error, AssertionError) or any(sign in str(error) for sign in _SIGNS)
        if not axes or not known or isinstance(error, UnsupportedError):
            raise
        raise UnsupportedError(
            f"the objective {name} at {_jax.user_line()} runs inside jax.shard_map over the mesh "
            f"axes {', '.join(map(str, axes))}, whose check of what varies between devices "
            "(check_vma=True, the default) does not follow the draws of this program. Its "
            "estimates are the same without that check: type jax.shard_map(f, ..., "
            "check_vma=False), and take gradients inside of f, with jax.lax.pmean(grads, axis) "
            "for their mean over devices."
        ) from error
