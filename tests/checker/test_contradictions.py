"""A derivative rule that is not that of its value is not passed over in silence.

With no estimator typed, REINFORCE takes the place of the pathwise draw, and the rule is not used:
that is said when the gradient is first traced, and by ``explain``.
"""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from ppl import dist

KEY = jax.random.key(0)


@jax.custom_vjp
def score_of_a_prior(x):
    """Of value 0, for its gradient alone."""
    return 0.0 * x


score_of_a_prior.defvjp(lambda x: (0.0 * x, x), lambda x, ct: (-ct * x,))


@jax.custom_jvp
def staircase(x):
    return jnp.round(x)


staircase.defjvp(lambda p, t: (jnp.round(p[0]), t[0]))


@pytest.mark.parametrize("f", [score_of_a_prior, staircase])
def test_it_is_said(f) -> None:
    def objective(t):
        return f(ppl.sample("x", dist.Normal(t, 1.0)))

    with pytest.warns(ppl.SoundnessWarning) as caught:
        ppl.expectation(objective).grad(KEY, 0.3)
    (message,) = (str(w.message) for w in caught)
    for text in ("'x'", "reinforce", "rule", "ppl.continuous(f, reason)", "ppl.reinforce()"):
        assert text in message
    report = ppl.expectation(objective).explain(0.3)
    assert [f.kind for f in report.findings] == ["ambiguous"]
    assert report.sites[0].findings
    with pytest.raises(ppl.SoundnessError, match="rule"):
        ppl.expectation(objective, strict=True).grad(KEY, 0.3)


def test_what_is_typed_is_meant() -> None:
    """Of the rule: E[-x] = -t with a draw t + e; of the value: the score."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        @ppl.expectation
        def by_rule(t):
            x = ppl.sample("x", dist.Normal(t, 1.0))
            return ppl.continuous(score_of_a_prior, "its rule is the score")(x) + x

        @ppl.expectation
        def by_value(t):
            return staircase(ppl.sample("x", dist.Normal(t, 1.0), ppl.reinforce()))

        assert by_rule.explain(0.3).sites[0].estimator == "reparam"
        keys = jax.random.split(KEY, 20_000)
        grads = np.asarray(jax.vmap(lambda k: by_rule.grad(k, 0.3))(keys))
        # variance 1: 4.3 standard errors, false-alarm rate 1.7e-5
        assert abs(grads.mean() - 0.7) < 4.3 / np.sqrt(len(keys))
        by_value.grad(KEY, 0.3)


def test_a_right_rule_is_no_contradiction() -> None:
    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, ct: (2.0 * ct * x,))
    objective = ppl.expectation(lambda t: square(ppl.sample("x", dist.Normal(t, 1.0))), strict=True)
    objective.grad(KEY, 0.3)
    assert objective.explain(0.3).sites[0].estimator == "reparam"
