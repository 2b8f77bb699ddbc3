"""Samples, particles and joint values a few at a time: the same numbers, or the same expectation,
and the memory of one chunk."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppl
from ppl import dist
from transforms.exact import grid
from transforms.exact.grid import over_axes

KEY = jax.random.key(0)


@ppl.gen
def coin(m):
    z = ppl.sample("z", dist.Bernoulli(logits=m))
    ppl.sample("x", dist.Normal(2.0 * z, 1.0))


@ppl.gen
def guess(m):
    ppl.sample("z", dist.Bernoulli(logits=2 * m), ppl.enum())


@ppl.gen
def network(w, x):
    z = ppl.sample("z", dist.Normal(jnp.zeros(len(x)), 1.0).to_event(1))
    ppl.sample("x", dist.Normal(jnp.tanh(w @ jnp.tanh(w @ z)), 1.0).to_event(1))


@ppl.gen
def encoder(w, x):
    ppl.sample("z", dist.Normal(w @ x, 1.0).to_event(1))


@pytest.mark.parametrize("bound", [ppl.iwelbo, lambda *a, **k: ppl.renyi(*a[:3], 0.5, a[3], **k)])
def test_the_gradient_is_that_of_all_at_once(bound, x64):
    """Enumerated, so exact: 2^4 joint values of four particles."""

    def gradient(chunk):
        f = lambda m: bound(coin(m), guess(m), {"x": 0.7}, 4, chunk=chunk)
        return ppl.expectation(f).value_and_grad(KEY, 0.3)

    np.testing.assert_allclose(gradient(2), gradient(None), rtol=1e-10)


def test_it_takes_the_memory_of_one_chunk(as_for_a_user):
    """What XLA allocates, exactly: 16 chunks, a sixth of the memory and less."""
    w, x = jnp.eye(32), jnp.ones(32)

    def memory(chunk):
        f = ppl.expectation(
            lambda w: ppl.iwelbo(network(w, x), encoder(w, x), {"x": x}, 512, chunk)
        )
        return f.explain(w).memory

    assert memory(32) < memory(None) / 6


def evidence(p, data, given, by):
    return ppl.marginal(p, list(data), by).log_density(data)


def posterior(p, data, given, by):
    """At given choices, which are one of the particles."""
    return ppl.normalize(p, data, by).log_density(given)


def exactly(m, given):
    """E[log 1/4 sum of p/q] over four draws of the guide, or three and one that is 1."""
    z = jnp.arange(2.0)
    log_p = z * m - jax.nn.softplus(m) + dist.Normal(2.0 * z, 1.0).log_prob(0.7)
    log_q = 2 * z * m - jax.nn.softplus(2 * m)
    drawn = np.array(list(itertools.product(range(2), repeat=4 - given)))
    w = (log_p - log_q)[np.pad(drawn, ((0, 0), (0, given)), constant_values=1)]
    total = jnp.exp(log_q[drawn].sum(1)) @ (jax.nn.logsumexp(w, axis=1) - jnp.log(4))
    return log_p[1] - total if given else total


exact_gradient = jax.jit(jax.value_and_grad(exactly), static_argnums=1)


@pytest.mark.parametrize("density", [evidence, posterior])
@pytest.mark.parametrize("chunk", [2, None])
def test_importance_is_exact_in_expectation(density, chunk, x64):
    def estimate(m):
        by = ppl.importance(4, guess(m), chunk)
        return density(coin(m), {"x": 0.7}, {"z": 1}, by)

    found = ppl.expectation(estimate).value_and_grad(KEY, 0.3)
    exact = exact_gradient(0.3, density is posterior)
    np.testing.assert_allclose(found, exact, rtol=1e-10)


def test_importance_takes_the_memory_of_one_chunk(as_for_a_user):
    w, x = jnp.eye(32), jnp.ones(32)

    def memory(chunk):
        by = lambda w: ppl.importance(512, encoder(w, x), chunk)
        f = lambda w: posterior(network(w, x), {"x": x}, {"z": 0.1 * x}, by(w))
        return ppl.expectation(f).explain(w).memory

    assert memory(32) < memory(None) / 6


def test_one_of_particles_in_chunks_is_drawn(x64):
    """The exact posterior proposes, so every weight is p(x), whatever is drawn."""
    p, data = coin(0.3), {"x": 0.7}
    exact = ppl.normalize(p, data, ppl.enumeration())

    @jax.jit
    def densities():
        drawn = ppl.normalize(p, data, ppl.importance(4, exact, 2)).simulate(KEY)
        return drawn.log_density, exact.log_density(drawn.choices)

    np.testing.assert_allclose(*densities(), rtol=1e-10)


@ppl.expectation(has_aux=True)
def every_estimator(m):
    a = ppl.sample("a", dist.Normal(m, 1.0))
    b = ppl.sample("b", dist.Normal(a, 1.0), ppl.reinforce("loo"))
    c = ppl.sample("c", dist.Categorical(logits=m * jnp.arange(3.0)), ppl.enum())
    d = ppl.sample("d", dist.Poisson(jnp.exp(m)), ppl.mvd())
    return a * b * m + c * d * a, {"a": a, "d": d}


def test_samples_in_chunks_are_the_mean_of_groups_with_keys_of_their_own(x64):
    """What the docstring says of keys, so a baseline of the other samples is that of a group."""
    found = every_estimator.value_and_grad(KEY, 0.3, samples=12, chunk=4)
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(3))
    groups = jax.vmap(lambda k: every_estimator.value_and_grad(k, 0.3, samples=4))(keys)
    means = jax.tree.map(lambda a: a.mean(0), groups)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found, means)
    value = every_estimator.value(KEY, 0.3, samples=12, chunk=4)
    np.testing.assert_allclose(value[0], means[0][0], rtol=1e-10)


def test_samples_take_the_memory_of_one_chunk(as_for_a_user):
    """Forwards and backwards: 100 chunks, a fiftieth of the memory and less."""
    x = jnp.ones(32)
    f = ppl.expectation(lambda w: ppl.elbo(network(w, x), encoder(w, x), {"x": x}))
    memory = lambda chunk: f.explain(jnp.eye(32), samples=10_000, chunk=chunk).memory
    assert memory(100) < memory(None) / 50


@pytest.mark.parametrize("sizes", [[2**12], [4] * 6])
def test_joint_values_take_the_memory_of_a_part(sizes, monkeypatch, as_for_a_user):
    """Of a grid that would keep more than the budget; the numbers are the same."""

    def total(w):
        point = lambda *at: jnp.sum(jnp.tanh(w @ jnp.tanh(w @ (jnp.ones(32) * sum(at)))))
        return jnp.sum(over_axes(point, sizes, frozenset(range(len(sizes)))))

    def gradient(budget):
        monkeypatch.setattr(grid, "BUDGET", budget)
        run = jax.jit(jax.grad(lambda w: total(w))).lower(0.01 * jnp.eye(32)).compile()
        return run(0.01 * jnp.eye(32)), run.memory_analysis().temp_size_in_bytes

    (all_kept, most), (again, least) = gradient(2**40), gradient(2**16)
    np.testing.assert_array_equal(all_kept, again)
    assert least < most / 10


def test_a_fit_draws_its_samples_in_chunks():
    @ppl.expectation
    def f(m):
        return -((ppl.sample("x", dist.Normal(m, 1.0), ppl.reinforce("loo")) - 1.0) ** 2)

    how: Any = {"samples": 6, "chunk": 3}
    fit = ppl.minimize(f, 0.3, optax.sgd(0.1), key=KEY, steps=1, progress=False, **how)
    value, grad = f.value_and_grad(jax.random.fold_in(KEY, 0), 0.3, **how)
    np.testing.assert_allclose(fit.history[0], value, rtol=1e-6)
    np.testing.assert_allclose(fit.params, 0.3 - 0.1 * grad, rtol=1e-6)
    player = ppl.Player(lambda own, game: f(own), optax.sgd(0.1), minimize=True)
    given: Any = {"key": KEY, "steps": 1, "progress": False, **how}
    played = ppl.play({"a": player}, {"a": 0.3}, **given)
    turn = jax.random.split(jax.random.fold_in(jax.random.fold_in(KEY, 0), 0), 1)[0]
    np.testing.assert_allclose(played.history["a"][0], f.value(turn, 0.3, **how), rtol=1e-6)


def test_noise_is_measured_and_estimators_tried_in_chunks():
    """Of one sample at a time leave-one-out has no other, and is not tried."""

    def objective(estimator):
        law = lambda m: dist.Bernoulli(logits=m)
        return ppl.expectation(lambda m: ppl.sample("x", law(m), estimator) * 1.0)

    f = objective(ppl.reinforce())
    ratio = ppl.signal_to_noise(f, KEY, 0.3, samples=4, chunk=2, n=20)
    keys = jax.random.split(KEY, (1, 20))[0]
    g = jax.vmap(lambda k: f.grad(k, 0.3, samples=4, chunk=2))(keys)
    noise = jnp.var(g, ddof=1)
    np.testing.assert_allclose(ratio, jnp.sqrt((g.mean() ** 2 - noise / 20) / noise), rtol=1e-4)
    f = objective(None)
    tune = lambda chunk: ppl.tune(f, KEY, 0.3, samples=4, chunk=chunk, budget=0.5)
    leave_one_out = ppl.reinforce("loo")
    tried = lambda chunk: [t.assignment["x"] for t in tune(chunk).tried]
    assert leave_one_out in tried(None) and leave_one_out not in tried(1)


def test_a_choice_that_is_not_finite_is_named_in_chunks_too():
    @ppl.expectation
    def f(m):
        return ppl.sample("x", dist.Normal(jnp.log(m), 1.0))

    how: Any = {"key": KEY, "steps": 1, "samples": 4, "chunk": 2, "progress": False}
    with pytest.raises(ppl.NonFiniteError, match="random choice 'x'"):
        ppl.maximize(f, -1.0, optax.sgd(0.1), **how)


def test_chunks_that_do_not_fit_are_refused():
    f = ppl.expectation(lambda m: ppl.iwelbo(coin(m), guess(m), {"x": 0.7}, 4, chunk=3))
    with pytest.raises(ValueError, match="Give a divisor of 4"):
        f.value(KEY, 0.3)
    for run in (f.value, f.grad, f.surrogate):
        with pytest.raises(ValueError, match="the 10 samples are no whole number of chunks"):
            run(KEY, 0.3, samples=10, chunk=3)
    with pytest.raises(ValueError, match="Give a divisor of 4"):
        ppl.importance(4, guess(0.3), chunk=3)
