"""Weights by address, and closed forms: exact where they are, equal in the mean everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ztest
from scipy.stats import norm

import ppl
from ppl import dist
from ppl.objectives.closed import closed

KEY = jax.random.key(0)


@ppl.gen
def chain(theta):
    z1 = ppl.sample("z1", dist.Normal(theta, 1.0))
    z2 = ppl.sample("z2", dist.Normal(jnp.sin(z1), 0.7))
    ppl.sample("x", dist.Normal(z1 * z2, 1.0))


@ppl.gen
def down(phi, estimator=None):
    z1 = ppl.sample("z1", dist.Normal(phi, 0.6), estimator)
    ppl.sample("z2", dist.Normal(phi * z1, 0.5))


@ppl.gen
def up(phi):
    z2 = ppl.sample("z2", dist.Normal(phi, 0.6))
    ppl.sample("z1", dist.Normal(phi * z2, 0.5))


def parts(guide, theta, phi, order):
    """The mean of each log ratio and of the likelihood, by quadrature."""
    t, w = np.polynomial.hermite_e.hermegauss(60)
    w = w / w.sum()
    a, b = jnp.meshgrid(t, t, indexing="ij")
    first = phi + 0.6 * a
    second = phi * first + 0.5 * b
    z1, z2 = (first, second) if order == "down" else (second, first)
    q = {"first": dist.Normal(phi, 0.6).log_prob(first)}
    q["second"] = dist.Normal(phi * first, 0.5).log_prob(second)
    q1, q2 = (q["first"], q["second"]) if order == "down" else (q["second"], q["first"])
    mean = lambda f: jnp.sum(jnp.outer(w, w) * f)
    return (
        mean(dist.Normal(theta, 1.0).log_prob(z1) - q1),
        mean(dist.Normal(jnp.sin(z1), 0.7).log_prob(z2) - q2),
        mean(dist.Normal(z1 * z2, 1.0).log_prob(1.3)),
    )


@pytest.mark.parametrize(
    ("order", "estimator"),
    [("down", None), ("down", ppl.reinforce()), ("down", ppl.mvd()), ("up", None)],
)
def test_weights_and_closed_forms_have_the_exact_mean_and_gradient(order, estimator):
    guide = up if order == "up" else lambda phi: down(phi, estimator)
    data = {"x": 1.3}
    with jax.enable_x64(True):

        def exact(x):
            a, b, c = parts(guide, x[0], x[1], order)
            return 0.3 * a + b + 2.0 * c

        @ppl.expectation
        def f(x):
            weights = {"z1": 0.3, "x": 2.0}
            return ppl.elbo(chain(x[0]), guide(x[1]), data, weights=weights, analytic=True)

        x = jnp.array([0.4, 0.8])
        goal = jax.jit(jax.value_and_grad(exact))(x)
        ztest.check(lambda key: f.value_and_grad(key, x), goal)


def test_what_has_a_closed_form_has_no_variance():
    @ppl.gen
    def p():
        ppl.sample("a", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
        jax.vmap(lambda m: ppl.sample("b", dist.Gamma(m, 2.0)))(jnp.arange(1.0, 4.0))
        mean = jnp.array([0.3, 0.1])
        ppl.sample("c", dist.MultivariateNormal(mean, jnp.array([[1.0, 0.2], [0.2, 0.5]])))
        ppl.sample("d", dist.Categorical(probs=jnp.array([0.2, 0.3, 0.5])))
        ppl.sample("e", dist.Dirichlet(jnp.ones(3)))
        ppl.sample("f", dist.Beta(2.0, 3.0))

        def step(x, _):
            x = ppl.sample("x", dist.Normal(0.0, 2.0))
            jax.vmap(lambda: ppl.sample("y", dist.Normal(1.0, 1.0)), axis_size=2)()
            return x, None

        jax.lax.scan(step, 0.0, length=4)

    @ppl.gen
    def q():
        jax.vmap(lambda s: ppl.sample("a", dist.Normal(0.5, s)))(jnp.arange(1.0, 4.0))
        ppl.sample("b", dist.Gamma(jnp.arange(2.0, 5.0), 1.5))
        ppl.sample("c", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))
        ppl.sample("d", dist.Categorical(probs=jnp.array([0.6, 0.3, 0.1])))
        ppl.sample("e", dist.Dirichlet(jnp.arange(1.0, 4.0)))
        ppl.sample("f", dist.Beta(1.0, 1.5))
        jax.vmap(lambda t: ppl.sample("x", dist.Normal(t, 1.0)))(jnp.arange(4.0))
        ppl.sample("y", dist.Normal(0.0, jnp.ones((4, 2))))

    @jax.jit
    def total():
        pairs = [
            (dist.Normal(0.5, jnp.arange(1.0, 4.0)), dist.Normal(0.0, 1.0)),
            (dist.Gamma(jnp.arange(2.0, 5.0), 1.5), dist.Gamma(jnp.arange(1.0, 4.0), 2.0)),
            (
                dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
                dist.MultivariateNormal(jnp.array([0.3, 0.1]), jnp.array([[1.0, 0.2], [0.2, 0.5]])),
            ),
            (
                dist.CategoricalProbs(jnp.array([0.6, 0.3, 0.1])),
                dist.CategoricalProbs(jnp.array([0.2, 0.3, 0.5])),
            ),
            (dist.Dirichlet(jnp.arange(1.0, 4.0)), dist.Dirichlet(jnp.ones(3))),
            (dist.Beta(1.0, 1.5), dist.Beta(2.0, 3.0)),
            (dist.Normal(jnp.arange(4.0), 1.0), dist.Normal(0.0, 2.0)),
            (dist.Normal(0.0, jnp.ones((4, 2))), dist.Normal(1.0, 1.0)),
        ]
        return sum(dist.kl_divergence(*pair).sum() for pair in pairs)

    f, exact = ppl.expectation(lambda: ppl.kl(q(), p())), total()
    for key in jax.random.split(KEY, 3):
        np.testing.assert_allclose(f.value(key), exact, rtol=1e-5)


@ppl.gen
def space(phi, data_scale):
    def step(z, _):
        z = ppl.sample("z", dist.Normal(phi * z, 1.0))
        ppl.sample("y", dist.Normal(z, data_scale))
        return z, None

    jax.lax.scan(step, 0.3, length=3)


@ppl.gen
def filtered(psi):
    def step(z, y):
        z = ppl.sample("z", dist.Normal(0.5 * z + psi * y, 0.8))
        return z, None

    jax.lax.scan(step, 0.0, jnp.array([0.2, -1.0, 0.7]))


@ppl.gen
def backwards(psi):
    def step(z, y):
        z = ppl.sample("z", dist.Normal(0.5 * z + psi * y, 0.8))
        return z, None

    jax.lax.scan(step, 0.0, jnp.array([0.2, -1.0, 0.7]), reverse=True)


@ppl.gen
def plate(psi):
    ppl.sample("z", dist.Normal(psi * jnp.array([0.2, -1.0, 0.7]), 0.8))


STEPS = {"y": jnp.array([0.1, 0.5, -0.4])}


def gaussian(matrix, psi, phi):
    """The ELBO of a chain z_t ~ N(phi z_{t-1}, 1) and a guide z = matrix(psi) (eps + shift)."""
    a, m = matrix(psi)
    cov = a @ a.T
    steps = jnp.eye(3) - phi * jnp.eye(3, k=-1)
    start = jnp.array([phi * 0.3, 0.0, 0.0])
    off = steps @ m - start
    prior = -0.5 * (off @ off + jnp.trace(steps @ cov @ steps.T) + 3 * jnp.log(2 * jnp.pi))
    miss = STEPS["y"] - m
    like = -0.5 * ((miss @ miss + jnp.trace(cov)) / 0.25 + 3 * jnp.log(2 * jnp.pi * 0.25))
    entropy = 0.5 * jnp.linalg.slogdet(2 * jnp.pi * jnp.e * cov)[1]
    return prior + like + entropy


def _recursion(order):
    def matrix(psi):
        steps = jnp.eye(3) - 0.5 * jnp.eye(3, k=-1 if order == "forward" else 1)
        inverse = jnp.linalg.inv(steps)
        return 0.8 * inverse, inverse @ (psi * jnp.array([0.2, -1.0, 0.7]))

    return matrix


def _plate(psi):
    return 0.8 * jnp.eye(3), psi * jnp.array([0.2, -1.0, 0.7])


@pytest.mark.parametrize(
    ("guide", "matrix", "is_closed"),
    [
        (filtered, _recursion("forward"), True),
        (backwards, _recursion("backwards"), False),
        (plate, _plate, True),
    ],
)
def test_a_scan_is_integrated_out_step_by_step(guide, matrix, is_closed):
    with jax.enable_x64(True):
        integrated = []

        @ppl.expectation
        def f(x):
            p, q = space(x[0], 0.5), guide(x[1])
            integrated.append(closed(p, q, STEPS).closed)
            return ppl.elbo(p, q, STEPS, analytic=True)

        x = jnp.array([0.7, 0.4])
        exact = lambda x: gaussian(matrix, x[1], x[0])
        ztest.check(lambda key: f.value_and_grad(key, x), jax.jit(jax.value_and_grad(exact))(x))
        assert bool(integrated[-1]) == is_closed


def test_kl_of_a_conditional_model_has_the_likelihood_left_out():
    f = ppl.expectation(
        lambda phi: (
            ppl.elbo(chain(0.4), down(phi), {"x": 1.3}, analytic=True)
            + ppl.kl(down(phi), chain(0.4), {"x": 1.3})
        )
    )
    like = jax.jit(lambda theta, phi: parts(down, theta, phi, "down")[2])(0.4, 0.8)
    ztest.check(lambda key: f.value(key, 0.8), like)


def test_weights_along_a_scan():
    w = np.array([0.5, 2.0, 0.0])
    elbo = lambda: ppl.elbo(space(0.7, 0.5), filtered(0.4), STEPS, weights={"z": w, "y": 0.0})
    both = lambda key: (ppl.seed(lambda: filtered(0.4).simulate())(key), ppl.seed(elbo)(key))
    trace, found = jax.device_get(jax.jit(both)(KEY))
    z, y = trace["z"], np.array([0.2, -1.0, 0.7])
    ratio = norm.logpdf(z, 0.7 * np.array([0.3, *z[:-1]]))
    ratio -= norm.logpdf(z, 0.5 * np.array([0.0, *z[:-1]]) + 0.4 * y, 0.8)
    np.testing.assert_allclose(found, w @ ratio, rtol=1e-5)


@ppl.gen
def nested(theta):
    ppl.sample("u", chain(theta))
    ppl.observe("seen", dist.Normal(theta, 1.0), 0.2)


@ppl.gen
def nested_guide(phi):
    ppl.sample("u", down(phi))


def test_nested_addresses_factors_and_scale():
    data = {"u": {"x": 1.3}}
    table = {"u": {"z1": 0.5}, ("u", "x"): 3.0, "seen": 4.0}
    f = lambda: ppl.elbo(nested(0.4), nested_guide(0.8), data, weights=table)
    other = lambda: ppl.elbo(
        ppl.scale(nested(0.4), table), ppl.scale(nested_guide(0.8), {("u", "z1"): 0.5}), data
    )

    @jax.jit
    def densities(key):
        z = ppl.seed(lambda: nested_guide(0.8).simulate())(key)
        p = nested(0.4).log_densities(ppl.merge(z.choices, data))
        return p["u"], z.log_densities["u"], [ppl.seed(g)(key) for g in (f, other)]

    p, q, found = jax.device_get(densities(KEY))
    exact = 0.5 * (p["z1"] - q["z1"]) + p["z2"] - q["z2"] + 3.0 * p["x"]
    exact += 4.0 * norm.logpdf(0.2, 0.4)
    np.testing.assert_allclose(found, [exact] * 2, rtol=1e-5)


def test_what_is_wrong_is_refused():
    run = lambda f: ppl.seed(f)(KEY)
    model, guide, data = chain(0.4), down(0.8), {"x": 1.3}
    with pytest.raises(ppl.AddressError, match=r"neither chain nor down.*'z3'.*'z1', 'z2', 'x'"):
        run(lambda: ppl.elbo(model, guide, data, weights={"z3": 1.0}))
    with pytest.raises(ppl.ShapeError, match="weight of 'z1'"):
        run(lambda: ppl.elbo(model, guide, data, weights={"z1": jnp.ones(3)}))
    posterior = ppl.normalize(model, data)
    with pytest.raises(ppl.UnsupportedError, match="several weights"):
        run(lambda: ppl.elbo(model, posterior, data, weights={"z1": 2.0}))
    with pytest.raises(ppl.UnsupportedError, match=r"nested in ppl.kl at .* has weights"):
        run(lambda: ppl.kl(nested_guide(0.8), nested(0.4), {"u": {"x": 1.3}}))
    by = ppl.importance(2, ppl.scale(guide, {"z1": 2.0}))
    with pytest.raises(ppl.UnsupportedError, match="is a proposal"):
        run(lambda: ppl.normalize(model, data, by).simulate())


@jax.jit
def entropic():
    return {
        "bernoulli": dist.Bernoulli(0.3),
        "logits": dist.Bernoulli(logits=0.4),
        "categorical": dist.Categorical(jnp.array([0.2, 0.5, 0.3])),
        "categories": dist.Categorical(logits=jnp.array([0.2, 0.5, -0.3])),
        "geometric": dist.Geometric(0.6),
        "uniform integer": dist.DiscreteUniform(0, 5),
        "normal": dist.Normal(0.3, 0.7).expand((2,)).to_event(1),
        "log normal": dist.LogNormal(0.3, 0.4),
        "several": dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.3], [0.3, 0.5]])),
        "low rank": dist.LowRankMultivariateNormal(
            jnp.zeros(2), jnp.ones((2, 1)), jnp.array([0.4, 1])
        ),
        "beta": dist.Beta(1.3, 2.2),
        "dirichlet": dist.Dirichlet(jnp.array([0.7, 2.0, 1.3])),
        "exponential": dist.Exponential(1.7),
        "gamma": dist.Gamma(2.3, 1.7),
        "inverse gamma": dist.InverseGamma(3.3, 1.2),
        "weibull": dist.Weibull(1.3, 2.0),
        "cauchy": dist.Cauchy(0.0, 1.3),
        "laplace": dist.Laplace(0.3, 0.6),
        "logistic": dist.Logistic(0.2, 0.7),
        "pareto": dist.Pareto(1.3, 4.0),
        "student": dist.StudentT(5.0, 0.2, 0.7),
        "uniform": dist.Uniform(-0.3, 1.9),
    }


def test_entropies_of_the_table():
    """Each has no variance, and the mean of -log q: 22 numbers."""
    with jax.enable_x64(True):
        table = entropic()
        of = {n: ppl.gen(lambda d=d: ppl.sample("x", d))() for n, d in table.items()}
        f = {n: ppl.expectation(lambda g=g: ppl.entropy(g)) for n, g in of.items()}
        values = jax.jit(lambda key: {n: e.value(key) for n, e in f.items()})
        exact = {n: float(v) for n, v in values(KEY).items()}
        assert exact == {n: float(v) for n, v in values(jax.random.key(1)).items()}

        def drawn(key):
            return {n: -jnp.sum(d.log_prob(d.sample(key))) for n, d in table.items()}

        ztest.check(drawn, exact)


def test_entropies_where_there_is_no_divergence():
    """A guide's entropy is exact where its prior has no divergence with it, in loops too; and what
    has none is drawn."""

    @ppl.gen
    def model(theta):
        ppl.sample("z", dist.StudentT(4.0, theta, 1.0).expand((3,)))
        ppl.sample("w", dist.HalfNormal(2.0))

    @ppl.gen
    def guide(phi):
        def step(z, _):
            z = ppl.sample("z", dist.Normal(phi * z, 0.5 * jnp.exp(0.1 * z)))
            return z, None

        jax.lax.scan(step, 1.0, length=3)
        ppl.sample("w", dist.Gamma(2.0, 1.0 + phi**2))

    def f(x, analytic):
        return ppl.elbo(model(x[0]), guide(x[1]), {}, analytic=analytic)

    with jax.enable_x64(True):
        x = jnp.array([0.3, 0.6])
        closed, drawn = (ppl.expectation(lambda x, a=a: f(x, a)) for a in (True, False))

        def difference(key):
            return jax.tree.map(
                jnp.subtract, closed.value_and_grad(key, x), drawn.value_and_grad(key, x)
            )

        ztest.check(difference, (0.0, np.zeros(2)))
        sum_of = ppl.expectation(lambda phi: ppl.entropy(guide(phi)))
        slope = ppl.expectation(lambda phi: -guide(phi).simulate().log_density)
        both = lambda key: sum_of.grad(key, 0.6) - slope.grad(key, 0.6)
        ztest.check(both, 0.0)

    @ppl.gen
    def weighted():
        ppl.factor("w", ppl.sample("x", dist.Normal(0.0, 1.0)))

    with pytest.raises(ppl.UnsupportedError, match="not that of a law"):
        ppl.expectation(lambda: ppl.entropy(weighted())).value(KEY)
