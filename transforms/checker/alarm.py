"""What happens to findings of the checker: a warning, or an error where the user is strict."""

from __future__ import annotations

import contextvars
from collections.abc import Sequence
from typing import Any

from ..errors import SoundnessError, SoundnessWarning
from ..program.warned import warn
from .findings import Finding

_STRICT = contextvars.ContextVar("ppl.strict", default=False)


class strict:
    """Make every finding of the soundness checker a ``ppl.SoundnessError``.

    From the call on: ``ppl.strict()`` at the top of a notebook or a script; or within a block:
    ``with ppl.strict(): ...``.

    Example:
        >>> with ppl.strict():
        ...     grad = elbo.grad(key, phi)
    """

    def __init__(self) -> None:
        self._token = _STRICT.set(True)

    def __enter__(self) -> None:
        _STRICT.set(True)

    def __exit__(self, *_: Any) -> None:
        _STRICT.reset(self._token)


def is_strict() -> bool:
    """Whether ``ppl.strict()`` is in force."""
    return _STRICT.get()


def sound_the_alarm(name: str, findings: Sequence[Finding], strict: bool) -> None:
    """Warn of what is wrong with the gradient of the objective ``name``.

    Raises:
        SoundnessError: where the user is strict.
    """
    texts = [f"the gradient of {name} is {f.kind}: {f.message}" for f in findings]
    if texts and (strict or is_strict()):
        raise SoundnessError("\n".join(texts))
    for text in texts:
        warn(text, SoundnessWarning)
