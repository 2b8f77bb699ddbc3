"""Published example models of NumPyro, with data small enough for a test.

Each is the model of an example or tutorial of numpyro.readthedocs.io, shortened: the statements
and constructs are those of the original. ``MODELS`` has them by name with their arguments.
``python tests/imports/numpyro_models.py`` renews ``numpyro_models.json``.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.example_libraries import stax
from jax.experimental.ode import odeint
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.distributions import constraints, transforms
from numpyro.infer.reparam import LocScaleReparam, TransformReparam
from numpyro.infer.util import log_density

import ppl

MODELS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
RNG = np.random.RandomState(0)


def model(*args: Any) -> Callable[..., Any]:
    def add(f: Callable[..., Any]) -> Callable[..., Any]:
        MODELS[f.__name__] = f, args
        return f

    return add


def normal(*shape: int) -> Any:
    return jax.device_put(RNG.normal(size=shape).astype(np.float32))


def integers(high: int, *shape: int) -> Any:
    return jax.device_put(RNG.randint(0, high, size=shape).astype(np.int32))


# --- hierarchies ---

Y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


@model(8, SIGMA, Y)
def eight_schools(J, sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("J", J):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("obs", dist.Normal(theta, sigma), obs=y)


@model(8, SIGMA, Y)
def eight_schools_noncentered(J, sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("J", J), handlers.reparam(config={"theta": TransformReparam()}):
        affine = transforms.AffineTransform(mu, tau)
        theta = numpyro.sample("theta", dist.TransformedDistribution(dist.Normal(0.0, 1.0), affine))
        numpyro.sample("obs", dist.Normal(theta, sigma), obs=y)


@model(integers(40, 6) + 10, integers(10, 6))
def baseball_partially_pooled(at_bats, hits=None):
    m = numpyro.sample("m", dist.Uniform(0, 1))
    kappa = numpyro.sample("kappa", dist.Pareto(1, 1.5))
    with numpyro.plate("num_players", at_bats.shape[0]):
        phi = numpyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
        numpyro.sample("obs", dist.Binomial(at_bats, probs=phi), obs=hits)


@model(integers(40, 6) + 10, integers(10, 6))
def baseball_logit(at_bats, hits=None):
    loc = numpyro.sample("loc", dist.Normal(-1, 1))
    scale = numpyro.sample("scale", dist.HalfCauchy(1))
    with numpyro.plate("num_players", at_bats.shape[0]):
        alpha = numpyro.sample("alpha", dist.Normal(loc, scale))
        numpyro.sample("obs", dist.Binomial(at_bats, logits=alpha), obs=hits)


@model(integers(4, 12), integers(2, 12), normal(12))
def minnesota_radon(county, floor, log_radon=None):
    mu_a = numpyro.sample("mu_a", dist.Normal(0.0, 5.0))
    sigma_a = numpyro.sample("sigma_a", dist.HalfCauchy(1.0))
    mu_b = numpyro.sample("mu_b", dist.Normal(0.0, 5.0))
    sigma_b = numpyro.sample("sigma_b", dist.HalfCauchy(1.0))
    with numpyro.plate("plate_i", 4):
        a = numpyro.sample("a", dist.Normal(mu_a, sigma_a))
        b = numpyro.sample("b", dist.Normal(mu_b, sigma_b))
    eps = numpyro.sample("sigma_y", dist.HalfCauchy(5.0))
    with numpyro.plate("data", len(county)):
        numpyro.sample("obs", dist.Normal(a[county] + b[county] * floor, eps), obs=log_radon)


@model(integers(3, 8), integers(2, 8), integers(30, 8) + 30, integers(30, 8))
def ucbadmit(dept, male, applications, admit=None):
    a = numpyro.sample("a", dist.Normal(0, 10))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma_dept", dist.HalfCauchy(1.0).expand([2]))
    corr = numpyro.sample("L_Rho", dist.LKJCholesky(2, concentration=2.0))
    with numpyro.plate("dept", 3):
        tril = sigma[:, None] * corr
        ab = numpyro.sample("ab", dist.MultivariateNormal(jnp.stack([a, b]), scale_tril=tril))
    logits = ab[dept, 0] + ab[dept, 1] * male
    numpyro.sample("admit", dist.Binomial(applications, logits=logits), obs=admit)


# --- regressions ---


@model(normal(10, 3), normal(10))
def horseshoe_regression(X, y):
    lambdas = numpyro.sample("lambdas", dist.HalfCauchy(jnp.ones(3)))
    tau = numpyro.sample("tau", dist.HalfCauchy(jnp.ones(1)))
    unscaled = numpyro.sample("unscaled_betas", dist.Normal(0.0, jnp.ones(3)))
    betas = numpyro.deterministic("betas", tau * lambdas * unscaled)
    prec = numpyro.sample("prec_obs", dist.Gamma(3.0, 1.0))
    numpyro.sample("Y", dist.Normal(jnp.dot(X, betas), 1.0 / jnp.sqrt(prec)), obs=y)


@model(normal(10), normal(10), normal(10))
def divorce_regression(marriage, age, divorce=None):
    a = numpyro.sample("a", dist.Normal(0.0, 0.2))
    M = numpyro.sample("bM", dist.Normal(0.0, 0.5)) * marriage
    A = numpyro.sample("bA", dist.Normal(0.0, 0.5)) * age
    sigma = numpyro.sample("sigma", dist.Exponential(1.0))
    numpyro.sample("obs", dist.Normal(a + M + A, sigma), obs=divorce)


@model(normal(20, 4), integers(2, 20), 5)
def covtype(data, labels, subsample_size=None):
    with numpyro.plate("dim", data.shape[1]):
        coefs = numpyro.sample("coefs", dist.Normal(0.0, 1.0))
    with numpyro.plate("N", data.shape[0], subsample_size=subsample_size) as idx:
        logits = jnp.dot(data[idx], coefs)
        numpyro.sample("obs", dist.Bernoulli(logits=logits), obs=labels[idx])


@model(normal(12), integers(4, 12))
def zero_inflated_poisson(x, y=None):
    p = numpyro.sample("gate", dist.Beta(1.0, 1.0))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    rate = jnp.exp(b[0] + b[1] * x)
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.ZeroInflatedPoisson(p, rate), obs=y)


@model(normal(12), integers(3, 12))
def ordinal_regression(x, y=None):
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    anchored = dist.TransformedDistribution(
        dist.Dirichlet(jnp.ones(3)), transforms.SimplexToOrderedTransform(0.0)
    )
    cutpoints = numpyro.sample("c_y", anchored)
    with numpyro.plate("obs", len(x)):
        numpyro.sample("Y", dist.OrderedLogistic(b * x, cutpoints), obs=y)


@model(normal(8), normal(8))
def gaussian_process(x, y):
    var = numpyro.sample("kernel_var", dist.LogNormal(0.0, 10.0))
    noise = numpyro.sample("kernel_noise", dist.LogNormal(0.0, 10.0))
    length = numpyro.sample("kernel_length", dist.LogNormal(0.0, 10.0))
    k = var * jnp.exp(-0.5 * ((x[:, None] - x) / length) ** 2)
    k += (noise + 1.0e-4 * (1 + var)) * jnp.eye(len(x))
    numpyro.sample("Y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance_matrix=k), obs=y)


@model(normal(12, 3), integers(2, 12))
def bayesian_network(X, y):
    w1 = numpyro.sample("w1", dist.Normal(jnp.zeros((3, 4)), jnp.ones((3, 4))))
    w2 = numpyro.sample("w2", dist.Normal(jnp.zeros((4, 1)), jnp.ones((4, 1))))
    prec = numpyro.sample("prec_obs", dist.Gamma(3.0, 1.0))
    z = jnp.tanh(X @ w1) @ w2
    with numpyro.plate("data", X.shape[0]):
        numpyro.sample("Y", dist.Normal(z, 1.0 / jnp.sqrt(prec)).to_event(1), obs=y[:, None])


@model(normal(10, 3), normal(10))
def student_regression(X, y):
    with numpyro.plate("D", 3):
        w = numpyro.sample("w", dist.Laplace(0.0, 1.0))
    nu = numpyro.sample("nu", dist.Gamma(2.0, 0.1))
    sigma = numpyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    numpyro.sample("y", dist.StudentT(nu, X @ w, sigma), obs=y)


# --- mixtures, topics, annotators ---


@model(normal(12))
def gaussian_mixture(data):
    weights = numpyro.sample("weights", dist.Dirichlet(0.5 * jnp.ones(3)))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with numpyro.plate("components", 3):
        locs = numpyro.sample("locs", dist.Normal(0.0, 10.0))
    with numpyro.plate("data", len(data)):
        z = numpyro.sample("assignment", dist.Categorical(weights))
        numpyro.sample("obs", dist.Normal(locs[z], scale), obs=data)


@model(integers(6, 5, 7))
def lda(docs):
    with numpyro.plate("K", 3):
        topics = numpyro.sample("topics", dist.Dirichlet(jnp.ones(6) / 6))
    with numpyro.plate("documents", 5, dim=-2):
        theta = numpyro.sample("theta", dist.Dirichlet(jnp.ones(3)).expand([5, 1]))
        with numpyro.plate("words", 7, dim=-1):
            z = numpyro.sample("z", dist.Categorical(theta))
            numpyro.sample("w", dist.Categorical(topics[z]), obs=docs)


@model(integers(4, 5, 6) + 1.0)
def prodlda(docs):
    init, apply = stax.serial(stax.Dense(6), stax.LogSoftmax)
    decoder = numpyro.module("decoder", (init, apply), (5, 3))
    with numpyro.plate("documents", 5):
        logtheta = numpyro.sample("logtheta", dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3)))
        logits = decoder(jax.nn.softmax(logtheta))
        numpyro.sample(
            "obs",
            dist.Multinomial(docs.sum(-1).astype(int), logits=logits, total_count_max=24),
            obs=docs,
        )


@model(integers(3, 4, 5), jnp.tile(jnp.arange(5), (4, 1)))
def dawid_skene(annotations, positions):
    with numpyro.plate("annotator", 5, dim=-2), numpyro.plate("class", 3):
        beta = numpyro.sample("beta", dist.Dirichlet(jnp.ones(3)))
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("item", 4, dim=-2):
        c = numpyro.sample("c", dist.Categorical(pi), infer={"enumerate": "parallel"})
        with numpyro.plate("position", 5):
            numpyro.sample("y", dist.Categorical(beta[positions, c]), obs=annotations)


# --- time ---


@model(normal(8))
def stochastic_volatility(returns):
    step = numpyro.sample("sigma", dist.Exponential(50.0))
    s = numpyro.sample("s", dist.GaussianRandomWalk(scale=step, num_steps=len(returns)))
    nu = numpyro.sample("nu", dist.Exponential(0.1))
    numpyro.sample("r", dist.StudentT(df=nu, loc=0.0, scale=jnp.exp(s)), obs=returns)


@model(integers(2, 7, 3))
def bach_hmm(sequence):
    with numpyro.plate("states", 2):
        x = numpyro.sample("probs_x", dist.Dirichlet(0.9 * jnp.eye(2) + 0.1))
        with numpyro.plate("tones", 3, dim=-2):
            y = numpyro.sample("probs_y", dist.Beta(1.0, 9.0))

    def transition(previous, notes):
        z = numpyro.sample("x", dist.Categorical(x[previous]), infer={"enumerate": "parallel"})
        with numpyro.plate("keys", 3):
            numpyro.sample("y", dist.Bernoulli(y[:, z]), obs=notes)
        return z, None

    scan(transition, 0, sequence)


@model(normal(8))
def autoregressive_2(y):
    alpha = numpyro.sample("alpha", dist.Normal(0, 1).expand([2]))
    const = numpyro.sample("const", dist.Normal(0, 1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))

    def transition(carry, _):
        y1, y2 = carry
        mean = numpyro.deterministic("mu", const + alpha[0] * y1 + alpha[1] * y2)
        new = numpyro.sample("y", dist.Normal(mean, sigma))
        return (new, y1), mean

    with handlers.condition(data={"y": y[2:]}):
        scan(transition, (y[1], y[0]), None, length=len(y) - 2)


@model(jnp.abs(normal(9)) + 1.0, 3)
def exponential_smoothing(y, seasonality):
    """Seasonal and global trend (SGT)."""
    scale = numpyro.sample("cauchy_sd", dist.HalfCauchy(2.0))
    nu = numpyro.sample("nu", dist.Uniform(2, 20))
    coef = numpyro.sample("coef_trend", dist.Cauchy(0, scale))
    level_sm = numpyro.sample("level_sm", dist.Beta(1, 2))
    season_sm = numpyro.sample("s_sm", dist.Uniform(0, 1))
    with numpyro.plate("seasons", seasonality):
        init_s = numpyro.sample("init_s", dist.Cauchy(0, 0.3))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.0))

    def transition(carry, t):
        level, season, total = carry
        expected = (level + coef * jnp.sqrt(jnp.abs(level))) * season[0]
        yt = numpyro.sample("y", dist.StudentT(nu, jnp.clip(expected, 0), sigma))
        total = jnp.where(t >= seasonality, total + yt - y[t - seasonality], total + yt)
        new = level_sm * yt / season[0] + (1 - level_sm) * level
        s = season_sm * yt / new + (1 - season_sm) * season[0]
        return (new, jnp.concatenate([season[1:], s[None]]), total), yt

    with handlers.condition(data={"y": y}):
        scan(transition, (y[0], jnp.exp(init_s), jnp.zeros(())), jnp.arange(len(y)))


@model(normal(6, 4))
def hierarchical_forecasting(y):
    """Local levels of several series that share their scales."""
    with numpyro.plate("series", 4):
        drift = numpyro.sample("drift", dist.LogNormal(-3.0, 1.0))
        sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))

    def transition(level, _):
        with numpyro.plate("series", 4), handlers.reparam(config={"level": LocScaleReparam(0)}):
            level = numpyro.sample("level", dist.Normal(level, drift))
        with numpyro.plate("series", 4):
            pred = numpyro.sample("pred", dist.Normal(level, sigma))
        return level, pred

    with handlers.condition(data={"pred": y}):
        scan(transition, jnp.zeros(4), None, length=6)


@model(integers(2, 6, 5))
def capture_recapture(history):
    """Cormack-Jolly-Seber: whom nobody saw may be dead."""
    phi = numpyro.sample("phi", dist.Uniform(0.0, 1.0))
    rho = numpyro.sample("rho", dist.Uniform(0.0, 1.0))

    def transition(carry, y):
        first, z = carry
        with numpyro.plate("animals", 6), handlers.mask(mask=first):
            mean = phi * z + (1 - first)
            z = numpyro.sample("z", dist.Bernoulli(jnp.clip(mean, 0.01, 0.99)))
            numpyro.sample("y", dist.Bernoulli(0.01 + 0.98 * rho * z), obs=y)
        return (first | y.astype(bool), z), None

    scan(transition, (jnp.zeros(6, bool), jnp.ones(6, jnp.int32)), history.T)


@model(5, jnp.abs(normal(5, 2)) + 1.0)
def lotka_volterra(N, y=None):
    z0 = numpyro.sample("z_init", dist.LogNormal(jnp.log(10.0), 1).expand([2]))
    loc, low = jnp.array([1.0, 0.05, 1.0, 0.05]), 0.0
    scale = jnp.array([0.5, 0.05, 0.5, 0.05])
    theta = numpyro.sample("theta", dist.TruncatedNormal(loc, scale, low=low))

    def dz_dt(z, t, theta):
        u, v = z
        a, b, c, d = theta
        return jnp.stack([(a - b * v) * u, (-c + d * u) * v])

    z = odeint(dz_dt, z0, jnp.arange(float(N)) * 0.1, theta, rtol=1e-6, atol=1e-5, mxstep=500)
    sigma = numpyro.sample("sigma", dist.LogNormal(-1, 1).expand([2]))
    numpyro.sample("y", dist.LogNormal(jnp.log(z), sigma), obs=y)


# --- the rest ---


@model(jax.nn.sigmoid(normal(8, 2)))
def gaussian_copula(beta):
    with numpyro.plate("dim", 2):
        a = numpyro.sample("a", dist.LogNormal(0.0, 1.0))
        b = numpyro.sample("b", dist.LogNormal(0.0, 1.0))
    tril = numpyro.sample("L", dist.LKJCholesky(2))
    copula = dist.GaussianCopulaBeta(a, b, correlation_cholesky=tril)
    with numpyro.plate("data", len(beta)):
        numpyro.sample("x", copula, obs=beta)


@model(normal(12), jnp.array([True, False] * 6))
def missing_data(x, seen):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(x)):
        y = numpyro.sample("x", dist.Normal(mu, 1.0), obs=x, obs_mask=seen)
    numpyro.factor("smooth", -0.5 * jnp.sum(jnp.diff(y) ** 2))


@model(normal(3))
def two_ways(y):
    """A branch whose arms share a name."""
    c = numpyro.sample("cluster", dist.Normal(0.0, 1.0))
    x = cond(
        c > 0,
        lambda m: numpyro.sample("x", dist.Normal(m, 1.0)),
        lambda m: numpyro.sample("x", dist.Normal(-m, 2.0)),
        20.0,
    )
    with handlers.scale(scale=2.5):
        numpyro.sample("y", dist.Normal(x, 10.0), obs=y)


@model(normal(6, 2))
def probabilistic_pca(y):
    w = numpyro.sample("w", dist.MatrixNormal(jnp.zeros((2, 2)), jnp.eye(2), jnp.eye(2)))
    with numpyro.plate("N", 6):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("y", dist.Normal(z @ w, 0.5).to_event(1), obs=y)


# --- draws of their priors, and what NumPyro says of their densities, kept in a file ---

KEPT = pathlib.Path(__file__).parent / "numpyro_models.json"
KEY = jax.random.key(0)
PARAMS = {"decoder$params": [(jnp.arange(18.0).reshape(3, 6) / 9 - 1, jnp.zeros(6)), ()]}


def kept() -> dict[str, tuple[dict[str, Any], float]]:
    """The choices of every model, from its prior, and ``numpyro.infer.util.log_density``."""
    found = json.loads(KEPT.read_text())
    put = lambda v: jax.device_put(np.asarray(v) if isinstance(v, list) else v)
    return {n: ({a: put(v) for a, v in c.items()}, e) for n, (c, e) in found.items()}


def _made(name: str) -> tuple[dict[str, Any], float]:
    f, args = MODELS[name]
    if name == "student_regression":  # an improper prior
        c: Any = {"w": jnp.array([0.5, -1.0, 2.0]), "nu": 3.0, "sigma": 2.0}
    else:
        c = jax.jit(ppl.from_numpyro(f)(*args, params=PARAMS).simulate)(KEY).choices
    c = {a: v for a, v in c.items() if a != "N"}
    args = (*args[:-1], None) if name == "covtype" else args
    exact = jax.jit(lambda c: log_density(f, args, {}, PARAMS | c)[0])(c)
    return {a: np.asarray(v).tolist() for a, v in c.items()}, float(exact)


if __name__ == "__main__":
    lines = [f'"{name}": {json.dumps(_made(name))}' for name in MODELS]
    KEPT.write_text("{" + ",\n".join(lines) + "}\n")
