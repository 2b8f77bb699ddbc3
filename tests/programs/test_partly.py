"""Data observed in part: the missing elements are latent, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import ppl
from ppl import dist

KEY = jax.random.key(0)
SEEN = np.array([True, True, False, True, False])
Y = np.array([0.3, -0.2, 0.0, 0.9, 0.0], np.float32)


@ppl.gen
def walk():
    def step(x, _):
        x = ppl.sample("y", dist.Normal(0.8 * x, 0.7))
        return x, None

    jax.lax.scan(step, 0.0, length=5)


def law():
    """The exact posterior of the missing steps, and the log density of the others."""
    steps = (np.eye(5) - 0.8 * np.eye(5, k=-1)) / 0.7
    cov = np.linalg.inv(steps.T @ steps)
    own = cov[np.ix_(AT, AT)]
    slope = cov[np.ix_(MISSING, AT)] @ np.linalg.inv(own)
    left = cov[np.ix_(MISSING, MISSING)] - slope @ cov[np.ix_(AT, MISSING)]
    evidence = scipy.stats.multivariate_normal(np.zeros(3), own).logpdf(Y[AT])
    return evidence, slope @ Y[AT], left


AT, MISSING = np.array([0, 1, 3]), np.array([2, 4])
EVIDENCE, MEAN, COV = law()


@ppl.gen
def guide():
    scale = np.sqrt(np.diagonal(COV))  # the two are independent given what is seen
    m = jnp.zeros(5).at[MISSING].set(MEAN)
    s = jnp.ones(5).at[MISSING].set(scale)
    ppl.sample("y", dist.Normal(m, s).mask(~SEEN))


@ppl.gen
def without_a_mask():
    ppl.sample("y", dist.Normal(jnp.zeros(5), 1.0))


DATA = {"y": ppl.partly(jnp.where(SEEN, Y, 7.0), SEEN)}


@pytest.mark.parametrize("objective", [ppl.elbo, ppl.stl, lambda *a: ppl.iwelbo(*a, 2)])
def test_at_the_posterior_of_what_is_missing_the_bound_is_the_evidence(objective):
    f = ppl.expectation(lambda: objective(walk(), guide(), DATA))
    np.testing.assert_allclose(f.value(KEY), EVIDENCE, rtol=1e-4)


def test_what_would_count_twice_is_refused():
    f = ppl.expectation(lambda: ppl.elbo(walk(), without_a_mask(), DATA))
    with pytest.raises(ppl.UnsupportedError, match="without_a_mask has no mask there"):
        f.value(KEY)
    with pytest.raises(ppl.ShapeError, match="is a Partly"):
        walk().log_density(DATA)
    with pytest.raises(ppl.ShapeError, match="observed has shape"):
        ppl.partly(Y, jnp.ones(4))
