"""The most probable choices and the probability of each, against all joint values, in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ppl
from ppl import dist

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(3)
ROWS = RNG.normal(size=(3, 3))
ROWS[0, 2] = ROWS[2, 0] = -np.inf  # transitions that cannot be
MEANS = np.array([-0.5, 0.4, 1.2])


@ppl.gen
def hmm(t):
    def step(z, _):
        z = ppl.sample("z", dist.Categorical(logits=jnp.array(ROWS)[z]))
        ppl.sample("y", dist.Normal(jnp.array(MEANS)[z], 1.0))
        return z, None

    lax.scan(step, 0, length=t)


@ppl.gen
def mixture(n):
    k = ppl.sample("k", dist.Bernoulli(0.4))

    def element():
        z = ppl.sample("z", dist.Categorical(jnp.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])[k]))
        ppl.sample("y", dist.Normal(jnp.array(MEANS)[z] + k, 0.8))

    jax.vmap(element, axis_size=n)()


@ppl.gen
def vector():
    b = ppl.sample("b", dist.Bernoulli(jnp.array([0.2, 0.6, 0.7])).to_event(1))
    c = ppl.sample("c", dist.Categorical(jnp.array([0.3, 0.7])))
    ppl.sample("y", dist.Normal(b[0] * b[1] - b[2] + c, 0.5))


@ppl.gen
def branches():
    a = ppl.sample("a", dist.Bernoulli(0.45))

    def yes():
        return 1.0 * ppl.sample("z", dist.Categorical(jnp.array([0.3, 0.1, 0.6])))

    m = lax.cond(a == 1, yes, lambda: 0.7)
    ppl.sample("y", dist.Normal(m, 0.6))


@ppl.gen
def nested():
    ppl.sample("first", mixture(2))
    ppl.sample("second", hmm(3))


@ppl.gen
def chains():
    """A chain with a plate in every step, and a masked choice."""

    def step(z, _):
        z = ppl.sample("z", dist.Bernoulli(logits=2.0 * z - 0.8))

        def word():
            w = ppl.sample("w", dist.Bernoulli(logits=z - 0.3))
            ppl.sample("x", dist.Normal(w + z, 0.7))

        jax.vmap(word, axis_size=2)()
        return z, None

    lax.scan(step, 0, length=3)
    ppl.sample("hidden", dist.Categorical(jnp.array([0.2, 0.8])).mask(False))


@ppl.gen
def two_orders():
    """Two chains that are seen together, one of the second order with transitions that cannot be,
    and what is seen of the last states."""

    def step(c, _):
        law = jnp.array(ROWS)[c[0]] + jnp.array(ROWS)[c[1]]
        z = ppl.sample("z", dist.Categorical(logits=law))
        w = ppl.sample("w", dist.Bernoulli(jnp.array([0.3, 0.8])[c[2]]))
        ppl.sample("y", dist.Normal(jnp.array(MEANS)[z] * (1 + w), 1.0))
        return (c[1], z, w), None

    one, two, w = lax.scan(step, (0, 0, 1), length=4)[0]
    ppl.sample("end", dist.Normal(one - two + 0.5 * w, 1.0))


@ppl.gen
def spread():
    """The more probable k is not that of the most probable pair."""
    k = ppl.sample("k", dist.Bernoulli(0.6))
    z = ppl.sample("z", dist.Categorical(jnp.array([[1.0, 0.0], [0.5, 0.5]])[k]))

    def step(x, _):
        x = ppl.sample(
            "x", dist.Categorical(jnp.array([[0.4, 0.3, 0.3], *[[0.5, 0.5, 0.0]] * 2])[x])
        )
        return x, None

    lax.scan(step, z * 0, length=3)


class Case(NamedTuple):
    """A program, its data, the shape and the number of values of each free choice."""

    program: Any
    data: dict[str, Any]
    free: dict[tuple[str, ...], tuple[tuple[int, ...], int]]


Y = RNG.normal(size=6) + 0.5
CASES = {
    "hmm": Case(hmm(5), {"y": Y[:5]}, {("z",): ((5,), 3)}),
    "two orders": Case(
        two_orders(), {"y": Y[:4], "end": 0.8}, {("z",): ((4,), 3), ("w",): ((4,), 2)}
    ),
    "mixture": Case(mixture(4), {"y": Y[:4]}, {("k",): ((), 2), ("z",): ((4,), 3)}),
    "vector": Case(vector(), {"y": 0.9}, {("b",): ((3,), 2), ("c",): ((), 2)}),
    "spread": Case(spread(), {}, {("k",): ((), 2), ("z",): ((), 2), ("x",): ((3,), 3)}),
    "part of the data": Case(mixture(3), {"y": Y[:3], "k": 1}, {("z",): ((3,), 3)}),
    "nested": Case(
        nested(),
        {"first": {"y": Y[:2]}, "second": {"y": Y[2:5]}},
        {("first", "k"): ((), 2), ("first", "z"): ((2,), 3), ("second", "z"): ((3,), 3)},
    ),
    "chain with plates": Case(
        chains(),
        {"x": Y.reshape(3, 2), "hidden": 1},
        {("z",): ((3,), 2), ("w",): ((3, 2), 2)},
    ),
}


def nest(values):
    out: dict[str, Any] = {}
    for address, value in values.items():
        at = out
        for name in address[:-1]:
            at = at.setdefault(name, {})
        at[address[-1]] = value
    return out


def by_brute_force(case):
    """The values and the log density of all joint choices, by address: ``[n, *shape]``."""
    parts = [itertools.product(range(k), repeat=math.prod(s)) for s, k in case.free.values()]
    joint = [np.concatenate([np.array(p, int) for p in ps]) for ps in itertools.product(*parts)]
    sizes = np.cumsum([math.prod(s) for s, _ in case.free.values()])[:-1]
    columns = np.split(np.stack(joint), sizes, axis=1)
    values = {
        a: c.reshape(-1, *s) for (a, (s, _)), c in zip(case.free.items(), columns, strict=True)
    }
    one = lambda v: case.program.log_density(ppl.merge(nest(v), case.data))
    return values, np.asarray(jax.jit(jax.vmap(one))(values))


@pytest.mark.parametrize("name", CASES)
def test_against_all_joint_values(name):
    case = CASES[name]
    values, log_p = by_brute_force(case)
    both = lambda data: (ppl.most_likely(case.program, data), ppl.marginals(case.program, data))
    best, found = jax.device_get(jax.jit(both)(case.data))
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    first = int(np.argmax(log_p))
    expected = nest({a: v[first] for a, v in values.items()})
    assert jax.tree.structure(best) == jax.tree.structure(expected)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), best, expected))
    probabilities = nest(
        {
            a: np.stack([np.tensordot(p, v == k, 1) for k in range(case.free[a][1])], -1)
            for a, v in values.items()
        }
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, probabilities
    )


def test_a_choice_in_a_branch():
    decode = jax.jit(lambda y: [f(branches(), {"y": y}) for f in (ppl.most_likely, ppl.marginals)])
    normal = lambda m: np.exp(-(((1.8 - m) / 0.6) ** 2) / 2)
    taken = 0.45 * np.array([0.3, 0.1, 0.6]) * normal(np.arange(3.0))
    absent = 0.55 * normal(0.7)
    best, found = decode(1.8)
    total = taken.sum() + absent
    np.testing.assert_allclose(found["z"], taken / total, rtol=1e-9)  # the rest: it is absent
    np.testing.assert_allclose(found["a"], [absent / total, taken.sum() / total], rtol=1e-9)
    assert (int(best["a"]), int(best["z"])) == (1, 2)
    # absent: its values share no probability, so that one joint value outweighs each of the others
    assert int(decode(0.7)[0]["a"]) == 0
    assert absent > 0 and int(decode(1.3)[0]["a"]) == int(
        0.45 * max(np.array([0.3, 0.1, 0.6]) * np.exp(-(((1.3 - np.arange(3)) / 0.6) ** 2) / 2))
        > 0.55 * np.exp(-((0.6 / 0.6) ** 2) / 2)
    )


def test_long_chains_jit_and_vmap():
    t = 200
    y = np.stack([RNG.normal(size=t), RNG.normal(size=t) + 1.0])

    @jax.jit
    @jax.vmap
    def decode(y):
        g, data = hmm(t), {"y": y}
        return ppl.most_likely(g, data)["z"], ppl.marginals(g, data)["z"]

    paths, probabilities = decode(y)
    for i in range(2):
        rows = jax.nn.log_softmax(ROWS, -1)
        emit = -((y[i][:, None] - MEANS) ** 2) / 2
        score, back = rows[0] + emit[0], []
        ahead, behind = [rows[0] + emit[0]], [np.zeros(3)]
        for e in emit[1:]:
            pairs = score[:, None] + rows + e
            back.append(pairs.argmax(0))
            score = pairs.max(0)
            ahead.append(np.logaddexp.reduce(ahead[-1][:, None] + rows, axis=0) + e)
        for e in emit[:0:-1]:
            behind.append(np.logaddexp.reduce(rows + e + behind[-1], axis=1))
        path = [int(score.argmax())]
        for b in back[::-1]:
            path.append(int(b[path[-1]]))
        np.testing.assert_array_equal(paths[i], path[::-1])
        both = np.stack(ahead) + np.stack(behind[::-1])
        expected = np.exp(both - np.logaddexp.reduce(both, axis=1, keepdims=True))
        np.testing.assert_allclose(probabilities[i], expected, rtol=1e-8, atol=1e-12)


def test_what_is_refused():
    @ppl.gen
    def continuous():
        z = ppl.sample("z", dist.Bernoulli(0.3))
        ppl.sample("x", dist.Normal(1.0 * z, 1.0))

    @ppl.gen
    def large():
        z = ppl.sample("z", dist.Bernoulli(jnp.full(30, 0.3)))
        ppl.factor("w", jnp.prod(z + 0.5))

    for f in (ppl.most_likely, ppl.marginals):
        with pytest.raises(ppl.UnsupportedError, match=r"'x' at .*test_decoding.py:\d+.* finite"):
            f(continuous(), {})
        with pytest.raises(ppl.UnsupportedError, match=rf"{f.__name__} needs too many joint"):
            f(large(), {})
        with pytest.raises(ppl.UnsupportedError, match="needs a @ppl"):
            f(ppl.normalize(continuous(), {"x": 0.0}), {})
        with pytest.raises(ppl.AddressError, match="no choice at address 'w'"):
            f(continuous(), {"x": 0.0, "w": 1})
        with pytest.raises(ppl.SupportError, match="has probability 0"):
            f(continuous(), {"x": np.inf})
