"""What depends on the kind of a choice alone is found once.

Choices are of one kind if they differ by their names and numbers alone, as in the rounds of a
Python loop: of the same distribution, with parameters of the same types, and the same estimator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ..program.choices import Choice

KEPT = 512
"""How many kinds are kept."""


class _Kind:
    """A choice and its estimator, equal to those of the same kind."""

    def __init__(self, choice: Choice, estimator: Any) -> None:
        self.choice, self.estimator = choice, estimator
        site = choice.site
        types = ((tuple(a.shape), a.dtype) for a in choice.own_avals)
        numbers = jnp.result_type(float), jnp.result_type(int)  # of 64 bits, maybe
        about = site.distribution.value, site.static, site.n_estimator, site.masked, site.dtype
        self._content = type(estimator), estimator, *about, *numbers, *types
        self._hash = hash(self._content)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kind) and self._content == other._content


def by_kind(f: Callable[[Choice, Any], Any]) -> Callable[[Choice, Any], Any]:
    """``f(choice, estimator)``, asked once for choices of one kind."""
    known = functools.lru_cache(maxsize=KEPT)(lambda kind: f(kind.choice, kind.estimator))

    @functools.wraps(f)
    def found(choice: Choice, estimator: Any) -> Any:
        try:
            kind = _Kind(choice, estimator)
        except TypeError:  # a part of it has no hash
            return f(choice, estimator)
        return known(kind)

    return found


__all__ = ["by_kind"]
