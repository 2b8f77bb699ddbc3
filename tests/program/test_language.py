"""The language: choices, densities and weights under every construct; arguments; fitting.

Densities are compared with sums of scipy's, written out by hand.
"""

import dataclasses
import inspect
import logging

import jax
import jax.numpy as jnp
import kept
import numpy as np
import optax
import pytest
from jax import lax
from scipy import stats

import ppl
from ppl import dist

KEY = jax.random.key(0)


def normal(x, loc=0.0, scale=1.0):
    return float(np.sum(stats.norm.logpdf(x, loc, scale)))


def agree(program, by_hand, *, factors=0.0):
    """simulate, log_density and generate agree with ``by_hand(choices)``; returns a trace."""

    @jax.jit  # one program of them all
    def everything():
        t = program.simulate(KEY)
        given = program.generate(t.choices, jax.random.key(1))
        drawn = program.generate({}, jax.random.key(2))
        return t, program.log_density(t.choices), given, drawn

    t, density, (again, weight), (drawn, free) = everything()
    expected = by_hand(jax.tree.map(np.asarray, t.choices)) + factors
    np.testing.assert_allclose(t.log_density, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(density, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(weight, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(again.log_density, expected, rtol=2e-5, atol=2e-5)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(same, again.retval, t.retval)
    np.testing.assert_allclose(free, factors, atol=1e-5)
    np.testing.assert_allclose(
        drawn.log_density, by_hand(jax.tree.map(np.asarray, drawn.choices)) + factors, rtol=2e-5
    )
    shapes = jax.tree.map(lambda s: (s.shape, s.dtype), program.choices_like)
    assert shapes == jax.tree.map(lambda a: (a.shape, a.dtype), t.choices)
    return t


# --- densities under constructs ------------------------------------------------------------------


def test_straight_line_and_retval():
    @ppl.gen
    def g(m, *, scale):
        x = ppl.sample("x", dist.Normal(m, scale))
        n = ppl.sample("n", dist.Poisson(jnp.exp(x)))
        return {"sum": x + n, "static": (x, None)}

    def by_hand(c):
        return normal(c["x"], 0.5, 2.0) + stats.poisson.logpmf(c["n"], np.exp(c["x"]))

    t = agree(g(0.5, scale=2.0), by_hand)
    np.testing.assert_allclose(t.retval["sum"], np.asarray(t["x"]) + np.asarray(t["n"]))
    assert t.retval["static"][1] is None
    given = [{"n": 3}, {"x": 0.7}]
    of_n, of_x = jax.jit(lambda: [g(0.5, scale=2.0).generate(c, KEY) for c in given])()
    rate = np.exp(of_n[0]["x"])
    np.testing.assert_allclose(of_n[1], stats.poisson.logpmf(3, rate), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_x[1], normal(0.7, 0.5, 2.0), rtol=1e-5)


def test_vmap_axes_come_first():
    locs = np.arange(3.0)

    @ppl.gen
    def g():
        xs = jax.vmap(lambda m: ppl.sample("x", dist.Normal(m, 1.0)))(locs)
        ys = jax.vmap(lambda: ppl.sample("y", dist.Normal(jnp.zeros(4), 2.0)), axis_size=2)()
        row = lambda m: jax.vmap(lambda s: ppl.sample("z", dist.Normal(m, s)))(jnp.ones(2))
        zs = jax.vmap(row)(locs)
        jax.vmap(lambda m: ppl.factor("f", m))(locs)
        jax.vmap(lambda: ppl.factor("same", 0.25), axis_size=4)()
        jax.vmap(lambda m: ppl.observe("o", dist.Normal(m, 1.0), 0.5))(locs)
        return xs, ys, zs

    def by_hand(c):
        return normal(c["x"], locs) + normal(c["y"], 0.0, 2.0) + normal(c["z"], locs[:, None])

    t = agree(g(), by_hand, factors=3.0 + 1.0 + normal(0.5, locs))
    assert (t["x"].shape, t["y"].shape, t["z"].shape) == ((3,), (2, 4), (3, 2))
    assert len(np.unique(t["y"])) == 8


@pytest.mark.parametrize("batch_size", [None, 2, 3])
def test_lax_map(batch_size):
    locs = np.arange(5.0) if batch_size == 2 else np.arange(6.0)

    @ppl.gen
    def g():
        f = lambda m: ppl.sample("x", dist.Normal(m, 1.0))
        return lax.map(f, locs, batch_size=batch_size)

    @ppl.gen
    def plain():
        return lax.map(lambda m: ppl.sample("x", dist.Normal(m, 1.0)), locs)

    agree(plain(), lambda c: normal(c["x"], locs))

    @jax.jit
    def densities():
        t = g().simulate(KEY)
        return t.retval, [t.log_density, g().log_density(t.choices)]

    drawn, found = densities()
    np.testing.assert_allclose(found, [normal(drawn, locs)] * 2, rtol=1e-5)


def test_axes_follow_nesting():
    """A scan under vmap has the batch in front, a vmap in a scan the time."""

    @ppl.gen
    def g():
        def step(c, _):
            return ppl.sample("x", dist.Normal(c, 1.0)), None

        jax.vmap(lambda m: lax.scan(step, m, None, length=2)[0])(jnp.arange(4.0))
        many = lambda m: ppl.sample("y", dist.Normal(m, 1.0))
        lax.scan(lambda c, _: (jax.vmap(many)(c), None), jnp.arange(4.0), None, length=2)

    t = jax.eval_shape(lambda: g().simulate(KEY))
    assert (t["x"].shape, t["y"].shape) == ((4, 2), (2, 4))


def test_scan_with_inputs_and_carry():
    xs = np.array([0.3, -1.0, 2.0])

    @ppl.gen
    def g(a):
        def step(c, u):
            z = ppl.sample("z", dist.Normal(a * c + u, 1.0))
            w = jax.vmap(lambda m: ppl.sample("w", dist.Normal(m, 1.0)))(jnp.stack([z, u]))
            ppl.factor("f", u)
            ppl.observe("o", dist.Normal(u, 1.0), 0.0)
            return z, w.sum()

        return lax.scan(step, 0.5, xs, reverse=True)

    def by_hand(c):
        total, carry = 0.0, 0.5
        for t in (2, 1, 0):
            total += normal(c["z"][t], 0.9 * carry + xs[t])
            total += normal(c["w"][t], np.array([c["z"][t], xs[t]]))
            carry = c["z"][t]
        return total

    t = agree(g(0.9), by_hand, factors=float(xs.sum()) + normal(np.zeros(3), xs))
    assert (t["z"].shape, t["w"].shape) == ((3,), (3, 2))
    np.testing.assert_allclose(t.retval[0], t["z"][0])
    np.testing.assert_allclose(t.retval[1], np.sum(t["w"], 1), rtol=1e-6)


def test_nested_scan_and_fori_loop():
    @ppl.gen
    def g():
        def outer(c, _):
            def inner(c, u):
                c = c + ppl.sample("x", dist.Normal(c, 1.0)) * u
                return c, c

            return lax.scan(inner, c, jnp.ones(2))

        c, _ = lax.scan(outer, 0.0, None, length=3)
        return lax.fori_loop(0, 2, lambda i, c: c + ppl.sample("y", dist.Normal(c, 1.0)), c)

    def by_hand(c):
        total, carry = 0.0, 0.0
        for x in c["x"].ravel():
            total, carry = total + normal(x, carry), carry + x
        for y in c["y"]:
            total, carry = total + normal(y, carry), carry + y
        return total

    t = agree(g(), by_hand)
    assert (t["x"].shape, t["y"].shape) == ((3, 2), (2,))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_switch_counts_the_branch_taken(index):
    @ppl.gen
    def g(i):
        def first():
            return ppl.sample("a", dist.Normal(1.0, 1.0))

        def second():
            ppl.factor("f", 0.75)
            return ppl.sample("b", dist.Normal(jnp.zeros(2), 2.0)).sum()

        return lax.switch(i, [first, second, lambda: 7.0])

    hand = [lambda c: normal(c["a"], 1.0), lambda c: normal(c["b"], 0.0, 2.0), lambda c: 0.0]
    t = agree(g(index), hand[index], factors=0.75 if index == 1 else 0.0)
    assert t["b"].shape == (2,)
    retval = [t["a"], np.sum(t["b"]), 7.0][index]
    np.testing.assert_allclose(t.retval, retval, rtol=1e-6)


def test_mapped_predicates_mask_each_element():
    """Nested conds with mapped predicates, holding sites, factors, loops and programs."""
    which = np.array([0, 1, 2, 1])

    @ppl.gen
    def part(m):
        return ppl.sample("u", dist.Normal(m, 1.0)) + ppl.sample("v", dist.Normal(m, 2.0))

    @ppl.gen
    def g():
        def one(i, m):
            def inside():
                ppl.factor("f1", 0.5)

                def loop(c, _):
                    return c + ppl.sample("b", dist.Normal(c, 1.0)), None

                return lax.cond(
                    i == 1,
                    lambda: lax.scan(loop, m, None, length=2)[0],
                    lambda: ppl.sample("p", part(m)),
                )

            def first():
                ppl.observe("o", dist.Normal(m, 1.0), 0.0)
                return ppl.sample("a", dist.Normal(m, 1.0))

            return lax.cond(i == 0, first, inside)

        return jax.vmap(one)(which, np.arange(4.0))

    def by_hand(c):
        total = normal(c["a"][0], 0.0)
        for i in (1, 3):
            total += normal(c["b"][i][0], float(i)) + normal(c["b"][i][1], i + c["b"][i][0])
        return total + normal(c["p"]["u"][2], 2.0) + normal(c["p"]["v"][2], 2.0, 2.0)

    t = jax.tree.map(np.asarray, agree(g(), by_hand, factors=1.5 + normal(0.0)))
    assert t["b"].shape == (4, 2)
    np.testing.assert_allclose(t.retval[2], t["p", "u"][2] + t["p", "v"][2], rtol=1e-6)
    np.testing.assert_allclose(t.retval[0], t["a"][0], rtol=1e-6)


def test_mapped_predicate_does_not_poison_the_gradient():
    """A branch that is not taken may be undefined, like the logarithm of a negative number."""

    @ppl.gen
    def g(m):
        def one(m):
            big = lambda: ppl.sample("a", dist.Normal(0.0, jnp.where(m > 0, m, 1.0)))
            return lax.cond(m > 0, big, lambda: ppl.sample("b", dist.Normal(m, 1.0)))

        return jax.vmap(one)(m)

    m = np.array([2.0, -1.0])
    choices = {"a": np.ones(2), "b": np.zeros(2)}
    grad = jax.jit(jax.grad(lambda m: g(m).log_density(choices)))(m)
    np.testing.assert_allclose(grad, [-1 / 2 + 1 / 8, 1.0], rtol=1e-5)


def test_transparent_wrappers():
    @jax.custom_vjp
    def square(x):
        return ppl.sample("c", dist.Normal(x, 1.0)) ** 2

    square.defvjp(lambda x: (x, x), lambda x, t: (t,))

    @ppl.gen
    def g():
        x = jax.jit(lambda: ppl.sample("a", dist.Normal(0.0, 1.0)))()
        y = jax.checkpoint(lambda x: ppl.sample("b", dist.Normal(x, 1.0)))(x)
        return square(y)

    agree(g(), lambda c: normal(c["a"]) + normal(c["b"], c["a"]) + normal(c["c"], c["b"]))


def test_nested_programs():
    @ppl.gen
    def leaf(m):
        return ppl.sample("x", dist.Normal(m, 1.0))

    @ppl.gen
    def middle(m):
        a = ppl.sample("left", leaf(m))
        return a + ppl.sample("right", leaf(a))

    @ppl.gen
    def top():
        s = jax.vmap(lambda m: ppl.sample("pair", middle(m)))(jnp.arange(3.0))
        return lax.scan(lambda c, u: (c + ppl.sample("tail", leaf(u)), None), 0.0, s)[0]

    def by_hand(c):
        a, b = c["pair"]["left"]["x"], c["pair"]["right"]["x"]
        return normal(a, np.arange(3.0)) + normal(b, a) + normal(c["tail"]["x"], a + b)

    t = agree(top(), by_hand)
    assert t["pair", "left", "x"].shape == (3,)
    np.testing.assert_allclose(t.retval, np.sum(t["tail", "x"]), rtol=1e-5)
    assert set(t["pair"]) == {"left", "right"}


def test_marginal_as_a_site_of_a_program_under_vmap_and_mask():
    @ppl.gen
    def pair(m):
        ppl.sample("y", dist.Normal(1.0 * ppl.sample("b", dist.Bernoulli(0.3)) + m, 1.0))

    @ppl.gen
    def g(m):
        def one(flag, m):
            y = lambda: ppl.sample("in", ppl.marginal(pair(m), "y", ppl.enumeration()))["y"]
            return lax.cond(flag, y, lambda: ppl.sample("out", dist.Normal(m, 1.0)))

        return jax.vmap(one)(jnp.array([True, False]), m)

    def by_hand(c):
        y, m = c["in"]["y"][0], 0.5
        mixture = 0.3 * np.exp(normal(y, 1 + m)) + 0.7 * np.exp(normal(y, m))
        return np.log(mixture) + normal(c["out"][1], -1.0)

    @jax.jit
    def densities(m):
        t = g(m).simulate(KEY)
        return t.choices, [t.log_density, ppl.seed(g(m).log_density)(KEY, t.choices)]

    choices, found = jax.device_get(densities(np.array([0.5, -1.0])))
    np.testing.assert_allclose(found, [by_hand(choices)] * 2, rtol=1e-5)


# --- distributions -------------------------------------------------------------------------------

COV = jnp.array([[1.0, 0.3], [0.3, 2.0]])
KINDS = {
    "multivariate": lambda: dist.MultivariateNormal(jnp.array([1.0, 2.0]), COV),
    "independent": lambda: dist.Normal(jnp.zeros((3, 2)), 1.0).to_event(1),
    "dirichlet": lambda: dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])),
    "lkj": lambda: dist.LKJCholesky(3, 2.0),
    "ordered": lambda: dist.OrderedLogistic(0.3, jnp.array([-1.0, 1.0])),
    "zero_inflated": lambda: dist.ZeroInflatedPoisson(0.3, 2.0),
    "delta": lambda: dist.Delta(jnp.array([1.0, 2.0])),
    "log_normal": lambda: dist.LogNormal(0.2, 0.5),
    "transformed": lambda: dist.TransformedDistribution(
        dist.Normal(0.0, 1.0), [dist.transforms.AffineTransform(1.0, 2.0)]
    ),
    "masked": lambda: dist.Normal(0.0, jnp.ones(3)).mask(jnp.array([True, False, True])),
    "expanded": lambda: dist.Gamma(2.0, 1.0).expand((2, 3)),
    "categorical": lambda: dist.Categorical(jnp.array([[0.2, 0.8], [0.5, 0.5]])),
    "binomial": lambda: dist.Binomial(10, jnp.array([0.3, 0.6])),
    "multinomial": lambda: dist.Multinomial(5, jnp.array([0.2, 0.3, 0.5])),
    "geometric": lambda: dist.Geometric(0.3),
    "mixture": lambda: dist.MixtureSameFamily(
        dist.Categorical(jnp.array([0.3, 0.7])), dist.Normal(jnp.array([0.0, 3.0]), 1.0)
    ),
    "truncated": lambda: dist.TruncatedNormal(0.0, 1.0, low=0.5),
    "walk": lambda: dist.GaussianRandomWalk(1.0, num_steps=4),
    "discrete_uniform": lambda: dist.DiscreteUniform(2, 5),
}


@pytest.mark.parametrize("kind", KINDS)
def test_distributions(kind):
    d = KINDS[kind]()

    @ppl.gen
    def g():
        return ppl.sample("x", d), jax.vmap(lambda: ppl.sample("many", d), axis_size=3)()

    @jax.jit
    def numbers():
        t = g().simulate(KEY)
        x, many = t["x"], t["many"]
        expected = jnp.sum(d.log_prob(x)) + jnp.sum(jax.vmap(d.log_prob)(many))
        return x, many, expected, t.log_density, g().log_density(t.choices)

    x, many, *_ = jax.eval_shape(numbers)
    assert x.shape == d.shape()
    assert many.shape == (3, *d.shape())
    assert x.dtype == jax.eval_shape(d.sample, KEY).dtype

    def test():
        _, _, expected, *found = numbers()
        np.testing.assert_allclose(found, [expected] * 2, rtol=1e-5, atol=1e-5)

    kept.passed(numbers, [], 1e-5, test)


@pytest.mark.parametrize("value", [1.0, 1, True, np.float64(1.0), np.int32(1), jnp.ones(())])
def test_observed_values_of_any_number_type(value):
    @ppl.gen
    def g():
        b = ppl.sample("b", dist.Bernoulli(0.3))
        return jnp.zeros(3)[b]  # an index, so an integer downstream

    np.testing.assert_allclose(g().log_density({"b": value}), np.log(0.3), rtol=1e-6)

    @ppl.gen
    def h():
        ppl.observe("b", dist.Bernoulli(0.3), value)

    np.testing.assert_allclose(h().log_density({}), np.log(0.3), rtol=1e-6)


def test_densities_get_the_raw_value():
    @ppl.gen
    def g():
        return ppl.sample("n", dist.Bernoulli(0.3))

    np.testing.assert_allclose(g().log_density({"n": 1.0}), np.log(0.3), rtol=1e-5)
    assert g().log_density({"n": 0.25}) == -jnp.inf  # not rounded to 0, which is possible


# --- addresses, traces, merge --------------------------------------------------------------------


def test_merge_and_trace_access():
    assert ppl.merge({"a": {"b": 1}}, {"a": {"c": 2}, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}
    assert ppl.merge({}, {"a": 1}) == {"a": 1}
    for a, b in [({"a": 1}, {"a": {"b": 1}}), ({"a": {"b": 1}}, {"a": 1})]:
        with pytest.raises(ppl.AddressError):
            ppl.merge(a, b)


def test_traces_are_pytrees():
    @ppl.gen
    def g(m):
        return ppl.sample("x", dist.Normal(m, 1.0))

    ts = jax.jit(jax.vmap(lambda k: g(1.0).simulate(k)))(jax.random.split(KEY, 5))
    assert ts.choices["x"].shape == ts.log_density.shape == ts.retval.shape == (5,)
    densities = jax.jit(jax.vmap(g(1.0).log_density))(ts.choices)
    np.testing.assert_allclose(densities, ts.log_density, rtol=1e-5)


def test_methods_are_generative_functions_and_expectations():
    class Model:
        scale = 2.0

        @ppl.gen
        def model(self, m):
            return ppl.sample("x", dist.Normal(m, self.scale))

        @ppl.expectation
        def objective(self, m):
            return -self.model(m).simulate().log_density

    t = Model().model(1.0).simulate(KEY)
    np.testing.assert_allclose(t.log_density, normal(t["x"], 1.0, 2.0), rtol=1e-5)
    value = Model().objective.value(KEY, 0.0, samples=20_000)
    entropy = 0.5 * np.log(2 * np.pi * np.e * 4)
    assert abs(value - entropy) <= 4.75 * 0.5**0.5 / 20_000**0.5  # z bound: false alarms 2e-6


def test_seed_and_kinds_of_keys():
    def f(m, *, scale=1.0):
        x = ppl.sample("x", dist.Normal(m, scale))
        return x, ppl.sample("x", dist.Normal(m, scale))  # addresses are labels here

    x, y = ppl.seed(f)(KEY, 1.0, scale=2.0)
    assert x != y
    raw = jax.random.PRNGKey(0)
    np.testing.assert_allclose(ppl.seed(f)(raw, 1.0, scale=2.0), (x, y))
    np.testing.assert_allclose(jax.jit(ppl.seed(f))(KEY, 1.0, scale=2.0), (x, y), rtol=1e-6)
    objective = ppl.expectation(lambda m: ppl.sample("x", dist.Normal(m, 1.0)))
    assert objective.value(raw, 1.0) == objective.value(KEY, 1.0)

    @ppl.gen
    def g():
        ppl.sample("x", dist.Normal(0.0, 1.0))

    assert g().simulate(raw)["x"] == g().simulate(KEY)["x"]
    rbg = jax.random.key(0, impl="rbg")
    value, grad = objective.value_and_grad(rbg, 1.0, samples=20_000)
    assert grad == 1.0
    assert abs(value - 1.0) <= 4.75 / 20_000**0.5  # z bounds: false alarms 4e-6 in all
    mvd = ppl.expectation(lambda m: ppl.sample("x", dist.Normal(m, 1.0), ppl.mvd()) * 1.0)
    error = (4 / np.pi - 1) ** 0.5 / 20_000**0.5  # of 2 R / sqrt(2 pi), R Rayleigh
    assert abs(mvd.grad(rbg, 1.0, samples=20_000) - 1.0) <= 4.75 * error


# --- objectives ----------------------------------------------------------------------------------


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass
class Module:
    """What an Equinox module looks like: arrays, and a static function leaf."""

    weight: jax.Array
    activation: object

    def __call__(self, x):
        return self.activation(self.weight * x)

    def tree_flatten(self):
        return (self.weight, self.activation), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


def test_arguments_of_any_kind():
    @ppl.expectation
    def f(params, n, mode):
        x = ppl.sample("x", dist.Normal(params["net"](1.0), 1.0))
        return (x + params["none"] if params["none"] else x) * n + params["count"] * 0.0

    module = Module(jnp.array(0.5), jnp.tanh)
    params = {"net": module, "none": None, "count": jnp.array(3)}
    value, grad = f.value_and_grad(KEY, params, 2, "mode")
    np.testing.assert_allclose(grad["net"].weight, 2 * (1 - np.tanh(0.5) ** 2), rtol=1e-5)
    assert grad["net"].activation is None
    assert grad["none"] is None
    assert grad["count"].dtype == jax.dtypes.float0
    gs = f.grad(KEY, params, 2.0, "mode", argnums=(1, 0))
    np.testing.assert_allclose(gs[0] * 2, value, rtol=1e-5)
    np.testing.assert_allclose(gs[1]["net"].weight, grad["net"].weight, rtol=1e-6)
    np.testing.assert_allclose(f.grad(KEY, params, 2.0, "mode", argnums=-2), gs[0], rtol=1e-6)


def test_aux_is_averaged_like_the_value():
    @ppl.expectation(has_aux=True)
    def f(p):
        x = 1.0 * ppl.sample("x", dist.Bernoulli(p), ppl.enum())
        y = ppl.sample("y", dist.Normal(jnp.zeros(2), 1.0))
        return 3 * x, {"x": x, "y": y}

    (value, aux), grad = f.value_and_grad(KEY, 0.3, samples=4)
    np.testing.assert_allclose([value, grad, aux["x"]], [0.9, 3.0, 0.3], rtol=1e-5)
    assert aux["y"].shape == (2,)
    value, aux = f.value(KEY, 0.3)
    np.testing.assert_allclose([value, aux["x"]], [0.9, 0.3], rtol=1e-5)
    assert f.grad(KEY, 0.3).shape == ()


def test_with_estimators_reaches_nested_addresses():
    @ppl.gen
    def inner(p):
        return 1.0 * ppl.sample("k", dist.Bernoulli(p), ppl.reinforce())

    @ppl.gen
    def outer(p):
        x = 1.0 * ppl.sample("x", dist.Bernoulli(p))
        ks = jax.vmap(lambda q: ppl.sample("in", inner(q)))(jnp.array([1.0, 0.5]) * p)
        return x, ks

    def f(p, table):
        x, ks = ppl.sample("outer", ppl.with_estimators(outer(p), table))
        return (x + ks @ jnp.array([2.0, 3.0])) ** 2

    exact = jax.jit(jax.value_and_grad(_second_moment))(0.4)
    table = {("in", "k"): ppl.enum(), "x": ppl.enum()}
    found = ppl.expectation(lambda p: f(p, table)).value_and_grad(KEY, 0.4)
    np.testing.assert_allclose(found, exact, rtol=1e-5)
    rows = ppl.expectation(lambda p: f(p, {"x": ppl.mvd()})).explain(0.4).rows
    assert {r[0]: r[3] for r in rows} == {"outer/x": "mvd", "outer/in/k": "reinforce"}
    baseline = ppl.reinforce(baseline=jnp.array([0.5, -0.5]))

    @ppl.gen
    def vector(p):
        return 1.0 * ppl.sample("v", dist.Bernoulli(jnp.stack([p, p / 2])))

    @ppl.expectation(has_aux=True)
    def g(p):
        v = ppl.sample("a", ppl.with_estimators(vector(p), {"v": baseline}))
        return v @ jnp.array([2.0, 3.0]), v

    (value, v), grad = g.value_and_grad(KEY, 0.4)
    score = np.where(v == 1, [1 / 0.4, 0.5 / 0.2], [-1 / 0.6, -0.5 / 0.8])
    np.testing.assert_allclose(grad, np.sum((value - np.array([0.5, -0.5])) * score), rtol=1e-4)


def _second_moment(p):
    means, w = [p, p, p / 2], [1.0, 2.0, 3.0]
    mean = sum(m * c for m, c in zip(means, w, strict=True))
    return mean**2 + sum(c**2 * m * (1 - m) for m, c in zip(means, w, strict=True))


def test_with_estimators_leaves_densities_alone():
    @ppl.gen
    def g(p):
        ppl.sample("x", dist.Bernoulli(p))
        ppl.sample("y", dist.Normal(p, 1.0))

    h = ppl.with_estimators(g(0.3), {"x": ppl.reinforce(baseline=2.0), "y": ppl.mvd()})

    @jax.jit
    def both():
        t = h.simulate(KEY)
        densities = [p.log_density(t.choices) for p in (g(0.3), h)]
        return t, densities, g(0.3).simulate(KEY)

    t, densities, plain = both()
    np.testing.assert_allclose(densities, [t.log_density] * 2, rtol=1e-6)
    assert t["x"] == plain["x"]
    again = ppl.with_estimators(h, {"x": ppl.enum()})
    objective = ppl.expectation(lambda: 1.0 * again.simulate()["x"])
    np.testing.assert_allclose(objective.value(KEY), 0.3, rtol=1e-6)


def test_surrogate_under_jit_vmap_and_grad():
    @ppl.expectation
    def f(m):
        x = ppl.sample("x", dist.Normal(m, 1.0))
        b = 1.0 * ppl.sample("b", dist.Bernoulli(jax.nn.sigmoid(m)), ppl.mvd())
        c = 1.0 * ppl.sample("c", dist.Bernoulli(jax.nn.sigmoid(m)), ppl.reinforce(0.5))
        return x**2 + b * x + c

    ms = jnp.array([0.3, -0.5])
    for samples in (1, 3):
        s = lambda m, samples=samples: f.surrogate(KEY, m, samples=samples)

        @jax.jit  # one program of them all
        def found(m, ms, s=s):
            grads = jax.grad(s)(m), jax.grad(jax.jit(s))(m), jax.vmap(jax.grad(s))(ms)[0]
            total = jax.grad(lambda ms: jax.jit(jax.vmap(s))(ms).sum())(ms)
            return jax.jvp(s, (m,), (1.0,)), [*grads, total[0]]

        value, grad = f.value_and_grad(KEY, 0.3, samples=samples)
        tangent, grads = found(0.3, ms)
        np.testing.assert_allclose(tangent, (value, grad), rtol=1e-5)
        np.testing.assert_allclose(grads, 4 * [grad], rtol=1e-5)


def test_gradient_of_an_expectation_inside_another():
    """MAML in one line: the inner gradient step is part of the program that is differentiated."""

    @ppl.expectation
    def inner(x):
        b = 1.0 * ppl.sample("b", dist.Bernoulli(jax.nn.sigmoid(x)), ppl.enum())
        return b * x**2

    @ppl.expectation
    def outer(x):
        return jax.grad(inner)(x) + inner(x)

    exact_inner = lambda x: jax.nn.sigmoid(x) * x**2
    exact = lambda x: jax.grad(exact_inner)(x) + exact_inner(x)
    found, expected = outer.value_and_grad(KEY, 0.7), jax.jit(jax.value_and_grad(exact))(0.7)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_scopes_are_enumerated_one_by_one():
    @ppl.expectation
    def inner(p):
        x = 1.0 * ppl.sample("x", dist.Bernoulli(jnp.stack([p, p])), ppl.enum())
        return x.sum() ** 2

    @ppl.expectation
    def outer(ps):
        return jax.vmap(inner)(ps).mean()

    ps = np.linspace(0.1, 0.9, 40)  # 4**40 joint values if it were one scope
    value, grad = outer.value_and_grad(KEY, ps)
    np.testing.assert_allclose(value, np.mean(2 * ps + 2 * ps**2), rtol=1e-5)
    np.testing.assert_allclose(grad, (2 + 4 * ps) / 40, rtol=1e-5)


@pytest.mark.parametrize("estimator", [ppl.enum(), ppl.reinforce(), ppl.reinforce("loo")])
def test_second_derivatives_of_discrete_sites(estimator, x64):
    """The surrogate is right to second order: exact by enumeration, else by a z-test at 4.75."""

    @ppl.expectation
    def f(m):
        x = 1.0 * ppl.sample("x", dist.Bernoulli(logits=m), estimator)
        y = 1.0 * ppl.sample("y", dist.Bernoulli(logits=m * x), estimator)
        return (x + 2 * y + m) ** 2

    def exact(m):
        p, q = jax.nn.sigmoid(m), jax.nn.sigmoid(jnp.array([0.0, m]))
        at = lambda x: q[x] * (x + 2 + m) ** 2 + (1 - q[x]) * (x + m) ** 2
        return (1 - p) * at(0) + p * at(1)

    samples = 2 if estimator == ppl.reinforce("loo") else 1
    second = lambda key: jax.hessian(lambda m: f.surrogate(key, m, samples=samples))(0.4)
    run, keys = jax.jit(jax.vmap(second)), jax.random.split(KEY, 40_000)

    def test():
        h = np.asarray(run(keys))
        error = h.std() / np.sqrt(len(h))
        assert abs(h.mean() - jax.jit(jax.hessian(exact))(0.4)) < 4.75 * error + 1e-9

    kept.passed(run, [keys], [exact, 4.75], test)


def test_second_derivatives_of_pathwise_sites(x64):
    @ppl.expectation
    def f(th):
        return ppl.sample("x", dist.Normal(th[0], th[1])) ** 3

    th = np.array([0.5, 0.8])
    second = lambda key: jax.hessian(lambda th: f.surrogate(key, th))(th)
    h = np.asarray(jax.jit(jax.vmap(second))(jax.random.split(KEY, 20_000)))
    exact = [[6 * th[0], 6 * th[1]], [6 * th[1], 6 * th[0]]]  # of th[0]^3 + 3 th[0] th[1]^2
    error = h.std(axis=0) / np.sqrt(len(h))
    assert np.all(np.abs(h.mean(axis=0) - exact) < 4.75 * error + 1e-9)


def test_x64(x64):
    @ppl.gen
    def g(m):
        return ppl.sample("x", dist.Normal(m, 1.0))

    t = g(0.0).simulate(KEY)
    assert t["x"].dtype == t.log_density.dtype == jnp.float64
    f = ppl.expectation(lambda m: (g(m).simulate()["x"] - 1.0) ** 2)
    value, grad = f.value_and_grad(KEY, 0.5, samples=3)
    assert value.dtype == grad.dtype == jnp.float64


# --- fitting -------------------------------------------------------------------------------------

TRACES = []


@ppl.expectation
def quadratic(params):
    TRACES.append(1)
    x = ppl.sample("x", dist.Normal(params["m"], 0.1))
    return (x - 2.0) ** 2 + (params["s"] - 1.0) ** 2


def start():
    return {"m": jnp.array(0.0), "s": 0.5, "n": jnp.array(7)}


def fit(f=quadratic, how=ppl.minimize, steps=300, params=None, lr=0.1, **kwargs):
    params = start() if params is None else params
    kwargs = {"key": KEY, "steps": steps, "progress": False, **kwargs}
    return how(f, params, optax.adam(lr), **kwargs)


COMPILED = "evaluate"  # what compiled fits are called


class Compiles(logging.Handler):
    """Names of what XLA compiles."""

    def __init__(self):
        super().__init__()
        self.names = []

    def emit(self, record):
        if "Compiling" in record.getMessage():
            self.names.append(record.getMessage())

    def __enter__(self):
        self.config = jax.log_compiles(True)
        self.config.__enter__()
        self.logger = logging.getLogger("jax")
        self.propagate, self.logger.propagate = self.logger.propagate, False
        self.logger.addHandler(self)
        return self

    def __exit__(self, *error):
        self.logger.removeHandler(self)
        self.logger.propagate = self.propagate
        self.config.__exit__(*error)


def test_minimize_and_maximize_reach_the_optimum():
    down = fit()
    np.testing.assert_allclose([down.params["m"], down.params["s"]], [2.0, 1.0], atol=0.05)
    assert down.params["n"] == 7
    assert down.history.shape == (300,)
    assert down.state["step"] == 300
    up = fit(ppl.expectation(lambda p: -quadratic._f(p)), ppl.maximize)
    np.testing.assert_allclose(up.params["m"], down.params["m"], atol=1e-5)


def test_a_second_fit_neither_traces_nor_compiles():
    fit()
    TRACES.clear()
    with Compiles() as compiles:
        again = fit()  # with a new, equal optimizer
        fit(key=jax.random.key(5))
        fit(steps=250)
    assert not any(COMPILED in n for n in compiles.names)
    assert sum(TRACES) <= 3  # once per fit at most, to look for baselines
    np.testing.assert_array_equal(again.history, fit().history)
    with Compiles() as compiles:
        other = fit(lr=0.2)
    assert not any(COMPILED in n for n in compiles.names)
    assert other.history[1] != again.history[1]
    with Compiles() as compiles:
        fit(ppl.expectation(lambda p: 1.5 * quadratic._f(p)))
    assert any(COMPILED in n for n in compiles.names)


def test_repeated_estimates_neither_trace_nor_compile():
    f = ppl.expectation(quadratic._f)
    f.value_and_grad(KEY, start(), samples=3)
    f.value(KEY, start())
    TRACES.clear()
    with Compiles() as compiles:
        for i in range(3):
            f.value_and_grad(jax.random.key(i), {**start(), "m": float(i)}, samples=3)
            f.value(jax.random.key(i), start())
    assert not TRACES
    assert not [n for n in compiles.names if "flat" in n]


def test_batches_from_a_list_and_on_the_device():
    data = np.random.default_rng(0).normal(3.0, 1.0, 200).astype(np.float32)

    @ppl.expectation
    def f(m, scale, batch):
        x = ppl.sample("x", dist.Normal(m, 0.01))
        return scale * jnp.mean((batch - x) ** 2)

    rows = fit(f, params=0.0, args=(2.0,), batches=list(data.reshape(20, 10)), steps=300)
    np.testing.assert_allclose(rows.params, data.mean(), atol=0.15)
    device = fit(f, params=0.0, args=(2.0,), batches=ppl.minibatches(data, 50), steps=300)
    np.testing.assert_allclose(device.params, data.mean(), atol=0.15)


def test_batches_come_in_order():
    f = ppl.expectation(lambda m, batch: 0.0 * m + batch["i"])
    batches = [{"i": np.float32(i)} for i in range(7)]
    got = fit(f, params=0.0, batches=batches, steps=230).history
    np.testing.assert_array_equal(got, np.arange(230) % 7)


def test_callback_stops():
    seen = []
    got = fit(steps=500, callback=lambda step, p, h: seen.append((step, len(h))) or step >= 200)
    assert seen == [(100, 100), (200, 200)]
    assert len(got.history) == got.state["step"] == 200


@pytest.mark.parametrize("kill_at", [100, 200])
def test_resumes_with_the_same_result(tmp_path, kill_at):
    @ppl.expectation
    def f(m, batch):
        b = ppl.reinforce(ppl.moving_average())
        x = 1.0 * ppl.sample("x", dist.Bernoulli(logits=m), b)
        return (x - 0.3 + batch) ** 2

    def run(**kwargs):
        batches = [np.float32(i / 10) for i in range(7)]
        return fit(f, ppl.maximize, params=0.2, batches=batches, steps=250, **kwargs)

    def kill(step, params, history):
        if step == kill_at:
            raise KeyboardInterrupt

    path = tmp_path / "fit.npz"
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path, callback=kill)
    resumed, whole = run(checkpoint=path), run()
    np.testing.assert_array_equal(resumed.params, whole.params)
    np.testing.assert_array_equal(resumed.history, whole.history)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)


def test_non_finite_values_name_the_site():
    @ppl.expectation
    def f(m):
        x = ppl.sample("fine", dist.Normal(m, 1.0))
        y = ppl.sample("bad", dist.Normal(0.0, jnp.log(m - 3.0) + x * 0.0))
        return x + y

    with pytest.raises(ppl.NonFiniteError, match="'bad'") as raised:
        fit(f, params=3.5, steps=50)
    assert f"{__file__}:" in str(raised.value)
    assert "step " in str(raised.value)


def of_a_root(m):
    return jnp.sqrt(ppl.sample("x", dist.Normal(0.0, 1.0)) ** 2 * 0.0 + m)  # here


def behind_a_guard(m):
    x = ppl.sample("x", dist.Normal(m, 0.1))
    harmless = jnp.where(x > 100.0, jnp.log(-jnp.abs(x)), 1.0)
    return harmless * jnp.exp(1e3 + x)  # here


def in_a_loop(m):
    def step(c, _):
        x = ppl.sample("x", dist.Normal(m, 1e-3))
        return jnp.log(c) + x, None  # here: 2.3, .8, -.2, no number

    return jax.lax.scan(step, m + 10.0, length=5)[0]


def in_a_branch(m):
    def divided(x):
        return x / m  # here

    x = ppl.sample("x", dist.Normal(m, 1.0))
    return jax.lax.cond(x < 100.0, divided, lambda x: x, x)


@pytest.mark.parametrize("f", [of_a_root, behind_a_guard, in_a_loop, in_a_branch])
def test_a_value_that_is_not_finite_is_followed_to_its_equation(f):
    lines, first = inspect.getsourcelines(f)
    line = first + next(i for i, text in enumerate(lines) if "# here" in text)
    what = "gradient" if f is of_a_root else "value"
    with pytest.raises(ppl.NonFiniteError, match=f"the {what} is made not finite") as raised:
        fit(ppl.expectation(f), params=0.0, steps=3)
    assert f" at {__file__}:{line}:" in str(raised.value)


@pytest.mark.parametrize("how", [ppl.maximize, ppl.minimize])
def test_learned_baselines_learn(how):
    """For f = (x - .4)^2 with p = 1/2 fixed, b* = E f; terms without x do not count."""
    sign = 1.0 if how is ppl.maximize else -1.0

    @ppl.expectation
    def f(params):
        logits = ppl.detach(params["m"])
        x = 1.0 * ppl.sample(
            "x", dist.Bernoulli(logits=logits), ppl.reinforce(ppl.learned(params["b"]))
        )
        return sign * (x - 0.4) ** 2 + 3.0

    got = fit(f, how, params={"m": 0.0, "b": 0.0}, steps=1500, lr=0.02, samples=4)
    np.testing.assert_allclose(got.params["b"], sign * (0.16 + 0.36) / 2, atol=0.05)
    assert got.params["m"] == 0.0


def test_moving_average_is_used_then_updated():
    """The first gradient has baseline 0, the second (1 - decay) times the first payoff."""
    sampled = ppl.reinforce(ppl.moving_average(0.75))

    @ppl.expectation
    def f(m):
        x = ppl.sample("x", dist.Normal(m, 1.0), sampled)
        return 5.0 + 0.0 * x

    fit = ppl.maximize(f, 0.0, optax.sgd(1.0), key=KEY, steps=2, progress=False)
    np.testing.assert_allclose(fit.state["averages"][0.75], 5 * (0.25 + 0.75 * 0.25), rtol=1e-6)
    one = ppl.maximize(f, 0.0, optax.sgd(1.0), key=KEY, steps=1, progress=False)
    plain = ppl.expectation(
        lambda m: 0.0 * ppl.sample("x", dist.Normal(m, 1.0), ppl.reinforce(-5.0))
    )
    g = [plain.grad(jax.random.fold_in(KEY, i), p) for i, p in [(0, 0.0), (1, one.params)]]
    np.testing.assert_allclose(one.params, g[0], rtol=1e-5)
    np.testing.assert_allclose(fit.params - one.params, g[1] * (5 - 1.25) / 5, rtol=1e-4)


MASKED = {
    "mask": lambda t: dist.Bernoulli(t * jnp.ones(2)).mask(False),
    "event": lambda t: dist.Bernoulli(t * jnp.ones(2)).mask(jnp.array([True, False])).to_event(1),
    "expand": lambda t: dist.Bernoulli(t).mask(False).expand((2,)),
}


@pytest.mark.parametrize("law", MASKED)
@pytest.mark.parametrize("estimator", [ppl.reinforce(0.5), ppl.reinforce("loo"), ppl.mvd()])
def test_a_mask_hides_the_density_and_not_the_draws(law, estimator):
    @ppl.expectation
    def f(t):
        return ppl.sample("b", MASKED[law](t), estimator).sum() * 1.0

    run = jax.jit(jax.vmap(lambda key: f.grad(key, 0.3, samples=2)))

    def test():
        grads = np.asarray(run(jax.random.split(KEY, 4000)))
        error = grads.std() / 4000**0.5
        assert abs(grads.mean() - 2.0) <= 4.75 * error + 1e-5  # 9 tests: false alarms 2e-5

    keys = jax.eval_shape(lambda: jax.random.split(KEY, 4000))
    kept.passed(run, [keys], [2.0, 4.75], test)


@pytest.mark.parametrize("law", MASKED)
def test_a_mask_does_not_change_what_is_enumerated(law):
    @ppl.expectation
    def f(t):
        return jnp.prod(ppl.sample("b", MASKED[law](t), ppl.enum()) + jnp.array([0.5, 1.0]))

    value, grad = f.value_and_grad(KEY, 0.3)
    np.testing.assert_allclose((value, grad), (0.8 * 1.3, 1.3 + 0.8), rtol=1e-6)


def test_an_event_is_enumerated_jointly():
    @ppl.expectation
    def f(p):
        d = dist.Categorical(p).to_event(1)
        k = jax.vmap(lambda _: ppl.sample("k", d, ppl.enum()), axis_size=2)(None)
        return jnp.prod(jnp.array([1.0, 2.0, 4.0])[k] + jnp.arange(2.0))

    p = jnp.array([[0.2, 0.3, 0.5], [0.1, 0.6, 0.3]])
    # linear in the probabilities, which are not normalized on the way
    mean = lambda p: p @ jnp.array([1.0, 2.0, 4.0]) + p.sum(-1) * jnp.arange(2.0)
    exact = lambda p: jnp.prod(mean(p)) ** 2
    value, grad = f.value_and_grad(KEY, p)
    right, slope = jax.jit(jax.value_and_grad(exact))(p)
    np.testing.assert_allclose(value, right, rtol=1e-5)
    np.testing.assert_allclose(grad, slope, rtol=1e-5)
    big = ppl.expectation(
        lambda: (
            ppl.sample("b", dist.Bernoulli(jnp.full(784, 0.5)).to_event(1), ppl.enum()).sum() * 1.0
        )
    )
    with pytest.raises(ppl.UnsupportedError, match="its event of 784 elements"):
        big.value(KEY)


@pytest.mark.parametrize(
    ("d", "value", "slope"),
    [
        (lambda u: dist.Bernoulli(logits=u), 1, 0.5),
        (lambda u: dist.Bernoulli(logits=u).expand([3]).to_event(1), jnp.array([1, 0, 1]), 0.5),
        (lambda u: dist.Binomial(5, logits=u), 4, 1.5),
    ],
)
def test_logits_of_zero(d, value, slope):
    """numpyro's log density has another derivative there: 1, 2 and 4."""

    @ppl.gen
    def g(u):
        ppl.sample("b", d(u))

    @ppl.gen
    def observing(u):
        ppl.observe("b", d(u), value)

    ours = lambda u: g(u).log_density({"b": value}), lambda u: observing(u).log_density({})
    densities = jax.jit(lambda u: (d(u).log_prob(value).sum(), [f(u) for f in ours]))
    for u in (-30.0, -0.7, 0.0, 2.0, 30.0):  # the density itself is numpyro's
        exact, found = densities(u)
        np.testing.assert_allclose(found, [exact] * 2, rtol=1e-5, atol=1e-5)
    assert jax.jit(lambda u: [jax.grad(f)(u) for f in ours])(0.0) == pytest.approx([slope] * 2)
