"""What a user states about a part of an objective that the soundness checker cannot know."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from transforms.program import marks


def continuous(f: Callable[..., Any] | None = None, reason: str = "stated by the user") -> Any:
    """Mark a function as continuous in its arguments, with right derivatives.

    The soundness checker then takes no comparison, rounding or stopped gradient inside for a
    jump or a dropped derivative. The mark changes nothing else, and costs nothing.

    Args:
        f: any function of arrays that is used in an objective.
        reason: why; ``objective.explain`` shows it.

    Example:
        >>> @ppl.continuous(reason="the two pieces meet at 1")
        ... def penalty(x):
        ...     return jnp.where(x < 1.0, x**2, 2.0 * x - 1.0)
    """
    if f is None:
        return functools.partial(continuous, reason=reason)
    if isinstance(f, str):
        return functools.partial(continuous, reason=f)

    @functools.wraps(f)
    def marked(*args: Any, **kwargs: Any) -> Any:
        with marks.stated(reason):
            return f(*args, **kwargs)

    return marked
