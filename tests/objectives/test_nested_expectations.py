"""Functions of expectations: plug-ins have their bias, what is debiased has none."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ztest

import ppl
from ppl import dist

KEY = jax.random.key(0)


@ppl.expectation
def inner(m):
    k = ppl.sample("k", dist.Bernoulli(jax.nn.sigmoid(m)), ppl.reinforce())
    return ppl.sample("x", dist.Normal(m, 0.5)) + 2.0 * k


def moments(m):
    p = jax.nn.sigmoid(m)
    return m + 2.0 * p, 0.25 + 4.0 * p * (1.0 - p)


def test_a_mean_has_the_moments_of_a_mean():
    @ppl.expectation
    def square(m):
        return ppl.mean(inner(m), 5) ** 2

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, variance = moments(0.3)
        ztest.check(lambda key: square.value(key, 0.3), mean**2 + variance / 5)
        jax.jit(square.value_and_grad)(KEY, 0.3)
    text = str(square.explain(0.3))
    assert "plug-in" in text
    assert "bias of O(1/n)" in text
    assert "unbiased." not in text
    (finding,) = square.explain(0.3).findings
    assert finding.kind == "plug-in"
    assert "test_nested_expectations.py" in finding.source


def test_one_draw_is_told_of_the_remedy():
    square = ppl.expectation(lambda m: inner(m) ** 2)
    with pytest.warns(ppl.SoundnessWarning, match=r"ppl.mean\(inner\(args\), n\), a plug-in"):
        square.grad(KEY, 0.3)


def test_linear_use_is_unbiased_in_every_construct():
    """vmap, scan, cond, a function, and a mean of a mean."""

    @ppl.expectation
    def f(m):
        def step(c, s):
            return c, s * ppl.mean(inner(c), 3)

        plate = jax.vmap(lambda s: s * ppl.mean(inner(m), 2))(jnp.arange(3.0)).sum()
        loop = jax.lax.scan(step, m, jnp.arange(4.0))[1].sum()
        one = lambda s: jax.lax.cond(s > 0, lambda: ppl.mean(inner(m), 2), lambda: 0.0)
        branch = jax.vmap(one)(jnp.array([-1.0, 1.0, 2.0])).sum()
        thunk = ppl.mean(lambda: ppl.mean(inner(m), 2) * ppl.sample("s", dist.Normal(2.0)), 2)
        return plate + loop + branch + thunk

    total = lambda m: 13.0 * moments(m)[0]
    assert not f.explain(0.3).findings
    ztest.check(lambda key: f.value_and_grad(key, 0.3), (total(0.3), jax.grad(total)(0.3)))
    variance = 5 / 2 + 14 / 3 + 2 / 2
    mean, own = moments(0.3)
    again = ((own / 2 + mean**2) * 5.0 - (2 * mean) ** 2) / 2
    draws = jax.jit(jax.vmap(lambda k: f.value(k, 0.3)))(jax.random.split(KEY, 20_000))
    np.testing.assert_allclose(jnp.var(draws), variance * own + again, rtol=0.06)  # 4 errors


def test_a_mean_of_what_is_no_draw_is_refused():
    def wrong(f):
        with pytest.raises(ppl.UnsupportedError, match=r"Type ppl.mean\(inner\(args\), n\)"):
            ppl.expectation(f).value(KEY, 0.3)

    wrong(lambda m: ppl.mean(2.0 * inner(m), 3))

    @wrong
    def twice(m):
        x = inner(m)
        return ppl.mean(x, 3) + x


def test_what_is_debiased_has_the_value_and_the_gradient_of_the_function():
    """Alone, in a plate and in a loop; a rate of 1.8 lets few samples wait for few draws."""
    one = lambda f, m, *more: ppl.debias(f, lambda: inner(m), *more, rate=1.8)

    @ppl.expectation
    def f(x):
        two = one(lambda a, b: x[1] * a**2 + b, x[0], lambda: inner(x[1]))
        plate = jax.vmap(lambda s: s * one(jnp.square, x[0]))(jnp.arange(2.0)).sum()
        loop = jax.lax.scan(lambda c, _: (c, one(lambda a: a**2, c)), x[0], length=2)[1].sum()
        return two + plate + loop

    def exact(x):
        a, b = moments(x[0])[0], moments(x[1])[0]
        return (x[1] + 3.0) * a**2 + b

    x = jnp.array([0.3, 0.7])
    assert not f.explain(x).findings
    goal = exact(x), jax.grad(exact)(x)
    ztest.check(lambda key: f.value_and_grad(key, x), goal, chunk=1000, n=2000)


def test_samples_of_what_is_debiased_are_independent():
    """The variance of a mean of 400 is a 400th: of 24 such means at most 2.5 times that (false
    alarm 1e-4). Where they shared the draws of a level it was 6 times."""

    @ppl.expectation
    def f(m):
        return ppl.debias(jnp.log, lambda: positive(m))

    @ppl.expectation
    def positive(m):
        return jnp.exp(0.3 * ppl.sample("u", dist.Normal(m, 1.0)))

    keys = jax.random.split(KEY, 24)
    means = jax.jit(jax.vmap(lambda k: f.value(k, 0.5, samples=400)))(keys)
    single = jax.jit(jax.vmap(lambda k: f.value(k, 0.5)))(jax.random.split(KEY, 4000))
    assert jnp.var(means) * 400 < 2.5 * jnp.var(single)
    exact, error = 0.3 * 0.5 + 0.3**2 / 2, jnp.std(means) / 24**0.5
    assert abs(jnp.mean(means) - exact) < 5 * error


def test_it_is_to_be_used_linearly():
    f = ppl.expectation(lambda m: jnp.log(ppl.debias(jnp.exp, lambda: inner(m))))
    assert [x.kind for x in f.explain(0.3).findings] == ["unsupported"]
    wrong = ppl.expectation(lambda m: ppl.debias(jnp.exp, lambda: inner(m), rate=2.5))
    with pytest.raises(ValueError, match=r"the variance. Type 1.5"):
        wrong.value(KEY, 0.3)
