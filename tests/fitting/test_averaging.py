"""Fits that average their iterates, stop by themselves, and start several times."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppl
from ppl import dist

KEY = jax.random.key(0)
PARAMS = {"m": 0.0, "s": 0.5, "n": jnp.array(7)}


@ppl.expectation
def objective(p):
    x = ppl.sample("x", dist.Normal(p["m"], 1.0))
    return -((x - 2.0) ** 2) - (p["s"] - 1.0) ** 2


def fit(params=None, f=objective, optimizer=None, **kwargs):
    kwargs = {"key": KEY, "steps": 250, "progress": False, "average": 0.5, **kwargs}
    return ppl.maximize(f, PARAMS if params is None else params, optimizer or RULE, **kwargs)


RULE = optax.adam(0.1)


def same(a, b):
    parts = lambda f: (f.params, f.history, f.averaged)
    jax.tree.map(np.testing.assert_array_equal, parts(a), parts(b))


# --- averages -------------------------------------------------------------------------------------


def iterates(steps):
    """The parameters after each step of a loop by hand."""
    values = {k: jnp.asarray(PARAMS[k]) for k in ("m", "s")}
    state, found = RULE.init(values), []
    for i in range(steps):
        grads = objective.grad(jax.random.fold_in(KEY, i), {**values, "n": PARAMS["n"]})
        grads = {k: -grads[k] for k in values}
        updates, state = RULE.update(grads, state)
        values = optax.apply_updates(values, updates)
        found.append(values)
    return found


@pytest.mark.parametrize("average", [0.5, 0.25, 1.0])
def test_the_mean_of_the_last_iterates(average):
    steps, got = 12, fit(steps=12, average=average)
    last = iterates(steps)[steps - round(average * steps) :]
    for name in ("m", "s"):
        wanted = np.mean([p[name] for p in last], dtype=np.float64)
        np.testing.assert_allclose(got.averaged[name], wanted, rtol=1e-5)
    assert got.averaged["n"] == 7
    np.testing.assert_allclose(got.params["m"], last[-1]["m"], rtol=1e-5)
    assert fit(steps=2, average=None).averaged is None


def test_it_changes_nothing_else():
    plain, averaged = fit(average=None), fit()
    np.testing.assert_array_equal(plain.history, averaged.history)
    jax.tree.map(np.testing.assert_array_equal, plain.params, averaged.params)


def test_averages_go_on():
    """Also where the window began before the end of the first fit: 1,300 steps of 1,400."""
    whole = fit(steps=1400)
    for stop in (100, 600, 1300):
        part = fit(steps=stop)
        same(fit(steps=1400, state=part.state), whole)
    stopped = fit(steps=1400, callback=lambda step, p, h: step == 900)
    same(fit(steps=1400, state=stopped.state), whole)
    assert whole.state["step"] == 1400
    plain = fit(steps=200, average=None)
    same(fit(steps=400, state=plain.state), fit(steps=400))
    with pytest.raises(ValueError, match=r"begin after step 150.* Type steps=401 or more"):
        fit(steps=300, state=plain.state)


def test_inside_jit():
    got = jax.jit(lambda: fit(steps=20).averaged)()
    np.testing.assert_allclose(got["m"], fit(steps=20).averaged["m"], rtol=1e-6)
    restarts = jax.vmap(lambda m: fit({**PARAMS, "m": m}, steps=20))(jnp.arange(3.0))
    wanted = fit({**PARAMS, "m": 2.0}, steps=20)
    np.testing.assert_allclose(restarts.averaged["m"][2], wanted.averaged["m"], rtol=1e-6)
    with pytest.raises(ppl.UnsupportedError, match="tolerance cannot be used"):
        jax.jit(lambda: fit(tolerance=0.1).params)()


# --- stopping -------------------------------------------------------------------------------------


def test_a_fit_stops_by_itself():
    """The objective at the mean is -1 - (m - 2)^2 - (s - 1)^2, and the draws are the same."""
    got = fit(steps=50_000, tolerance=0.02)
    assert got.converged
    assert got.state["step"] in (1000, 2000, 4000)
    assert got.verdict.startswith("converged: from step ")
    np.testing.assert_allclose(got.averaged["m"], 2.0, atol=0.1)
    steps = got.state["step"]
    half = fit(steps=steps)
    same(half, got)
    short = fit(steps=steps - 100, tolerance=0.02)
    assert not short.converged
    assert short.verdict.startswith("not ")
    same(fit(steps=50_000, tolerance=0.02, state=short.state), got)
    never = fit(steps=600, tolerance=0.02)
    assert "fewer than 1,000" in never.verdict
    same(never, fit(steps=600))


@pytest.mark.filterwarnings("ignore:invalid value")
def test_descent_and_what_cannot_be_compared():
    f = ppl.expectation(lambda m: m**2)
    how = {"key": KEY, "steps": 4000, "tolerance": 0.02, "progress": False}
    down = ppl.minimize(f, 3.0, optax.sgd(0.01), **how)
    assert down.converged and "step 1,000 the objective" in down.verdict
    np.testing.assert_allclose(down.averaged, 0.0, atol=1e-3)
    infinite = ppl.expectation(lambda m: -jnp.inf + 0.0 * m)
    never = fit(1.0, infinite, ZEROED, steps=1000, tolerance=1.0)
    assert not never.converged and "is not finite at some of its draws" in never.verdict


ZEROED = optax.apply_if_finite(optax.sgd(0.1), 10_000)  # takes values that are not finite
FALLING = ppl.expectation(lambda m: -jnp.abs(m))
WRONG = optax.chain(optax.sgd(0.001), optax.scale(-1.0))  # ascends where it should descend


def test_where_it_falls_the_updates_are_made_smaller():
    got = fit(1.0, FALLING, WRONG, steps=2500, tolerance=0.02)
    assert not got.converged
    assert "lost" in got.verdict and "multiplied by 0.0625" in got.verdict
    # 1,000 steps at .001, 1,000 at a quarter of it, 500 at a sixteenth
    np.testing.assert_allclose(got.params, 1.0 + 1.0 + 0.25 + 0.5 / 16, rtol=1e-4)
    part = fit(1.0, FALLING, WRONG, steps=1300, tolerance=0.02)
    same(fit(1.0, FALLING, WRONG, steps=2500, tolerance=0.02, state=part.state), got)


def test_checkpoints_of_averages_and_checks(tmp_path):
    """Killed at any visit to the host: between two files, or before the first."""
    path = tmp_path / "fit.npz"
    how = {"params": 1.0, "f": FALLING, "optimizer": WRONG, "steps": 2300, "tolerance": 1e-9}

    class Killed(Exception):
        pass

    whole = fit(**how)
    for at in (100, 500, 1100, 2200):

        def kill(step, params, history, at=at):
            if step == at:
                raise Killed

        with pytest.raises(Killed):
            fit(checkpoint=path, callback=kill, **how)
    resumed = fit(checkpoint=path, **how)
    same(resumed, whole)
    assert resumed.verdict == whole.verdict
    same(fit(checkpoint=path, **how), whole)
    with pytest.raises(ValueError, match=r"What differs: tolerance .here 0\.1"):
        fit(checkpoint=path, **{**how, "tolerance": 0.1})
    other = tmp_path / "other.npz"
    fit(steps=300, checkpoint=other)
    with pytest.warns(UserWarning, match="begin after step 200 now that steps is 400"):
        same(fit(steps=400, checkpoint=other), fit(steps=400))


def test_a_second_fit_traces_once():
    """To look for baselines; so neither steps nor checks are compiled again, for any number."""
    traces = []

    @ppl.expectation
    def f(m):
        traces.append(1)
        return -((m - ppl.sample("x", dist.Normal(0.0, 1.0))) ** 2)

    for how in ({"tolerance": 1e-9}, {"tolerance": 1e-9, "restarts": 2}):
        start = jnp.arange(2.0) if "restarts" in how else 0.0
        fit(start, f, optax.sgd(0.01), steps=1100, **how)
        for steps in (1, 37, 900):
            traces.clear()
            got = fit(start + 1.0, f, optax.sgd(0.01), steps=steps, key=jax.random.key(1), **how)
            assert len(traces) == 1
    assert repr(got).startswith("Fit(params=") and repr(got).endswith(got.verdict)


# --- restarts -------------------------------------------------------------------------------------


@ppl.expectation
def two_tops(p):
    """Tops at 2 (of 0) and at -2 (of -1); no number beyond 50."""
    x = ppl.sample("x", dist.Normal(p["m"], 0.01))
    top = -jnp.minimum((x - 2.0) ** 2, (x + 2.0) ** 2 + 1.0)
    return top + 0.0 * jnp.sqrt(50.0 - p["m"])


STARTS = jnp.array([-3.0, 60.0, 3.0, -1.0])


def test_the_best_of_several_starts():
    starts = {"m": STARTS}
    got = fit(starts, two_tops, steps=400, restarts=4)
    np.testing.assert_allclose(got.params["m"], 2.0, atol=0.02)
    np.testing.assert_allclose(got.averaged["m"], 2.0, atol=0.02)
    np.testing.assert_allclose(got.restarts, [-1.0, np.nan, 0.0, -1.0], atol=0.02)
    alone = fit({"m": 3.0}, two_tops, steps=400)
    np.testing.assert_allclose(got.history, alone.history, rtol=1e-5, atol=1e-6)
    assert got.history.shape == (400,)
    longer = fit(got.params, two_tops, steps=500, state=got.state)
    np.testing.assert_allclose(longer.history[:400], got.history, rtol=1e-5, atol=1e-6)
    by_key = fit(lambda key: {"m": jax.random.normal(key)}, two_tops, steps=400, restarts=4)
    np.testing.assert_allclose(by_key.restarts.max(), 0.0, atol=0.02)
    with pytest.raises(ppl.UnsupportedError, match=r"\[3, \.\.\.\]"):
        fit(starts, two_tops, restarts=3)
    with pytest.raises(ppl.NonFiniteError, match="the objective two_tops"):
        fit({"m": jnp.full(4, 60.0)}, two_tops, steps=400, restarts=4)


def test_restarts_go_on_from_a_file(tmp_path):
    path, how = tmp_path / "fit.npz", {"restarts": 4, "tolerance": 1e-9}
    fit({"m": STARTS}, two_tops, steps=700, checkpoint=path, **how)
    got = fit({"m": STARTS}, two_tops, steps=2000, checkpoint=path, **how)
    same(got, fit({"m": STARTS}, two_tops, steps=2000, **how))


# --- metrics --------------------------------------------------------------------------------------


def test_callbacks_see_metrics():
    f = ppl.expectation(lambda m, x: (-(m**2) * x, {"x": x, "n": 2}), has_aux=True)
    seen = []
    batches = [np.float32(i) for i in range(150)]
    callback = lambda step, params, history, metrics: seen.append(
        (step, float(metrics["x"]), float(metrics["n"]))
    )
    fit(0.0, f, steps=150, batches=batches, callback=callback)
    assert seen == [(100, 49.5, 2.0), (150, 124.5, 2.0)]
    with pytest.raises(ppl.UnsupportedError, match="auxiliary data of the objective, which has no"):
        fit(callback=callback)
