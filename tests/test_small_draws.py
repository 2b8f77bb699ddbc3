"""Draws of small concentration underflow: values and gradients are right, or not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import digamma, gammaln, polygamma

import ppl
from ppl import dist

KEY = jax.random.key(0)
N = 4096
Z = 5.0
"""Of each of the z-tests below; false alarms: 6e-7 each."""


def fitted(q, p):
    """The objective E_q[log p - log q] of one choice, its value and gradient in each sample."""

    @ppl.gen
    def guide(s):
        ppl.sample("x", q(s))

    @ppl.gen
    def model():
        ppl.sample("x", p)

    @ppl.expectation
    def objective(s):
        return ppl.elbo(model(), guide(s), {}) + 0.0 * s

    return objective


def gamma(log_a):
    return dist.Gamma(jnp.exp(log_a), 1.0)


def gamma_exact(a):
    value = (0.5 - a) * digamma(a) + gammaln(a) - gammaln(0.5)
    return value, (0.5 - a) * polygamma(1, a) * a


BASE = np.array([1.0, 1.5, 1.0, 2.0])


def dirichlet(log_a):
    return dist.Dirichlet(jnp.exp(log_a) * jnp.asarray(BASE))


def dirichlet_exact(a):
    """Against Dirichlet(1, 1, 1, 1)."""
    c, total = a * BASE, a * BASE.sum()
    log_b = lambda c: gammaln(c).sum() - gammaln(c.sum())
    value = ((1 - c) * (digamma(c) - digamma(total))).sum() + log_b(c) - log_b(np.ones(4))
    slopes = a * (BASE * (1 - c) * polygamma(1, c)).sum()
    return value, slopes - a * ((1 - c).sum() * BASE.sum() * polygamma(1, total))


def beta(log_a):
    return dist.Beta(jnp.exp(log_a), 1.0)


def beta_exact(a):
    """Against Beta(2, 1): E[log(2x) - log a - (a - 1) log x], E[log x] = -1 / a."""
    return np.log(2.0 / a) - (2.0 - a) / a, 2.0 / a - 1.0


CASES = {
    "beta": (beta, dist.Beta(2.0, 1.0), beta_exact),
    "gamma": (gamma, dist.Gamma(0.5, 1.0), gamma_exact),
    "dirichlet": (dirichlet, dist.Dirichlet(jnp.ones(4)), dirichlet_exact),
}


def samples_of(objective, a):
    keys = jax.random.split(KEY, N)
    one = jax.vmap(lambda key, s: objective.value_and_grad(key, s), (0, None))
    return [np.asarray(v, np.float64) for v in one(keys, jnp.log(a))]


def check(found, exact):
    for samples, number in zip(found, exact, strict=True):
        error = samples.std() / N**0.5
        assert abs(samples.mean() - number) < Z * error + 0.01 * abs(number), (
            samples.mean(),
            number,
        )


@pytest.mark.parametrize("name", CASES)
def test_small_concentrations_are_right_in_64_bits(x64, name):
    q, p, exact = CASES[name]
    objective = fitted(q, p)
    for a in (0.02, 0.03):
        check(samples_of(objective, a), exact(a))


@pytest.mark.parametrize("name", CASES)
def test_in_32_bits_small_concentrations_are_right_or_not_finite(name):
    q, p, exact = CASES[name]
    objective = fitted(q, p)
    check(samples_of(objective, 0.1), exact(0.1))
    for a in (0.01, 0.02, 0.03):
        assert not any(np.isfinite(s.mean()) for s in samples_of(objective, a))


@pytest.mark.parametrize("estimator", [ppl.reparam, ppl.reinforce])
@pytest.mark.parametrize(
    ("d", "f"),
    [
        (lambda a: dist.Gamma(a, 1.0), jnp.log),
        (lambda a: dist.Beta(a, 1.0), jnp.log),
        (lambda a: dist.Beta(1.0, a), lambda x: jnp.log1p(-x)),
        (lambda a: dist.Dirichlet(a * jnp.ones(3)).to_event(0), lambda x: jnp.log(x).sum()),
        (lambda a: dist.Chi2(2 * a).expand((2,)).to_event(1), lambda x: jnp.log(x).sum()),
    ],
)
def test_a_lost_logarithm_is_not_finite(estimator, d, f):
    """Also where the user takes it, and no density is computed."""

    @ppl.expectation
    def objective(a):
        return f(ppl.sample("x", d(a), estimator()))

    value, gradient = objective.value_and_grad(KEY, 0.02, samples=200)
    assert not np.isfinite(value) and not np.isfinite(gradient)


def test_what_needs_no_logarithm_is_right():
    @ppl.expectation
    def objective(a):
        x = ppl.sample("x", dist.Gamma(a, 1.0), ppl.reparam())
        y = ppl.sample("y", dist.Beta(1.0, a), ppl.reparam())
        return x + y

    keys = jax.random.split(KEY, N)
    found = jax.vmap(lambda key: objective.value_and_grad(key, 0.03))(keys)
    check([np.asarray(v, np.float64) for v in found], [0.03 + 1 / 1.03, 1 - 1 / 1.03**2])


def test_a_fit_names_the_choice_and_the_cure():
    objective = fitted(gamma, dist.Gamma(0.5, 1.0))
    with pytest.raises(ppl.NonFiniteError) as caught:
        ppl.maximize(
            objective,
            jnp.log(0.03),
            optax.sgd(1e-3),
            key=KEY,
            steps=2,
            samples=200,
            progress=False,
        )
    text = str(caught.value)
    for part in ("'x'", "test_small_draws.py", "0.076", "float32", "jax_enable_x64"):
        assert part in text


@pytest.mark.parametrize(
    ("q", "p", "found"),
    [
        (lambda s: dist.Gamma(0.03, jnp.exp(s)), dist.Gamma(0.5, 1.0), "0.076"),
        (lambda s: dist.Gamma(0.1, jnp.exp(s)), dist.Gamma(0.5, 1.0), ""),
        (lambda s: dist.Beta(jnp.exp(s), 0.2), dist.Beta(1.0, 2.0), "0.42"),
        (lambda s: dist.Beta(jnp.exp(s), 0.5), dist.Beta(1.0, 2.0), ""),
        (
            lambda s: dist.Dirichlet(jnp.array([0.02, 1.0])),
            dist.Dirichlet(jnp.ones(2)),
            "0.076",
        ),
    ],
)
def test_a_known_concentration_is_found(q, p, found):
    findings = fitted(q, p).explain(0.3).findings
    assert [f.kind for f in findings] == ["unsupported"] * bool(found)
    assert all(found in f.message and f.addresses == (("x",),) for f in findings)


def test_a_sparse_prior_that_is_not_drawn_from_is_no_finding():
    assert (
        not fitted(lambda s: dist.Gamma(jnp.exp(s), 1.0), dist.Gamma(0.01, 1.0))
        .explain(0.3)
        .findings
    )
