"""Supports that hold arrays, values that would be rounded, masks in masks, undecided branches."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import transforms as nt

import ppl
from ppl import dist

KEY = jax.random.key(0)


# --- supports that hold arrays --------------------------------------------------------------------


class Above(dist.constraints.Constraint):
    event_dim = 0

    def __init__(self, ends: Any) -> None:
        self.ends = ends

    def __call__(self, x: Any) -> Any:
        return x >= self.ends.min()

    def feasible_like(self, prototype: Any) -> Any:
        return jnp.full_like(prototype, self.ends.max())


class Fixed(dist.Normal):
    support = Above(jnp.array([0.0, 1.0]))  # type: ignore[assignment]


class Moving(dist.Normal):
    def __init__(self, loc: Any, scale: Any, ends: Any) -> None:
        super().__init__(loc, scale)
        self.ends = ends

    @property
    def support(self) -> Any:
        return Above(self.ends)


MAKE = {
    "class": lambda m: Fixed(m, 1.0),
    "constant": lambda m: Moving(m, 1.0, jnp.array([0.0, 1.0])),
    "traced": lambda m: Moving(m, 1.0, jnp.stack([0.0 * m, 1.0 + m])),
}


@pytest.mark.parametrize("name", MAKE)
def test_a_support_that_holds_arrays(name: str) -> None:
    g = ppl.gen(lambda m: ppl.sample("x", MAKE[name](m)))

    @ppl.expectation
    def everywhere(m: Any) -> Any:
        one = lambda x: g(m).log_density({"x": x})
        step = lambda total, x: (total + jax.checkpoint(one)(x), None)
        looped = jax.lax.scan(step, 0.0, jnp.array([0.5, 0.7]))[0]
        return looped + jax.lax.cond(m > 0, lambda: jnp.sum(jax.vmap(one)(m[None])), lambda: 0.0)

    x = np.array([0.5, 0.7, 0.3])
    slopes = (x[:2] - 0.3).sum()
    exact = -0.5 * ((x - 0.3) ** 2).sum() - 1.5 * np.log(2 * np.pi), slopes
    np.testing.assert_allclose(everywhere.value_and_grad(KEY, jnp.array(0.3)), exact, rtol=1e-5)
    assert g(0.3).log_density({"x": -0.5}) == -jnp.inf


class Doubled(nt.Transform):
    """A transform that is no pytree."""

    domain = codomain = dist.constraints.real

    def __call__(self, x: Any) -> Any:
        return 2.0 * x

    def _inverse(self, y: Any) -> Any:
        return y / 2.0

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
        return jnp.full(jnp.shape(x), np.log(2.0))


def test_the_density_of_a_transform_that_is_no_pytree() -> None:
    flow = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [Doubled(), nt.ExpTransform()])
    found = ppl.gen(lambda: ppl.sample("x", flow))().log_density({"x": 3.0})
    np.testing.assert_allclose(found, dist.LogNormal(0.0, 2.0).log_prob(3.0), rtol=1e-6)


# --- estimators that give another type ------------------------------------------------------------


class Difference(ppl.Continued):
    name = "difference"

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def unsuitable(self, d: Any) -> None:
        return None

    def surrogate(self, site: Any, key: Any, k: Any) -> Any:
        p = site.per_element(lambda d: d.probs)
        one, zero = jnp.ones((), self.dtype), jnp.zeros((), self.dtype)
        return p * (k(one) - k(zero))


def test_a_continuation_does_not_round() -> None:
    def run(dtype: Any) -> Any:
        draw = lambda p: ppl.sample("b", dist.Bernoulli(p), Difference(dtype))
        return ppl.expectation(lambda p: 3.0 * draw(p)).grad(KEY, 0.3)

    np.testing.assert_allclose(run(jnp.int8), 3.0, rtol=1e-6)
    match = r"difference of 'b' at .*test_corners.py.*gives k float32.*has type int32"
    with pytest.raises(ppl.UnsupportedError, match=match):
        run(jnp.float32)


class Halves(ppl.Enumerated):
    name = "halves"

    def unsuitable(self, d: Any) -> None:
        return None

    def support(self, d: Any) -> Any:
        return jnp.array([0.0, 0.5])

    def mass(self, d: Any, value: Any) -> Any:
        return jnp.where(value == 0, 1.0 - d.probs, d.probs)


def test_an_enumerated_value_is_not_rounded() -> None:
    f = ppl.expectation(lambda p: 3.0 * ppl.sample("b", dist.Bernoulli(p), Halves()))
    match = r"halves of 'b' at .*test_corners.py.*enumerates float32.*has type int32"
    with pytest.raises(ppl.UnsupportedError, match=match):
        f.value(KEY, 0.3)


# --- masks in masks -------------------------------------------------------------------------------

INNER, OUTER = jnp.array([True, False]), jnp.array([True, False])


def test_a_masked_event_of_masked_elements() -> None:
    def masked(d: Any) -> Any:
        return d.mask(INNER).to_event(1).mask(OUTER)

    normal = dist.Normal(jnp.arange(4.0).reshape(2, 2), 1.0)
    seen = OUTER[:, None] & INNER
    g = ppl.gen(lambda: ppl.sample("x", masked(normal)))
    trace = jax.jit(lambda: g().simulate(KEY))()
    exact = jnp.sum(jnp.where(seen, normal.log_prob(trace["x"]), 0.0))
    np.testing.assert_allclose(trace.log_density, exact, rtol=1e-6)

    @ppl.gen
    def model() -> None:
        x = ppl.sample("x", masked(dist.Bernoulli(jnp.full((2, 2), 0.3))))
        ppl.sample("y", dist.Normal(1.0 * x[0, 1], 1.0))

    log_p = dist.Normal(jnp.array([0.0, 1.0]), 1.0).log_prob(0.5) + jnp.log(jnp.array([0.7, 0.3]))
    m = ppl.marginal(model(), "y", ppl.enumeration())
    found = jax.jit(lambda: m.log_density({"y": 0.5}))()
    np.testing.assert_allclose(found, jnp.logaddexp(*log_p), rtol=1e-5)


# --- choices that may be absent -------------------------------------------------------------------


@ppl.gen
def branching(t: Any, decided: bool = False) -> None:
    c = ppl.sample("c", dist.Bernoulli(0.3))
    taken = t > 0 if decided else c == 1
    jax.lax.cond(taken, lambda: ppl.sample("x", dist.Normal(2.0, 1.0)), lambda: 0.0)
    ppl.sample("y", dist.Normal(1.0 * c, 1.0))


@pytest.mark.parametrize("by", [ppl.enumeration(), ppl.importance(2)])
@pytest.mark.parametrize("run", ["simulate", "log_density"])
def test_an_undecided_choice_is_not_kept(by: Any, run: str) -> None:
    m = ppl.marginal(branching(1.0), ["x", "y"], by)
    args = ({"x": 0.5, "y": 0.0},) if run == "log_density" else ()
    match = r"'x'\)? of .* stands in one branch.*test_corners.py.*Keep what decides too"
    with pytest.raises(ppl.UnsupportedError, match=match):
        getattr(m, run)(*args, KEY)
    with pytest.raises(ppl.UnsupportedError, match=match):
        ppl.marginal(ppl.gen(lambda: jax.vmap(lambda t: ppl.sample("g", branching(t)))(
            jnp.ones(2)))(), [("g", "x")], by).simulate(KEY)  # fmt: skip


@pytest.mark.parametrize("c", [0, 1])
def test_a_choice_is_kept_with_what_decides(c: int) -> None:
    """Where it is absent its value counts for nothing: the density is that of what decides."""
    m = ppl.marginal(branching(1.0), ["c", "x"], ppl.importance(3))
    found = jax.jit(m.log_density)({"c": c, "x": 0.5}, KEY)
    exact = dist.Bernoulli(0.3).log_prob(c) + c * dist.Normal(2.0, 1.0).log_prob(0.5)
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_a_choice_is_kept_where_arguments_decide() -> None:
    both = [dist.Bernoulli(0.3).log_prob(c) + dist.Normal(c, 1.0).log_prob(0.7) for c in (0, 1)]
    for t in (1.0, -1.0):
        m = ppl.marginal(branching(t, True), ["x", "y"], ppl.enumeration())
        exact = jnp.logaddexp(*both) + (t > 0) * dist.Normal(2.0, 1.0).log_prob(0.5)
        found = jax.jit(m.log_density)({"x": 0.5, "y": 0.7})
        np.testing.assert_allclose(found, exact, rtol=1e-6)


# --- weights --------------------------------------------------------------------------------------


def test_programs_with_weights_in_objectives() -> None:
    """log N(1; z, 1) as data, as a weight, and taken away again by a weight of the guide."""

    def model(weigh: Any) -> Any:
        def f() -> None:
            z = ppl.sample("z", dist.Normal(0.0, 1.0))
            weigh(dist.Normal(z, 1.0))

        return ppl.gen(f)()

    def factor(d: Any) -> None:
        ppl.factor("w", d.log_prob(1.0))

    as_data = model(lambda d: ppl.sample("y", d))
    guide, weighted = model(lambda d: None), model(factor)
    value = lambda q, p, data: ppl.expectation(lambda: ppl.elbo(p, q, data)).value(KEY)
    exact = value(guide, as_data, {"y": 1.0})
    np.testing.assert_allclose(value(guide, weighted, {}), exact, rtol=1e-6)
    np.testing.assert_allclose(value(weighted, weighted, {}), 0.0, atol=1e-6)
    np.testing.assert_allclose(value(weighted, as_data, {"y": 1.0}), 0.0, atol=1e-6)
    np.testing.assert_allclose(
        jax.jit(ppl.marginal(weighted, [], ppl.importance(20_000)).log_density)({}, KEY),
        dist.Normal(0.0, 2**0.5).log_prob(1.0),
        atol=0.03,  # 5 standard errors are .019
    )


# --- values that are infinite ---------------------------------------------------------------------

BASELINES = {
    "loo": "loo",
    "number": 0.5,
    "moving": ppl.moving_average(),
    "learned": ppl.learned(0.5),
}


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_does_not_change_an_infinite_value(name: str) -> None:
    """One of 64 samples is infinite with a probability of 1 - 2^-256."""

    @ppl.expectation
    def f(m: Any) -> Any:
        draw = lambda: ppl.sample("z", dist.Bernoulli(logits=m), ppl.reinforce(BASELINES[name]))
        return jnp.sum(jnp.log(1.0 * (1 - jax.vmap(draw, axis_size=4)())))

    assert f.value(KEY, 0.0, samples=64) == -jnp.inf


def test_choices_of_no_elements() -> None:
    """Each alone in a product, and in the law of a choice that is enumerated."""
    hows = ppl.mvd(), ppl.disarm(), ppl.spa(), ppl.unordered(), ppl.enum(), ppl.reinforce("loo")

    @ppl.expectation
    def f(t: Any) -> Any:
        draw = lambda n: jax.vmap(lambda p: ppl.sample(f"z{n}", dist.Bernoulli(p), hows[n]))
        read = [jnp.prod(1.0 + draw(n)(jnp.full(0, t))) for n in range(len(hows))]
        y = ppl.sample("y", dist.Bernoulli(t * read[0]), ppl.enum())
        return y * t + sum(read)

    np.testing.assert_allclose(f.grad(KEY, 0.3, samples=2), 0.6, rtol=1e-6)
