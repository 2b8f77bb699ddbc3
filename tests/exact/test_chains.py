"""Enumerated choices of an objective that are neighbours in a chain: expectations by recursion.

Value and gradient against the sum over all joint values, in float64; and that what is computed with
grows with the length of a chain, not with the number of its joint values.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ztest
from jax import lax

import ppl
from ppl import dist
from transforms import _jax

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(3)
LENGTH = 4
PARAMS = {
    "A": RNG.normal(size=(2, 2)),
    "B": RNG.normal(size=(2, 2)),
    "q": RNG.normal(size=2),
    "w": np.array(0.6),
}
soft = lambda l: jax.nn.log_softmax(l, -1)
of = lambda logits, z: jnp.take_along_axis(soft(logits), z[..., None], -1).sum()


def late(z: Any, *start: int) -> Any:
    """The values so many steps before."""
    return jnp.concatenate([jnp.array(start), z])[: len(z)]


def pick(name: str, logits: Any) -> Any:
    law: Any = dist.Categorical(logits=logits)
    return ppl.sample(name, law, ppl.enum())


class Case(NamedTuple):
    """An objective of parameters and a length; the log probability and the payoff of its choices,
    one array of so many for each step."""

    objective: Callable[[Any, int], Any]
    density: Callable[..., Any]
    payoff: Callable[..., Any]
    each: int = 1


def second_order(p: Any, n: int) -> Any:
    def step(c: Any, t: Any) -> Any:
        z = pick("z", p["A"][c[0]] + p["B"][c[1]])
        return (c[1], z), jnp.sin(p["w"] * z * t + c[1]) * (1 + c[0])

    return jnp.sum(lax.scan(step, (0, 1), jnp.arange(1.0, n + 1))[1])


def second_order_payoff(p: Any, z: Any) -> Any:
    one, two = late(z, 1), late(z, 0, 1)
    return jnp.sum(jnp.sin(p["w"] * z * jnp.arange(1.0, len(z) + 1) + one) * (1 + two))


def mean_field(p: Any, n: int) -> Any:
    """Independent choices, that are neighbours in what they are used for."""
    z = jax.vmap(lambda t: pick("z", t * p["q"]))(jnp.arange(1.0, n + 1))
    step = lambda c, z: (z, p["A"][c, z] * jnp.tanh(p["w"] + z))
    return jnp.sum(lax.scan(step, 0, z)[1])


def mean_field_density(p: Any, z: Any) -> Any:
    return of(jnp.arange(1.0, len(z) + 1)[:, None] * p["q"], z)


def last(p: Any, n: int) -> Any:
    def step(c: Any, _: Any) -> Any:
        z = pick("z", p["A"][c[1]])
        return (c[1], z), None

    one, two = lax.scan(step, (0, 1), length=n)[0]
    return jnp.exp(p["w"] * two + one * p["q"][0])


def inside(p: Any, n: int) -> Any:
    """A plate of choices in each step, that also depends on the step before."""

    def step(c: Any, t: Any) -> Any:
        z = pick("z", p["A"][c])
        law = lambda k: p["B"][z] * k + c
        w = jax.vmap(lambda k: pick("w", law(k)))(jnp.array([1.0, 2.0]))
        return z, jnp.sum(jnp.sin(p["w"] * w + z * t))

    return jnp.sum(lax.scan(step, 0, jnp.arange(1.0, n + 1))[1])


def inside_density(p: Any, zw: Any) -> Any:
    z, w = zw[:, 0], zw[:, 1:]
    law = p["B"][z][:, None] * jnp.array([1.0, 2.0])[:, None] + late(z, 0)[:, None, None]
    return of(p["A"][late(z, 0)], z) + of(law, w)


def inside_payoff(p: Any, zw: Any) -> Any:
    z, w = zw[:, :1], zw[:, 1:]
    return jnp.sum(jnp.sin(p["w"] * w + z * jnp.arange(1.0, len(z) + 1)[:, None]))


def factorial(p: Any, n: int) -> Any:
    def step(c: Any, t: Any) -> Any:
        a, b = pick("a", p["A"][c[0]]), pick("b", p["B"][c[1]])
        return (a, b), jnp.sin(p["w"] * a * t + b) * (1 + c[0])

    return jnp.sum(lax.scan(step, (0, 1), jnp.arange(1.0, n + 1))[1])


def factorial_payoff(p: Any, ab: Any) -> Any:
    a, b = ab.T
    return jnp.sum(jnp.sin(p["w"] * a * jnp.arange(1.0, len(a) + 1) + b) * (1 + late(a, 0)))


CASES = {
    "second order": Case(
        second_order,
        lambda p, z: of(p["A"][late(z, 0, 1)] + p["B"][late(z, 1)], z),
        second_order_payoff,
    ),
    "mean field": Case(
        mean_field,
        mean_field_density,
        lambda p, z: jnp.sum(p["A"][late(z, 0), z] * jnp.tanh(p["w"] + z)),
    ),
    "last": Case(
        last,
        lambda p, z: of(p["A"][late(z, 1)], z),
        lambda p, z: jnp.exp(p["w"] * z[-1] + z[-2] * p["q"][0]),
    ),
    "inside": Case(inside, inside_density, inside_payoff, 3),
    "factorial": Case(
        factorial,
        lambda p, ab: (
            of(p["A"][late(ab[:, 0], 0)], ab[:, 0]) + of(p["B"][late(ab[:, 1], 1)], ab[:, 1])
        ),
        factorial_payoff,
        2,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_expectations_are_exact(name: str) -> None:
    objective, density, payoff, each = CASES[name]
    n = LENGTH if each < 3 else 3
    bits = np.array(list(itertools.product(range(2), repeat=n * each)))
    every = bits.reshape(-1, n, each) if each > 1 else bits

    def by_sums(p: Any) -> Any:
        one = lambda z: jnp.exp(density(p, z)) * payoff(p, z)
        return jnp.sum(jax.vmap(one)(jnp.asarray(every)))

    ours = ppl.expectation(lambda p: objective(p, n)).value_and_grad
    f = lambda p: (ours(jax.random.key(0), p), jax.value_and_grad(by_sums)(p))
    found, right = ztest.compiled(f)(jax.tree.map(jnp.asarray, PARAMS))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, right)


def largest(jaxpr: Any) -> int:
    """The elements of the largest array."""
    mine = [int(np.prod(v.aval.shape)) for eqn in jaxpr.eqns for v in eqn.outvars]
    subs = [largest(s.jaxpr) for eqn in jaxpr.eqns for s in _jax.sub_jaxprs(eqn)]
    return max([0, *mine, *subs])


@pytest.mark.parametrize("name", CASES)
def test_arrays_grow_linearly(name: str) -> None:
    """100 steps of up to 8 values of neighbours, each twice, in the gradient."""
    f = ppl.expectation(lambda p: CASES[name].objective(p, 100)).surrogate
    params = jax.tree.map(jnp.asarray, PARAMS)
    assert largest(jax.make_jaxpr(f)(jax.random.key(0), params).jaxpr) <= 100 * 2 * 8
