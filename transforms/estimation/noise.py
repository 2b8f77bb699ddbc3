"""The noise of all elements of a plate from one key.

The draw of one element is a program of its parameters and a key. Under a ``vmap`` each element
would need a key of its own, and splitting one costs as much as the bits. But most distributions do
nothing with a key but split it and turn it into bits: then the bits of all elements are drawn at
once, and the rest of the program, which has no key in it, is what is mapped:

    x = m + s * normal(key)       bits = random_bits(key, (n,))
                                  x = vmap(lambda m, s, b: m + s * ndtri(uniform(b)))(m, s, bits)

A distribution that reads its key otherwise (a rejection sampler, in a loop) gets a key an element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import _jax
from ..program.site import Axis, element_keys, per_element


class _ReadsItsKey(Exception):
    """A key is used for more than bits."""


class _Key(NamedTuple):
    """A key; ``value`` is None where the rest of the program is run."""

    value: Any


def drawn(
    axes: Sequence[Axis], one: Callable[..., Any], operands: list[Any], key: jax.Array
) -> Any:
    """``one(operands, key)`` for each element of the surrounding ``vmap``\\ s, independently."""
    closed, consts, _ = _jax.trace(one, _of_one(axes, operands), key)
    sizes = tuple(a.size for a in axes)
    bits: list[jax.Array] = []

    def wide(eqn: _jax.JaxprEqn, key: jax.Array) -> None:
        shape = (*sizes, *eqn.params["shape"])
        (found,) = _jax.evaluate_equation(eqn.replace(params={**eqn.params, "shape": shape}), [key])
        places = range(len(sizes))
        bits.append(jnp.moveaxis(found, [key.ndim + i for i in places], places))

    unknown = [None] * (len(consts) + len(operands))
    try:
        (out,) = _run(closed, [*unknown, _Key(key)], wide, None)
    except _ReadsItsKey:
        out = _Key(key)
    if isinstance(out, _Key):
        return per_element(axes, one, 1)(operands, element_keys(key, axes))

    def rest(operands: list[Any], *bits: Any) -> Any:
        left = iter(bits)
        take = lambda eqn, key: next(left)
        return _run(closed, [*consts, *operands, _Key(None)], take, _jax.evaluate_equation)[0]

    return per_element(axes, rest, len(bits))(operands, *bits)


def _of_one(axes: Sequence[Axis], operands: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    """The operands of one element."""
    mapped = [sum(a.mapped[i] for a in axes) for i in range(len(operands))]
    return [
        jax.ShapeDtypeStruct(jnp.shape(x)[n:], jnp.result_type(x))
        for x, n in zip(operands, mapped, strict=True)
    ]


def _run(closed: _jax.ClosedJaxpr, args: Sequence[Any], take: Any, evaluate: Any) -> list[Any]:
    """The results of a program; ``take(eqn, key)`` gives the bits of a key.

    What does not read a key is computed by ``evaluate(eqn, operands)``, or not at all.
    """
    jaxpr = closed.jaxpr
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    read = lambda v: v.val if isinstance(v, _jax.Literal) else env[v]
    for eqn in jaxpr.eqns:
        operands = [*map(read, eqn.invars)]
        keys = [x for x in operands if isinstance(x, _Key)]
        if not keys:
            outs = evaluate(eqn, operands) if evaluate else [None] * len(eqn.outvars)
        elif eqn.primitive is _jax.jit_p:
            outs = _run(eqn.params["jaxpr"], operands, take, evaluate)
        elif eqn.primitive.name == "random_bits":
            outs = [take(eqn, keys[0].value)]
        elif _only_keys(eqn):
            known = [x.value if isinstance(x, _Key) else x for x in operands]
            made = [None] * len(eqn.outvars) if evaluate else _jax.evaluate_equation(eqn, known)
            outs = [*map(_Key, made)]
        else:
            raise _ReadsItsKey
        env.update(zip(eqn.outvars, outs, strict=True))
    return [*map(read, jaxpr.outvars)]


def _only_keys(eqn: _jax.JaxprEqn) -> bool:
    """Whether an equation makes keys of keys: splits them, or takes some of them."""
    vs: list[Any] = [*eqn.outvars, *(v for v in eqn.invars if isinstance(v, _jax.Var))]
    return all(jnp.issubdtype(v.aval.dtype, jax.dtypes.prng_key) for v in vs)
