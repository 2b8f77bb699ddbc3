"""An objective with a declared target: its value is the target's, its derivative its own.

Of a surrogate the value means nothing (the wake phases, a straight-through loss, a line with
``ppl.detach``). With the target of which its derivative is meant to be that, histories of fits,
tolerances and restarts are about the target, and ``audit`` holds the one against the other.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from transforms import _jax
from transforms.errors import UnsupportedError, describe


def check_target(target: Any, expectation: type) -> None:
    """Refuse what is no objective."""
    if target is not None and not isinstance(target, expectation):
        raise UnsupportedError(
            f"the target at {_jax.user_line()} is {describe(target)}, and is an objective of the "
            "same arguments. Put @ppl.expectation above it: @ppl.expectation(target=bound)."
        )


def shown(value: Any, target: Any, key: jax.Array, given: Any, how: Any) -> Any:
    """The value of the target, if there is one, in the place of that of an objective (a pair, with
    auxiliary data); ``given`` are its arguments and keywords, ``how`` many samples of
    it are drawn. Not differentiated, and estimated with a key of its own."""
    if target is None:
        return value
    own, *aux = value if isinstance(value, tuple) else (value,)
    args, kwargs = jax.tree.map(lambda a: lax.stop_gradient(a) if _is_traced(a) else a, given)
    meant = target.surrogate(jax.random.fold_in(key, 1), *args, **how, **kwargs)
    value = _shown(own, meant[0] if isinstance(meant, tuple) else meant)
    return (value, *aux) if aux else value


def _is_traced(a: Any) -> bool:
    return isinstance(a, jax.Array)


@jax.custom_jvp
def _shown(own: jax.Array, meant: jax.Array) -> jax.Array:
    """``meant``, with the derivative of ``own``."""
    return meant.astype(own.dtype)


@_shown.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return _shown(*primals), tangents[0]
