"""The errors that the transformations raise; each message ends with what to type instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

Address = tuple[str, ...]


class PPLError(Exception):
    """Base class of the errors of this library.

    Example:
        >>> issubclass(ppl.AddressError, ppl.PPLError)
        True
    """


class AddressError(PPLError, KeyError):
    """An address is missing, unknown, or used twice.

    Example:
        >>> try:
        ...     model().log_density({"x": 1.0})  # and no "y"
        ... except ppl.AddressError as error:
        ...     print(error)
    """

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


class ShapeError(PPLError, ValueError):
    """A value does not have the shape of its random choice.

    Example:
        >>> try:
        ...     model().log_density({"x": jnp.zeros(3), "y": 0.0})
        ... except ppl.ShapeError as error:
        ...     print(error)
    """


class SupportError(PPLError, ValueError):
    """Data are outside the support of the choice at which they are scored.

    Example:
        >>> @ppl.gen
        ... def wait():
        ...     ppl.sample("t", dist.Exponential(1.0))
        >>> try:
        ...     ppl.expectation(lambda: wait().log_density({"t": -1.0})).value(key)
        ... except ppl.SupportError as error:
        ...     print(error)
    """


class KeyRequiredError(PPLError, TypeError):
    """A random choice was reached where no randomness is available.

    Example:
        >>> try:
        ...     model().simulate()
        ... except ppl.KeyRequiredError as error:
        ...     print(error)
    """


class UnsupportedError(PPLError, TypeError):
    """A program uses a construct or an estimator that cannot be transformed soundly.

    Example:
        >>> f = ppl.expectation(lambda m: ppl.sample("x", dist.Normal(m, 1.0), ppl.enum()))
        >>> try:
        ...     f.grad(key, 0.0)
        ... except ppl.UnsupportedError as error:
        ...     print(error)
    """


class NonFiniteError(PPLError, FloatingPointError):
    """An objective became NaN or infinite during a fit.

    It names the random choice whose parameters or draw are not finite first; where all are finite,
    the equation, in loops and branches too, that makes what is not finite of operands that are.

    Example:
        >>> f = ppl.expectation(lambda m: jnp.log(ppl.sample("x", dist.Normal(m, 1.0))))
        >>> try:
        ...     ppl.maximize(f, -9.0, optax.adam(0.1), key=key, steps=9, progress=False)
        ... except ppl.NonFiniteError as error:
        ...     print(error)
    """


class SoundnessWarning(UserWarning):
    """The gradient of an objective is estimated with a bias.

    Example:
        >>> @ppl.expectation
        ... def jumps(m):
        ...     return jnp.where(ppl.sample("x", dist.Normal(m, 1.0), ppl.reparam()) > 0, 1.0, 0.0)
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     grad = jumps.grad(key, 0.5)
        >>> caught[0].category.__name__
        'SoundnessWarning'
    """


class RandomnessWarning(UserWarning):
    """Numbers of a global random number generator are constants of a traced program.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     value = ppl.expectation(lambda m: m * np.random.normal()).value(key, 1.0)
        >>> caught[0].category.__name__
        'RandomnessWarning'
    """


class SoundnessError(PPLError):
    """As :class:`SoundnessWarning`, under ``strict``.

    Example:
        >>> @ppl.expectation(strict=True)
        ... def jumps(m):
        ...     return jnp.where(ppl.sample("x", dist.Normal(m, 1.0), ppl.reparam()) > 0, 1.0, 0.0)
        >>> try:
        ...     jumps.grad(key, 0.5)
        ... except ppl.SoundnessError as error:
        ...     print(error)
    """


def show(address: Address) -> str:
    """An address as a user types it: ``'x'``, or ``('inner', 'x')`` for nested ones."""
    return repr(address[0] if len(address) == 1 else address)


def nearest(address: Address, known: Iterable[Address]) -> str:
    """`` Did you mean 'x'?``, or nothing."""
    names = {"/".join(k).lower(): k for k in known}
    name = "/".join(map(str, address)).lower()
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" Did you mean {show(names[close[0]])}?" if close else ""


def describe(value: Any) -> str:
    """A value in a few words: a short number or string itself, or what kind of thing it is."""
    if isinstance(value, bool | int | float | complex | str | None):
        return repr(value)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array {value.dtype}[{','.join(map(str, value.shape))}]"
    name = getattr(value, "__name__", None)
    if isinstance(value, type):
        return f"the class {name}"
    if callable(value) and name is not None:
        return f"the function {name}"
    return f"a {type(value).__name__}"
