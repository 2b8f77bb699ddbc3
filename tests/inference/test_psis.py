"""Pareto smoothed importance weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from ppl.inference.draws import resample
from ppl.inference.psis import smoothed


def ratios(shape, n):
    """Ratios with a tail of about that shape."""
    i = np.arange(n)
    return -shape * np.log1p(-(i + 0.5) / n) * (1 + 0.2 * np.sin(1.7 * i))


# k_hat, effective number of draws and largest weight by blackjax 1.7.1 in 64 bits
BLACKJAX = {
    (0.1, 40): (0.48303211675503616, 39.6129663203837, 0.03403862213867909),
    (0.4, 40): (0.6069219177588878, 32.194431010428715, 0.08107160334280414),
    (1.5, 40): (1.052028710264111, 4.7355742314132865, 0.42295315904818104),
    (0.1, 300): (0.17192728591595585, 296.4348994472011, 0.005272989287778946),
    (0.8, 300): (0.7530639166727054, 56.5572877880477, 0.08359482871774203),
    (0.1, 5000): (0.14325403016169277, 4934.782195502413, 0.0004753158190143838),
    (0.4, 5000): (0.4445015684250288, 2888.0145639237917, 0.005799243740263528),
    (1.5, 5000): (1.5391851168107142, 2.4799906553828994, 0.620682288331003),
}


@pytest.mark.parametrize("case", BLACKJAX)
def test_as_blackjax(case):
    """In any order, and up to a constant."""
    k, ess, largest = BLACKJAX[case]
    given = np.random.default_rng(0).permutation(ratios(*case)) + 700.0
    assert ppl.k_hat(given) == pytest.approx(k, rel=1e-9)
    assert ppl.ess(given) == pytest.approx(ess, rel=1e-9)
    weights = np.exp(smoothed(given).log_weights)
    assert weights.max() == pytest.approx(largest, rel=1e-9)
    assert weights.sum() == pytest.approx(1.0)
    assert ppl.k_hat(jnp.asarray(given - 700.0, jnp.float32)) == pytest.approx(k, abs=1e-4)


@pytest.mark.parametrize("shape", [0.2, 0.6, 1.0])
def test_the_shape_of_a_known_tail(shape):
    """Exact quantiles of a Pareto tail: no noise, and a bias of the order of n^(-1/2)."""
    n = 200_000
    exact = -shape * np.log1p(-(np.arange(n) + 0.5) / n)
    assert ppl.k_hat(exact) == pytest.approx(shape, abs=0.02)


def test_what_has_no_tail():
    assert ppl.k_hat(np.zeros(100)) == 0.0
    assert ppl.ess(np.zeros(100)) == pytest.approx(100.0)
    assert ppl.k_hat(np.arange(24.0)) == np.inf
    assert ppl.k_hat([0.0] * 50 + [np.inf]) == np.inf
    outside = np.concatenate([np.zeros(50), np.full(50, -np.inf)])
    assert ppl.ess(outside) == pytest.approx(50.0)


def test_what_are_no_ratios():
    with pytest.raises(ValueError, match="are NaN"):
        ppl.k_hat([0.0, np.nan])
    with pytest.raises(ValueError, match="minus infinity at every draw"):
        ppl.k_hat([-np.inf, -np.inf])
    with pytest.raises(ppl.ShapeError, match=r"shape \[2, 3\].*vector \[n\]"):
        ppl.k_hat(np.zeros((2, 3)))
    with pytest.raises(ppl.UnsupportedError, match=r"traced by jax\.jit"):
        jax.jit(ppl.k_hat)(jnp.zeros(30))


def test_resampling_takes_each_draw_as_often_as_it_weighs():
    """Systematic: n w times, rounded down or up."""
    weights = np.array([0.5, 0.0, 0.3, 0.15, 0.05])
    with np.errstate(divide="ignore"):
        found = resample(jax.random.key(0), np.log(weights), 30)
    counts = np.bincount(found, minlength=5)
    assert np.all(np.abs(counts - 30 * weights) < 1)
    assert counts[1] == 0
    assert np.any(np.diff(found) < 0)


def test_signal_to_noise():
    """The gradient of E[-(x - 2)^2] in m is -2 (x - 2) = 2 (2 - m) + 2 noise.

    The standard error of the ratio r by n gradients is sqrt((1 + r²/2) / n); z bound 4.5.
    """

    @ppl.expectation
    def f(p):
        x = ppl.sample("x", ppl.dist.Normal(p["m"], 1.0))
        return -((x - 2.0) ** 2) - 3.0 * p["flat"]

    params, n = {"m": 0.5, "flat": 1.0}, 2_000
    for samples in (1, 4):
        got = ppl.signal_to_noise(f, jax.random.key(0), params, samples=samples, n=n)
        exact = 1.5 * samples**0.5
        assert abs(got["m"] - exact) < 4.5 * ((1 + exact**2 / 2) / n) ** 0.5
        assert got["flat"] > 1e6  # rounding alone
