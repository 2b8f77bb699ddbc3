"""Sites of a program, and its latent choices as a vector: exact Jacobians, shapes, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints
from numpyro.distributions.transforms import AffineTransform
from scipy.special import logsumexp
from scipy.stats import norm

import ppl
from ppl import dist

KEY = jax.random.key(0)


@ppl.gen
def inner(scale):
    return ppl.sample("a", dist.Normal(0.0, scale))


@ppl.gen
def everything():
    hi = ppl.sample("hi", dist.Gamma(2.0, 1.0))
    p = ppl.sample("p", dist.Uniform(0.0, hi))
    ppl.sample("w", dist.Dirichlet(jnp.ones(3)))
    a = ppl.sample("in", inner(hi))
    jax.vmap(lambda m: ppl.sample("z", dist.TruncatedNormal(m, 1.0, low=p)))(jnp.arange(2.0))
    ppl.sample("same", dist.Delta(hi))

    def step(x, _):
        x = ppl.sample("x", dist.LogNormal(0.1 * x, 0.5))
        jax.vmap(lambda: ppl.sample("v", dist.Uniform(0.0, x)), axis_size=2)()
        return x, None

    x, _ = jax.lax.scan(step, a, length=3)
    c = jax.lax.cond(
        hi > 0.0,
        lambda: ppl.sample("c", dist.HalfNormal(hi)),
        lambda: ppl.sample("absent", dist.Normal(0.0, 1.0)),
    )
    jax.lax.map(lambda m: ppl.sample("b", dist.Uniform(0.0, m * hi)), jnp.ones(3), batch_size=2)
    ppl.sample("y", dist.Normal(x + c, 1.0))


DATA = {"y": 1.0}


@pytest.fixture(scope="module")
def case():
    """The space in 64 bits, a point of it, and the choices there."""
    with jax.enable_x64(True):
        space = ppl.unconstrained(everything(), DATA)
        u = 0.5 * jax.random.normal(KEY, (space.size,), float)
        found = space, u, jax.jit(space.constrain)(u)
    return found


def test_the_way_there_and_back(case, x64):
    space, u, z = case
    assert space.size == 21
    back = jax.jit(space.unconstrain)(z)
    absent = space.slices["absent",][0]
    assert z["absent"] == 0.0 and back[absent] == 0.0
    np.testing.assert_allclose(back, u.at[absent].set(0.0), atol=1e-12)
    assert z["same"] == z["hi"] and z["v"].shape == (3, 2) and set(z["in"]) == {"a"}
    assert jnp.all((z["v"] > 0) & (z["v"] < z["x"][:, None])) and 0 < z["p"] < z["hi"]


def test_the_density_has_the_jacobian(case, x64):
    space, u, z = case

    def free(u):
        z = space.constrain(u)
        kept = {**{k: v for k, v in z.items() if k not in ("same", "absent")}, "w": z["w"][:2]}
        return jnp.concatenate([jnp.ravel(v) for v in jax.tree.leaves(kept)])

    jacobian = np.delete(jax.jit(jax.jacobian(free))(u), space.slices["absent",][0], axis=1)
    volume = np.linalg.slogdet(jacobian)[1]
    both = jax.jit(lambda u, z: (space.log_density(u), space.g.log_density(ppl.merge(z, DATA))))
    density, model = both(u, z)
    np.testing.assert_allclose(density, model + volume, atol=1e-10)


def test_functions_of_the_vector_can_be_transformed(x64):
    @ppl.gen
    def program():
        hi = ppl.sample("hi", dist.Gamma(2.0, 1.0))
        ppl.sample("p", dist.Uniform(0.0, hi))

    space = ppl.unconstrained(program(), {})

    def exact(u):  # Gamma(2, 1) of exp(u0), U(0, hi) of hi sigmoid(u1), and their slopes
        return 2 * u[0] - jnp.exp(u[0]) + jax.nn.log_sigmoid(u[1]) + jax.nn.log_sigmoid(-u[1])

    us = jnp.array([[0.3, -1.0], [-0.7, 2.0]])
    got = jax.jit(jax.vmap(jax.value_and_grad(space.log_density)))(us)
    for g, e in zip(got, jax.vmap(jax.value_and_grad(exact))(us), strict=True):
        np.testing.assert_allclose(g, e, atol=1e-12)
    np.testing.assert_allclose(
        jax.jit(space.constrain)(us[0])["p"], np.exp(0.3) / (1 + np.exp(1.0)), atol=1e-12
    )


def test_a_start_is_the_median_of_prior_draws():
    class Improper(dist.Normal):
        def sample(self, key, sample_shape=()):
            return jnp.full((*sample_shape, *self.batch_shape), jnp.nan)

    @ppl.gen
    def program():
        x = ppl.sample("x", dist.Normal(3.0, 1.0))
        ppl.sample("p", dist.Uniform(0.0, jnp.exp(x)))
        ppl.sample("none", Improper(jnp.zeros(2), 1.0))

    space = ppl.unconstrained(program(), {})
    n, x, p = 2000, *jax.vmap(space.init)(jax.random.split(KEY, 2000)).T[:2]
    assert space.init(KEY).tolist()[2:] == [0.0, 0.0]
    # the median of 15 normal draws has variance .1014, of 15 logistic ones .2667 + O(1/225):
    # both means are known by symmetry; |z| <= 4.5 has a false alarm of 7e-6 each
    for draws, mean in ((x, 3.0), (p, 0.0)):
        assert abs(draws.mean() - mean) / (draws.std() / np.sqrt(n)) < 4.5
    assert abs(x.var() - 0.1014) < 4.5 * 0.1014 * np.sqrt(2 / n)


def test_sites(case):
    sites = everything().sites({"hi": 2.0, "y": 1.0})
    assert list(sites)[:4] == ["hi", "p", "w", ("in", "a")]
    assert sites["hi"].observed and sites["y"].observed and not sites["p"].observed
    assert isinstance(sites["hi"].distribution, dist.Gamma)
    assert sites["hi"].support is constraints.positive and sites["hi"].address == "hi"
    assert float(sites["p"].support.upper_bound) == 2.0
    assert float(sites["in", "a"].distribution.scale) == 2.0
    assert [sites[a].shape for a in ("w", "z", "x", "v", "b")] == [(3,), (2,), (3,), (3, 2), (3,)]
    for a in ("z", "x", "v", "b"):
        assert sites[a].distribution.shape() == sites[a].shape
    assert isinstance(sites["x"].distribution, dist.LogNormal)
    assert all(":" in s.source for s in sites.values())


def test_a_distribution_that_numpyro_cannot_widen():
    def two(a):
        halves = dist.Categorical(jnp.array([0.5, 0.5]))
        return dist.MixtureSameFamily(halves, dist.Normal(jnp.stack([a, -a]), 1.0))

    @ppl.gen
    def program():
        jax.vmap(lambda a: ppl.sample("b", two(a)))(jnp.array([1.0, 3.0]))

    d = program().sites({"b": jnp.array([0.2, 0.7])})["b"].distribution
    assert jax.eval_shape(lambda key: d.sample(key, (5,)), KEY).shape == (5, 2)
    assert d.support is constraints.real
    value = np.linspace(-2.0, 3.0, 10).reshape(5, 2)
    a = np.array([1.0, 3.0])
    each = np.log(0.5 * (norm.pdf(value, a) + norm.pdf(value, -a)))
    np.testing.assert_allclose(d.log_prob(jnp.asarray(value)), each, rtol=1e-5)


# --- discrete choices, marginals ------------------------------------------------------------------


@ppl.gen
def mixture():
    mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
    s = ppl.sample("s", dist.HalfNormal(1.0))
    k = jax.vmap(lambda: ppl.sample("k", dist.Bernoulli(0.3)), axis_size=4)()
    ppl.sample("y", dist.Normal(jnp.where(k == 1, mu, -1.0), s))


Y = np.array([-1.0, 0.2, 0.5, 1.3])


def test_a_marginal_has_a_space(x64):
    g = ppl.marginal(mixture(), ["mu", "s", "y"], by=ppl.enumeration())
    space = ppl.unconstrained(g, {"y": jnp.asarray(Y)})
    mu, s = 0.4, np.exp(-0.3)
    each = logsumexp(
        [np.log(0.3) + norm.logpdf(Y, mu, s), np.log(0.7) + norm.logpdf(Y, -1.0, s)], axis=0
    )
    prior = norm.logpdf(mu) + norm.logpdf(s) + np.log(2.0)
    np.testing.assert_allclose(
        space.log_density(jnp.array([mu, -0.3])), prior + each.sum() - 0.3, atol=1e-10
    )
    assert list(g.sites()) == ["mu", "s", "y"]


@ppl.gen
def counted():
    k = ppl.sample("k", dist.Poisson(3.0))
    ppl.sample("x", dist.Uniform(0.0, 1.0 + k))


@ppl.gen
def on_a_sphere():
    ppl.sample("x", dist.ProjectedNormal(jnp.ones(3)))


@ppl.gen
def with_a_posterior():
    ppl.sample("q", ppl.normalize(mixture(), {"y": jnp.asarray(Y)}, by=ppl.importance(2)))


def test_the_sites_of_a_program_with_a_posterior_in_it():
    sites = with_a_posterior().sites()
    assert set(sites) == {("q", "mu"), ("q", "s"), ("q", "k")}
    assert sites["q", "k"].shape == (4,) and sites["q", "k"].distribution is None


REFUSED = {
    "discrete": (
        lambda: ppl.unconstrained(mixture(), {"y": Y}),
        r"'k' at .*test_spaces.py.* is discrete.*ppl.marginal\(g, \['mu', 's', 'y'\]",
    ),
    "moved by what is integrated out": (
        lambda: ppl.unconstrained(ppl.marginal(counted(), ["x"]), {}),
        "supports depend on 'k', which is integrated out",
    ),
    "no bijection": (
        lambda: ppl.unconstrained(on_a_sphere(), {}),
        r"'x' ~ ProjectedNormal at .*test_spaces.py.* has no bijection",
    ),
    "known by its density": (
        lambda: ppl.unconstrained(with_a_posterior(), {}),
        "'q' at .*test_spaces.py.* is drawn from normalize",
    ),
    "unknown data": (lambda: ppl.unconstrained(mixture(), {"yy": Y}), "Did you mean 'y'?"),
    "shape": (
        lambda: ppl.unconstrained(counted(), {"k": 1}).constrain(jnp.zeros(2)),
        r"is f\[1\], and is given as an array float",
    ),
    "not called": (lambda: ppl.unconstrained(counted, {}), "Call it with its arguments"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    f, words = REFUSED[what]
    with pytest.raises(ppl.PPLError, match=words):
        f()


def test_branches_that_share_an_address_need_one_dimension():
    @ppl.gen
    def program():
        c = ppl.sample("c", dist.Normal(0.0, 1.0))
        vector = dist.Normal(jnp.zeros(3), 1.0).to_event(1)
        branches = [lambda d=d: ppl.sample("x", d) for d in (dist.Dirichlet(jnp.ones(3)), vector)]
        jax.lax.cond(c > 0, *branches)

    with pytest.raises(ppl.UnsupportedError, match="supports of different dimensions"):
        ppl.unconstrained(program(), {})


def test_a_support_that_is_given_in_the_data():
    space = ppl.unconstrained(counted(), {"k": jnp.array(2)})
    assert functools.reduce(float.__add__, [float(space.constrain(jnp.zeros(1))["x"])]) == 1.5


def test_the_space_of_a_transformed_choice_is_the_image_of_what_is_transformed():
    """1 + 2 Exponential(1): numpyro's support is all numbers, as the last transform says."""
    above_one = dist.TransformedDistribution(dist.Exponential(1.0), AffineTransform(1.0, 2.0))

    @ppl.gen
    def program():
        ppl.sample("x", above_one)
        ppl.sample("xs", above_one.expand((2,)).to_event(1))

    space = ppl.unconstrained(program(), {})
    u = jnp.array([-0.7, 0.3, 1.5])
    choices = space.constrain(u)
    exact = 1.0 + 2.0 * jnp.exp(u)
    np.testing.assert_allclose(jnp.append(choices["x"], choices["xs"]), exact, rtol=1e-5)
    np.testing.assert_allclose(space.unconstrain(choices), u, atol=1e-5)
    np.testing.assert_allclose(space.log_density(u), jnp.sum(u - jnp.exp(u)), rtol=1e-5)
    guide, params = ppl.guides.mean_field(program(), {}, key=jax.random.key(0))
    trace = guide(params).simulate(jax.random.key(1))
    u, (loc, scale) = (
        space.unconstrain(trace.choices),
        (jnp.append(params["x"][name], params["xs"][name]) for name in ("loc", "log_scale")),
    )
    log_q = jnp.sum(dist.Normal(loc, jnp.exp(scale)).log_prob(u) - u - jnp.log(2.0))
    np.testing.assert_allclose(trace.log_density, log_q, rtol=1e-5)
