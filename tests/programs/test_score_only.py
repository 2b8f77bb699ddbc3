"""Densities known by their score: the gradient is right, the value is asked for in vain."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppl
from ppl import dist

KEY = jax.random.key(0)
TAU, NOISE, SIGMA = 1.0, 0.5, 0.6


def denoiser(z):
    """The mean of a prior N(1, τ²) given z = x + NOISE ε: Tweedie's score is that of the sum."""
    score = (1.0 - z) / (TAU**2 + NOISE**2)
    return z + NOISE**2 * score


def tweedie(z):
    return (denoiser(z) - z) / NOISE**2


@ppl.gen
def known():
    z = ppl.sample("z", dist.Normal(1.0, jnp.sqrt(TAU**2 + NOISE**2)).expand([3]))
    ppl.sample("y", dist.Normal(z, SIGMA))


@ppl.gen
def model(law, n=3):
    z = jax.vmap(lambda: ppl.sample("z", law), axis_size=n)() if law.event_shape == () else None
    z = ppl.sample("z", law) if z is None else z
    ppl.sample("y", dist.Normal(z, SIGMA))


@ppl.gen
def guide(phi, estimator=None):
    ppl.sample("z", dist.Normal(phi[0], jnp.exp(phi[1])), estimator)


DATA = {"y": jnp.array([1.3, 0.2, 2.0])}
PHI = (jnp.array([0.1, 0.5, 1.0]), jnp.array([-0.5, 0.0, -1.0]))


@pytest.mark.parametrize("law", [ppl.score_only(tweedie), ppl.score_only(tweedie, shape=(3,))])
def test_the_gradient_is_that_of_the_density(law):
    f = ppl.expectation(lambda phi: ppl.elbo(model(law), guide(phi), DATA))
    exact = ppl.expectation(lambda phi: ppl.elbo(known(), guide(phi), DATA))
    same = jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        f.grad(KEY, PHI, samples=4),
        exact.grad(KEY, PHI, samples=4),
    )
    assert same is not None
    told = f.explain(PHI)
    assert [x.kind for x in told.findings] == ["without its value"]
    assert "known by its score alone" in str(told)
    with pytest.raises(ppl.UnsupportedError, match="its value is asked for"):
        f.value(KEY, PHI)


def test_a_fit_ends_where_the_gradient_is_zero():
    law = ppl.score_only(tweedie)
    f = ppl.expectation(lambda phi: ppl.elbo(model(law), guide(phi), DATA))
    fit = ppl.maximize(f, PHI, optax.adam(0.03), key=KEY, steps=400, samples=8, progress=False)
    precision = 1 / (TAU**2 + NOISE**2) + 1 / SIGMA**2
    mean = (1.0 / (TAU**2 + NOISE**2) + DATA["y"] / SIGMA**2) / precision
    np.testing.assert_allclose(fit.params[0], mean, atol=0.1)
    np.testing.assert_allclose(jnp.exp(fit.params[1]), precision**-0.5, rtol=0.15)


def test_what_needs_the_value_is_refused():
    law = ppl.score_only(tweedie)
    with pytest.raises(ppl.UnsupportedError, match="its value is asked for"):
        model(law).log_density({"z": jnp.zeros(3), **DATA})
    scored = ppl.expectation(lambda phi: ppl.elbo(model(law), guide(phi, ppl.reinforce()), DATA))
    with pytest.raises(ppl.UnsupportedError, match=r"reinforce at 'z' .* needs its value"):
        scored.grad(KEY, PHI)

    @ppl.expectation
    def weighed(phi):
        k = ppl.sample("k", dist.Bernoulli(jax.nn.sigmoid(phi[0][0])))
        return (1.0 + k) * ppl.elbo(model(law), guide(phi), DATA)

    with pytest.raises(ppl.UnsupportedError, match=r"enum at 'k' .* needs its value"):
        weighed.grad(KEY, PHI)
    bound = ppl.expectation(lambda phi: ppl.iwelbo(model(law), guide(phi), DATA, 3))
    with pytest.warns(ppl.SoundnessWarning, match="which is not linear in it"):
        bound.grad(KEY, PHI)


def test_parameters_of_the_score_have_no_derivative():
    def objective(held):
        def f(theta):
            t = held(theta)
            law = ppl.score_only(lambda z: t * (1.0 - z))
            return ppl.elbo(model(law), guide(PHI), DATA)

        return ppl.expectation(f)

    with pytest.warns(ppl.SoundnessWarning, match=r"depends on a parameter. The derivative"):
        objective(lambda t: t).grad(KEY, 0.5)
    assert objective(ppl.detach).grad(KEY, 0.5) == 0.0
