"""Marks on the equations of a program, for the soundness checker.

A mark is a ``jax.named_scope``: it costs nothing, and stays on the equations under every
transformation of JAX. Inside one, no equation is taken for a jump or for a dropped derivative.
"""

from __future__ import annotations

import re
from typing import Any

import jax

DENSITY = "ppl.density"
"""The log density of a choice: its guards and the mask of its support are no jumps."""
EXACT = "ppl.exact"
"""A sum over all values of a choice: smooth, though it is guarded."""
ESTIMATE = "ppl.estimate"
"""An expectation that is differentiated inside another: checked by itself."""
OUTSIDE = "ppl.outside"
"""The mask that makes a log density minus infinity outside its support."""
HELD = "ppl.held"
"""Held constant on purpose (``ppl.detach``)."""
DEBIASED = "ppl.debiased"
"""A function of means whose bias is taken away (``ppl.debias``)."""
CONTINUOUS = "ppl.continuous"
"""Stated by the user to be continuous (``ppl.continuous``)."""

_STATED = re.compile(re.escape(CONTINUOUS) + r"\[(.*?)\]")
_ANY = re.compile("|".join(map(re.escape, (DENSITY, EXACT, ESTIMATE, CONTINUOUS))))
_DERIVATIVE = "jvp("


def mark(name: str) -> Any:
    """A context in which equations carry the mark ``name``."""
    return jax.named_scope(name)


def stated(reason: str) -> Any:
    """The context of a function that the user states to be continuous."""
    return mark(f"{CONTINUOUS}[{re.sub(r'[][/]', ' ', reason)}]")


def reason_of(stack: str) -> str | None:
    """The reason that the user stated for equations under the name stack ``stack``."""
    found = _STATED.search(stack)
    return found[1] if found else None


def is_smooth(stack: str) -> bool:
    """Whether equations under this name stack are known to be continuous."""
    return _ANY.search(stack) is not None


def is_density(stack: str) -> bool:
    """Whether equations under this name stack are those of a density alone."""
    return DENSITY in stack and CONTINUOUS not in stack and ESTIMATE not in stack


def is_differentiated(stack: str) -> bool:
    """Whether equations under this name stack are of a function that the user differentiates."""
    return _DERIVATIVE in stack


def is_differentiated_outside(stack: str) -> bool:
    """Whether what is marked under this name stack is a function that the user differentiates."""
    found = _ANY.search(stack)
    return found is not None and ESTIMATE not in stack and _DERIVATIVE in stack[: found.start()]


def is_outside(stack: str) -> bool:
    """Whether an equation under this name stack makes log densities minus infinity."""
    return OUTSIDE in stack


def is_debiased(stack: str) -> bool:
    """Whether equations under this name stack are of a function that is made unbiased."""
    return DEBIASED in stack


def is_held(stack: str) -> bool:
    """Whether equations under this name stack hold their operands constant on purpose."""
    return HELD in stack


def hold(xs: Any) -> Any:
    """``xs`` (a pytree of arrays) as constants, on purpose."""
    with mark(HELD):
        return jax.tree.map(jax.lax.stop_gradient, xs)
