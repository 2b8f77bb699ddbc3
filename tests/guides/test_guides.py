"""Guides made from a model, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import multivariate_normal, nbinom, norm
from ztest import check

import ppl
from ppl import dist, guides
from transforms.runs.addresses import flatten

KEY = jax.random.key(0)
MU, SIGMA = np.array([1.0, -2.0]), np.array([[1.0, 0.9], [0.9, 1.0]])


@ppl.gen
def correlated():
    ppl.sample("x", dist.MultivariateNormal(jnp.asarray(MU), jnp.asarray(SIGMA)))


def exact_elbo(loc, covariance):
    """-KL(N(loc, covariance) || N(MU, SIGMA))."""
    off, inverse = loc - MU, np.linalg.inv(SIGMA)
    logs = jnp.linalg.slogdet(covariance)[1] - np.linalg.slogdet(SIGMA)[1]
    return -0.5 * (jnp.trace(inverse @ covariance) + off @ inverse @ off - 2.0 - logs)


def elbo_of(model, guide, data):
    return ppl.expectation(lambda params: ppl.elbo(model(), guide(params), data))


# --- the gradient of the ELBO, and its best value -------------------------------------------------


def diagonal(p):
    return p["x"]["loc"], jnp.diag(jnp.exp(2 * p["x"]["log_scale"]))


def full(p):
    p = p["continuous"]
    factor = jnp.exp(p["log_scale"])[:, None] * (jnp.tril(p["lower"], -1) + jnp.eye(2))
    return p["loc"], factor @ factor.T


def low(p):
    p = p["continuous"]
    scale = jnp.diag(jnp.exp(p["log_scale"]))
    return p["loc"], scale @ (jnp.eye(2) + p["factor"] @ p["factor"].T) @ scale


LAWS = {"mean_field": diagonal, "full_rank": full, "low_rank": low}


@pytest.mark.parametrize("name", LAWS)
def test_the_gradient_of_the_elbo(name, x64):
    more = {"rank": 1} if name == "low_rank" else {}
    guide, start = getattr(guides, name)(correlated(), {}, key=KEY, **more)
    leaves, tree = jax.tree.flatten(start)
    moved = [v + 0.3 * np.cos(np.arange(v.size)).reshape(v.shape) for v in leaves]
    params = jax.tree.unflatten(tree, moved)
    grad = jax.jit(jax.grad(lambda p: exact_elbo(*LAWS[name](p))))(params)
    estimate = elbo_of(correlated, guide, {}).grad
    check(lambda key: estimate(key, params), grad, n=4000, chunk=4000)


def test_the_figures_of_the_contract(x64):
    guide, _ = guides.mean_field(correlated(), {}, key=KEY)
    best = {"x": {"loc": jnp.asarray(MU), "log_scale": jnp.log(jnp.full(2, np.sqrt(0.19)))}}
    assert abs(float(jnp.exp(best["x"]["log_scale"][0])) - 0.435890) < 1e-6
    assert abs(float(exact_elbo(*diagonal(best))) + 0.830366) < 1e-6
    elbo = elbo_of(correlated, guide, {})
    check(
        lambda key: elbo.value_and_grad(key, best),
        (exact_elbo(*diagonal(best)), jax.tree.map(jnp.zeros_like, best)),
        n=4000,
        chunk=4000,
    )


@ppl.gen
def bounded():
    hi = ppl.sample("hi", dist.Gamma(2.0, 1.0))
    ppl.sample("p", dist.Uniform(0.0, hi))


def test_a_support_that_moves():
    """The best mean-field guide has the exact means, 2 and 1: d/dm of E[2u - exp(u)] is
    2 - exp(m + s²/2), and the other location is 0 by symmetry."""
    guide, params = guides.mean_field(bounded(), {}, key=KEY)
    rate = optax.exponential_decay(3e-2, 600, 0.01)
    fit = ppl.maximize(
        elbo_of(bounded, guide, {}),
        params,
        optax.adam(rate),
        key=KEY,
        steps=600,
        samples=32,
        progress=False,
    )
    hi, p = fit.params["hi"], fit.params["p"]
    mean = float(jnp.exp(hi["loc"] + jnp.exp(2 * hi["log_scale"]) / 2))
    assert abs(mean - 2.0) < 0.03  # 25 times the noise of the last steps
    assert abs(mean * float(jax.nn.sigmoid(p["loc"])) - 1.0) < 0.03


# --- where the guide is the posterior, the weight of every draw is the evidence -------------------


@ppl.gen
def chain():
    def step(x, _):
        x = ppl.sample("x", dist.Normal(0.9 * x, 0.5))
        ppl.sample("y", dist.Normal(x, 0.3))
        return x, None

    jax.lax.scan(step, 0.0, length=4)


Y = np.array([0.1, 0.5, -0.3, 0.8])
A = np.eye(4) - np.diag(np.full(3, 0.9), -1)
PRIOR = A.T @ A / 0.25
POSTERIOR = PRIOR + np.eye(4) / 0.09
LOG_EVIDENCE = multivariate_normal(np.zeros(4), np.linalg.inv(PRIOR) + 0.09 * np.eye(4)).logpdf(Y)


def conditionals():
    """The posterior of the chain, each given the one before: slope, location, scale."""
    precision, shift, out = POSTERIOR.copy(), Y / 0.09, []
    for t in range(3, -1, -1):  # what comes later is summed out
        p = precision[t, t]
        slope = -precision[t, t - 1] / p if t else 0.0
        out.append((slope, shift[t] / p, p**-0.5))
        if t:
            shift[t - 1] -= precision[t, t - 1] * shift[t] / p
            precision[t - 1, t - 1] -= precision[t, t - 1] ** 2 / p
    return map(np.array, zip(*out[::-1], strict=True))


def exact_structured():
    guide, params = guides.structured(chain(), {"y": jnp.asarray(Y)}, key=KEY)
    slope, loc, scale = conditionals()
    x = params["x"]
    x |= {"loc": jnp.asarray(loc), "log_scale": jnp.log(scale)}
    x["loc_slopes"] = x["loc_slopes"].at[:, 0].set(slope / 0.9)  # of 0.9 x, the model's location
    return guide, params


EXACT = {
    "structured": exact_structured,
    "laplace": lambda: guides.laplace(chain(), {"y": jnp.asarray(Y)}, key=KEY),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_guides(name, x64):
    guide, params = EXACT[name]()
    data = {"y": jnp.asarray(Y)}
    bounds = {"elbo": lambda q: ppl.elbo(chain(), q, data)}
    if name == "structured":
        by = lambda q: ppl.importance(2, q)
        bounds["iwelbo"] = lambda q: ppl.iwelbo(chain(), q, data, 3)
        bounds["posterior"] = lambda q: ppl.elbo(chain(), ppl.normalize(chain(), data, by(q)), data)

    @ppl.expectation
    def weighted(params):
        return sum(10.0**i * bound(guide(params)) for i, bound in enumerate(bounds.values()))

    value = weighted.value(KEY, params, samples=5) / sum(10.0**i for i in range(len(bounds)))
    np.testing.assert_allclose(value, LOG_EVIDENCE, atol=1e-7)
    stuck = ppl.expectation(lambda params: ppl.stl(chain(), guide(params), data))
    for v in jax.tree.leaves(stuck.grad(KEY, params, samples=5)):
        np.testing.assert_allclose(v, 0.0, atol=1e-5)


# --- densities ------------------------------------------------------------------------------------


@ppl.gen
def plated():
    def one(scale):
        a = ppl.sample("a", dist.LogNormal(0.0, scale))
        ppl.sample("b", dist.Uniform(0.0, a))

    s = ppl.sample("s", dist.HalfNormal(1.0))
    jax.vmap(one)(jnp.array([0.5, 1.0]) * s)


@pytest.mark.parametrize("name", ["flow", "blocks"])
def test_the_density_of_what_is_pushed_forward(name, x64):
    more = {"layers": 2, "hidden": [6]} if name == "flow" else {}
    guide, params = getattr(guides, name)(plated(), {}, key=KEY, **more)
    wave = lambda v: 0.1 * np.cos(np.arange(v.size)).reshape(v.shape)
    params = jax.tree.map(lambda v: v + wave(v), params)

    @jax.jit
    def of(x):
        def choices(x):
            z = guide.space.constrain(guide.joint.push(params["continuous"], x)[0])
            return jnp.array([z["s"], *z["a"], *z["b"]])

        z, jacobian = choices(x), jax.jacobian(choices)(x)
        density = guide(params).log_density({"s": z[0], "a": z[1:3], "b": z[3:]})
        volume = jnp.linalg.slogdet(jacobian)[1]
        return density, jnp.sum(jax.scipy.stats.norm.logpdf(x)) - volume, jacobian

    density, exact, jacobian = of(jnp.array([0.3, -1.2, 0.1, 0.7, -0.4]))
    np.testing.assert_allclose(density, exact, atol=1e-9)
    if name == "blocks":  # a_i goes with b_i, and with nothing of another element
        reached = [np.flatnonzero(row).tolist() for row in jacobian[:3]]
        assert reached == [[0], [1], [2]] and [p.shape for p in guide.joint.places] == [
            (2, 2),
            (1, 1),
        ]
        assert jacobian[3, 1] != 0 and jacobian[3, 2] == 0 and jacobian[3, 0] == 0


FAMILIES = ["mean_field", "full_rank", "low_rank", "structured", "map"]


@pytest.mark.parametrize("name", ["mean_field", "full_rank", "map"])
def test_densities_at_draws_and_outside(name, x64):
    guide, params = getattr(guides, name)(bounded(), {}, key=KEY)
    q = guide(params)
    trace = jax.jit(q.simulate)(KEY)
    density = jax.jit(lambda hi, p: q.log_density({"hi": hi, "p": p}))
    np.testing.assert_allclose(density(trace["hi"], trace["p"]), trace.log_density, rtol=1e-9)
    assert density(-1.0, 0.5) == density(2.0, 2.5) == density(2.0, -0.1) == -jnp.inf
    assert (density(2.0, 1.7) == -jnp.inf) == (name == "map")
    assert set(q.sites()) == {"hi", "p"}


@ppl.gen
def of_integers():
    n = ppl.sample("n", dist.Poisson(2.0))
    ppl.sample("b", dist.Binomial(n, 0.4))  # up to a number that is drawn
    ppl.sample("u", dist.DiscreteUniform(2, 4))
    ppl.sample("e", dist.Bernoulli(0.3 * jnp.ones(2)).to_event(1))
    ppl.sample("m", dist.Multinomial(2, jnp.ones(3) / 3))
    ppl.sample("o", Order(2))


class Order(dist.Distribution):
    """A permutation: no guide has a family for it."""

    support = dist.constraints.dependent(is_discrete=True, event_dim=1)

    def __init__(self, n):
        self.n = n
        super().__init__((), (n,))

    def tree_flatten(self):
        return (), self.n

    @classmethod
    def tree_unflatten(cls, n, _):
        return cls(n)

    def sample(self, key, sample_shape=()):
        return jax.vmap(lambda k: jax.random.permutation(k, self.n))(
            jax.random.split(key, sample_shape).reshape(-1)
        ).reshape(*sample_shape, self.n)

    def log_prob(self, value):
        return -jnp.sum(jnp.log(jnp.arange(1.0, self.n + 1)))


def test_discrete_families_sum_to_one(x64):
    guide, params = guides.mean_field(of_integers(), {}, key=KEY)
    params["u"]["logits"] = jnp.array([0.2, -1.0, 0.5])
    params["b"]["logits"] = jnp.asarray(0.7)
    q = guide(params)
    like = {a: s.dtype for (a,), s in flatten(q.choices_like).items()}
    at = {"n": 3, "b": 1, "u": 2, "e": jnp.array([0, 1]), "m": jnp.array([2, 0, 0])}
    at["o"] = jnp.array([1, 0])
    at = {a: jnp.asarray(v, like[a]) for a, v in at.items()}
    counts = np.array([[i, j, 2 - i - j] for i in range(3) for j in range(3 - i)])
    bits = np.array([[i, j] for i in range(2) for j in range(2)])
    wide = {"b": np.arange(-1, 5), "u": np.arange(0, 7), "m": counts, "e": bits}
    points = [at | {a: jnp.asarray(v, like[a])} for a in wide for v in wide[a]] + [at]
    rows = jax.tree.map(lambda *v: jnp.stack(v), *points)
    *density, there = jax.jit(jax.vmap(q.log_density))(rows).tolist()
    of = dict(
        zip(wide, np.split(density, np.cumsum([len(v) for v in wide.values()])), strict=False)
    )
    ends = {a: wide[a][np.isfinite(of[a])].tolist() for a in ("b", "u")}
    assert ends == {"b": [0, 1, 2, 3], "u": [2, 3, 4]}
    probability = {
        "o": 0.5,
        "u": np.exp(0.2) / np.exp([0.2, -1.0, 0.5]).sum(),
        "e": 0.25,
        "m": 1 / 9,
    }
    p = 1 / (1 + np.exp(-0.7))
    probability["b"] = 3 * p * (1 - p) ** 2
    for a in of:
        share = np.exp(there) / np.exp(of[a]).sum()
        np.testing.assert_allclose(share, probability[a], rtol=1e-9)
    mean, c = np.exp(params["n"]["log_mean"]), np.exp(params["n"]["log_concentration"])
    others = np.prod([probability[a] for a in probability])
    np.testing.assert_allclose(np.exp(there), others * nbinom.pmf(3, c, c / (c + mean)), rtol=1e-5)


# --- choices that may be absent, discrete choices in an ELBO --------------------------------------


@ppl.gen
def partly():
    c = ppl.sample("c", dist.Bernoulli(0.3))
    mask = jnp.array([True, False])
    ppl.sample("m", dist.HalfNormal(jnp.ones(2)).mask(mask))
    a = jax.lax.cond(c == 1, lambda: ppl.sample("a", dist.LogNormal(0.0, 1.0)), lambda: 0.0)
    on = lambda s: ppl.sample("v", dist.Uniform(0.0, s))
    v = jax.vmap(lambda s: jax.lax.cond(s > 0, lambda: on(s), lambda: 0.0))(jnp.array([2.0, -1.0]))
    ppl.sample("y", dist.Normal(a + v.sum(), 1.0))


def test_what_is_absent_counts_nowhere(x64):
    data = {"y": jnp.asarray(1.5)}
    guide, params = guides.mean_field(partly(), data, key=KEY)
    params["c"]["logits"] = jnp.asarray(0.4)

    def exact(params):
        """By quadrature over the normal number of each choice."""
        x, w = np.polynomial.hermite_e.hermegauss(40)
        w = w / w.sum()
        u = {k: p["loc"] + jnp.exp(p["log_scale"]) * x for k, p in own(params).items()}
        own_density = lambda k: -0.5 * x**2 - own(params)[k]["log_scale"] - 0.5 * np.log(2 * np.pi)
        term = lambda k, log_p: w @ (log_p - own_density(k))
        t = jax.nn.sigmoid(params["c"]["logits"])
        normal = lambda z, m, s: dist.Normal(m, s).log_prob(z)
        half = dist.HalfNormal(1.0).log_prob(jnp.exp(u["m"])) + u["m"]
        slope = jax.nn.log_sigmoid(u["v"]) + jax.nn.log_sigmoid(-u["v"])
        v, a = 2 * jax.nn.sigmoid(u["v"]), jnp.exp(u["a"])
        both = w @ normal(1.5, a[:, None] + v, 1.0) @ w
        taken = term("a", normal(u["a"], 0.0, 1.0)) + both + jnp.log(0.3 / t)
        other = w @ normal(1.5, v, 1.0) + jnp.log(0.7 / (1 - t))
        return term("m", half) + term("v", slope) + t * taken + (1 - t) * other

    def own(params):
        first = lambda p: {k: p[k][0] for k in ("loc", "log_scale")}
        return {"m": first(params["m"]), "v": first(params["v"]), "a": params["a"]}

    value, grad = jax.jit(jax.value_and_grad(exact))(params)
    elbo = elbo_of(partly, guide, data)
    check(lambda key: elbo.value_and_grad(key, params), (value, grad), n=4000, chunk=4000)
    q = guide(params)
    assert q.masked == {("m",)} and q.in_a_branch == {("a",), ("v",)}


@ppl.gen
def mixture():
    mu = ppl.sample("mu", dist.Normal(jnp.zeros(2), 1.0))
    k = jax.vmap(lambda: ppl.sample("k", dist.Categorical(jnp.array([0.3, 0.7]))), axis_size=3)()
    ppl.sample("y", dist.Normal(mu[k], 0.5))


def test_discrete_choices_are_enumerated_where_small():
    data = {"y": jnp.array([-1.0, 0.5, 1.0])}
    guide, params = guides.mean_field(mixture(), data, key=KEY)
    sites = elbo_of(mixture, guide, data).explain(params).sites
    assert {s.address: s.estimator for s in sites} == {"mu": "reparam", "k": "enum"}


def test_the_mode_is_that_of_the_sum_over_discrete_choices(x64):
    @ppl.gen
    def model():
        mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
        k = ppl.sample("k", dist.Bernoulli(0.3))
        ppl.sample("y", dist.Normal(jnp.where(k == 1, mu, -1.0), 0.5))

    _, params = guides.laplace(model(), {"y": jnp.asarray(0.4)}, key=KEY)
    (mu,) = np.asarray(params["continuous"]["loc"])
    one, other = 0.3 * norm.pdf(0.4, mu, 0.5), 0.7 * norm.pdf(0.4, -1.0, 0.5)
    slope = -mu + one / (one + other) * (0.4 - mu) / 0.25
    np.testing.assert_allclose(slope, 0.0, atol=1e-6)
    assert params["discrete"]["k"]["logits"].shape == ()


def test_a_network_amortises_a_guide(x64):
    """The posterior of z_i ~ N(0, 1), x_i ~ N(z_i, 1) is N(x_i / 2, 1/2), for every batch."""

    @ppl.gen
    def model(n):
        z = ppl.sample("z", dist.Normal(jnp.zeros(n), 1.0))
        ppl.sample("x", dist.Normal(z, 1.0))

    guide, _ = guides.mean_field(model(3), {"x": jnp.zeros(3)}, key=KEY)

    def network(w, x):
        return {"z": {"loc": w * x, "log_scale": jnp.full(x.shape, 0.5 * jnp.log(0.5))}}

    def elbo(w, x):
        data = {"x": x}
        return ppl.elbo(model(3), guide.on(model(3), data)(network(w, x)), data)

    x = jnp.array([0.3, -2.0, 1.0])
    evidence = dist.Normal(0.0, jnp.sqrt(2.0)).log_prob(x).sum()
    np.testing.assert_allclose(ppl.expectation(elbo).value(KEY, 0.5, x), evidence, atol=1e-12)
    with pytest.raises(ppl.ShapeError, match=r"latent choices 'z' \[3\], and those of .*'z' \[4\]"):
        guide.on(model(4), {"x": jnp.zeros(4)})


@ppl.gen
def coin():
    k = ppl.sample("k", dist.Bernoulli(0.3))
    ppl.sample("y", dist.Normal(k, 1.0))


@pytest.mark.parametrize("name", ["blocks", "flow", "laplace"])
def test_a_model_of_discrete_choices_alone(name):
    guide, params = getattr(guides, name)(coin(), {"y": 1.0}, key=KEY)
    got = [float(guide(params).log_density({"k": k})) for k in (0, 1)]
    np.testing.assert_allclose(got, np.log(0.5), rtol=1e-6)


# --- what is refused ------------------------------------------------------------------------------


@ppl.gen
def funnel():
    s = ppl.sample("s", dist.Normal(0.0, 1.0))
    ppl.factor("w", s**2)


REFUSED = {
    "nothing left": (
        lambda: guides.mean_field(bounded(), {"hi": 2.0, "p": 1.0}, key=KEY),
        "nothing left to infer",
    ),
    "absent in a joint law": (
        lambda: guides.full_rank(partly(), {"y": 1.5}, key=KEY),
        r"'m' at .*test_guides.py.* may be absent",
    ),
    "no mode": (lambda: guides.laplace(funnel(), {}, key=KEY), "has no maximum"),
    "no plate": (
        lambda: guides.blocks(plated(), {}, key=KEY, plates=[["a", "s"]]),
        "'a', 's' of one plate at .* have no common first axis",
    ),
    "narrow": (
        lambda: guides.flow(plated(), {}, key=KEY, hidden=[4]),
        r"have sizes \[4\], and plated has 5 unconstrained numbers",
    ),
    "unknown in a plate": (
        lambda: guides.blocks(plated(), {}, key=KEY, plates=[["aa"]]),
        "Did you mean 'a'",
    ),
    "not called": (lambda: guides.mean_field(bounded, {}, key=KEY), "Call it with its arguments"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    f, words = REFUSED[what]
    with pytest.raises(ppl.PPLError, match=words):
        f()


def test_every_family_is_documented():
    names = [n for n in guides.__all__ if n not in ("Family", "Guide")]
    assert set(names) == {*FAMILIES, "blocks", "flow", "laplace"}
    assert all(getattr(guides, n).__doc__ for n in names)
