"""What a distribution hides from JAX: values in the attributes and closures of what it is made of.

A distribution is a pytree, whose arrays are the operands of its choice. A flow whose transform
holds a network (a function that closes over parameters), a ``functools.partial``, or a class that
declares no fields hides arrays, which the distribution would lack when it is made of its operands
again. :func:`flatten` finds them.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax

_KINDS = {"Distribution", "Transform", "Constraint"}
_PLAIN = {"numpyro.distributions.continuous", "numpyro.distributions.discrete"}
_INNER = ("base_dist", "init_dist")
"""Where distributions hold numbers alone, unless they have one inside."""
Build = Callable[[Sequence[Any]], Any]


def flatten(d: Any) -> tuple[list[Any], Any]:
    """The arrays of a distribution, and the tree that makes it of them again."""
    if type(d).__module__ in _PLAIN and not any(hasattr(d, name) for name in _INNER):
        aux = map(vars(d).get, d.gather_pytree_aux_fields())  # counts of a Multinomial
        if not any(isinstance(v, _jax.Tracer) for v in aux):
            return jax.tree.flatten(d)
    try:
        leaves, tree = jax.tree.flatten(d)
        hidden = _hides(d, {id(v) for v in leaves})
    except NotImplementedError:  # a transform without tree_flatten
        hidden = True
    return jax.tree.flatten(_Opened(d)) if hidden else (leaves, tree)


def arrays(d: Any) -> list[Any]:
    """The arrays of a distribution, hidden ones too."""
    return flatten(d)[0]


class _Opened:
    """A pytree of all that an object holds; unflattening makes the object."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _flatten(opened: _Opened) -> tuple[list[Any], Any]:
    found: list[Any] = []
    build = _open(opened.value, found, set())
    return found, build or (lambda leaves: opened.value)


jax.tree_util.register_pytree_node(_Opened, _flatten, lambda build, leaves: build(list(leaves)))


# --- integers ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Filled:
    """An array of one integer, over and over."""

    value: int
    shape: tuple[int, ...]
    dtype: str


def set_apart(leaves: Sequence[Any]) -> tuple[tuple[tuple[int, Any], ...], list[Any]]:
    """Integers that are known while tracing, by position, and the other leaves.

    They stay numbers, since they may decide a support or a shape; so do arrays of one such number.
    """
    static = [(i, _static(v)) for i, v in enumerate(leaves)]
    kept = [v for v, (_, s) in zip(leaves, static, strict=True) if s is None]
    return tuple((i, s) for i, s in static if s is not None), kept


def put_back(static: Sequence[tuple[int, Any]], kept: Sequence[Any]) -> list[Any]:
    """The leaves that :func:`set_apart` was given."""
    leaves = list(kept)
    for i, s in static:
        leaves.insert(i, np.full(s.shape, s.value, s.dtype) if isinstance(s, Filled) else s)
    return leaves


def _static(leaf: Any) -> int | Filled | None:
    if isinstance(leaf, int | np.integer) and not isinstance(leaf, bool):
        return int(leaf)
    if not isinstance(leaf, np.ndarray | jax.Array) or isinstance(leaf, _jax.Tracer):
        return None
    if not jnp.issubdtype(leaf.dtype, jnp.integer) or not leaf.size:
        return None
    values = np.asarray(leaf)
    if values.ndim == 0:
        return int(values)
    first = values.flat[0]
    return Filled(int(first), values.shape, values.dtype.str) if (values == first).all() else None


# --- whether anything is hidden ------------------------------------------------------------------


def _hides(d: Any, seen: set[int]) -> bool:
    """Whether flattening loses an attribute, or leaves a traced value where it is."""
    found: list[Any] = []
    _open(d, found, set())
    if any(isinstance(v, _jax.Tracer) and id(v) not in seen for v in found):
        return True
    return any(_lost(part) for part in _parts(d))


def _parts(x: Any) -> list[Any]:
    """The distributions and transforms that one is made of, itself first."""
    if isinstance(x, list | tuple):
        return [p for v in x for p in _parts(v)]
    if not _structural(x):
        return []
    return [x, *(p for name, v in _attributes(x) if name != "_inv" for p in _parts(v))]


def _lost(part: Any) -> bool:
    if _of_numpyro(type(part)):
        return False
    rebuilt = jax.tree.unflatten(*jax.tree.flatten(part)[::-1])
    return not {name for name, _ in _attributes(part)} <= {*vars(rebuilt)}


def _structural(x: Any) -> bool:
    return any(k.__name__ in _KINDS and _of_numpyro(k) for k in type(x).__mro__)


def _of_numpyro(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "numpyro"


def _attributes(x: Any) -> list[tuple[str, Any]]:
    """The attributes of an object, without what it computes of them and keeps."""
    own = getattr(x, "__dict__", {})
    if not _structural(x):
        return list(own.items())
    declared: set[str] | None = None
    if _of_numpyro(type(x)) and hasattr(x, "gather_pytree_data_fields"):
        declared = {*x.gather_pytree_data_fields(), *x.gather_pytree_aux_fields()}
    return [
        (name, value)
        for name, value in own.items()
        if not isinstance(value, weakref.ref)
        and (declared is None or name in declared)
        and type(getattr(type(x), name, None)).__name__ != "lazy_property"
    ]


# --- taking apart --------------------------------------------------------------------------------


def _open(x: Any, found: list[Any], around: set[int]) -> Build | None:
    """Appends the arrays in ``x``, and returns how to make ``x`` of them; None if it has none."""
    if isinstance(x, _jax.Tracer | jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        i = len(found)
        found.append(x)
        return lambda leaves: leaves[i]
    plain = (
        str | bytes | int | float | complex | type | types.ModuleType | types.BuiltinFunctionType
    )
    if x is None or isinstance(x, plain) or id(x) in around:
        return None
    around = around | {id(x)}
    parts, make = _take_apart(x)
    builds = [_open(p, found, around) for p in parts]
    if not any(builds):
        return None

    def build(leaves: Sequence[Any]) -> Any:
        pairs = zip(builds, parts, strict=True)
        return make([p if b is None else b(leaves) for b, p in pairs])

    return build


def _take_apart(x: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The parts of an object, and how to make one like it of others."""
    if isinstance(x, dict):
        return list(x.values()), lambda parts: dict(zip(x, parts, strict=True))
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return list(x), lambda parts: type(x)(*parts)
    if isinstance(x, list | tuple):
        return list(x), type(x)
    if isinstance(x, functools.partial):
        return [x.func, x.args, x.keywords], lambda p: functools.partial(p[0], *p[1], **p[2])
    if isinstance(x, types.MethodType):
        return [x.__func__, x.__self__], lambda p: types.MethodType(*p)
    if isinstance(x, types.FunctionType):
        return _of_function(x)
    if hasattr(x, "__wrapped__"):  # a compiled function
        return [x.__wrapped__], lambda p: p[0]
    if not hasattr(x, "__dict__"):
        return [], lambda parts: x
    return _of_object(x)


def _of_function(f: types.FunctionType) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    cells = f.__closure__ or ()
    values = []
    for cell in cells:
        try:
            values.append(cell.cell_contents)
        except ValueError:  # not yet assigned
            values.append(None)

    def make(parts: list[Any]) -> Any:
        *inside, defaults, keywords = parts
        closure = tuple(types.CellType(v) for v in inside) or None
        new = types.FunctionType(f.__code__, f.__globals__, f.__name__, defaults, closure)
        new.__kwdefaults__ = keywords
        return new

    return [*values, f.__defaults__, f.__kwdefaults__], make


def _of_object(x: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    named = _attributes(x)

    def make(parts: list[Any]) -> Any:
        new = copy.copy(x)
        new.__dict__.clear()
        new.__dict__.update({k: v for k, v in vars(x).items() if k.startswith("_") and _kept(v)})
        new.__dict__.update(zip((name for name, _ in named), parts, strict=True))
        return new

    return [value for _, value in named], make


def _kept(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | str | tuple)
