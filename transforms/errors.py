"""The errors that the transformations raise; each message ends with what to type instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

Address = tuple[str, ...]


class PPLError(Exception):
    """Base class of the errors of this library."""


class AddressError(PPLError, KeyError):
    """An address is missing, unknown, or used twice."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


class ShapeError(PPLError, ValueError):
    """A value does not have the shape of its random choice."""


class SupportError(PPLError, ValueError):
    """Data are outside the support of the choice at which they are scored."""


class KeyRequiredError(PPLError, TypeError):
    """A random choice was reached where no randomness is available."""


class UnsupportedError(PPLError, TypeError):
    """A program uses a construct or an estimator that cannot be transformed soundly."""


class NonFiniteError(PPLError, FloatingPointError):
    """An objective became NaN or infinite during a fit."""


class SoundnessWarning(UserWarning):
    """The gradient of an objective is estimated with a bias."""


class RandomnessWarning(UserWarning):
    """Numbers of a global random number generator are constants of a traced program."""


class SoundnessError(PPLError):
    """As :class:`SoundnessWarning`, under ``strict``."""


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
