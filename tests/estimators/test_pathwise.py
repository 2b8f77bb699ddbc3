"""Pathwise draws against exact answers.

One-dimensional laws are compared, draw by draw, with -(dF/dθ) / p(x) from scipy's cdf: no Monte
Carlo error. The others, and the acceptance programs, are z-tests of N draws against closed forms
at |z| < 4.75 (two-sided false alarm rate 2e-6 each; about 70 of them: 1.4e-4), fixed keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import kept
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from jax.scipy.special import i0e, i1e
from scipy import optimize, special, stats

from estimators.implicit import _loggamma
from estimators.pathwise import Reparam, reparam, rule

N, Z = 40_000, 4.75


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def draw(d: Any, n: int = N, seed: int = 0) -> jax.Array:
    return Reparam().draw(d, jax.random.key(seed), (n,))


# --- one dimension: dx = -(dF/dθ) / p ----------------------------------------------------


def mix(*parts: Any) -> Any:
    """Weighted sum of cdfs."""
    return lambda *a: sum(w(*a) * F(*a) for w, F in zip(parts[::2], parts[1::2], strict=True))


def truncated(F: Any, low: bool, high: bool) -> Any:
    """The cdf between bounds that are the last parameters."""

    def cdf(x: Any, *a: Any) -> Any:
        bounds, a = a[len(a) - low - high :], a[: len(a) - low - high]
        lo = F(bounds[0], *a) if low else 0.0
        hi = F(bounds[-1], *a) if high else 1.0
        return (F(x, *a) - lo) / (hi - lo)

    return cdf


def mixture(weights: Any, *parts: Any, **kwargs: Any) -> Any:
    return dist.MixtureGeneral(dist.Categorical(probs=jnp.stack(weights)), list(parts), **kwargs)


def soft_laplace(x: Any, m: Any, s: Any) -> Any:
    return 2 / np.pi * np.arctan(np.exp((x - m) / s))


def gamma(x: Any, a: Any, b: Any) -> Any:
    return stats.gamma.cdf(x, a, scale=1 / b)


def same_family(w: Any, m: Any, s: Any) -> Any:
    parts = dist.Normal(jnp.array([-1.0, 1.0]) * m, jnp.array([0.6, 0.9]) * s)
    return dist.MixtureSameFamily(dist.Categorical(logits=jnp.array([1.0, 0.0]) * w), parts)


def power_law(x: Any, a: Any, low: Any, high: Any) -> Any:
    return (x ** (1 + a) - low ** (1 + a)) / (high ** (1 + a) - low ** (1 + a))


norm, t, cauchy, laplace = stats.norm.cdf, stats.t.cdf, stats.cauchy.cdf, stats.laplace.cdf
logistic, halfnorm = stats.logistic.cdf, lambda x, s: stats.halfnorm.cdf(x, scale=s)

# distribution, parameters, cdf
FAMILIES: dict[str, tuple[Callable[..., Any], tuple[float, ...], Callable[..., Any]]] = {
    "Normal": (dist.Normal, (0.3, 1.2), norm),
    "LogNormal": (dist.LogNormal, (0.3, 0.7), lambda x, m, s: norm(np.log(x), m, s)),
    "Laplace": (dist.Laplace, (0.3, 1.2), laplace),
    "Logistic": (dist.Logistic, (0.3, 1.2), logistic),
    "Cauchy": (dist.Cauchy, (0.3, 1.2), cauchy),
    "Gumbel": (dist.Gumbel, (0.3, 1.2), stats.gumbel_r.cdf),
    "SoftLaplace": (dist.SoftLaplace, (0.3, 1.2), soft_laplace),
    "Exponential": (dist.Exponential, (1.7,), lambda x, r: -np.expm1(-r * x)),
    "Weibull": (dist.Weibull, (1.3, 1.7), lambda x, s, a: -np.expm1(-((x / s) ** a))),
    "Gompertz": (dist.Gompertz, (0.8, 1.2), lambda x, a, r: -np.expm1(-a * np.expm1(r * x))),
    "Pareto": (dist.Pareto, (1.3, 2.5), lambda x, s, a: 1 - (s / x) ** a),
    "Uniform": (dist.Uniform, (-0.4, 1.3), lambda x, a, b: (x - a) / (b - a)),
    "LogUniform": (dist.LogUniform, (0.4, 1.3), lambda x, a, b: np.log(x / a) / np.log(b / a)),
    "Kumaraswamy": (dist.Kumaraswamy, (1.7, 2.4), lambda x, a, b: 1 - (1 - x**a) ** b),
    "HalfNormal": (dist.HalfNormal, (1.3,), halfnorm),
    "HalfCauchy": (dist.HalfCauchy, (1.3,), lambda x, s: stats.halfcauchy.cdf(x, scale=s)),
    "Levy": (dist.Levy, (0.3, 1.2), stats.levy.cdf),
    "Dagum": (dist.Dagum, (0.8, 2.2, 1.3), lambda x, p, a, b: (1 + (x / b) ** -a) ** -p),
    "DoublyTruncatedPowerLaw": (dist.DoublyTruncatedPowerLaw, (-1.7, 0.5, 3.0), power_law),
    "LowerTruncatedPowerLaw": (
        dist.LowerTruncatedPowerLaw,
        (-2.7, 0.5),
        lambda x, a, low: 1 - (x / low) ** (1 + a),
    ),
    "Gamma": (dist.Gamma, (2.3, 1.4), gamma),
    "TruncatedNormal": (
        lambda m, s, a, b: dist.TruncatedNormal(m, s, low=a, high=b),
        (0.3, 0.9, -0.5, 2.0),
        truncated(norm, True, True),
    ),
    "TruncatedNormal in the tail": (
        lambda m, s, a, b: dist.TruncatedNormal(m, s, low=a, high=b),
        (0.3, 0.9, 1.0, 2.0),
        truncated(norm, True, True),
    ),
    "left TruncatedNormal": (
        lambda m, s, a: dist.TruncatedNormal(m, s, low=a),
        (0.3, 0.9, -0.5),
        truncated(norm, True, False),
    ),
    "right TruncatedNormal": (
        lambda m, s, b: dist.TruncatedNormal(m, s, high=b),
        (0.3, 0.9, 1.5),
        truncated(norm, False, True),
    ),
    "TruncatedCauchy": (
        lambda m, s, a, b: dist.TruncatedCauchy(m, s, low=a, high=b),
        (0.3, 0.9, -0.5, 2.0),
        truncated(cauchy, True, True),
    ),
    "truncated Laplace": (
        lambda m, s, a, b: dist.TruncatedDistribution(dist.Laplace(m, s), low=a, high=b),
        (0.3, 0.9, -0.5, 2.0),
        truncated(laplace, True, True),
    ),
    "truncated Logistic": (
        lambda m, s, a, b: dist.TruncatedDistribution(dist.Logistic(m, s), low=a, high=b),
        (0.3, 0.9, -0.5, 2.0),
        truncated(logistic, True, True),
    ),
    "truncated SoftLaplace": (
        lambda m, s, a, b: dist.TruncatedDistribution(dist.SoftLaplace(m, s), low=a, high=b),
        (0.3, 0.9, -0.5, 2.0),
        truncated(soft_laplace, True, True),
    ),
    "right TruncatedGamma": (
        lambda a, b, high: dist.TruncatedGamma(a, b, high=high),
        (2.3, 1.4, 2.0),
        truncated(gamma, False, True),
    ),
    "VonMises": (lambda k: dist.VonMises(0.0, k), (1.7,), stats.vonmises.cdf),
    "VonMises, nearly uniform": (lambda k: dist.VonMises(0.0, k), (0.01,), stats.vonmises.cdf),
    "VonMises, narrow": (lambda k: dist.VonMises(0.0, k), (300.0,), stats.vonmises.cdf),
    "TransformedDistribution": (
        lambda k, c: dist.TransformedDistribution(
            dist.VonMises(0.0, k), dist.transforms.AffineTransform(1.0, c)
        ),
        (1.7, 2.0),
        lambda x, k, c: stats.vonmises.cdf((x - 1) / c, k),
    ),
    "MixtureSameFamily": (
        same_family,
        (0.3, 1.2, 1.1),
        mix(
            lambda x, w, m, s: special.expit(w),
            lambda x, w, m, s: norm(x, -m, 0.6 * s),
            lambda x, w, m, s: special.expit(-w),
            lambda x, w, m, s: norm(x, m, 0.9 * s),
        ),
    ),
    "MixtureGeneral": (
        lambda w, a, s: mixture([w, 1 - w], dist.Gamma(a, 1.0), dist.HalfNormal(s)),
        (0.3, 1.2, 1.1),
        mix(
            lambda x, w, a, s: w,
            lambda x, w, a, s: gamma(x, a, 1),
            lambda x, w, a, s: 1 - w,
            lambda x, w, a, s: halfnorm(x, s),
        ),
    ),
    "MixtureGeneral of unequal supports": (
        lambda w, m, s: mixture(
            [w, 1 - w],
            dist.Normal(m, 1.0),
            dist.MixtureSameFamily(
                dist.Categorical(probs=jnp.array([0.5, 0.5])), dist.HalfNormal(s).expand([2])
            ),
            support=dist.constraints.real,
        ),
        (0.3, 1.2, 1.1),
        mix(
            lambda x, w, m, s: w,
            lambda x, w, m, s: norm(x, m, 1),
            lambda x, w, m, s: 1 - w,
            lambda x, w, m, s: halfnorm(x, s),
        ),
    ),
}


def implicit_derivative(cdf: Any, x: Any, params: Any, direction: Any) -> tuple[Any, Any]:
    """-(dF/dθ) / p at x along a direction, and p, by fourth-order differences."""

    def difference(f: Any, h: Any) -> Any:
        return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)

    moved = [np.asarray(params), np.asarray(direction)]
    dF = difference(lambda h: cdf(x, *(moved[0] + h * moved[1])), 1e-4 * min(abs(moved[0])))
    p = difference(lambda h: cdf(x + h, *params), 1e-4 * np.minimum(x.std(), abs(x)))
    return -dF / p, p


@pytest.mark.parametrize("name", FAMILIES)
def test_implicit_identity(name: str, x64: None) -> None:
    make, params, cdf = FAMILIES[name]
    direction = [0.7 * (-1.3) ** i * p for i, p in enumerate(params)]
    assert reparam().unsuitable(jax.eval_shape(make, *params)) is None
    sampled = lambda *p: draw(make(*p), 400)  # not jitted: most kernels are shared between tests
    primals, tangents = tuple(map(jnp.asarray, params)), tuple(map(jnp.asarray, direction))

    def test() -> None:
        x, dx = map(np.asarray, jax.jvp(sampled, primals, tangents))
        exact, p = implicit_derivative(cdf, x, params, direction)
        # where the differences are good: not in far tails, not across an edge of the support
        edge = np.quantile(x, [0.02, 0.98])
        good = (p * np.minimum(1, abs(x)) > 1e-3) & (edge[0] < x) & (x < edge[1])
        assert good.mean() > 0.75
        np.testing.assert_allclose(dx[good], exact[good], rtol=1e-6, atol=2e-7)
        assert stats.kstest(x, lambda x: cdf(x, *params)).pvalue > 1e-5

    slopes = jax.jit(lambda *p: jax.jvp(sampled, p[: len(params)], p[len(params) :]))
    kept.passed(slopes, [*primals, *tangents], [params, direction, cdf], test)


def test_derivative_in_the_location_of_a_circle_is_one(x64: None) -> None:
    sampled = lambda m: draw(dist.VonMises(m, 2.0), 200)
    x, dx = jax.jit(lambda m: jax.jvp(sampled, (m,), (1.0,)))(2.5)
    assert np.all(np.abs(x) <= np.pi)
    np.testing.assert_allclose(dx, 1.0)


def test_log_gamma_far_below_underflow() -> None:
    """float32, against -(dF/da) / (p x) by scipy in float64, down to x = 1e-130."""
    slopes = jax.jit(lambda a, at: jax.jvp(lambda a: _loggamma(a, at), (a,), (a * 0 + 1,))[1])
    for a in (0.01, 0.05, 0.7, 3.0):
        y = np.linspace(-300 if a < 0.1 else -80, 2.0, 60)
        x, h = np.exp(y), 1e-4 * a
        F = lambda a, x=x: stats.gamma.cdf(x, a)
        dF = (8 * (F(a + h) - F(a - h)) - (F(a + 2 * h) - F(a - 2 * h))) / (12 * h)
        exact = -dF / np.exp((a - 1) * y - x - special.gammaln(a)) / x
        at = y.astype(np.float32)
        slope = slopes(np.full_like(at, a), at)
        np.testing.assert_allclose(slope, exact, rtol=3e-5, err_msg=f"a = {a}")


# --- z-tests -----------------------------------------------------------------------------


def z_test(
    make: Callable[..., Any],
    f: Callable[[jax.Array], jax.Array],
    params: tuple[float, ...],
    value: float,
    gradient: tuple[float, ...],
    n: int = N,
    seed: int = 0,
) -> None:
    """E f(x), and its derivative in every parameter, against exact numbers."""
    of = lambda *p: f(draw(make(*p), n, seed))  # not jitted: to compile a Gamma once, not each time
    at = [jnp.asarray(p, float) for p in params]

    def test() -> None:
        values, derivative = jax.linearize(of, *at)
        unit = np.eye(len(params)).astype(values.dtype)
        samples = [values, *(derivative(*direction) for direction in unit)]
        for i, (sample, exact) in enumerate(zip(samples, (value, *gradient), strict=True)):
            sample = np.asarray(sample, np.float64)
            assert sample.shape == (n,)
            error = sample.std() / n**0.5
            off = abs(sample.mean() - exact)
            assert off < Z * error + 1e-6 * abs(exact), (i, sample.mean(), exact)

    slopes = jax.jit(lambda *p: jax.jvp(of, p, p))
    kept.passed(slopes, at, [params, value, gradient, n, Z], test)


def test_gamma_small_shape() -> None:
    gradient_in_float32 = (1.1,)
    z_test(lambda a: dist.Gamma(a, 1.0), jnp.square, (0.05,), 0.0525, gradient_in_float32)
    d = dist.Gamma(0.01, 1.0)
    x, log_prob = map(np.asarray, jax.jit(lambda x: (x, d.log_prob(x)))(draw(d)))
    seen = x > 0  # the others are below the smallest float: see test_small_draws.py
    exact = scipy.stats.gamma(0.01).logpdf(x[seen].astype(np.float64))
    np.testing.assert_allclose(log_prob[seen], exact, rtol=1e-5, atol=1e-5)


def test_gamma_small_shape_x64(x64: None) -> None:
    z_test(lambda a: dist.Gamma(a, 1.0), jnp.square, (0.05,), 0.0525, (1.1,))


def test_inverse_gamma_small_shape() -> None:
    # 1 / x is Gamma(a, b) again
    make = lambda a, b: dist.InverseGamma(a, b)
    z_test(make, lambda x: (1 / x) ** 2, (0.05, 1.0), 0.0525, (1.1, -0.105))


def test_beta_square(x64: None) -> None:
    exact = 0.21951219512195125, (0.11384446699560256, -0.09658116667249889)
    z_test(dist.Beta, jnp.square, (1.7, 2.4), *exact)


def test_studentt_square(x64: None) -> None:
    z_test(dist.StudentT, jnp.square, (6.0, 0.3, 1.2), 2.25, (-0.18, 0.6, 3.6))


def test_truncnormal_mean(x64: None) -> None:
    make = lambda m, s: dist.TruncatedNormal(m, s, low=-0.5, high=2.0)
    exact = 0.5317225015680317, (0.4672730449765935, 0.34342051737441875)
    z_test(make, lambda x: x, (0.3, 0.9), *exact)


def test_normal_quadratic(x64: None) -> None:
    z_test(dist.Normal, lambda x: (x - 1.5) ** 2, (0.4, 1.3), 2.9, (-2.2, 2.6))


def payoff(x: jax.Array) -> jax.Array:
    return jnp.sin(1.3 * x) + 0.2 * x**2


def test_normal_sin(x64: None) -> None:
    exact = 0.48913994680031253, (0.43050690887362886, 0.2582495368797135)
    z_test(dist.Normal, payoff, (0.4, 1.3), *exact)


def test_relu_kink(x64: None) -> None:
    exact = 0.7429833863870086, (0.6208417632368548, 0.3804974469940512)
    z_test(dist.Normal, jax.nn.relu, (0.4, 1.3), *exact)


def test_normal_mixture_sin(x64: None) -> None:
    parts = dist.Normal(jnp.array([-1.0, 1.5]), jnp.array([0.6, 0.9]))
    weights = lambda w: dist.Categorical(logits=jnp.stack([w, 0.0]))
    make = lambda w: dist.MixtureSameFamily(weights(w), parts)
    z_test(make, payoff, (0.4,), 0.17091096348947987, (-0.3650442095496085,))


def closed_form(
    exact: Callable[..., Any], params: tuple[float, ...]
) -> tuple[float, tuple[float, ...]]:
    every = tuple(range(len(params)))
    with jax.enable_x64(True):
        value, gradient = jax.jit(jax.value_and_grad(exact, every))(*map(jnp.asarray, params))
    return float(value), tuple(map(float, gradient))


L = np.array([[1.0, 0.0, 0.0], [0.4, 0.8, 0.0], [-0.3, 0.2, 1.1]])
C = np.array([1.0, -0.5, 0.7])


def shapes(a: Any, b: Any) -> jax.Array:
    return a * jnp.array([0.5, 1.0, 2.0]) + b * jnp.array([0.0, 1.0, 0.0])


def dirichlet_second_moment(a: Any, b: Any) -> jax.Array:
    a0 = shapes(a, b).sum()
    m = shapes(a, b) / a0
    cov = (jnp.diag(m) - jnp.outer(m, m)) / (a0 + 1)
    return C @ cov @ C + (C @ m) ** 2


# distribution, statistic, its expectation, parameters
MULTIVARIATE: dict[str, tuple[Any, Any, Any, tuple[float, ...]]] = {
    "VonMises": (
        dist.VonMises,
        lambda x: jnp.cos(x) + jnp.sin(x) / 2,
        lambda m, k: i1e(k) / i0e(k) * (jnp.cos(m) + jnp.sin(m) / 2),
        (2.3, 1.7),
    ),
    "AsymmetricLaplace": (
        dist.AsymmetricLaplace,
        jnp.square,
        lambda m, s, k: (m + s * (1 / k - k)) ** 2 + s**2 * (1 / k**2 + k**2),
        (0.3, 1.2, 0.7),
    ),
    "FoldedDistribution": (
        lambda m, s: dist.FoldedDistribution(dist.Normal(m, s)),
        lambda x: x,
        lambda m, s: (
            s * (2 / jnp.pi) ** 0.5 * jnp.exp(-((m / s) ** 2) / 2)
            + m * jax.scipy.special.erf(m / s / 2**0.5)
        ),
        (0.5, 1.2),
    ),
    "BetaProportion": (
        dist.BetaProportion,
        jnp.square,
        lambda m, c: m * (1 - m) / (c + 1) + m**2,
        (0.3, 4.0),
    ),
    "Dirichlet": (
        lambda a, b: dist.Dirichlet(shapes(a, b)),
        lambda x: (x @ C) ** 2,
        dirichlet_second_moment,
        (1.1, 0.2),
    ),
    "MultivariateNormal": (
        lambda m, s: dist.MultivariateNormal(m, scale_tril=s * L),
        lambda x: (x @ C) ** 2,
        lambda m, s: (m * C.sum()) ** 2 + s**2 * ((C @ L) ** 2).sum(),
        (0.3, 1.2),
    ),
    "MultivariateNormal, covariance": (
        lambda m, s: dist.MultivariateNormal(m, covariance_matrix=L @ L.T + s * jnp.eye(3)),
        lambda x: (x @ C) ** 2,
        lambda m, s: (m * C.sum()) ** 2 + ((C @ L) ** 2).sum() + s * (C @ C),
        (0.3, 1.2),
    ),
    "MultivariateStudentT": (
        lambda v, s: dist.MultivariateStudentT(v, jnp.zeros(3), s * L),
        lambda x: jnp.abs(x @ C),
        lambda v, s: (
            s
            * ((C @ L) ** 2).sum() ** 0.5
            * 2
            * (v / jnp.pi) ** 0.5
            * jnp.exp(jax.lax.lgamma((v + 1) / 2) - jax.lax.lgamma(v / 2))
            / (v - 1)
        ),
        (6.0, 1.2),
    ),
    "LKJ": (
        lambda e: dist.LKJ(3, e),
        lambda x: x[..., 0, 2] ** 2 + x[..., 1, 2] ** 2 / 2,
        lambda e: 1.5 / (2 * e + 2),
        (1.5,),
    ),
    "Wishart": (
        lambda v, s: dist.Wishart(v, scale_tril=s * L),
        lambda x: jnp.einsum("...ij,i,j", x, C, C),
        lambda v, s: v * s**2 * ((C @ L) ** 2).sum(),
        (5.0, 0.8),
    ),
    "InverseWishart": (
        lambda v, s: dist.InverseWishart(v, scale_tril=s * L),
        lambda x: jnp.einsum("...ij,i,j", x, C, C),
        lambda v, s: s**2 * ((C @ L) ** 2).sum() / (v - 4),
        (12.0, 0.8),
    ),
}


@pytest.mark.parametrize("name", MULTIVARIATE)
def test_closed_form(name: str, x64: None) -> None:
    make, f, exact, params = MULTIVARIATE[name]
    assert reparam().unsuitable(jax.eval_shape(make, *params)) is None
    z_test(make, f, params, *closed_form(exact, params), n=20_000)


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_dirichlet_and_beta_in_float32(scale: float) -> None:
    make = lambda a, b: dist.Dirichlet(shapes(a, b))
    params = (1.1 * scale, 0.2 * scale)
    c = C.astype(np.float32)  # of the type that it is taken for in 32 bits: JAX mixes them up
    z_test(make, lambda x: (x @ c) ** 2, params, *closed_form(dirichlet_second_moment, params))
    square = lambda a, b: a * (a + 1) / ((a + b) * (a + b + 1))
    params = (0.7 * scale, 0.4 * scale)
    z_test(dist.Beta, jnp.square, params, *closed_form(square, params))


# --- wrappers ----------------------------------------------------------------------------


def test_expanded_elements_are_independent_and_corrected(x64: None) -> None:
    k = np.array([[0.5], [3.0]])
    make = lambda k: dist.VonMises(0.0, k).expand((4, 2, 3)).to_event(1).mask(False)
    d = jax.eval_shape(make, k)
    assert reparam().unsuitable(d) is None
    sampled = lambda k: Reparam().draw(make(k), jax.random.key(0), (5,))
    x, dx = map(np.asarray, jax.jit(lambda k: jax.jvp(sampled, (k,), (jnp.ones_like(k),)))(k))
    assert x.shape == (5, *d.batch_shape, *d.event_shape) == (5, 4, 2, 3)
    assert len(np.unique(x)) == x.size
    for row, concentration in enumerate(k[:, 0]):
        exact, _ = implicit_derivative(stats.vonmises.cdf, x[..., row, :], [concentration], [1.0])
        np.testing.assert_allclose(dx[..., row, :], exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("base", "batch"), [((), (3,)), ((1, 2, 1), (3, 4, 2, 5)), ((1, 1), (2, 3)), ((2,), (2,))]
)
def test_expanded_shapes(base: tuple[int, ...], batch: tuple[int, ...]) -> None:
    """Scales that tell the elements apart land where they belong."""
    loc = 100.0 * np.arange(int(np.prod(base))).reshape(base)

    def drawn(loc: jax.Array) -> list[jax.Array]:
        numbers = dist.Normal(loc, 1e-3), dist.Delta(loc)
        vectors = dist.MultivariateNormal(loc[..., None], jnp.eye(3))
        laws = [*((d, (6,)) for d in numbers), (vectors, ())]
        return [Reparam().draw(d.expand(batch), jax.random.key(0), n) for d, n in laws]

    *numbers, vectors = map(np.asarray, jax.jit(drawn)(loc))
    for x in numbers:
        assert x.shape == (6, *batch)
        assert np.max(np.abs(x - loc)) < 0.2
    assert vectors.shape == (*batch, 3)
    assert len(np.unique(vectors)) == vectors.size


# --- what has no pathwise derivative -----------------------------------------------------


class Undeclared(dist.Distribution):
    """A discrete law of which numpyro, knowing no better, says that it has a pathwise draw."""

    support = dist.constraints.real
    pytree_data_fields = ("p",)

    def __init__(self, p: Any):
        self.p = p
        super().__init__()

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        return jax.random.bernoulli(key, self.p, sample_shape).astype(float)


class OtherGamma(dist.Gamma):
    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        return jnp.full(sample_shape, 7.0) * self.rate


UNSUITABLE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "Bernoulli": (lambda p: dist.Bernoulli(probs=p), "ppl.enum"),
    "Poisson": (dist.Poisson, "ppl.reinforce"),
    "expanded": (lambda p: dist.Bernoulli(probs=p).expand((3,)).to_event(1), "ppl.enum"),
    "transformed": (
        lambda p: dist.TransformedDistribution(
            dist.Poisson(p), dist.transforms.AffineTransform(0.0, 2.0)
        ),
        "ppl.reinforce",
    ),
    "undeclared": (Undeclared, "ppl.reinforce"),
    "SineSkewed": (
        lambda p: dist.SineSkewed(dist.VonMises(p, 1.0).expand((1,)).to_event(1), jnp.zeros(1)),
        "ppl.reinforce",
    ),
    "mixture of vectors": (
        lambda p: dist.MixtureSameFamily(
            dist.Categorical(probs=jnp.stack([p, 1 - p])),
            dist.Normal(jnp.zeros((2, 3)), 1.0).to_event(1),
        ),
        "ppl.enum",
    ),
    "mixture without cdf": (
        lambda p: mixture([p, 1 - p], dist.VonMises(0.0, 1.0), dist.VonMises(1.0, 1.0)),
        "VonMises.*ppl.enum",
    ),
    "cdf without derivative": (
        lambda p: mixture([p, 1 - p], dist.Beta(p, 1.0), dist.Beta(1.0, 1.0)),
        "Beta.*ppl.enum",
    ),
    "mixture with a gap": (
        lambda p: mixture([p, 1 - p], dist.Uniform(0.0, 1.0), dist.Uniform(2.0, 3.0)),
        "Uniform.*ppl.enum",
    ),
    "discrete mixture": (
        lambda p: mixture([p, 1 - p], dist.Poisson(1.0), dist.Poisson(2.0)),
        "Poisson.*ppl.enum",
    ),
}


@pytest.mark.parametrize("name", UNSUITABLE)
def test_unsuitable(name: str) -> None:
    import re

    make, advice = UNSUITABLE[name]
    reason = Reparam().unsuitable(jax.eval_shape(make, 0.4))
    assert reason is not None
    assert re.search(advice, reason)


def test_rules_are_found_by_the_way_of_drawing() -> None:
    assert rule(dist.Chi2(3.0)) is rule(dist.Gamma(1.0))
    assert rule(dist.BetaProportion(0.3, 4.0)) is rule(dist.Beta(1.0, 1.0))
    parts = [dist.Normal(0.0, 1.0)]
    assert rule(mixture([1.0], *parts)) is rule(same_family(0.3, 1.0, 1.0))


def test_a_subclass_with_a_draw_of_its_own_keeps_it() -> None:
    assert float(draw(OtherGamma(1.0, 2.0), 1)[0]) == 14.0


# --- transformations of the draw ---------------------------------------------------------


CURVED: dict[str, tuple[Callable[[Any], Any], Callable[..., Any]]] = {
    "VonMises": (lambda k: dist.VonMises(0.0, k), stats.vonmises.cdf),
    "mixture": (
        lambda w: same_family(w, w, 1.0),
        lambda x, w: special.expit(w) * norm(x, -w, 0.6) + special.expit(-w) * norm(x, w, 0.9),
    ),
}


@pytest.mark.parametrize("name", CURVED)
def test_second_derivative(name: str, x64: None) -> None:
    """Against the quantile function x(θ), F(x(θ); θ) = F(x; θ₀), differenced twice."""
    make, cdf = CURVED[name]
    f = lambda p: draw(make(p), 6)
    seconds = jax.jacfwd(jax.jacfwd(f)), jax.jacrev(jax.jacrev(f))
    x, *found = jax.jit(lambda p: [f(p), *(second(p) for second in seconds)])(1.3)
    quantiles = cdf(np.asarray(x), 1.3)
    root = lambda u, p: optimize.brentq(lambda x: cdf(x, p) - u, -6, 6, xtol=1e-14, rtol=1e-14)
    h = 1e-3
    exact = [(root(u, 1.3 + h) - 2 * root(u, 1.3) + root(u, 1.3 - h)) / h**2 for u in quantiles]
    for second in found:
        np.testing.assert_allclose(second, exact, rtol=1e-4, atol=1e-5)


def test_unknown_second_derivatives_raise() -> None:
    f = lambda a: draw(dist.Gamma(a, 1.0), 3).sum()
    for second in (jax.grad(jax.grad(f)), jax.jacfwd(jax.jacfwd(f)), jax.hessian(f)):
        with pytest.raises(NotImplementedError, match=r"ppl\.reinforce"):
            jax.eval_shape(second, 1.3)
    g = lambda a: draw(mixture([0.5, 0.5], dist.Gamma(a, 1.0), dist.Gamma(2.0, 1.0)), 3).sum()
    jax.eval_shape(jax.grad(g), 1.3)
    for second in (jax.grad(jax.grad(g)), jax.jacfwd(jax.jacfwd(g))):
        with pytest.raises(NotImplementedError):
            jax.eval_shape(second, 1.3)


@pytest.mark.parametrize(
    "make", [lambda p: dist.Gamma(p, 2.0), lambda p: dist.VonMises(0.1, p), CURVED["mixture"][0]]
)
def test_jit_vmap_scan(make: Callable[[Any], Any]) -> None:
    keys, params = jax.random.split(jax.random.key(3), 4), jnp.array([0.2, 0.9, 1.5, 4.0])
    f = lambda p, key: jnp.sum(jnp.sin(Reparam().draw(make(p), key, (3,))))
    each = jax.value_and_grad(f)
    alone = jax.jit(each)
    one = [alone(p, key) for p, key in zip(params, keys, strict=True)]
    expected = np.array(jax.device_get(one)).T
    mapped = jax.jit(jax.vmap(each))(params, keys)

    def looped(params: jax.Array) -> Any:
        step = lambda c, xs: (c, f(*xs))
        values = jax.lax.scan(jax.checkpoint(step), 0.0, (params, keys))[1]
        return values.sum(), values

    gradient, values = jax.jit(jax.grad(looped, has_aux=True))(params)
    for got in (mapped, (values, gradient)):
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
