"""What the soundness checker costs: tests of slices, counted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from soundness_alarms import clipped, huber, leaky

import ppl
from ppl import dist
from transforms import continuity, cures, slices
from transforms.findings import NOT_LOOKED_AT

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


def test_a_budget_bounds_what_is_asked_of_jumps(monkeypatch):
    """All jumps are reported; of some it is said that they were looked at from nearby only."""
    monkeypatch.setattr(cures, "Budget", lambda: slices.Budget(20))
    jump = lambda x: jnp.where(x > 0, x, 0.1 * x - 0.1)
    f = ppl.expectation(functools.partial(network, jump, 12))
    assert questions(f) <= 3
    assert any(NOT_LOOKED_AT in found.message for found in f.explain(0.3).findings)
