"""What the soundness checker costs: tests of slices, counted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from soundness_alarms import (
    clipped,
    huber,
    implicit_derivative,
    leaky,
    root_of_a_lognormal,
)

import ppl
from ppl import dist
from transforms.checker import cures
from transforms.checker.findings import NOT_LOOKED_AT
from transforms.numeric import run as numeric
from transforms.smoothness import continuity, slices

PATHWISE = ppl.reparam()


def network(activation, depth, t, width=8):
    rng = np.random.default_rng(0)
    h = ppl.sample("x", dist.Normal(t * jnp.ones(width), 1.0), PATHWISE)
    for _ in range(depth):
        h = activation(h @ rng.normal(size=(width, width)).astype(np.float32) / 3.0 + 0.1)
    return h.sum()


def recurrent(activation, depth, t, width=8):
    mix = np.random.default_rng(0).normal(size=(2 * width, width)).astype(np.float32) / 4.0
    xs = ppl.sample("x", dist.Normal(t * jnp.ones((depth, width)), 1.0), PATHWISE)
    step = lambda h, x: (activation(jnp.concatenate([h, x]) @ mix), huber(h))
    h, ys = jax.lax.scan(step, jnp.zeros(width), xs)
    return h.sum() + ys.sum()


def questions(objective) -> int:
    """How many tests of a slice are computed while the gradient is traced."""
    continuity._passed.cache_clear()
    objective.explain(0.3)
    return continuity._passed.cache_info().misses


@pytest.mark.parametrize("activation", [leaky, clipped, huber], ids=lambda f: f.__name__)
def test_layers_that_are_alike_are_asked_about_once(activation):
    for model in (network, recurrent):
        f = ppl.expectation(functools.partial(model, activation, 50), strict=True)
        assert questions(f) <= 6


def test_slices_do_not_grow_with_depth(monkeypatch):
    """However many layers there are, each is evaluated by itself, once."""
    sizes = []
    passed = continuity._passed

    def count(question):
        sizes.append(len(question.args[2]))
        return passed(question)

    monkeypatch.setattr(continuity, "_passed", count)
    ppl.expectation(functools.partial(network, leaky, 50)).explain(0.3)
    assert len(sizes) == 50 and max(sizes) <= 8


def slopes(activation, depth, t, width=8):
    """The derivative of a network inside the objective."""
    x = ppl.sample("x", dist.Normal(t * jnp.ones(width), 1.0), PATHWISE)
    rng = np.random.default_rng(0)
    mixes = [rng.normal(size=(width, width)).astype(np.float32) / 3.0 for _ in range(depth)]
    net = lambda x: functools.reduce(lambda h, m: activation(h @ m + 0.1), mixes, x).sum()
    return jnp.sum(jax.grad(net)(x) ** 2)


def attention(depth, t):
    h = ppl.sample("x", dist.Normal(t * jnp.ones((5, 8)), 1.0), PATHWISE)
    rng = np.random.default_rng(0)
    for _ in range(depth):
        s = h @ rng.normal(size=(8, 8)).astype(np.float32) @ h.T
        e = jnp.exp(s - jax.lax.stop_gradient(s.max(-1, keepdims=True)))
        h = h + jnp.tanh((e / e.sum(-1, keepdims=True)) @ h)
    return h.sum()


EXPENSIVE = {
    "Newton": root_of_a_lognormal,
    "implicit derivative": implicit_derivative,
    "slopes of leaky relus": functools.partial(slopes, leaky, 30),
    "slopes of wide leaky relus": functools.partial(slopes, leaky, 10, width=64),
    "divisions by a norm": functools.partial(network, lambda x: x / jnp.linalg.norm(x), 20),
    "divisions by x": functools.partial(network, lambda x: jnp.tanh(x**2 / x), 20),
    "attention by hand": functools.partial(attention, 10),
}


@pytest.mark.parametrize("name", EXPENSIVE)
def test_what_is_spent_is_bounded(name, monkeypatch):
    """By the budget, of 2,000 equations; nothing that is asked is left to XLA."""
    budgets = []
    monkeypatch.setattr(cures, "Budget", lambda: budgets.append(slices.Budget()) or budgets[-1])
    compiled = lambda *_: pytest.fail("compiled by JAX")
    monkeypatch.setattr(numeric, "_by_jax", compiled)
    continuity._passed.cache_clear()
    ppl.expectation(EXPENSIVE[name]).explain(0.3)
    for budget in budgets:
        assert sum(q.cost for q in budget.paid) == 2000 - budget.left <= 2000
    assert any(budget.paid for budget in budgets)


def test_a_question_is_paid_for_once():
    budget = slices.Budget(10)
    assert budget.spend(6, "a") and budget.spend(6, "a")
    assert not budget.spend(6, "b")


def test_attention_by_hand_is_asked_about_once_in_all_layers():
    assert questions(ppl.expectation(functools.partial(attention, 10), strict=True)) <= 2


def test_a_budget_bounds_what_is_asked_of_jumps(monkeypatch):
    """All jumps are reported; of some it is said that they were looked at from nearby only."""
    monkeypatch.setattr(cures, "Budget", lambda: slices.Budget(20))
    jump = lambda x: jnp.where(x > 0, x, 0.1 * x - 0.1)
    f = ppl.expectation(functools.partial(network, jump, 12))
    assert questions(f) <= 3
    assert any(NOT_LOOKED_AT in found.message for found in f.explain(0.3).findings)
