"""Programmable variational inference for JAX.

Write a model, a guide and an objective as plain JAX programs; get unbiased gradients of the
objective, with the estimator of your choice at every random choice.

What there is stands in ``__init__.pyi``; a file is imported when a name of it is first used.
"""

from . import _beside  # noqa: F401  must come first

# isort: split
from numpyro import distributions as dist

from transforms import _jax  # noqa: F401  warns of a JAX that computes wrong sums

from ._names import attach as _attach


def _unknown(name: str, names: list[str]) -> AttributeError:
    return __getattr__("_not_in_ppl")(name, names, dist)


__getattr__, __dir__, __all__ = _attach(__name__, __file__, _unknown)
