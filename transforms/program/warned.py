"""Warnings, at the user's line."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from .. import authors


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's code from which the library was called."""
    warnings.warn(category(text), stacklevel=_above_libraries())


def _above_libraries() -> int:
    """The stack level of the user's code, seen from the caller of this function."""
    frame: Any = sys._getframe(1)
    level = 1
    while frame.f_back is not None and not authors.is_users(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    return level
