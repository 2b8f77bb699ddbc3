"""What stands in an equation as an operand: a variable, or a constant in its place."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def written(v: Any) -> tuple[Any, bytes]:
    """What tells one constant from another: its type and its bits, since what an array shows is
    rounded."""
    return v.aval, np.asarray(v.val).tobytes()


def constant_of(v: Any) -> jax.Array:
    """The value of a constant."""
    return jnp.asarray(v.val, v.aval.dtype)


def type_of(v: Any) -> jax.ShapeDtypeStruct:
    """The shape and type of a variable."""
    return jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype)


__all__ = ["constant_of", "type_of", "written"]
