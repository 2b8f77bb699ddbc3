"""What stands in a program: random choices, weights and observations."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from transforms import _jax
from transforms.errors import AddressError, UnsupportedError, describe
from transforms.estimation import inside
from transforms.estimation.estimator import Estimator
from transforms.program import marks
from transforms.program.site import factor as _factor
from transforms.program.site import sample as _sample
from transforms.runs.addresses import check_shape

from .corrected import corrected
from .generative import Generative
from .program import GenerativeFunction, check_estimator


def sample(
    address: str, d: dist.Distribution | Generative, estimator: Estimator | None = None
) -> Any:
    """Make a random choice.

    Args:
        address: its name, unique in a generative function; in an objective only a label.
        d: any numpyro distribution (batch and event dimensions together are one value; its log
            density is the sum), or a :class:`Generative`, whose choices nest under the address.
        estimator: how gradients flow through the choice; chosen automatically if None.

    Returns:
        The value, ``[*batch_shape, *event_shape]``; for a Generative its ``retval``.

    Raises:
        KeyRequiredError: outside @ppl.gen, @ppl.expectation and ppl.seed.

    Example:
        >>> @ppl.gen
        ... def plate():
        ...     ppl.sample("x", dist.Normal(jnp.zeros(3), 1.0), ppl.reinforce())
        >>> plate().simulate(key)["x"].shape
        (3,)
    """
    check_address(address)
    _check_distribution(address, d)
    if isinstance(d, Generative):
        if estimator is not None:
            raise UnsupportedError(
                f"the site {address!r} at {_jax.user_line()} is a generative function, whose "
                "choices have estimators of their own. Set them with ppl.with_estimators(g, "
                '{"x": ppl.reinforce()}).'
            )
        return d.bind(address)
    if estimator is not None:
        check_estimator((address,), estimator)
    law = d if estimator is None else estimator.law(d)
    return _sample((address,), corrected(law), estimator)


def check_address(address: Any) -> None:
    """Refuse an address that is no string, or made of a number that is not known."""
    if not isinstance(address, str):
        raise AddressError(
            f"the address at {_jax.user_line()} is {describe(address)}: the first argument of a "
            'choice is a string, ppl.sample("x", d). Nested addresses come from nesting programs.'
        )
    if re.search(r"Trace[rd](\(|<)", address):
        raise AddressError(
            f"the address {address!r} at {_jax.user_line()} is made of a number that is not known "
            "while the program is traced, like a draw. Number addresses in a Python loop, for i in "
            'range(3): ppl.sample(f"x{i}", d); or draw an array, under jax.vmap or jax.lax.scan.'
        )


def _check_distribution(address: str, d: Any) -> None:
    if isinstance(d, GenerativeFunction):
        raise UnsupportedError(
            f"the site {address!r} at {_jax.user_line()} is given the generative function "
            f"{d.__name__} itself. Call it: ppl.sample({address!r}, {d.__name__}(...))."  # type: ignore[attr-defined]
        )
    if isinstance(d, Estimator):
        raise UnsupportedError(
            f"the site {address!r} at {_jax.user_line()} is given the estimator {d.name} for a "
            f"distribution. The order is ppl.sample({address!r}, d, ppl.{d.name}())."
        )
    if not isinstance(d, dist.Distribution | Generative):
        raise UnsupportedError(
            f"the site {address!r} at {_jax.user_line()} is given {describe(d)}, which is no "
            "distribution. Use a numpyro distribution, like dist.Normal(0.0, 1.0), or a generative "
            "function (with @ppl.gen above it) that was called."
        )
    for name, value in _parameters(d):
        if not isinstance(value, int | float) and not hasattr(value, "dtype"):
            raise UnsupportedError(
                f"the parameter {name} of {address!r} ~ {type(d).__name__} at {_jax.user_line()} "
                f"is {describe(value)}. Parameters are numbers and arrays: jnp.array([0.0, 1.0]) "
                "for a list; for what a program draws, x = ppl.sample(address, g(...))."
            )


def _parameters(d: Any) -> list[tuple[str, Any]]:
    """The parameters of a distribution that has them as attributes."""
    own = vars(d) if isinstance(d, dist.Distribution) else {}
    return [(name, own[name]) for name in d.arg_constraints if name in own] if own else []


def factor(address: str, log_weight: Any) -> None:
    """Add ``log_weight`` (all its elements) to the log density of the program.

    Example:
        >>> @ppl.gen
        ... def weighted():
        ...     x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ...     ppl.factor("near 1", -((x - 1.0) ** 2))
    """
    check_address(address)
    _factor((address,), log_weight)


def observe(address: str, d: dist.Distribution, value: Any) -> None:
    """Add the log density of ``value`` under ``d`` to that of the program.

    Raises:
        ShapeError: ``value`` does not have the shape of ``d``.

    Example:
        >>> @ppl.gen
        ... def seen():
        ...     x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ...     ppl.observe("y", dist.Normal(x, 1.0), 1.0)
    """
    check_address(address)
    _check_distribution(address, d)
    expected = jax.ShapeDtypeStruct(d.shape(), jnp.float32)
    check_shape((address,), value, expected, _jax.user_line())
    with marks.mark(marks.DENSITY):
        line = _jax.user_line()
        log_density = inside.log_prob(corrected(d), jnp.asarray(value), (address,), line)
    _factor((address,), log_density)
