"""Straight-through estimators: biased by as much as they are known to be, and never silently.

Their mean is held against its own exact value (a sum for the derivative of the probability, an
integral over the relaxed draw for Gumbel-softmax), in float64, by the z-test of ``ztest.py``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import ztest

import ppl
from ppl import dist

pytestmark = pytest.mark.usefixtures("x64")

LOGIT, TAU = 0.4, 0.5
P = 1.0 / (1.0 + np.exp(-LOGIT))


@ppl.expectation
def square(logit, e):
    return (ppl.sample("b", dist.Bernoulli(logits=logit), e) - 0.45) ** 2


@ppl.expectation
def linear(logits, e):
    draws = dist.Multinomial(1, logits=logits).expand((2,)).to_event(1)
    b = ppl.sample("b", draws, e)
    return (b[0] - 2.0 * b[1]) @ jnp.arange(3.0)


def relaxed_exactly():
    """E[2 (b - .45) σ'(z / τ) / τ] for a logistic z of mean φ, b = 1[z > 0]."""

    def integrand(z, b):
        density = 1.0 / (4.0 * np.cosh((z - LOGIT) / 2.0) ** 2)
        return density * 2.0 * (b - 0.45) / (4.0 * TAU * np.cosh(z / (2.0 * TAU)) ** 2)

    parts = ((-40.0, 0.0, 0.0), (0.0, 40.0, 1.0))
    return sum(scipy.integrate.quad(integrand, a, b, args=(v,))[0] for a, b, v in parts)


def test_means():
    """The derivative of the probability; Gumbel-softmax, averaged too; unbiased where linear."""
    logits = jnp.array([0.3, -0.4, 0.8])
    p = np.exp(logits) / np.exp(logits).sum()
    slope = p * (np.arange(3) - p @ np.arange(3))
    tried = {
        "probability": (square, LOGIT, ppl.straight_through()),
        "relaxed": (square, LOGIT, ppl.straight_through(TAU)),
        "averaged": (square, LOGIT, ppl.straight_through(TAU, average=4)),
        "linear": (linear, logits, ppl.straight_through()),
    }
    both = lambda key: {n: f.value_and_grad(key, at, e) for n, (f, at, e) in tried.items()}
    value = P * 0.55**2 + (1 - P) * 0.45**2
    relaxed = value, relaxed_exactly()
    exact = {
        "probability": (value, 2.0 * (P - 0.45) * P * (1 - P)),
        "relaxed": relaxed,
        "averaged": relaxed,
        "linear": (-(p @ np.arange(3)), -slope),
    }
    ztest.check(both, exact)
    assert abs(relaxed[1] - 0.1 * P * (1 - P)) > 0.01  # that of the expectation


def test_averages_have_less_variance():
    def variance(e):
        keys = jax.random.split(jax.random.key(0), 4000)
        return float(jax.vmap(lambda key: square.grad(key, LOGIT, e))(keys).var())

    once, often = (variance(ppl.straight_through(TAU, average=n)) for n in (1, 8))
    assert often < 0.75 * once


def test_never_silently():
    e = ppl.straight_through()
    report = square.explain(LOGIT, e)
    assert [f.kind for f in report.findings] == ["biased by choice"]
    assert "biased by choice" in report.sites[0].cells and "is biased" in report.verdict
    with ppl.strict(), pytest.raises(ppl.SoundnessError, match=r"biased by choice: .*'b' at "):
        square.grad(jax.random.key(0), LOGIT, e)
    audit = square.audit(jax.random.key(0), LOGIT, e, samples=4000)
    assert not audit.ok and audit.suspects == ("b",)


def test_what_is_refused():
    def draw(d, e):
        return ppl.expectation(lambda: jnp.sum(1.0 * ppl.sample("k", d, e)))

    e, key = ppl.straight_through(), jax.random.key(0)
    for d, why in (
        (dist.Categorical(logits=jnp.zeros(3)), "indices. Use dist.Multinomial"),
        (dist.Multinomial(2, logits=jnp.zeros(3)), "several trials"),
        (dist.Poisson(1.0), "no Bernoulli and no Multinomial"),
    ):
        with pytest.raises(ppl.UnsupportedError, match=why):
            draw(d, e).value(key)

    @ppl.gen
    def coin():
        return 1.0 * ppl.sample("k", dist.Bernoulli(0.3))

    later = ppl.with_estimators(coin(), {"k": e})
    with pytest.raises(
        ppl.UnsupportedError, match=r"draws are integers\. Choose the estimator where"
    ):
        ppl.expectation(lambda: later.simulate().retval).value(key)
    for make in (
        lambda: ppl.straight_through(0.0),
        lambda: ppl.straight_through(average=2),
        lambda: ppl.straight_through(0.5, average=0),
    ):
        with pytest.raises(ValueError, match=r"Type ppl\.straight_through"):
            make()


def test_a_derivative_that_is_dropped_is_told():
    """A model without the estimator takes the draw as an integer; with it, it does not."""

    @ppl.gen
    def model(e):
        b = ppl.sample("b", dist.Bernoulli(jnp.array(0.3)), e)
        ppl.sample("x", dist.Normal(2.0 * b, 1.0))

    @ppl.gen
    def guide(logit):
        ppl.sample("b", dist.Bernoulli(logits=logit), ppl.straight_through())

    @ppl.expectation
    def elbo(logit, e):
        return ppl.elbo(model(e), guide(logit), {"x": 1.7})

    dropped, by_choice = elbo.explain(0.1, None).findings
    assert dropped.kind == "biased" and dropped.addresses == (("b",),)
    assert "conversion to int" in dropped.message and "same estimator" in dropped.message
    with pytest.warns(ppl.SoundnessWarning, match="dropped by the conversion to int"):
        elbo.grad(jax.random.key(0), 0.1, None)
    assert elbo.explain(0.1, ppl.straight_through()).findings == (by_choice,)
