"""``explain``, the alarm, and the choice of estimators by the checker."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import ppl
from ppl import dist

KEY = jax.random.key(0)


def jumping(m):
    x = ppl.sample("x", dist.Normal(m, 1.0), ppl.reparam())
    return jnp.where(x > 0.0, 1.0, 0.0)


def mixed(m, data):
    k = ppl.sample("k", dist.Bernoulli(jax.nn.sigmoid(m)))

    def step(c, d):
        x = ppl.sample("x", dist.Normal(c, 1.0))
        return c + d * x, jnp.sign(x)

    total, signs = lax.scan(step, m, data)
    return total * k + 0.1 * ppl.sample("n", dist.Poisson(jnp.exp(m))) + jnp.sum(signs[:0])


def test_a_row_for_each_choice():
    report = ppl.expectation(mixed).explain(0.3, jnp.ones(3), samples=4)
    rows = {s.address: s for s in report.sites}
    assert list(rows) == ["k", "x", "n"]
    assert (rows["k"].distribution, rows["k"].estimator) == ("BernoulliProbs", "enum")
    assert (rows["k"].shape, rows["k"].evaluations) == ((), "2")
    assert (rows["x"].shape, rows["n"].estimator) == ((3,), "reinforce")
    assert all(f"{__file__}:" in s.source for s in report.sites)
    assert report.loops and report.equations > 50
    text = str(report)
    assert "k  " in text and "automatic: a support of 2" in text
    assert f"{report.flops:,.0f} FLOPs" in text and "stand in a loop" in text
    html = report._repr_html_()
    assert html.count("<tr>") == 4 and "Poisson" in html and "&#x27;" not in html


def test_findings_are_in_the_row_and_below():
    report = ppl.expectation(jumping).explain(0.3)
    (finding,) = report.findings
    assert report.sites[0].findings == (finding,)
    assert (finding.kind, finding.addresses, finding.operation) == ("biased", (("x",),), ">")
    assert finding.message in str(report) and "must not be trusted" in str(report)


def test_what_is_chosen_depends_on_the_use():
    def use(f, d=dist.Normal):
        report = ppl.expectation(lambda m: f(ppl.sample("x", d(m, 1.0)))).explain(0.3, samples=2)
        assert not report.findings
        return report.sites[0].estimator, report.sites[0].why

    assert use(jnp.sin)[0] == "reparam"
    assert use(lambda x: jnp.abs(x) + jnp.where(x > 0, x, 0.1 * x))[0] == "reparam"
    estimator, why = use(lambda x: jnp.floor(x) * x)
    assert estimator == "reinforce" and "its use jumps (floor, " in why
    estimator, why = use(lambda x: x * lax.stop_gradient(x))
    assert estimator == "reinforce" and "derivative is dropped" in why
    moving = lambda m, _: dist.Uniform(0.0, m)
    estimator, why = use(jnp.round, moving)
    assert estimator == "mvd" and "support depends on a parameter" in why


def test_kinks_are_told_on_request():
    objective = ppl.expectation(lambda m: jnp.abs(ppl.sample("x", dist.Normal(m, 1.0))))
    assert not objective.explain(0.3).findings
    (finding,) = objective.explain(0.3, kinks=True).findings
    assert (finding.kind, finding.operation) == ("almost everywhere", "abs")


def test_a_jump_in_parameters_alone_is_one_almost_everywhere():
    def f(m):
        x = ppl.sample("x", dist.Normal(m, 1.0))
        return jnp.where(m > 0, x, 2.0 * x)

    assert not ppl.expectation(f).explain(0.3).findings
    kinds = [f.kind for f in ppl.expectation(f).explain(0.3, kinks=True).findings]
    assert kinds == ["almost everywhere"]


def test_what_is_stated_is_kept():
    @ppl.continuous(reason="never below 0 here")
    def trusted(x):
        return jnp.where(x > 0, x, 1.0)

    @ppl.expectation
    def f(m):
        return trusted(jnp.exp(ppl.sample("x", dist.Normal(m, 1.0), ppl.reparam())))

    report = f.explain(0.3)
    ((reason, line),) = report.stated
    assert not report.findings and reason == "never below 0 here" and f"{__file__}:" in line
    assert reason in str(report)
    assert ppl.continuous(jnp.sign)(2.0) == 1.0


def test_detach_is_meant_and_stop_gradient_is_not():
    def f(hold):
        return ppl.expectation(
            lambda m: m * hold(ppl.sample("x", dist.Normal(m, 1.0), ppl.reparam())), strict=True
        )

    got = f(ppl.detach).grad(KEY, 0.3, samples=4)
    value = f(ppl.detach).value(KEY, 0.3, samples=4)
    np.testing.assert_allclose(got, value / 0.3, rtol=1e-5)
    with pytest.raises(ppl.SoundnessError, match=r"ppl\.detach\(x\)"):
        f(lax.stop_gradient).grad(KEY, 0.3)


def test_the_alarm_is_raised_where_a_gradient_is_first_traced():
    objective = ppl.expectation(jumping)
    objective.value(KEY, 0.3)  # no warning: a value is not biased
    with pytest.warns(ppl.SoundnessWarning) as caught:
        objective.grad(KEY, 0.3)
    assert caught[0].filename == __file__
    objective.grad(KEY, 0.5)  # compiled already
    with pytest.raises(ppl.SoundnessError), ppl.strict():
        objective.grad(KEY, 0.3)
    objective.grad(KEY, 0.3)
    for differentiate in (jax.grad, jax.jacfwd, lambda f: jax.grad(jax.jit(f)), jax.hessian):
        with pytest.warns(ppl.SoundnessWarning):
            differentiate(lambda m: objective.surrogate(KEY, m))(0.3)
    with pytest.warns(ppl.SoundnessWarning):
        ppl.maximize(objective, jnp.asarray(0.3), optax.sgd(0.1), key=KEY, steps=2, progress=False)
    with pytest.raises(ppl.SoundnessError):
        ppl.minimize(
            ppl.expectation(jumping, strict=True),
            jnp.asarray(0.3),
            optax.sgd(0.1),
            key=KEY,
            steps=2,
            progress=False,
        )


def test_strict_for_the_rest_of_the_session():
    objective = ppl.expectation(jumping)
    switch = ppl.strict()
    try:
        with pytest.raises(ppl.SoundnessError):
            objective.grad(KEY, 0.3)
    finally:
        switch.__exit__()
    with pytest.warns(ppl.SoundnessWarning):
        objective.grad(KEY, 0.3)


def test_an_expectation_inside_is_checked_with_what_surrounds_it():
    inner = ppl.expectation(lambda a: jnp.sign(ppl.sample("y", dist.Normal(a, 1.0), ppl.reparam())))

    @ppl.expectation
    def outer(m):
        return inner(m) + ppl.sample("x", dist.Normal(m, 1.0))

    report = outer.explain(0.3)
    assert [s.address for s in report.sites] == ["x", "<lambda>/y"]
    assert [f.addresses for f in report.findings] == [(("y",),)]
    on_data = ppl.expectation(lambda m: m * inner(2.0))
    assert not on_data.explain(0.3).findings


def test_slope_of_an_expectation_inside():
    """A REINFORCE draw by itself is a jump in its parameter; its derivative is estimated."""
    inner = ppl.expectation(lambda p: 1.0 * ppl.sample("b", dist.Bernoulli(p), ppl.reinforce()))

    @ppl.expectation
    def outer(m):
        return m * jax.grad(inner)(m)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outer.grad(KEY, 0.3)


def test_checking_once_is_enough():
    """A second trace of the same objective asks nothing again."""
    from transforms.smoothness import continuity

    objective = ppl.expectation(lambda m: jnp.where(m > 0, m, 0.0) * ppl.expectation(jumping)(m))
    objective.explain(0.3)
    before = continuity._passed.cache_info()
    objective.explain(0.3)
    after = continuity._passed.cache_info()
    assert after.misses == before.misses and after.hits > before.hits
