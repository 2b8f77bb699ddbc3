"""What a user gives: keys, numbers of samples, choices; and a function that samples."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transforms import _jax
from transforms.errors import AddressError, describe, show
from transforms.gradient.seed import seeded
from transforms.program.averaged import averaged
from transforms.program.compiled import at_once
from transforms.runs.addresses import flatten, nest

from .advice import user_code
from .partly import Partly

Choices = Mapping[str, Any]


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


def merge(a: Choices, b: Choices) -> dict[str, Any]:
    """The union of two nested dicts of choices.

    What one of them has in part (``ppl.partly``), the other may have: it fills in the rest.

    Raises:
        AddressError: an address is in both.

    Example:
        >>> ppl.merge({"a": {"x": 1.0}}, {"a": {"y": 2.0}})
        {'a': {'x': 1.0, 'y': 2.0}}
    """
    left, right = flatten(a), flatten(b)
    for address in [x for x in right if x in left]:
        pair = left[address], right[address]
        if sum(isinstance(v, Partly) for v in pair) == 1:
            part, rest = pair if isinstance(pair[0], Partly) else pair[::-1]
            left[address] = part.filled(address, rest)
            del right[address]
    above = {x[:k]: x for x in left for k in range(1, len(x) + 1)}
    for address in right:
        starts = (address[:k] for k in range(1, len(address)))
        clash = above.get(address) or next((x for x in starts if x in left), None)
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

    Example:
        >>> draw = ppl.seed(lambda: ppl.sample("x", dist.Normal(0.0, 1.0)))
        >>> jax.vmap(draw)(jax.random.split(key, 5)).shape
        (5,)
    """
    name = getattr(f, "__name__", "the function")

    @functools.wraps(f)
    def of_key(key: jax.Array, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            with user_code(name, f):
                return f(*args, **kwargs)

        closed, consts, out = _jax.trace(run)
        outs = at_once(lambda key: seeded(averaged(closed), consts, key), as_key(key))
        return jax.tree.unflatten(jax.tree.structure(out), outs)

    return of_key


def is_array(leaf: Any) -> bool:
    """Leaves that are traced; anything else is static."""
    return isinstance(
        leaf,
        jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct | float | int | complex,
    )


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
