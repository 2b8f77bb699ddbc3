"""NumPyro models as programs, and back: published models, and exact figures for each construct."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro_models
import pytest
import ztest
from jax.example_libraries import stax
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.distributions import constraints
from numpyro.infer import autoguide
from numpyro.infer import util as infer
from numpyro.infer.reparam import LocScaleReparam
from numpyro.primitives import mutable
from scipy import linalg
from scipy.stats import norm

import ppl
from ppl import dist

KEY = jax.random.key(0)
DRAWS = numpyro_models.kept()


def theirs(f, choices, *args):
    return infer.log_density(f, args, {}, choices)[0]


def close(a, b, rtol=1e-5):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("name", numpyro_models.MODELS)
def test_published_models(name):
    """At a draw of the prior; a subsample is left out, since NumPyro cannot score one."""
    f, args = numpyro_models.MODELS[name]
    args = (*args[:-1], None) if name == "covtype" else args
    g = ppl.from_numpyro(f)
    choices, exact = DRAWS[name]
    found = lambda c: g(*args, params=numpyro_models.PARAMS).log_density(c)
    ztest.check_exact(found, [choices], exact, rtol=1e-5, atol=1e-5)


# --- subsamples ---

Y = jax.device_put(np.arange(20, dtype=np.float32) / 10)


def elbo(model, guide, *args):
    model, guide = ppl.from_numpyro(model), ppl.from_numpyro(guide)
    return ppl.expectation(lambda p: ppl.elbo(model(*args, params=p), guide(*args, params=p), {}))


def subsampled(y):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("N", 20, subsample_size=5) as i:
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y[i])


def test_a_subsample_is_drawn_afresh_where_the_guide_has_none():
    def guide(y):
        numpyro.sample("z", dist.Normal(numpyro.param("m", 0.2), 0.5))

    objective = elbo(subsampled, guide, Y)
    ztest.check(lambda key: objective.grad(key, {"m": 0.2}), {"m": 14.8}, n=4000)


def test_guide_and_model_share_a_subsample():
    """With local latents: the gradient is that of the full data only if they agree."""

    def model(y):
        with numpyro.plate("N", 20, subsample_size=5) as i:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y[i])

    def guide(y):
        m = numpyro.param("m", jnp.full(20, 0.2))
        with numpyro.plate("N", 20, subsample_size=5) as i:
            numpyro.sample("z", dist.Normal(m[i], 0.5))

    params = ppl.from_numpyro(guide).init(KEY, Y)
    objective = elbo(model, guide, Y)
    ztest.check(lambda key: objective.grad(key, params), {"m": -0.2 + (Y - 0.2)}, n=4000)


def test_the_indices_are_a_choice_of_density_0():
    g = ppl.from_numpyro(subsampled)(Y)
    i = np.array([3, 1, 4, 0, 5])
    exact = norm.logpdf(0.5) + 4 * np.sum(norm.logpdf(np.asarray(Y)[i], 0.5))
    close(jax.jit(g.log_density)({"z": 0.5, "N": i}), exact)
    assert len(set(jax.jit(g.simulate)(KEY)["N"].tolist())) == 5
    with pytest.raises(ppl.KeyRequiredError, match="'N'"):
        g.log_density({"z": 0.5})


# --- scale, mask, factors ---


@pytest.mark.parametrize("estimator", [ppl.enum(), ppl.reinforce()], ids=["enum", "reinforce"])
def test_a_scaled_choice_has_the_score_of_its_draws(estimator):
    def model():
        with handlers.scale(scale=5.0):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=1.5)

    def guide():
        with handlers.scale(scale=5.0):
            numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("t", 0.4)))

    p, q = ppl.from_numpyro(model), ppl.from_numpyro(guide)

    @ppl.expectation
    def objective(params):
        return ppl.elbo(p(), ppl.with_estimators(q(params=params), {"z": estimator}), {})

    exact = {"t": -1.2581226}
    if isinstance(estimator, type(ppl.enum())):
        close(objective.grad(KEY, {"t": 0.4})["t"], exact["t"])
    else:
        ztest.check(lambda key: objective.grad(key, {"t": 0.4}), exact, n=4000)


def test_a_masked_choice_is_absent():
    def model():
        with numpyro.plate("n", 2):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(z.sum(), 1.0), obs=2.0)

    def guide():
        t = numpyro.param("t", jnp.zeros(2))
        with handlers.mask(mask=jnp.array([True, False])), numpyro.plate("n", 2):
            numpyro.sample("z", dist.Bernoulli(logits=t), infer={"enumerate": "parallel"})

    gradient = elbo(model, guide).grad(KEY, {"t": jnp.array([0.2, -0.4])})["t"]
    np.testing.assert_allclose(gradient, [0.0127198, 0.0247152], atol=1e-6)


def test_observations_wider_than_their_distribution():
    def model():
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=jnp.arange(4.0))
        numpyro.factor("f", -mu)

    exact = norm.logpdf(0.3) + norm.logpdf(np.arange(4.0), 0.3).sum() - 0.3
    close(ppl.from_numpyro(model)().log_density({"mu": 0.3}), exact)


def test_an_improper_prior_is_scored_and_not_drawn():
    def model():
        x = numpyro.sample("x", dist.ImproperUniform(constraints.real, (), (3,)))
        numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=1.0)

    g = ppl.from_numpyro(model)()
    close(g.log_density({"x": jnp.ones(3)}), -2.918939)
    with pytest.raises(ppl.UnsupportedError, match="its sample is not implemented"):
        g.simulate(KEY)


# --- loops and branches ---

X = jax.device_put(np.array([0.3, -1.0, 2.0, 0.7], np.float32))


def chain(reverse=False):
    def step(c, _):
        x = numpyro.sample("x", dist.Normal(c, 1.0))
        with numpyro.plate("n", 2):
            numpyro.sample("y", dist.Normal(x, 2.0), obs=0.5)
        return x, None

    scan(step, 0.0, None, length=4, reverse=reverse)


def test_a_loop_backwards():
    """Here NumPyro is wrong: it gives the first value to the last step."""
    x = np.asarray(X)
    exact = np.sum(norm.logpdf(x, [*x[1:], 0.0]) + 2 * norm.logpdf(0.5, x, 2.0))
    close(ppl.from_numpyro(chain)(reverse=True).log_density({"x": X}), exact)
    for handler in (handlers.condition, handlers.substitute):
        close(ppl.from_numpyro(handler(chain, data={"x": X}))(reverse=True).log_density({}), exact)


@pytest.mark.parametrize(
    "around",
    [
        lambda f: handlers.scale(f, scale=3.0),
        lambda f: handlers.mask(f, mask=jnp.array(False)),
        lambda f: handlers.scale(handlers.scale(f, scale=3.0), scale=0.5),
        lambda f: handlers.infer_config(f, lambda site: {}),
    ],
)
def test_handlers_around_a_loop(around):
    close(ppl.from_numpyro(around(chain))().log_density({"x": X}), theirs(around(chain), {"x": X}))


def test_handlers_with_an_axis_of_steps():
    def model():
        def step(c, _):
            x = numpyro.sample("x", dist.Normal(c, 1.0))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=1.0)
            return x, None

        with handlers.mask(mask=X > 0), handlers.scale(scale=jnp.arange(1.0, 5.0)):
            scan(step, 0.0, None, length=4)

    close(ppl.from_numpyro(model)().log_density({"x": X}), theirs(model, {"x": X}))


def test_handlers_around_loops_in_loops_and_missing_data():
    """What a mask hides may be no number."""
    y = np.array([[0.1, np.nan], [np.nan, 0.4]])

    def model():
        def inner(c, y):
            x = numpyro.sample("x", dist.Normal(c, 1.0))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
            return x, None

        with handlers.scale(scale=2.0), handlers.mask(mask=~np.isnan(y)):
            scan(lambda c, y: scan(inner, c, y), 0.0, y)

    x = np.asarray(X).reshape(2, 2)
    before = np.array([0.0, *x.ravel()[:3]]).reshape(2, 2)
    exact = 2 * np.nansum(norm.logpdf(x, before) + norm.logpdf(y, x))
    close(ppl.from_numpyro(model)().log_density({"x": x}), exact)


def test_names_with_a_prefix_and_loops_in_loops():
    def inner(c, _):
        z = numpyro.sample("z", dist.Normal(c, 1.0))
        return z, z

    def model():
        with handlers.scope(prefix="a"):
            scan(lambda c, _: (scan(inner, c, None, length=2)[0], None), 0.0, None, length=3)

    g = ppl.from_numpyro(model)()
    z = np.arange(6.0).reshape(3, 2)
    assert g.choices_like == {"a/z": jax.ShapeDtypeStruct((3, 2), jnp.float32)}
    exact = np.sum(norm.logpdf(z.ravel(), [0, 0, 1, 2, 3, 4]))
    close(g.log_density({"a/z": z}), exact)


def test_values_shorter_than_a_loop_are_refused():
    with pytest.raises(ppl.ShapeError, match=r"test_from_numpyro.py:.*scan of 4 steps"):
        ppl.from_numpyro(handlers.condition(chain, {"x": jnp.ones(3)}))().log_density({})


def test_a_small_integer_in_a_loop():
    def model():
        def step(c, _):
            z = numpyro.sample("z", dist.Categorical(probs=jnp.ones(3) / 3))
            return z + c, None

        return scan(step, jnp.array(0, jnp.int8), None, length=3)[0]

    trace = ppl.from_numpyro(model)().simulate(KEY)
    assert trace.retval == trace["z"].sum()


@pytest.mark.parametrize("c", [-0.3, 0.3])
def test_a_branch(c):
    def model():
        c = numpyro.sample("c", dist.Normal(0.0, 1.0))
        with handlers.scale(scale=2.0):
            cond(
                c > 0,
                lambda m: numpyro.sample("x", dist.Normal(m, 1.0)),
                lambda m: numpyro.sample("x", dist.Normal(-m, 2.0)),
                3.0,
            )

    x = norm(3.0, 1.0) if c > 0 else norm(-3.0, 2.0)
    exact = norm.logpdf(c) + 2 * x.logpdf(1.0)
    close(ppl.from_numpyro(model)().log_density({"c": c, "x": 1.0}), exact)


# --- the other handlers ---


def ab(seen=True):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(a, 2.0))
    numpyro.sample("c", dist.Normal(b, 1.0), obs=0.5 if seen else None)
    return b


@pytest.mark.parametrize(
    ("f", "names"),
    [
        (handlers.reparam(ab, {"b": LocScaleReparam(0.0)}), ["a", "b_decentered"]),
        (handlers.substitute(ab, {"a": 1.0}), ["b"]),
        (handlers.condition(ab, {"b": 1.0}), ["a"]),
        (handlers.seed(ab, 0), ["a", "b"]),
        (handlers.scope(ab, prefix="m"), ["m/a", "m/b"]),
        (handlers.uncondition(ab), ["a", "b", "c"]),
    ],
)
def test_handlers_around_a_model(f, names):
    choices = {n: 0.7 + i for i, n in enumerate(names)}
    g = ppl.from_numpyro(f)()
    assert list(g.choices_like) == names
    plain = {n.removeprefix("m/"): v for n, v in choices.items()}
    simple = "m/a" in choices or "c" in choices  # NumPyro needs a key for these, or cannot
    close(g.log_density(choices), theirs(lambda: ab("c" not in choices) if simple else f(), plain))


def test_a_subsample_in_a_branch():
    def model(on):
        def arm(_):
            with numpyro.plate("N", 20, subsample_size=5) as i:
                numpyro.sample("y", dist.Normal(0.0, 1.0), obs=Y[i])
            return jnp.sum(i)

        return cond(on, arm, arm, None)

    g = ppl.from_numpyro(model)(True)
    trace = g.simulate(KEY)
    assert trace.retval == trace["N"].sum()
    exact = 4 * norm.logpdf(np.asarray(Y)[trace["N"]]).sum()
    close(g.log_density(trace.choices), exact)


def test_an_intervention():
    trace = ppl.from_numpyro(handlers.do(ab, {"b": 1.0}))().simulate(KEY)
    exact = norm.logpdf(trace["a"]) + norm.logpdf(trace["b"], trace["a"], 2.0)
    close(trace.log_density, exact + norm.logpdf(0.5, 1.0))


def test_a_choice_that_a_handler_blocks_is_noise():
    trace = ppl.from_numpyro(handlers.block(ab, hide=["b"]))().simulate(KEY)
    assert list(trace.choices) == ["a"]
    close(trace.log_density, norm.logpdf(trace["a"]) + norm.logpdf(0.5, trace.retval))


def test_noise_has_no_address_and_weighs_nothing():
    def model():
        u = numpyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        v = jax.random.normal(numpyro.prng_key())
        numpyro.sample("x", dist.Normal(u + v, 1.0))
        return u + v

    g = ppl.from_numpyro(model)()
    trace = g.simulate(KEY)
    assert list(trace.choices) == ["x"]
    close(trace.log_density, norm.logpdf(trace["x"], trace.retval))
    with pytest.raises(ppl.KeyRequiredError, match=r"log_density\(choices, key\)"):
        g.log_density({"x": 0.5})
    # unbiased: the marginal is Normal(0, sqrt 3)
    exact = np.asarray(norm.pdf(0.5, scale=3**0.5))
    ztest.check(lambda key: jnp.exp(g.log_density({"x": 0.5}, key)), exact, n=4000)


# --- discrete choices are summed out ---


def test_a_hidden_markov_model_is_summed_out_exactly():
    transition = jnp.array([[0.7, 0.3], [0.2, 0.8]])
    y = np.array([0.1, 1.2, 0.8])

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))

        def step(z, y):
            z = numpyro.sample(
                "z", dist.Categorical(transition[z]), infer={"enumerate": "parallel"}
            )
            numpyro.sample("y", dist.Normal(mu + z, 1.0), obs=y)
            return z, None

        scan(step, 0, y)

    g = ppl.marginal(ppl.from_numpyro(model)(y), ["mu"], by=ppl.enumeration())
    law = np.array([1.0, 0.0])
    for yt in y:
        law = law @ np.asarray(transition) * norm.pdf(yt, 0.4 + np.arange(2))
    found = jax.jit(g.log_density)({"mu": 0.4})
    close(found, norm.logpdf(0.4) + np.log(law.sum()))


# --- parameters ---


def with_parameters(x):
    net = numpyro.module("net", stax.Dense(3), (2,))
    scale = numpyro.param("scale", 2.0, constraint=constraints.positive)
    shift = numpyro.param("shift", lambda key: jax.random.normal(key, (3,)))
    numpyro.sample("y", dist.Normal(net(x) + shift, scale).to_event(1))


def test_parameters_by_name():
    model = ppl.from_numpyro(with_parameters)
    x, y = np.array([1.0, -1.0]), np.zeros(3)
    params = model.init(KEY, x)
    assert set(params) == {"net$params", "scale", "shift"} and params["scale"] == 2.0
    w, b = params["net$params"]
    mean = x @ np.asarray(w) + np.asarray(b) + np.asarray(params["shift"])
    exact = norm.logpdf(y, mean, 3.0).sum()
    given = params | {"scale": 3.0, "another": 1.0}
    close(model(x, params=given).log_density({"y": y}), exact)
    free = ppl.from_numpyro(with_parameters, unconstrained=True)
    close(free.init(KEY, x)["scale"], np.log(2.0))
    close(free(x, params=given | {"scale": np.log(3.0)}).log_density({"y": y}), exact)
    assert ppl.from_numpyro(ab).init(KEY) == {}
    with pytest.raises(ppl.UnsupportedError, match=r"test_from_numpyro.py:.*model\.init\(key"):
        model(x).log_density({"y": y})


# --- autoguides ---

COVARIANCE = jax.device_put(np.array([[1.0, 0.9], [0.9, 1.0]]))


def target():
    numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(2), COVARIANCE))
    numpyro.sample("s", dist.LogNormal(0.0, 1.0))


START = {"init_loc_fn": numpyro.infer.init_to_value(values={"x": jnp.array([0.5, -0.5]), "s": 2.0})}
GUIDES = {
    "AutoNormal": {},
    "AutoDelta": {},
    "AutoDiagonalNormal": {},
    "AutoMultivariateNormal": {},
    "AutoLaplaceApproximation": {},
    "AutoIAFNormal": {"num_flows": 1, "hidden_dims": [3]},
}


def order_of(guide):
    """Where x and s are in the latent vector of an autoguide."""
    at = jax.jit(lambda latent: guide._unpack_latent(latent))(np.arange(3))
    return np.array([*np.asarray(at["x"]), at["s"]])


@pytest.mark.parametrize("name", GUIDES)
def test_the_density_of_an_autoguide(name):
    """At its own draw, and at the same values when they are given."""
    theirs = getattr(autoguide, name)(target, **START, **GUIDES[name])
    guide = ppl.from_numpyro(theirs)
    with pytest.raises(ppl.UnsupportedError, match=r"guide\.init\(key"):
        guide()
    params = guide.init(KEY)
    g = guide(params=params)
    trace = jax.jit(g.simulate)(KEY)
    assert set(trace.choices) == {"x", "s"}
    x, s = np.asarray(trace["x"]), np.asarray(trace["s"])
    log_s = np.log(s)
    if name == "AutoDelta":
        exact = 0.0
    elif name == "AutoNormal":
        exact = norm.logpdf([*x, log_s], [0.5, -0.5, np.log(2.0)], 0.1).sum() - log_s
    elif name == "AutoLaplaceApproximation":
        exact = -log_s
        with pytest.raises(ppl.UnsupportedError, match="a function of noise"):
            g.log_density(trace.choices)
    else:
        u = np.zeros(3)
        u[order_of(theirs)] = [*x, log_s]
        log_prob = jax.jit(lambda params, u: theirs.get_posterior(params).log_prob(u))
        exact = np.sum(log_prob(params, u)) - log_s
    close(trace.log_density, exact, rtol=1e-4)
    if name != "AutoLaplaceApproximation":
        close(jax.jit(g.log_density)({"x": x, "s": s}), exact, rtol=1e-4)


def test_the_elbo_of_a_full_rank_autoguide():
    """The latent vector is noise, and its density is carried by the choices."""
    fn = autoguide.AutoMultivariateNormal(target, **START)
    guide, model = ppl.from_numpyro(fn), ppl.from_numpyro(target)
    params = guide.init(KEY)
    objective = ppl.expectation(lambda p: ppl.elbo(model(), guide(params=p), {}))
    at, covariance = order_of(fn), np.zeros((3, 3))
    covariance[np.ix_(at, at)] = linalg.block_diag(COVARIANCE, 1.0)
    precision = np.linalg.inv(covariance)

    def exact(p):  # log s is normal, so this is the divergence of two normals, but for constants
        m, c = p["auto_loc"], p["auto_scale_tril"]
        quadratic = m @ precision @ m + jnp.trace(precision @ c @ c.T)
        return -0.5 * quadratic + jnp.sum(jnp.log(jnp.diagonal(c)))

    lower = jax.jit(jax.grad(exact))(params)
    lower["auto_scale_tril"] = np.tril(lower["auto_scale_tril"])

    def estimate(key):
        gradient = objective.grad(key, params)
        return gradient | {"auto_scale_tril": jnp.tril(gradient["auto_scale_tril"])}

    ztest.check(estimate, lower, n=4000)
    assert not objective.explain(params).findings


def test_a_flow_without_an_inverse():
    fn = handlers.condition(target, {"s": 1.0})
    guide = ppl.from_numpyro(autoguide.AutoBNAFNormal(fn, **START, hidden_factors=[2]))
    g = guide(params=guide.init(KEY))
    choices = jax.eval_shape(g.simulate, KEY).choices
    with pytest.raises(NotImplementedError, match="analytic inverse"):
        jax.eval_shape(g.log_density, choices)


def test_a_list_of_guides_is_drawn_and_not_scored():
    fn = autoguide.AutoGuideList(target)
    fn.append(autoguide.AutoDiagonalNormal(handlers.block(target, hide=["s"]), prefix="a"))
    fn.append(autoguide.AutoDelta(handlers.block(target, hide=["x"]), prefix="b"))
    guide = ppl.from_numpyro(fn)
    params = guide.init(KEY)
    g = guide(params=params)
    trace = jax.jit(g.simulate)(KEY)
    exact = norm.logpdf(trace["x"], params["a_loc"], params["a_scale"]).sum()
    close(trace.log_density, exact)
    with pytest.raises(ppl.UnsupportedError, match="a function of noise"):
        g.log_density(trace.choices)


# --- what is refused ---


def keeps_state():
    mutable("state", {"n": 0.0})


def names_by_numbers():
    scan(lambda c, x: (numpyro.sample(f"y{x}", dist.Normal(0.0, 1.0)), None), 0.0, jnp.ones(2))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: ppl.from_numpyro(keeps_state)().simulate(KEY), ppl.UnsupportedError, "'state'"),
        (lambda: ppl.from_numpyro(keeps_state).init(KEY), ppl.UnsupportedError, "has_aux=True"),
        (lambda: ppl.from_numpyro(names_by_numbers)().simulate(KEY), ppl.AddressError, "made of"),
        (
            lambda: ppl.from_numpyro(autoguide.AutoDAIS(target)),
            ppl.UnsupportedError,
            "AutoDAIS",
        ),
        (lambda: ppl.from_numpyro(3), ppl.UnsupportedError, "numpyro statements"),
    ],
)
def test_what_is_refused(make, error, text):
    with pytest.raises(error, match=text) as caught:
        make()
    assert "test_from_numpyro.py" in str(caught.value)


def test_names_by_numbers_of_observations_are_fine():
    def model():
        scan(
            lambda c, x: (numpyro.sample(f"y{x}", dist.Normal(0.0, 1.0), obs=x), None),
            0.0,
            jnp.arange(3.0),
        )

    close(
        ppl.from_numpyro(model)().log_density({}), dist.Normal(0, 1).log_prob(X[:0].sum()) * 3 - 2.5
    )


# --- programs as NumPyro models ---


@ppl.gen
def half(c):
    return ppl.sample("z", dist.Uniform(0.0, c))


@ppl.gen
def nested():
    hi = ppl.sample("hi", dist.Gamma(2.0, 1.0))
    p = ppl.sample("in", half(hi))

    def step(c, _):
        x = ppl.sample("x", dist.Uniform(0.0, c))
        return x, None

    jax.lax.scan(step, p, None, length=3)
    jax.vmap(lambda m: ppl.sample("v", dist.Normal(m, 1.0)))(jnp.arange(2.0))
    ppl.sample("point", dist.Delta(hi))
    ppl.sample("y", dist.Normal(p, 1.0))


def test_a_program_as_a_numpyro_model():
    model = ppl.to_numpyro(nested(), {"y": 0.2})
    x = jnp.array([0.5, 0.3, 0.2])
    choices = {"hi": 2.0, "in/z": 1.0, "x": x, "v": jnp.array([0.1, 0.4])}
    ours = {"hi": 2.0, "in": {"z": 1.0}, "x": x, "v": choices["v"], "point": 2.0, "y": 0.2}
    close(infer.log_density(model, (), {}, choices)[0], nested().log_density(ours))


def test_its_unconstrained_density_is_that_of_the_space():
    """What NUTS follows, and how it makes draws of its positions."""
    g, data = nested(), {"y": 0.2}
    model, space = ppl.to_numpyro(g, data), ppl.unconstrained(g, data)
    u = {
        "hi": jnp.array(0.3),
        "in/z": jnp.array(-0.4),
        "x": jnp.array([0.1, -0.2, 0.5]),
        "v": jnp.array([0.1, 0.4]),
    }

    @jax.jit
    def both():
        v = jnp.concatenate([jnp.ravel(p) for p in u.values()])
        energy = infer.potential_energy(model, (), {}, u)
        made = infer.constrain_fn(model, (), {}, u, return_deterministic=True)
        return -energy, space.log_density(v), made, space.constrain(v)

    a, b, made, expected = both()
    close(a, b)
    assert set(made) == {"hi", "in/z", "x", "v", "point"}
    for name, value in made.items():
        close(value, expected["in"]["z"] if name == "in/z" else expected[name])


def test_a_model_with_noise_is_no_numpyro_model():
    with pytest.raises(ppl.UnsupportedError, match=r"'N'.*test_from_numpyro.py"):
        ppl.to_numpyro(ppl.from_numpyro(subsampled)(Y))
