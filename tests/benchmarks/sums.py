"""Sums over discrete choices beside hand-written code: chains, grids and trees.

Each program is a log density given data, its choices summed out by ``ppl.enumeration()``; by hand
it is the forward recursion, or the elimination in the best order, on logarithms. ``scaling.py``
compares value and gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
from jax import lax
from jax.nn import log_softmax, logsumexp

import ppl
from ppl import dist

Pair = tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]
"""By hand, and ours: functions of a key and arrays; and the arrays."""
RNG = np.random.default_rng(0)


def _rows(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def _seen(x: jax.Array, m: jax.Array) -> jax.Array:
    return -((x - m) ** 2) / 2 - jnp.log(2 * jnp.pi) / 2


def _pick(name: str, logits: jax.Array) -> jax.Array:
    return ppl.sample(name, dist.CategoricalLogits(logits=logits))


def _summed_out(program: Callable[..., Any], data: dict[str, Any]) -> Callable[..., Any]:
    def ours(key: jax.Array, *args: jax.Array) -> jax.Array:
        return ppl.marginal(program(*args), list(data), ppl.enumeration()).log_density(data)

    return ours


# --- chains -------------------------------------------------------------------------------------


def hmm(k: int = 50, length: int = 500, scaled: bool = False) -> Pair:
    """By hand on logarithms, or *scaled*: on probabilities, each step divided by its sum, which
    takes no exponential of a pair of states, and loses one that is rare until it is needed."""
    x = _rows(length)

    def on_logarithms(key: jax.Array, a: jax.Array, m: jax.Array) -> jax.Array:
        law, seen = log_softmax(a), _seen(x[:, None], m)
        step = lambda alpha, e: (logsumexp(alpha[:, None] + law, 0) + e, None)
        return logsumexp(lax.scan(step, law[0] + seen[0], seen[1:])[0])

    def on_probabilities(key: jax.Array, a: jax.Array, m: jax.Array) -> jax.Array:
        law, seen = jax.nn.softmax(a), _seen(x[:, None], m)
        top = lax.stop_gradient(seen.max(1))
        seen = jnp.exp(seen - top[:, None])

        def step(alpha: jax.Array, e: jax.Array) -> Any:
            alpha = alpha @ law * e
            return alpha / alpha.sum(), jnp.log(alpha.sum())

        first = law[0] * seen[0]
        _, steps = lax.scan(step, first / first.sum(), seen[1:])
        return steps.sum() + jnp.log(first.sum()) + top.sum()

    program = ppl.gen(lambda a, m: _chain(a, m, length))

    by_hand = on_probabilities if scaled else on_logarithms
    return by_hand, _summed_out(program, {"x": x}), (_rows(k, k), _rows(k))


def _chain(a: jax.Array, m: jax.Array, length: int) -> jax.Array:
    """States with logits ``a``, seen at ``m``; the last of them."""

    def step(z: Any, _: Any) -> Any:
        z = _pick("z", a[z])
        ppl.sample("x", dist.Normal(m[z], 1.0))
        return z, None

    return lax.scan(step, 0, length=length)[0]


def plate(n: int = 100, k: int = 20, length: int = 50) -> Pair:
    """Sequences of one law; by hand a ``vmap`` of the recursion on logarithms."""
    x = _rows(n, length)

    def by_hand(key: jax.Array, a: jax.Array, m: jax.Array) -> jax.Array:
        law = log_softmax(a)

        def one(x: jax.Array) -> jax.Array:
            seen = _seen(x[:, None], m)
            step = lambda alpha, e: (logsumexp(alpha[:, None] + law, 0) + e, None)
            return logsumexp(lax.scan(step, law[0] + seen[0], seen[1:])[0])

        return jnp.sum(jax.vmap(one)(x))

    program = ppl.gen(lambda a, m: jax.vmap(lambda: _chain(a, m, length), axis_size=n)())

    return by_hand, _summed_out(program, {"x": x}), (_rows(k, k), _rows(k))


def second_order(k: int = 8, length: int = 50) -> Pair:
    x = _rows(length)

    def by_hand(key: jax.Array, a: jax.Array, m: jax.Array) -> jax.Array:
        law, seen = log_softmax(a), _seen(x[:, None], m)
        alpha = (law[0, 0] + seen[0])[:, None] + law[0] + seen[1]
        step = lambda alpha, e: (logsumexp(alpha[:, :, None] + law, 0) + e, None)
        return logsumexp(lax.scan(step, alpha, seen[2:])[0])

    @ppl.gen
    def program(a: jax.Array, m: jax.Array) -> None:
        def step(c: Any, _: Any) -> Any:
            z = _pick("z", a[c])
            ppl.sample("x", dist.Normal(m[z], 1.0))
            return (c[1], z), None

        lax.scan(step, (0, 0), length=length)

    return by_hand, _summed_out(program, {"x": x}), (_rows(k, k, k), _rows(k))


def factorial(k: int = 8, length: int = 50) -> Pair:
    """Two chains that are seen together; by hand one after the other inside each step."""
    x = _rows(length)

    def by_hand(key: jax.Array, a: jax.Array, b: jax.Array, m: jax.Array) -> jax.Array:
        (of_a, of_b), seen = map(log_softmax, (a, b)), _seen(x[:, None, None], m)

        def step(alpha: jax.Array, e: jax.Array) -> Any:
            alpha = logsumexp(alpha[:, None] + of_a[:, :, None], 0)
            return logsumexp(alpha[:, :, None] + of_b, 1) + e, None

        start = of_a[0][:, None] + of_b[0] + seen[0]
        return logsumexp(lax.scan(step, start, seen[1:])[0])

    @ppl.gen
    def program(a: jax.Array, b: jax.Array, m: jax.Array) -> None:
        def step(c: Any, _: Any) -> Any:
            one, two = _pick("a", a[c[0]]), _pick("b", b[c[1]])
            ppl.sample("x", dist.Normal(m[one, two], 1.0))
            return (one, two), None

        lax.scan(step, (0, 0), length=length)

    return by_hand, _summed_out(program, {"x": x}), (_rows(k, k), _rows(k, k), _rows(k, k))


# --- Python loops -------------------------------------------------------------------------------


def grid(height: int, width: int = 8) -> Pair:
    """Binary choices, each after the one above and the one to the left; by hand column by column,
    with a front of a column."""
    x, bits = _rows(height, width), jnp.arange(2.0)

    def by_hand(key: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        front = jnp.zeros([1] * height)
        for j in range(width):
            for i in range(height):
                left, above = bits[: 1 + bool(j), None, None], bits[: 1 + bool(i), None]
                logits = b[i, j] + c[0] * left + c[1] * above
                term = bits * logits - jax.nn.softplus(logits) + _seen(x[i, j], bits)
                shape = [1] * (height + 1)
                shape[i], shape[height] = term.shape[0], 2
                if i:
                    shape[i - 1], term = term.shape[1], term.transpose(1, 0, 2)
                front = jnp.moveaxis(logsumexp(front[..., None] + term.reshape(shape), i), -1, i)
        return logsumexp(front)

    @ppl.gen
    def program(b: jax.Array, c: jax.Array) -> None:
        z: dict[Any, Any] = {}
        for i in range(height):
            for j in range(width):
                logits = b[i, j] + c[0] * z.get((i, j - 1), 0) + c[1] * z.get((i - 1, j), 0)
                z[i, j] = ppl.sample(f"z{i}{j}", dist.BernoulliLogits(logits=logits))
                ppl.sample(f"x{i}{j}", dist.Normal(1.0 * z[i, j], 1.0))

    data = {f"x{i}{j}": x[i, j] for i in range(height) for j in range(width)}
    return by_hand, _summed_out(program, data), (_rows(height, width), _rows(2))


def tree(n: int = 31, k: int = 4, line: bool = False) -> Pair:
    """Each node after the node above it; the nodes of a line have one child each."""
    x, above = _rows(n), lambda i: i - 1 if line else (i - 1) // 2

    def by_hand(key: jax.Array, a: jax.Array, m: jax.Array) -> jax.Array:
        law, seen = log_softmax(a), _seen(x[:, None], m)
        up = [seen[i] for i in range(n)]
        for i in reversed(range(1, n)):
            up[above(i)] += logsumexp(law + up[i], 1)
        return logsumexp(law[0] + up[0])

    @ppl.gen
    def program(a: jax.Array, m: jax.Array) -> None:
        z: list[Any] = []
        for i in range(n):
            z.append(_pick(f"z{i}", a[z[above(i)] if i else 0]))
            ppl.sample(f"x{i}", dist.Normal(m[z[i]], 1.0))

    return by_hand, _summed_out(program, {f"x{i}": x[i] for i in range(n)}), (_rows(k, k), _rows(k))


def field(depth: int = 8, k: int = 4) -> Pair:
    """A Markov random field on a tree, whose nodes are drawn in one ``vmap``; by hand level by
    level, from the leaves."""
    n = 2**depth - 1
    x, parents = _rows(n), np.arange(n - 1) // 2

    def by_hand(key: jax.Array, a: jax.Array, m: jax.Array) -> jax.Array:
        seen = _seen(x[:, None], m) - jnp.log(k)
        up = seen[n // 2 :]
        for level in range(depth - 1, 0, -1):
            to = logsumexp(a + up[:, None, :], 2)
            up = seen[2 ** (level - 1) - 1 : 2**level - 1] + to[::2] + to[1::2]
        return logsumexp(up[0])

    @ppl.gen
    def program(a: jax.Array, m: jax.Array) -> None:
        z = jax.vmap(lambda: _pick("z", jnp.zeros(k)), axis_size=n)()
        ppl.factor("edges", jnp.sum(a[z[parents], z[1:]]))
        ppl.sample("x", dist.Normal(m[z], 1.0))

    return by_hand, _summed_out(program, {"x": x}), (_rows(k, k), _rows(k))


PAIRS: dict[str, Callable[[], Pair]] = {
    "HMM, K = 50, T = 500": hmm,
    "HMM, K = 50, T = 500, by hand scaled": lambda: hmm(scaled=True),
    "plate of 100 HMMs, K = 20, T = 50": plate,
    "second-order HMM, K = 8, T = 50": second_order,
    "factorial HMM, 2 x 8 states, T = 50": factorial,
    "grid 2 x 8": lambda: grid(2),
    "grid 3 x 8": lambda: grid(3),
    "grid 4 x 8": lambda: grid(4),
    "tree of 31 nodes": tree,
    "line of 100 nodes": lambda: tree(100, line=True),
    "field on a tree of 255 nodes": field,
}


def costs(pair: Pair, compiled: bool = True) -> list[Any]:
    """What value and gradient in all arrays cost, by hand and ours."""
    by_hand, ours, args = pair
    numbers = tuple(range(1, 1 + len(args)))
    found = []
    for f in (by_hand, ours):
        lowered = jax.jit(jax.value_and_grad(f, numbers)).lower(jax.random.key(0), *args)
        found.append(measure.cost_of(lowered.compile() if compiled else lowered))
    return found
