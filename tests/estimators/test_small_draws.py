"""Draws of small concentration underflow: values and gradients are right, or not finite.

The statistical tests bound the error of a mean over ``N`` samples by ``Z`` standard errors and a
hundredth: false alarms 6e-7 each. A sampler of Gamma and its derivative take seconds to compile, so
most tests draw from Kumaraswamy, or with ``cheap``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import digamma, gammaln, polygamma
from scipy.stats import invgamma

import ppl
from estimators.automatic import choose
from ppl import dist
from transforms.gradient.nonfinite import first_nonfinite

KEY = jax.random.key(0)
N, Z = 2000, 5.0


def estimates(objective):
    """A function of a parameter: value and gradient in each of ``N`` samples, ``[N, 1 + size]``."""
    compiled = jax.jit(jax.vmap(objective.value_and_grad, (0, None)))

    def each(a):
        value, gradient = compiled(jax.random.split(KEY, N), jnp.asarray(a))
        return np.column_stack([value, np.reshape(gradient, (N, -1))]).astype(np.float64)

    return each


def is_right(found, exact):
    error = found.std(0) / N**0.5
    return np.all(np.abs(found.mean(0) - exact) < Z * error + 0.01 * np.abs(exact))


def is_lost(found):
    """Whether no mean of value or gradient is finite."""
    return not np.isfinite(found).all(0).any()


@pytest.fixture
def cheap(monkeypatch):
    """Samplers that are right for small concentrations: Gamma(a) is U^(1/a) to first order."""

    def loggamma(key, a, shape=None):
        return jnp.log(jax.random.uniform(key, shape, jnp.result_type(float), 1e-6)) / a

    monkeypatch.setattr(jax.random, "loggamma", loggamma)
    monkeypatch.setattr(jax.random, "gamma", lambda *args, **how: jnp.exp(loggamma(*args, **how)))
    monkeypatch.setattr(jax.lax, "random_gamma_grad", lambda a, x: -x * jnp.log(x) / a)

    def dirichlet(key, a, shape):
        return jax.nn.softmax(loggamma(key, a, (*shape, a.shape[-1])))

    monkeypatch.setattr(jax.random, "dirichlet", dirichlet)


# --- the objective E_q[log p - log q] of one choice -----------------------------------------------


def elbo(q, p):
    @ppl.gen
    def guide(a):
        ppl.sample("x", q(a))

    @ppl.gen
    def model():
        ppl.sample("x", p)

    return ppl.expectation(lambda log_a: ppl.elbo(model(), guide(jnp.exp(log_a)), {}))


def gamma_exact(a):
    """Against Gamma(1/2, 1); the derivative is by log a."""
    value = (0.5 - a) * digamma(a) + gammaln(a) - gammaln(0.5)
    return value, (0.5 - a) * polygamma(1, a) * a


def beta_exact(a):
    """Of Beta(a, 1) against Beta(2, 1): E[log(2x) - log a - (a - 1) log x], E[log x] = -1 / a."""
    return np.log(2.0 / a) - (2.0 - a) / a, 2.0 / a - 1.0


def test_gamma_is_right_or_not_finite():
    np.testing.assert_allclose(gamma_exact(0.03), [-12.998, 15.69], rtol=1e-3)
    np.testing.assert_allclose(gamma_exact(0.01)[1], 49.0, rtol=1e-3)
    found = estimates(elbo(lambda a: dist.Gamma(a, 1.0), dist.Gamma(0.5, 1.0)))
    assert is_right(found(np.log(0.1)), gamma_exact(0.1))
    assert all(is_lost(found(np.log(a))) for a in (0.01, 0.03, 0.05))


def test_in_64_bits_the_limit_is_near_a_hundredth(x64):
    found = estimates(elbo(lambda a: dist.Kumaraswamy(a, 1.0), dist.Beta(2.0, 1.0)))
    for a in (0.01, 0.03):
        assert is_right(found(np.log(a)), beta_exact(a))
    assert is_lost(found(np.log(0.007)))


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


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(
    ("estimator", "which"),
    [(ppl.reparam(), range(9)), (ppl.reinforce(), [1, 8]), (ppl.mvd(), [0])],
)
def test_a_lost_logarithm_is_not_finite(estimator, which):
    logarithms, n = [LOGARITHMS[i] for i in which], len(which)

    @ppl.expectation
    def objective(a):
        x = [ppl.sample(f"x{i}", d(a[i]), estimator) for i, (d, _) in enumerate(logarithms)]
        return sum(f(x) for (_, f), x in zip(logarithms, x, strict=True))

    found = estimates(objective)
    small = lambda i: np.where(np.arange(n) == i, np.float32(0.02), np.float32(0.5))
    lost = [i for i in range(-1, n) if not np.isfinite(found(small(i))).all()]
    assert lost == [*range(n)]  # and not where none is small
    assert all(is_lost(found(small(i))) for i in range(n))


@pytest.mark.usefixtures("cheap")
def test_a_lost_score_is_not_finite():
    """Where the payoff is finite, and its score needs the logarithm."""
    objective = ppl.expectation(lambda a: ppl.sample("x", dist.Beta(a, 1.0), ppl.reinforce()))
    value, gradient = objective.value_and_grad(KEY, 0.02, samples=100)
    # the standard deviation of Beta(a, 1) at a = .02 is below .14
    assert abs(value - 0.02 / 1.02) < Z * 0.14 / 10 and np.isnan(gradient)


def test_what_needs_no_logarithm_is_right():
    @ppl.expectation
    def objective(a):
        x = ppl.sample("x", dist.Kumaraswamy(a, 1.0), ppl.reparam())
        y = ppl.sample("y", dist.Kumaraswamy(1.0, a), ppl.reparam())
        return jnp.sqrt(x) + y

    a = 0.03
    exact = 2 * a / (2 * a + 1) + 1 / (1 + a), 2 / (2 * a + 1) ** 2 - 1 / (1 + a) ** 2
    assert is_right(estimates(objective)(a), np.array(exact))


def test_the_density_of_a_large_value_is_right():
    """Of which an InverseGamma draws many, at a concentration of which none are lost."""

    @ppl.gen
    def model(a):
        ppl.sample("x", dist.InverseGamma(a, 2.0))

    density = lambda x: model(0.1).log_density({"x": x})
    value, slope = jax.value_and_grad(density)(1e28)
    np.testing.assert_allclose(value, invgamma(0.1, scale=2.0).logpdf(1e28), rtol=1e-5)
    np.testing.assert_allclose(slope, -1.1e-28, rtol=1e-5)


def test_the_density_near_one_is_right():
    @ppl.gen
    def model(a):
        ppl.sample("x", dist.Kumaraswamy(a, 0.05))

    density = lambda x: model(0.1).log_density({"x": jnp.float32(x)})
    x = float(np.float32(1 - 1e-7))
    exact = np.log(0.1 * 0.05) - 0.9 * np.log(x) - 0.95 * np.log(-np.expm1(0.1 * np.log(x)))
    np.testing.assert_allclose(density(x), exact, rtol=1e-5)
    assert density(1.0) == np.inf


# --- what is said ---------------------------------------------------------------------------------


def test_the_message_names_the_choice_and_the_cure():
    objective = ppl.expectation(lambda a: jnp.log(ppl.sample("x", dist.Kumaraswamy(a, 1.0))))
    closed, consts, _ = objective.trace(jnp.float32(1e-3))
    text = first_nonfinite(closed, consts, KEY, choose, {})
    for part in ("'x'", "test_small_draws.py", "0.076", "float32", "jax_enable_x64"):
        assert part in text


@pytest.mark.parametrize(
    ("q", "f", "found"),
    [
        (lambda a: dist.Gamma(a, 1.0), jnp.log, "0.076"),
        (lambda a: dist.Gamma(a, 1.0), jnp.square, ""),
        (lambda a: dist.Beta(a, 5 * a), lambda x: jnp.log1p(-x), "0.076"),
        (lambda a: dist.Beta(a, 1.0), lambda x: dist.Bernoulli(x).log_prob(1), "0.076"),
        (lambda a: dist.Beta(a, a), lambda x: 3.0 + jnp.sqrt(x), ""),
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
