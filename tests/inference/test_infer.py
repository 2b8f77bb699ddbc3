"""Posteriors against exact ones, where everything is normal."""

import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppl
from ppl import dist

KEY = jax.random.key(0)
SIGMA = np.array([[1.0, 0.9], [0.9, 1.0]])
N = 4_000


@ppl.gen
def model(scale):
    """y given x is N(scale (x0 + x1), 1); ``two`` follows it."""
    x = ppl.sample("x", dist.MultivariateNormal(jnp.zeros(2), jnp.array(SIGMA)))
    y = ppl.sample("y", dist.Normal(scale * x.sum(), 1.0))
    ppl.sample("two", dist.Normal(jnp.stack([y, -y]), 0.5))


Y = {"y": 1.5, "two": np.array([1.5, -1.5])}
GAIN = SIGMA.sum(1) / (SIGMA.sum() + 1.0)
MEAN, COVARIANCE = GAIN * 1.5, SIGMA - np.outer(GAIN, SIGMA.sum(0))


@pytest.fixture(scope="module")
def mean_field():
    return ppl.infer(model(1.0), Y, key=KEY)


@pytest.fixture(scope="module")
def full_rank():
    return ppl.infer(model(1.0), Y, key=KEY, guide=ppl.guides.full_rank, restarts=2)


def log_evidence():
    y = -0.5 * (math.log(2 * math.pi * (SIGMA.sum() + 1)) + 1.5**2 / (SIGMA.sum() + 1))
    return y - math.log(2 * math.pi * 0.25)


def near(draws, mean, covariance, slack=0.0):
    """Means within 4.5 standard errors and ``slack`` sd: false alarms below 1e-5 a number."""
    draws = np.asarray(draws, np.float64)
    sd = np.sqrt(np.diagonal(np.atleast_2d(covariance)))
    bound = (4.5 / math.sqrt(len(draws)) + slack) * sd
    assert np.all(np.abs(draws.mean(0) - mean) < bound)
    error = 4.5 * math.sqrt(2 / len(draws)) + slack
    np.testing.assert_allclose(draws.var(0), sd**2, rtol=error)


def test_a_mean_field_posterior(mean_field):
    """Its variances are 1 over the diagonal of the precision; log det is what it loses."""
    precision = np.linalg.inv(COVARIANCE)
    loss = 0.5 * (np.log(np.diagonal(precision)).sum() + np.linalg.slogdet(COVARIANCE)[1])
    assert mean_field.fit.converged
    exact = log_evidence() - loss
    assert abs(mean_field.elbo - exact) < 4.5 * mean_field.elbo_error + 0.02
    assert 0 < mean_field.elbo_error < 0.03
    near(mean_field.sample(KEY, N)["x"], MEAN, np.diag(1 / np.diagonal(precision)), 0.1)


def test_a_full_rank_posterior(full_rank):
    assert abs(full_rank.elbo - log_evidence()) < 4.5 * full_rank.elbo_error + 0.02
    near(full_rank.sample(KEY, N)["x"], MEAN, COVARIANCE, 0.05)
    assert full_rank.k_hat < 0.5
    assert full_rank.ess > 3_500
    assert full_rank.fit.restarts.shape == (2,)


def test_draws_are_compiled_once(mean_field):
    """For any number of them, and for what is diagnosed: the program is not traced again."""
    mean_field.sample(KEY, 3)
    traced, density = [], type(mean_field.model).log_density
    with pytest.MonkeyPatch.context() as patch:
        counted = lambda g, choices: traced.append(g) or density(g, choices)
        patch.setattr(type(mean_field.model), "log_density", counted)
        assert mean_field.sample(KEY, 250)["x"].shape == (250, 2)
        assert mean_field.sample(KEY, 5, corrected=True)["x"].shape == (5, 2)
        assert mean_field.k_hat == mean_field.k_hat and not traced
        mean_field.model.log_density({"x": jnp.zeros(2), "y": 0.0, "two": jnp.zeros(2)})
        assert len(traced) == 1


def test_corrected_draws(mean_field):
    """The correlation that the guide has not; 4 N draws of about half as many effective ones."""
    plain = np.corrcoef(np.asarray(mean_field.sample(KEY, N)["x"]).T)[0, 1]
    draws = np.asarray(mean_field.sample(KEY, N, corrected=True)["x"])
    exact = COVARIANCE[0, 1] / COVARIANCE[0, 0]
    assert abs(plain) < 0.08
    assert abs(np.corrcoef(draws.T)[0, 1] - exact) < 0.05
    near(draws, MEAN, COVARIANCE, 0.05)


def test_predictions(full_rank):
    """Of new arguments, of what the posterior does not fix."""
    got = full_rank.predict(KEY, model(-2.0), N)
    assert set(got) == {"y", "two"} and got["two"].shape == (N, 2)
    y_mean, y_variance = -2.0 * MEAN.sum(), 4.0 * COVARIANCE.sum() + 1.0
    near(np.asarray(got["y"])[:, None], y_mean, y_variance, 0.05)
    near(np.asarray(got["two"])[:, :1], y_mean, y_variance + 0.25, 0.05)
    given = np.asarray(full_rank.predict(KEY, model(-2.0), 7, corrected=True)["two"])
    assert given.shape == (7, 2)

    @ppl.gen
    def other():
        ppl.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ppl.ShapeError, match=r"'x' .* says nothing of new ones"):
        full_rank.predict(KEY, other(), 3)

    @ppl.gen
    def without():
        ppl.sample("new", dist.Normal(0.0, 1.0))

    with pytest.raises(ppl.AddressError, match=r"'x'.* draws new ones beside it, at another addr"):
        full_rank.predict(KEY, without(), 3)


def test_a_guide_that_misses_says_so():
    """Normal guides of sd .3 for twenty Cauchy choices: Pareto shape far above 1."""

    @ppl.gen
    def heavy():
        ppl.sample("x", dist.Cauchy(jnp.zeros(20), 1.0))

    @ppl.gen
    def guide(p):
        ppl.sample("x", dist.Normal(jnp.full(20, p), 0.3))

    got = ppl.infer(heavy(), {}, key=KEY, guide=(guide, 0.5), steps=200, tolerance=None)
    assert got.k_hat > 1.0
    assert "above 0.7: the guide misses" in repr(got)
    with pytest.warns(ppl.SoundnessWarning, match="corrected draws .* cannot be trusted"):
        got.sample(KEY, 10, corrected=True)
    assert got.fit.converged is None
    with pytest.raises(ppl.UnsupportedError, match="Give a maker of guides"):
        ppl.infer(heavy(), {}, key=KEY, guide=guide(0.0))


def test_a_shape_that_is_too_large_reads_so(mean_field, monkeypatch):
    for k, text in ((0.7003, "k_hat 0.71, above 0.7"), (0.6998, "k_hat 0.70, fair")):
        monkeypatch.setattr(type(mean_field), "k_hat", k)
        assert mean_field.verdict.startswith(text)


def test_a_point_is_no_posterior(tmp_path):
    how = {"optimizer": optax.adam(0.02), "tolerance": None, "checkpoint": tmp_path / "fit.npz"}
    got = ppl.infer(model(1.0), Y, key=KEY, guide=ppl.guides.map, steps=1_000, **how)
    assert got.fit.history.shape == (1_000,) and how["checkpoint"].exists()
    np.testing.assert_allclose(got.sample(KEY, 2)["x"], np.stack([MEAN, MEAN]), atol=1e-3)
    assert (got.k_hat, got.ess) == (math.inf, 1.0)
    assert got.verdict.startswith("the guide is a point")


def test_what_is_not_finite_is_of_the_model():
    @ppl.gen
    def root():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.factor("y", jnp.sqrt(x - 50.0))

    with pytest.raises(ppl.NonFiniteError, match=r"the ELBO of .*root at .*test_infer.* step 0"):
        ppl.infer(root(), {}, key=KEY)


def test_what_is_printed(mean_field):
    summary = mean_field.summary()
    row = summary["x[1]"]
    draws = np.asarray(mean_field.diagnosed[0]["x"], np.float64)[:, 1]
    wanted = (draws.mean(), draws.std(ddof=1), *np.quantile(draws, [0.05, 0.5, 0.95]))
    np.testing.assert_allclose((row.mean, row.sd, *row.quantiles), wanted, rtol=1e-6)
    lines = str(summary).splitlines()
    assert lines[0].split() == ["mean", "sd", "5%", "50%", "95%"]
    assert lines[2].split()[0] == "x[1]" and lines[2].split()[1] == f"{wanted[0]:.4g}"
    assert mean_field.fit.verdict in lines
    assert "<td>x[1]</td>" in summary._repr_html_()
    assert repr(mean_field).startswith("Posterior of x[2]\n  elbo -")
    with pytest.raises(KeyError, match=r"the rows are x\[0\], x\[1\]"):
        summary["x"]


def test_the_guide_is_a_program(full_rank):
    trace = full_rank.guide.simulate(KEY)
    same = full_rank.guide(full_rank.fit.averaged).simulate(KEY)
    np.testing.assert_array_equal(trace["x"], same["x"])
    log_density = full_rank.guide.log_density(trace.choices)
    np.testing.assert_allclose(log_density, trace.log_density, rtol=1e-5)


def test_for_arviz(mean_field, monkeypatch):
    groups = mean_field.to_dict()
    assert groups["posterior"]["x"].shape == (1, N, 2)
    stats = groups["sample_stats"]
    ratios = stats["lp"] - stats["log_q"]
    np.testing.assert_allclose(ratios.mean(), mean_field.elbo, rtol=1e-6)
    np.testing.assert_allclose(np.exp(stats["log_weight"]).sum(), 1.0)
    np.testing.assert_array_equal(groups["observed_data"]["two"], Y["two"])
    stand_in = types.SimpleNamespace(from_dict=lambda groups: sorted(groups))
    monkeypatch.setitem(sys.modules, "arviz_base", stand_in)
    assert mean_field.to_arviz() == ["observed_data", "posterior", "sample_stats"]
    monkeypatch.setitem(sys.modules, "arviz_base", None)
    with pytest.raises(ImportError, match="pip install arviz-base"):
        mean_field.to_arviz()


def test_pictures(mean_field):
    plots = ppl.plots
    (axes,) = plots.history(mean_field.fit).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), mean_field.fit.history, rtol=1e-6)
    assert [a.get_title() for a in plots.marginals(mean_field, KEY).axes] == ["x[0]", "x[1]"]
    draws = np.asarray(mean_field.sample(KEY, 1_000)["x"])
    lower = plots.pairs(mean_field, KEY).axes[2]
    np.testing.assert_allclose(lower.lines[0].get_xydata(), draws, rtol=1e-6)
    checks = plots.predictive(mean_field, KEY, n=5).axes
    assert [a.get_title() for a in checks] == ["y", "two"]
    assert [len(a.lines) for a in checks] == [6, 6]
    np.testing.assert_allclose(checks[1].lines[-1].get_xdata(), [-1.5, 1.5])
    (axes,) = plots.k_hat(mean_field).axes
    assert axes.get_title() == f"k_hat {mean_field.k_hat:.2f}"
    assert axes.lines[0].get_ydata()[0] == 1.0
