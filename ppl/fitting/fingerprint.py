"""What identifies a program between processes: digests of jaxprs and of the values in them.

A program is what it computes, so a learning rate or a constant of an objective counts however it is
closed over, and the names of variables and the order of what does not depend on each other do not.
What has no content that another process could read (an opaque object) counts by its type alone.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transforms import _jax
from transforms.errors import PPLError
from transforms.program.content import closed_over
from transforms.program.operands import written
from transforms.program.site import Opaque, Site

from .devices import checksum, is_elsewhere


def digest(x: Any) -> str:
    """A digest of any value; of an array, its bytes."""
    return _hash(_describe(x, ()))


def program_digest(closed: _jax.ClosedJaxpr, consts: Sequence[Any]) -> str:
    """A digest of a program whose first inputs are ``consts``."""
    return _program(closed, [_describe(c, ()) for c in consts], ())


def _hash(text: Any) -> str:
    return hashlib.blake2b(str(text).encode(), digest_size=16).hexdigest()


def _program(closed: _jax.ClosedJaxpr, known: Sequence[str], around: tuple[int, ...]) -> str:
    """A digest made of those of the outputs, each of the equation behind it and its operands."""
    jaxpr = closed.jaxpr
    names: dict[Any, str] = {
        v: _describe(c, ()) for v, c in zip(jaxpr.constvars, closed.consts, strict=True)
    }
    for i, v in enumerate(jaxpr.invars):
        names[v] = _hash(known[i] if i < len(known) else f"input {i - len(known)} {v.aval}")

    def read(v: Any) -> str:
        return f"{v.aval} {written(v)[1].hex()}" if isinstance(v, _jax.Literal) else names[v]

    effects: list[str] = []
    for eqn in jaxpr.eqns:
        site = eqn.params.get("site")
        operands = [read(v) for v in eqn.invars]
        if isinstance(site, Site):
            text = _site(site, operands, around)
        else:
            text = f"{_describe(eqn.params, around)} {operands}"
        made = _hash(f"{eqn.primitive.name} {text}")
        names.update((v, f"{made} {i}") for i, v in enumerate(eqn.outvars))
        effects += [made] if eqn.effects or not eqn.outvars else []
    return _hash([*effects, *map(read, jaxpr.outvars)])


def _site(site: Site, operands: list[str], around: tuple[int, ...]) -> str:
    """A choice by its distribution's attributes, whose order differs between processes."""
    parts = [site.address, site.shape, site.dtype, site.axes and site.sizes, site.masked]
    mapped = [[o, *(a.mapped[i] for a in site.axes)] for i, o in enumerate(operands)]
    try:
        rebuilt = [site.rebuild(mapped), site.rebuild_estimator(mapped)]
        return _describe([*parts, *rebuilt, operands[-1] if site.masked else ""], around)
    except (TypeError, ValueError, AttributeError, PPLError):  # it wants numbers
        return _describe([*parts, sorted(map(str, mapped))], around)


def _describe(x: Any, around: tuple[int, ...]) -> str:
    if id(x) in around:
        return f"around {around.index(id(x))}"
    inside = functools.partial(_describe, around=(*around, id(x)))
    if isinstance(x, _jax.ClosedJaxpr):
        return _program(x, [], (*around, id(x)))
    if isinstance(x, _jax.Jaxpr):
        return _program(_jax.ClosedJaxpr(x, []), [], (*around, id(x)))
    if isinstance(x, _jax.Tracer | jax.ShapeDtypeStruct):
        return f"{x.dtype}{list(x.shape)}"
    if isinstance(x, np.ndarray | np.generic | jax.Array):
        return _array(x)
    if isinstance(x, str | bytes | bool | int | float | complex | type | np.dtype | None):
        return _without_addresses(repr(x))
    if isinstance(x, Opaque):
        return inside(x.value)
    if isinstance(x, Mapping):
        return str(sorted((inside(k), inside(v)) for k, v in x.items()))
    if isinstance(x, set | frozenset):
        return str(sorted(map(inside, x)))
    if isinstance(x, tuple | list):
        return f"{type(x).__name__} {[inside(v) for v in x]}"
    if isinstance(x, types.FunctionType):
        return f"{x.__module__}.{x.__qualname__} {inside(closed_over(x))}"
    return _object(x, inside)


def _object(x: Any, inside: Any) -> str:
    kind = f"{type(x).__module__}.{type(x).__qualname__}"
    if dataclasses.is_dataclass(x):
        return (
            f"{kind} {[(f.name, inside(getattr(x, f.name, None))) for f in dataclasses.fields(x)]}"
        )
    if isinstance(x, jax.tree_util.PyTreeDef):
        return _without_addresses(str(x))
    if kind.startswith(("jax.", "jaxlib.")):
        return kind
    return f"{kind} {inside(vars(x))}" if hasattr(x, "__dict__") else kind


def _array(x: Any) -> str:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return f"{x.dtype} {_array(jax.random.key_data(x))}"
    if is_elsewhere(x):
        return f"{x.dtype}{list(x.shape)} {int(checksum(x))}"
    data = np.ascontiguousarray(x)
    raw: Any = data.view(np.uint8) if data.ndim else data.tobytes()
    content = hashlib.blake2b(raw, digest_size=16)
    return f"{data.dtype}{list(data.shape)} {content.hexdigest()}"


def _without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "", text)
