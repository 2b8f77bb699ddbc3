"""Draws of small concentration underflow: values and gradients are right, or not finite.

The statistical tests bound the error of a mean over ``N`` samples by ``Z`` standard errors and a
hundredth: false alarms 6e-7 each. A sampler of Gamma and its derivative take seconds to compile, so
objectives are evaluated without ``jit``: those of one shape are compiled once.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import digamma, gammaln, polygamma

import ppl
from ppl import dist

KEY = jax.random.key(0)
N, Z = 2000, 5.0


def estimates(objective, a):
    """Value and gradient in each of ``N`` samples: ``[N, 1 + a.size]``."""
    one = jax.value_and_grad(objective.surrogate, argnums=1)
    value, gradient = jax.vmap(one, (0, None))(jax.random.split(KEY, N), jnp.asarray(a))
    return np.column_stack([value, np.reshape(gradient, (N, -1))]).astype(np.float64)


def is_right(found, exact):
    error = found.std(0) / N**0.5
    return np.all(np.abs(found.mean(0) - exact) < Z * error + 0.01 * np.abs(exact))


def is_lost(found):
    """Whether no mean of value or gradient is finite."""
    return not np.isfinite(found).all(0).any()


# --- the objective E_q[log p - log q] of one choice -----------------------------------------------

WEIGHTS = np.array([1.0, 1.5])


def gamma_exact(a):
    """Against Gamma(1/2, 1); the derivative is by log a."""
    value = (0.5 - a) * digamma(a) + gammaln(a) - gammaln(0.5)
    return value, (0.5 - a) * polygamma(1, a) * a


def dirichlet_exact(a):
    """Against Dirichlet(1, 1)."""
    c, total = a * WEIGHTS, a * WEIGHTS.sum()
    log_b = lambda c: gammaln(c).sum() - gammaln(c.sum())
    value = ((1 - c) * (digamma(c) - digamma(total))).sum() + log_b(c) - log_b(np.ones(2))
    slopes = a * (WEIGHTS * (1 - c) * polygamma(1, c)).sum()
    return value, slopes - a * (1 - c).sum() * WEIGHTS.sum() * polygamma(1, total)


def beta_exact(a):
    """Of Beta(a, 1) against Beta(2, 1): E[log(2x) - log a - (a - 1) log x], E[log x] = -1 / a."""
    return np.log(2.0 / a) - (2.0 - a) / a, 2.0 / a - 1.0


@ppl.gen
def guide(a):
    ppl.sample("gamma", dist.Gamma(a[0], 1.0), ppl.reparam())
    ppl.sample("dirichlet", dist.Dirichlet(a[1] * jnp.asarray(WEIGHTS, a.dtype)), ppl.reinforce())
    ppl.sample("beta", dist.Beta(a[2], 1.0), ppl.reinforce())


@ppl.gen
def model():
    ppl.sample("gamma", dist.Gamma(0.5, 1.0))
    ppl.sample("dirichlet", dist.Dirichlet(jnp.ones(2)))
    ppl.sample("beta", dist.Beta(2.0, 1.0))


def exact(a):
    values, slopes = zip(gamma_exact(a[0]), dirichlet_exact(a[1]), beta_exact(a[2]), strict=True)
    return np.array([sum(values), *slopes])


@ppl.expectation
def elbo(log_a):
    return ppl.elbo(model(), guide(jnp.exp(log_a)), {})


def test_small_concentrations_are_right_in_64_bits(x64):
    np.testing.assert_allclose(gamma_exact(0.03), [-12.998, 15.69], rtol=1e-3)
    np.testing.assert_allclose(gamma_exact(0.01)[1], 49.0, rtol=1e-3)
    for a in (np.array([0.01, 0.02, 0.02]), np.full(3, 0.03)):
        assert is_right(estimates(elbo, np.log(a)), exact(a))


def test_in_32_bits_small_concentrations_are_right_or_not_finite():
    a = np.full(3, 0.1, np.float32)
    assert is_right(estimates(elbo, np.log(a)), exact(a))
    for i in range(3):
        for small in (0.01, 0.03, 0.05):
            b = np.where(np.arange(3) == i, np.float32(small), a)
            assert is_lost(estimates(elbo, np.log(b)))


# --- the user's own logarithm ---------------------------------------------------------------------


LOGARITHMS = [
    (lambda a: dist.Gamma(a, 1.0), jnp.log),
    (lambda a: dist.Beta(a, 1.0), jnp.log),
    (lambda a: dist.Beta(1.0, a), lambda x: jnp.log1p(-x)),
    (lambda a: dist.Dirichlet(a * jnp.ones(2)), lambda x: jnp.log(x).sum()),
    (lambda a: dist.Chi2(2 * a).expand((1,)).to_event(1), lambda x: jnp.log(x).sum()),
    (lambda a: dist.InverseGamma(a, 1.0), jnp.log),
    (lambda a: dist.StudentT(2 * a), lambda x: dist.Cauchy().log_prob(x)),
    (lambda a: dist.Kumaraswamy(a, 1.0), jnp.log),
    (
        lambda a: dist.TransformedDistribution(
            dist.Beta(a, 1.0), dist.transforms.AffineTransform(1.0, -1.0)
        ),
        lambda x: jnp.log1p(-x),
    ),
    (
        lambda a: dist.MixtureGeneral(
            dist.Categorical(jnp.ones(2) / 2), [dist.Beta(a, 1.0), dist.Beta(3.0, 1.0)]
        ),
        jnp.log,
    ),
]


@pytest.mark.parametrize("estimator", [ppl.reparam(), ppl.reinforce(), ppl.mvd()])
@pytest.mark.parametrize(("d", "f"), LOGARITHMS)
def test_a_lost_logarithm_is_not_finite(d, f, estimator):
    objective = ppl.expectation(lambda a: f(ppl.sample("x", d(a), estimator)))
    if not estimator.unsuitable(d(0.5)):
        assert np.isfinite(estimates(objective, 0.5)).all()
        assert is_lost(estimates(objective, 0.02))


def test_a_lost_score_is_not_finite():
    """Where the payoff is finite, and its score needs the logarithm."""
    objective = ppl.expectation(lambda a: ppl.sample("x", dist.Beta(a, 1.0), ppl.reinforce()))
    value, gradient = np.isfinite(estimates(objective, 0.02)).T
    assert value.all() and not gradient.all()


# --- what needs no logarithm ----------------------------------------------------------------------


def test_what_needs_no_logarithm_is_right():
    @ppl.expectation
    def objective(a):
        x = ppl.sample("x", dist.Gamma(a, 1.0), ppl.reparam())
        y = ppl.sample("y", dist.Beta(1.0, a), ppl.mvd())
        return x + jnp.sqrt(x) + y

    a = 0.03
    root = np.exp(gammaln(a + 0.5) - gammaln(a))
    slope = 1 + root * (digamma(a + 0.5) - digamma(a)) - 1 / (1 + a) ** 2
    assert is_right(estimates(objective, a), np.array([a + root + 1 / (1 + a), slope]))


# --- what is said ---------------------------------------------------------------------------------


def test_a_fit_names_the_choice_and_the_cure():
    objective = ppl.expectation(
        lambda s: jnp.log(ppl.sample("x", dist.Kumaraswamy(jnp.exp(s), 1.0)))
    )
    fit = functools.partial(ppl.maximize, key=KEY, steps=2, samples=200, progress=False)
    with pytest.raises(ppl.NonFiniteError) as caught:
        fit(objective, jnp.log(0.03), optax.sgd(1e-3))
    text = str(caught.value)
    for part in ("'x'", "test_small_draws.py", "0.076", "float32", "jax_enable_x64"):
        assert part in text


@pytest.mark.parametrize(
    ("q", "f", "found"),
    [
        (lambda a: dist.Gamma(a, 1.0), jnp.log, "0.076"),
        (lambda a: dist.Gamma(a, 1.0), jnp.square, ""),
        (lambda a: dist.Gamma(3 * a, 1.0), jnp.log, ""),
        (lambda a: dist.Beta(1.0, 5 * a), lambda x: jnp.log1p(-x), "0.42"),
        (lambda a: dist.Dirichlet(jnp.stack([a, 1.0])), lambda x: jnp.log(x).sum(), "0.076"),
    ],
)
def test_explain_finds_a_small_concentration(q, f, found):
    objective = ppl.expectation(lambda a: f(ppl.sample("x", q(a))))
    explained = objective.explain(0.05)
    assert [s.findings for s in explained.sites] == [explained.findings]
    assert [f.kind for f in explained.findings] == ["unsupported"] * bool(found)
    assert all(found in f.message and f.addresses == (("x",),) for f in explained.findings)
    assert not objective.explain(jax.ShapeDtypeStruct((), jnp.float32)).findings
