"""Wrappers, closures and sizes of distributions, against exact answers."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import kept
import numpy as np
import numpyro.distributions as dist
import pytest
import ztest
from numpyro.distributions import constraints
from numpyro.distributions import transforms as nt
from numpyro.distributions.flows import InverseAutoregressiveTransform
from scipy import stats

import ppl
from estimators.enumeration import mass

KEY = jax.random.key(0)


@pytest.fixture(params=[False, True], ids=["32", "64"])
def bits(request: Any) -> Iterator[float]:
    with jax.enable_x64(request.param):
        yield 1e-10 if request.param else 2e-5


def mean(make: Callable[[Any], Any], estimator: Any = None, payoff: Any = jnp.sum) -> Any:
    @ppl.expectation
    def objective(t: Any) -> Any:
        return payoff(1.0 * ppl.sample("x", make(t), estimator))

    return objective


# --- wrappers -----------------------------------------------------------------------------------

P = jnp.array([0.125, 0.375, 0.5])  # add up to 1 in 32 bits too
MASK = jnp.array([True, False, True])


def category(t: Any) -> Any:
    return dist.CategoricalProbs(P + t * jnp.array([1.0, -1.0, 0.0]))


def columns(t: Any) -> Any:
    return dist.CategoricalLogits(t * jnp.array([[[0.0, 1.0]], [[1.0, 0.0]], [[0.5, 2.0]]]))


WRAPPED = {
    "expand": (lambda t: category(t).expand((3,)), 3),
    "expand, event": (lambda t: category(t).expand((3,)).to_event(1), 3),
    "expanded twice": (lambda t: dist.ExpandedDistribution(category(t).expand((3,)), (1, 3)), 3),
    "mask": (lambda t: category(t).expand((3,)).mask(MASK), 3),
    "masked, expanded": (lambda t: category(t).mask(True).expand((2,)).to_event(1), 2),
    "masked event": (lambda t: category(t).expand((2,)).to_event(1).mask(True), 2),
    "independent": (lambda t: dist.Independent(category(t).expand((2, 1)).to_event(1), 1), 2),
    "expanded event": (
        lambda t: dist.ExpandedDistribution(category(t).expand((2,)).to_event(1), (1,)),
        2,
    ),
    "mask in between": (
        lambda t: category(t).expand((1, 2)).mask(MASK[:2]).expand((2, 2)).to_event(1),
        4,
    ),
}  # fmt: skip


def payoff(x: Any) -> Any:
    x = x.reshape(-1)
    return (x**2 * np.arange(1.0, x.size + 1)).sum() + x[0] * x[-1]


STEP = 0.01
AROUND = 0.1 + STEP * np.array([-2, -1, 0, 1, 2])  # differences of five are exact to degree 4


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_and_enumerated(name: str) -> None:
    make, n = WRAPPED[name]
    runs = np.array(list(itertools.product(range(3), repeat=n)))
    payoffs = np.array([payoff(x) for x in runs.astype(float)])
    # all masses are linear in t
    masses = [np.prod((np.array(P) + t * np.array([1.0, -1.0, 0.0]))[runs], -1) for t in AROUND]
    values = np.array(masses) @ payoffs
    exact = values[2], (values[0] - 8 * values[1] + 8 * values[3] - values[4]) / (12 * STEP)
    with jax.enable_x64(True):
        estimator = None if name.startswith("expand") and n < 4 else ppl.enum()
        found = mean(make, estimator, payoff).value_and_grad
        ztest.check_exact(found, [KEY, 0.1], exact, rtol=1e-10)


def test_expanded_along_an_axis_of_size_one() -> None:
    make = lambda t: columns(t).expand((3, 2))
    with jax.enable_x64(True):
        exact = lambda t: 2 * jnp.sum(columns(t).probs[..., 1])
        found = mean(make, ppl.enum()).value_and_grad(KEY, 0.4)
        np.testing.assert_allclose(found, jax.jvp(exact, (0.4,), (1.0,)), rtol=1e-10)


# --- distributions that are no estimator's business -----------------------------------------------

ESTIMATORS = (None, ppl.reparam(), ppl.reinforce(), ppl.enum(), ppl.mvd())
CENSORED = {
    "right": lambda t: dist.RightCensoredDistribution(dist.Exponential(t).expand((2,)), MASK[:2]),
    "left": lambda t: dist.LeftCensoredDistribution(dist.Normal(t, 1.0), False).expand((2,)),
    "interval": lambda t: dist.IntervalCensoredDistribution(
        dist.Normal(t, 1.0).expand((2,)), MASK[:2], MASK[:2]
    ),
}


@pytest.mark.parametrize("name", CENSORED)
def test_censored_draws_are_refused(name: str) -> None:
    for e in ESTIMATORS:
        with pytest.raises(ppl.UnsupportedError, match="Give its value as data"):
            mean(CENSORED[name], e).grad(KEY, 0.5)


def test_density_of_censored_data() -> None:
    @ppl.gen
    def model() -> None:
        d = dist.Exponential(2.0).expand((2,))
        ppl.sample("y", dist.RightCensoredDistribution(d, jnp.array([True, False])))
        e = dist.Normal(0.0, 1.0).expand((1,))
        ppl.observe(
            "z",
            dist.IntervalCensoredDistribution(e, jnp.ones(1, bool), jnp.zeros(1, bool)),
            jnp.ones((1, 2)),
        )

    log_p = model().log_density({"y": jnp.ones(2)})
    exact = -2.0 + math.log(2) - 2.0 + stats.norm.logcdf(1.0)
    np.testing.assert_allclose(log_p, exact, rtol=1e-5)


def test_a_point_has_no_score() -> None:
    with pytest.raises(ppl.UnsupportedError, match="it is a point"):
        mean(lambda t: dist.Delta(t).expand((2,)), ppl.reinforce()).grad(KEY, 0.5)


def test_improper_draws_are_refused() -> None:
    with pytest.raises(ppl.UnsupportedError, match="its sample is not implemented"):
        mean(lambda t: dist.ImproperUniform(constraints.real, (), (2,))).grad(KEY, 0.5)


def test_no_measure_valued_derivative_through_an_absolute_value() -> None:
    with pytest.raises(ppl.UnsupportedError, match="no measure-valued derivative"):
        mean(lambda t: dist.FoldedDistribution(dist.Normal(t, 1.0)), ppl.mvd()).grad(KEY, 0.5)


# --- sizes and extreme parameters -----------------------------------------------------------------

FINITE: dict[str, tuple[Callable[[Any], Any], float, float, float]] = {
    "Binomial 150": (lambda t: dist.Binomial(150, t), 0.3, 45.0, 150.0),
    "Binomial 2000": (lambda t: dist.Binomial(2000, t), 0.3, 600.0, 2000.0),
    "Binomial 0": (lambda t: dist.Binomial(2000, t), 0.0, 0.0, 2000.0),
    "Binomial 1": (lambda t: dist.Binomial(2000, t), 1.0, 2000.0, 2000.0),
    "Binomial 1e-30": (lambda t: dist.Binomial(150, t), 1e-30, 150e-30, 150.0),
    "logits": (lambda t: dist.Binomial(150, logits=t), 0.0, 75.0, 37.5),
    "BetaBinomial": (lambda t: dist.BetaBinomial(t, 2.0, 2000), 1.0, 2000 / 3, 4000 / 9),
    "BetaBinomial 1e6": (lambda t: dist.BetaBinomial(t * 1e6, 2e6, 2000), 1.0, 2000 / 3, 4000 / 9),
    "BetaBinomial 1e-30": (lambda t: dist.BetaBinomial(t, 1.0, 5), 1e-30, 5e-30, 5.0),
    "no zeros": (lambda t: _inflated(t), 0.0, 45.0, -45.0),
    "zeros": (lambda t: _inflated(t), 1.0, 0.0, -45.0),
    "Bernoulli 0": (lambda t: dist.Bernoulli(t), 0.0, 0.0, 1.0),
    "Bernoulli 1": (lambda t: dist.Bernoulli(t), 1.0, 1.0, 1.0),
}


def _inflated(gate: Any) -> Any:
    return dist.ZeroInflatedDistribution(dist.Binomial(150, 0.3), gate=gate)


@pytest.mark.parametrize("name", FINITE)
def test_finite_families(name: str, bits: float) -> None:
    make, t, *exact = FINITE[name]
    found = mean(make, ppl.enum()).value_and_grad
    ztest.check_exact(found, [KEY, t], tuple(exact), rtol=5 * bits, atol=1e-32)


def test_derivatives_of_binomial_masses() -> None:
    with jax.enable_x64(True):
        k = jnp.arange(4)

        @jax.jit
        def derivatives(q: Any) -> Any:
            first = lambda q: jax.jvp(lambda q: mass(dist.Binomial(3, q), k), (q,), (1.0,))[1]
            return first(q), jax.jvp(first, (q,), (1.0,))[1]

        exact = [-3, 3, 0, 0], [6, -12, 6, 0]
        np.testing.assert_allclose(derivatives(0.0), exact, atol=1e-12)
        mirrored = np.array(exact)[:, ::-1] * [[-1], [1]]
        np.testing.assert_allclose(derivatives(1.0), mirrored, atol=1e-12)


# --- closures and attributes --------------------------------------------------------------------


def network(w: Any) -> Callable[[Any], Any]:
    first, second = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    return lambda x: (w * x[..., ::-1] * second, 0.3 * w * first + 0.0 * x)


class Network:
    def __init__(self, w: Any) -> None:
        self.w = w

    def __call__(self, x: Any) -> Any:
        return network(self.w)(x)


class Scale(nt.Transform):  # type: ignore[type-arg]
    domain = constraints.real
    codomain = constraints.real

    def __init__(self, f: Any) -> None:
        self.f = f

    def __call__(self, x: Any) -> Any:
        return self.f(x)

    def _inverse(self, y: Any) -> Any:
        return y / self.f(jnp.ones_like(y))

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
        return jnp.log(jnp.abs(self.f(jnp.ones_like(x))))


class Undeclared(dist.Distribution):
    support = constraints.real
    reparametrized_params = ["loc"]  # noqa: RUF012

    def __init__(self, loc: Any, factor: float = 2.0) -> None:
        self.loc, self.factor = loc, factor
        super().__init__(jnp.shape(loc), ())

    def sample(self, key: Any, sample_shape: Any = ()) -> Any:
        noise = jax.random.normal(key, (*sample_shape, *self.batch_shape))
        return self.factor * self.loc + noise

    def log_prob(self, value: Any) -> Any:
        return dist.Normal(self.factor * self.loc, 1.0).log_prob(value)


def flow(f: Any) -> Any:
    base = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    return dist.TransformedDistribution(base, InverseAutoregressiveTransform(f))


def scaled(f: Any, *more: Any) -> Any:
    return dist.TransformedDistribution(dist.Normal(0.7, 1.0), [Scale(f), *more])


CLOSED = {
    "function": lambda w: flow(network(w)),
    "object": lambda w: flow(Network(w)),
    "method": lambda w: flow(Network(w).__call__),
    "partial": lambda w: flow(functools.partial(lambda w, x: network(w)(x), w)),
    "compiled": lambda w: flow(jax.jit(network(w))),
    "default": lambda w: flow(lambda x, w=w: network(w)(x)),
    "no pytree": lambda w: scaled(lambda x: x * jnp.exp(w)),
    "composed": lambda w: scaled(lambda x: x * jnp.exp(w), nt.AffineTransform(w, 2.0)),
    "attributes": Undeclared,
    "expanded": lambda w: Undeclared(w).expand((2,)).to_event(1).mask(True),
}


def moved(make: Callable[[Any], Any], w: Any, x: Any) -> Any:
    """What a draw x of make(0.3) is as a draw of make(w)."""
    before, after = make(0.3), make(w)
    while not hasattr(after, "transforms") and hasattr(after, "base_dist"):
        before, after = before.base_dist, after.base_dist
    if isinstance(after, Undeclared):
        return x + after.factor * (after.loc - before.loc)
    for transform in reversed(before.transforms):
        x = transform.inv(x)
    for transform in after.transforms:
        x = transform(x)
    return x


@pytest.mark.parametrize("name", CLOSED)
def test_closures_of_traced_values(name: str) -> None:
    make = CLOSED[name]

    @ppl.gen
    def guide(w: Any) -> Any:
        return ppl.sample("x", make(w))

    def step(total: Any, w: Any) -> Any:
        return total + jnp.sum(ppl.sample("inner", guide(w))), None

    @ppl.gen
    def steps(w: Any) -> Any:
        return jax.lax.scan(step, 0.0, jnp.stack([w, 2 * w]))[0]

    def run(w: Any, key: Any) -> Any:
        one = guide(w).simulate(key)
        both = jax.vmap(lambda w: guide(w).simulate(key))(jnp.stack([w, 2 * w]))
        loop = steps(w).simulate(key)
        inner = loop.choices["inner"]["x"]
        return [(t.retval, t.log_density) for t in (one, both, loop)], inner

    exact = lambda w, x: jnp.sum(make(w).log_prob(x))

    def test() -> None:
        ((x, log_p), (xs, log_ps), (total, log_q)), inner = jax.jit(run)(0.3, KEY)
        np.testing.assert_allclose(log_p, exact(0.3, x), rtol=1e-5)
        np.testing.assert_allclose(log_ps, [exact(0.3, xs[0]), exact(0.6, xs[1])], rtol=1e-5)
        np.testing.assert_allclose(total, jnp.sum(inner), rtol=1e-5)
        np.testing.assert_allclose(log_q, exact(0.3, inner[0]) + exact(0.6, inner[1]), rtol=1e-5)

    kept.passed(jax.jit(run), [0.3, KEY], make, test)

    def squared(w: Any) -> Any:
        x = ppl.sample("x", make(w), ppl.reparam())
        return jnp.sum(x**2), x

    objective = ppl.expectation(squared, has_aux=True)
    slope = jax.jit(lambda k: objective.value_and_grad(k, 0.3))

    def test_slope() -> None:
        (_, x), grad = slope(KEY)
        by_hand = jax.grad(lambda w: jnp.sum(moved(make, w, x) ** 2))(0.3)
        np.testing.assert_allclose(grad, by_hand, rtol=1e-4)

    kept.passed(slope, [KEY], [make, moved], test_slope)


def test_the_gradient_through_an_undeclared_attribute() -> None:
    quadratic = mean(Undeclared, ppl.reparam(), lambda x: x**2)
    found = jax.vmap(lambda k: quadratic.grad(k, 0.3))(jax.random.split(KEY, 1000))
    # 2 x dx/dw = 4 (0.6 + noise): standard error 4 / sqrt(1000), |z| < 5 of false alarm 6e-7
    assert abs(np.mean(found) - 2.4) < 5 * 4 / math.sqrt(1000)


def test_what_cannot_be_found_is_refused() -> None:
    class Slots:
        __slots__ = ("w",)

        def __init__(self, w: Any) -> None:
            self.w = w

        def __call__(self, x: Any) -> Any:
            return x * self.w

    with pytest.raises(ppl.UnsupportedError, match="where it cannot be found"):
        mean(lambda w: scaled(Slots(w))).grad(KEY, 0.5)


def test_a_missing_inverse_is_an_error_that_says_so() -> None:
    class Planar(Scale):
        def _inverse(self, y: Any) -> Any:
            raise NotImplementedError

        def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
            return jnp.log(jnp.cosh(x))

    @ppl.gen
    def guide() -> None:
        ppl.sample("x", dist.TransformedDistribution(dist.Normal(0.0, 1.0), Planar(jnp.sinh)))

    with pytest.raises(ppl.UnsupportedError, match="the inverse of a transform"):
        guide().log_density({"x": 0.3})
    run = guide().simulate(KEY)
    x = jnp.arcsinh(run["x"])
    by_hand = dist.Normal(0.0, 1.0).log_prob(x) - jnp.log(jnp.cosh(x))
    np.testing.assert_allclose(run.log_density, by_hand, rtol=1e-5)
