"""The steps after those that are known are drawn from the program, given these."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ztest

import ppl
from ppl import dist

KEY = jax.random.key(0)
DECAY, MOVES, NOISE = 0.8, 0.7, 0.5


@ppl.gen
def walk(t):
    def step(x, _):
        x = ppl.sample("x", dist.Normal(DECAY * x, MOVES))
        ppl.sample("y", dist.Normal(x, NOISE))
        return x, None

    jax.lax.scan(step, 0.0, length=t)


@ppl.gen
def panel(t):
    def series(_):
        def step(x, _):
            x = ppl.sample("x", dist.Normal(DECAY * x, MOVES))
            return x, None

        jax.lax.scan(step, 0.0, length=t)

    jax.vmap(series)(jnp.arange(3))


@ppl.gen
def hmm(t, p):
    def step(z, _):
        z = ppl.sample("z", dist.Bernoulli(jnp.where(z == 1, 0.7, p)), ppl.enum())
        ppl.sample("y", dist.Normal(2.0 * z, 1.0))
        return z, None

    jax.lax.scan(step, 0, length=t)


@ppl.gen
def ended(t):
    def step(x, _):
        x = ppl.sample("x", dist.Normal(x, 1.0))
        return x, None

    ppl.sample("end", dist.Normal(jax.lax.scan(step, 0.0, length=t)[0], 1.0))


@ppl.gen
def weighed(t, step_by_step):
    def step(x, _):
        x = ppl.sample("x", dist.Normal(x, 1.0))
        if step_by_step:
            ppl.factor("w", -(x**2))
        return x, None

    x = jax.lax.scan(step, 0.0, length=t)[0]
    if not step_by_step:
        ppl.observe("w", dist.Normal(x, 1.0), 0.3)


@ppl.gen
def one_draw():
    ppl.sample("x", dist.Normal(jnp.zeros(3), 1.0))


@pytest.mark.parametrize("program", [walk, panel])
def test_known_steps_stay_and_weigh_their_density(program):
    """In a ``scan``, and one inside of a ``vmap``; what comes after is drawn."""
    before = program(3).simulate(KEY).choices
    ahead = ppl.forecast(program(5), before, KEY)
    whole = jax.tree.map(lambda a, b: jnp.concatenate([a, b], -1), before, ahead)
    some = jax.tree.map(lambda a: a.at[..., 3:].set(jnp.nan), whole)
    seen = jnp.arange(5) < 3
    seen = {"x": jnp.broadcast_to(seen, whole["x"].shape), "y": seen}
    known = {a: ppl.partly(v, seen[a]) for a, v in some.items()}
    trace, weight = program(5).generate(known, KEY)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)  # known exactly, but for jit
    jax.tree.map(close, trace.choices, whole)
    np.testing.assert_allclose(weight, program(3).log_density(before), rtol=1e-5)
    np.testing.assert_allclose(trace.log_density, program(5).log_density(whole), rtol=1e-5)


def test_elements_of_a_vmap_that_are_known():
    at = jnp.array([0, 2])
    rows = panel(4).simulate(KEY)["x"]
    seen = jnp.zeros(3, bool).at[at].set(True)
    trace, weight = panel(4).generate({"x": ppl.partly(rows, seen)}, jax.random.key(1))
    np.testing.assert_array_equal(trace["x"][at], rows[at])
    assert jnp.all(trace["x"][1] != rows[1])
    density = panel(4).log_densities({"x": rows}, plates=True)["x"]
    np.testing.assert_allclose(weight, density[at].sum(), rtol=1e-5)


def test_an_expectation_of_the_future_and_its_derivative():
    """Exactly, by enumeration: z is 0, 1, then 1 with .7, then with .7² + .3 p."""

    @ppl.expectation
    def later(p):
        z = ppl.forecast(hmm(4, p), {"z": jnp.array([0, 1]), "y": jnp.array([0.1, 1.8])})["z"]
        return z[0] + 2.0 * z[1]

    value, slope = later.value_and_grad(KEY, 0.1)
    np.testing.assert_allclose(value, 0.7 + 2.0 * (0.49 + 0.3 * 0.1), rtol=1e-5)
    np.testing.assert_allclose(slope, 0.6, rtol=1e-5)


def test_after_exact_draws_of_an_hmm_it_is_the_filter_ahead():
    p, y = 0.2, jnp.array([0.3, 1.5, 1.9])
    moves = np.array([[1 - p, p], [0.3, 0.7]])
    chances = np.array([1.0, 0.0])
    for seen in np.asarray(y):
        chances = chances @ moves * np.exp(-0.5 * (seen - 2.0 * np.arange(2)) ** 2)
        chances /= chances.sum()
    exact = [(chances @ moves)[1], (chances @ moves @ moves)[1]]
    posterior = ppl.normalize(hmm(3, p), {"y": y}, by=ppl.enumeration())

    def ahead(key):
        draw, later = jax.random.split(key)
        z = posterior.simulate(draw).choices
        return ppl.forecast(hmm(5, p), ppl.merge(z, {"y": y}), later)["z"].astype(float)

    ztest.check(ahead, jnp.array(exact), n=4_000)


def test_after_a_fitted_guide_it_is_the_kalman_filter_ahead():
    """The guide of one step is the posterior; mean and second moment of what is observed next."""
    seen = 1.2
    gain = MOVES**2 / (MOVES**2 + NOISE**2)
    mean, variance = gain * seen, (1 - gain) * MOVES**2

    @ppl.gen
    def guide(_):
        ppl.sample("x", dist.Normal(mean * jnp.ones(1), jnp.sqrt(variance)))

    fit = types.SimpleNamespace(params={}, averaged=None)
    posterior = ppl.Posterior(walk(1), {"y": jnp.array([seen])}, guide, fit, KEY)
    n = 20_000
    y = np.asarray(posterior.forecast(KEY, walk(3), n)["y"], np.float64)
    assert y.shape == (n, 2)
    for i in range(2):
        mean, variance = DECAY * mean, DECAY**2 * variance + MOVES**2
        square = variance + NOISE**2
        z = (y[:, i].mean() - mean) / np.sqrt(square / n)
        assert abs(z) < 4.3  # false alarm: 1.7e-5 for each of four
        z = (np.var(y[:, i]) - square) / (square * np.sqrt(2 / n))
        assert abs(z) < 4.3


def test_what_cannot_be_forecast_is_refused():
    pair, three = {"x": jnp.zeros(3), "y": jnp.zeros(3)}, jnp.zeros(3)
    part = ppl.partly(three, jnp.array([True, False, True]))
    with pytest.raises(ppl.AddressError, match=r"'x' \(.*gets no value of it"):
        ppl.forecast(walk(5), {"y": three}, KEY)
    with pytest.raises(ppl.ShapeError, match="nothing of walk is left to forecast"):
        ppl.forecast(walk(3), pair, KEY)
    for steps in (2, 4, 5):
        with pytest.raises(ppl.ShapeError, match=r"values for \d steps .* for others"):
            ppl.forecast(walk(5), pair | {"y": jnp.zeros(steps)}, KEY)
    with pytest.raises(ppl.UnsupportedError, match=r"'end' \(.*stands after the scan of 'x'"):
        ppl.forecast(ended(5), {"x": three, "end": 1.0}, KEY)
    for step_by_step in (True, False):
        with pytest.raises(ppl.UnsupportedError, match=r"the weight 'w' \(.*at steps to come"):
            ppl.forecast(weighed(5, step_by_step), {"x": three}, KEY)
    with pytest.raises(ppl.UnsupportedError, match="elements of one draw"):
        one_draw().generate({"x": part}, KEY)
    with pytest.raises(ppl.UnsupportedError, match="known by its density alone"):
        ppl.marginal(walk(3), "y").generate({"y": part}, KEY)
