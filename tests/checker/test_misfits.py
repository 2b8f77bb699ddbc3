"""A choice that reaches beyond the support in which it is scored: where it matters, and where not.

The weights of importance sampling are 0 outside of the support of the model, and their average is
what it is; an average of logarithms is minus infinity, and a pathwise draw does not see how much
of it crosses the end of the support.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import ppl
from ppl import dist

KEY = jax.random.key(0)


@ppl.gen
def model(s):
    z = ppl.sample("z", dist.Exponential(1.0))
    ppl.sample("y", dist.Normal(z, s))


@ppl.gen
def counts(s):
    k = ppl.sample("z", dist.Binomial(3, 0.4))
    ppl.sample("y", dist.Normal(1.0 * k, s))


def guide(estimator, d=lambda t: dist.Normal(t, 1.5)):
    @ppl.gen
    def proposal(t):
        ppl.sample("z", d(t), estimator)

    return proposal


def weight(p, q):
    return lambda t, s: jnp.exp(ppl.elbo(p(s), q(t), {"y": 1.0}))


def second_moment(p, q):
    return lambda t, s: jnp.exp(2.0 * ppl.elbo(p(s), q(t), {"y": 1.0}))


def kinds(f, *at):
    return [found.kind for found in ppl.expectation(f).explain(*at).findings]


@pytest.mark.parametrize("estimator", [ppl.reinforce(), ppl.mvd(), ppl.reinforce("loo")])
@pytest.mark.parametrize("moment", [weight, second_moment])
def test_weights_of_a_score_are_right(estimator, moment):
    assert not kinds(moment(model, guide(estimator)), 0.3, 1.0)


def test_of_counts_too():
    wide = lambda t: dist.Poisson(jnp.exp(t))
    assert not kinds(weight(counts, guide(ppl.reinforce(), wide)), 0.3, 1.0)
    f = lambda t: ppl.elbo(counts(1.0), guide(ppl.reinforce(), wide)(t), {"y": 1.0})
    assert kinds(f, 0.3) == ["unsupported"]


def test_averages_of_several_weights():
    """Not all of the draws are outside."""
    q = guide(ppl.reinforce())
    several = lambda t: ppl.iwelbo(model(1.0), q(t), {"y": 1.0}, 8)
    assert not kinds(several, 0.3)
    one = lambda t: ppl.iwelbo(model(1.0), q(t), {"y": 1.0}, 1)
    assert kinds(one, 0.3) == ["unsupported"]
    log_of_one = lambda t, s: jnp.log(weight(model, q)(t, s))
    assert kinds(log_of_one, 0.3, 1.0) == ["unsupported"]
    inverse = lambda t: jnp.exp(-ppl.elbo(model(1.0), q(t), {"y": 1.0}))
    assert kinds(inverse, 0.3) == ["unsupported"]
    elbo = lambda t: ppl.elbo(model(1.0), q(t), {"y": 1.0})
    logs = lambda t: jnp.mean(jax.vmap(lambda: elbo(t), axis_size=8)())
    assert kinds(logs, 0.3) == ["unsupported"]


def test_pathwise_draws_cross_the_end():
    f = weight(model, guide(ppl.reparam()))
    (found,) = ppl.expectation(f).explain(0.3, 1.0).findings
    assert found.kind == "biased" and found.addresses == (("z",),)
    for text in ("Exponential", "reaches beyond", "ppl.reinforce()"):
        assert text in found.message
    assert found.message.count("test_misfits.py") == 2
    assert kinds(lambda s: f(0.3, s), 1.0) == []  # the draw does not move with s


def test_the_automatic_choice_is_not_pathwise():
    f = ppl.expectation(weight(model, guide(None)), strict=True)
    (site,) = f.explain(0.3, 1.0).sites
    assert site.estimator != "reparam" and "reaches beyond" in site.why
    f.grad(KEY, 0.3, 1.0)


@pytest.mark.usefixtures("x64")
def test_the_gradient_of_the_second_moment():
    """Against quadrature of p^2 / q: 4.3 standard errors, false-alarm rate 1.7e-5."""
    f = ppl.expectation(second_moment(model, guide(ppl.reinforce())), strict=True)
    z = np.linspace(0.0, 12.0, 200_001)
    log_p = -z - 0.5 * (1.0 - z) ** 2 - 0.5 * np.log(2 * np.pi)

    def exact(t):
        log_q = -0.5 * ((z - t) / 1.5) ** 2 - np.log(1.5) - 0.5 * np.log(2 * np.pi)
        return np.trapezoid(np.exp(2 * log_p - log_q), z)

    n = 20_000
    grads = np.asarray(jax.jit(jax.vmap(lambda k: f.grad(k, 0.3, 1.0)))(jax.random.split(KEY, n)))
    right = (exact(0.301) - exact(0.299)) / 0.002
    assert abs(grads.mean() - right) < 4.3 * grads.std() / np.sqrt(n)
    assert abs(right) > 20 * grads.std() / np.sqrt(n)


# --- data beyond an end that is drawn -------------------------------------------------------------

SEEN = jnp.array([2.0, 3.0, 4.0])
ENDS = {
    "lower": (lambda a: dist.Uniform(a, 10.0).expand([3]).to_event(1), "less_than(2)"),
    "upper": (lambda a: dist.Uniform(-10.0, a).expand([3]).to_event(1), "greater_than(4)"),
    "truncated": (
        lambda a: dist.TruncatedNormal(0.0, 1.0, low=a).expand([3]).to_event(1),
        "less_than(2)",
    ),
}


def ending(d, law, bound=ppl.elbo, estimator=None):
    """An objective of t, of data whose support ends at a choice of the model."""
    model = ppl.gen(lambda: ppl.sample("y", d(ppl.sample("a", dist.Normal(0.0, 1.0)))))
    guide = ppl.gen(lambda t: ppl.sample("a", law(t), estimator))
    return ppl.expectation(lambda t: bound(model(), guide(t), {"y": SEEN}))


NORMAL = lambda t: dist.Normal(t, 1.0)


@pytest.mark.parametrize("end", ENDS)
def test_an_end_that_is_drawn_beyond_the_data(end):
    """The density of the data is 0 then. What is to be typed has no finding, and the ELBO by
    quadrature: within 4.3 standard errors, false-alarm rate 1.7e-5."""
    d, words = ENDS[end]
    (found,) = ending(d, NORMAL).explain(0.3).findings
    assert found.kind == "unsupported" and found.addresses == (("a",),)
    assert words in found.message and found.message.count("test_misfits.py") == 2
    kind, _, number = words.partition("(")
    inside = dist.biject_to(getattr(dist.constraints, kind)(float(number[:-1])))
    narrow = lambda t: dist.Normal(t, 0.3)  # its ELBO varies little
    right = ending(d, lambda t: dist.TransformedDistribution(narrow(t), inside))
    assert not right.explain(0.3).findings
    u = np.linspace(-1.5, 2.1, 2001)

    @jax.jit
    def log_densities(u):
        a = inside(u)
        log_q = narrow(0.3).log_prob(u) - inside.log_abs_det_jacobian(u, a)
        return log_q, dist.Normal(0.0, 1.0).log_prob(a) + jax.vmap(lambda a: d(a).log_prob(SEEN))(a)

    log_q, log_p = map(np.asarray, log_densities(u))
    weight = norm.pdf(u, 0.3, 0.3) * (u[1] - u[0])
    exact = np.sum(weight * (log_p - log_q))
    sd = np.sqrt(np.sum(weight * (log_p - log_q - exact) ** 2))
    n = 20_000
    assert abs(right.value(KEY, 0.3, samples=n) - exact) < 4.3 * sd / np.sqrt(n)


def test_particles_beyond_the_data_weigh_nothing():
    """Right by scores; a pathwise draw does not see how many there are."""
    d, _ = ENDS["lower"]
    particles = lambda p, q, data: ppl.iwelbo(p, q, data, 8)
    assert not ending(d, NORMAL, particles, ppl.reinforce()).explain(0.3).findings
    (found,) = ending(d, NORMAL, particles, ppl.reparam()).explain(0.3).findings
    assert found.kind == "biased" and "is an end of the support of 'y'" in found.message
    (site,) = ending(d, NORMAL, particles).explain(0.3).sites
    assert site.estimator != "reparam" and "ends there" in site.why
