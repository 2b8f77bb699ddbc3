"""``objective.audit`` finds what is wrong, names it, and passes what is right.

Figures: an audit of a right objective fails with probability ``FALSE_ALARMS`` = 1e-3, |z| being
held to Šidák's bound for its number of derivatives (3.29 for one, 3.66 for four, 4.42 for 100). The
default of 10,000 samples is used except where stated. All keys are fixed.
"""

from __future__ import annotations

import dataclasses
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import ppl
from ppl import dist
from ppl.objectives.audit import FALSE_ALARMS, Row

KEY = jax.random.key(0)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Score(ppl.InPlace):
    """REINFORCE, in user space, whose score was forgotten."""

    name = "score"

    def unsuitable(self, d):
        return None

    def draw(self, d, key, sample_shape):
        return lax.stop_gradient(d.sample(key, sample_shape))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Unweighted(ppl.Enumerated):
    """Enumeration with wrong weights: its value and its gradient agree, and are wrong."""

    name = "unweighted"

    def unsuitable(self, d):
        return None

    def support(self, d):
        return jnp.array([0, 1])

    def mass(self, d, value):
        return 0.5 + 0.1 * d.probs * (2 * value - 1)


def row(audit, parameter):
    (found,) = (r for r in audit.rows if r.parameter == parameter)
    return found


# --- right ones ---------------------------------------------------------------------------------


@ppl.expectation(has_aux=True)
def every(phi, fixed):
    """Each estimator at a choice; a loop, a branch, a leaf of 20 elements."""
    a = ppl.sample("a", dist.Normal(phi["a"], 1.3), ppl.reparam())
    b = ppl.sample("b", dist.Normal(phi["v"], 1.0).to_event(1), ppl.reinforce("loo"))
    c = ppl.sample("c", dist.Bernoulli(phi["p"]), ppl.enum())
    h = jnp.tanh(phi["w"] @ jnp.array([fixed, -0.2, 0.5, a]))

    def step(x, _):
        x = ppl.sample("x", dist.Normal(0.9 * x, 0.5))
        return x, x**2

    _, squares = lax.scan(step, phi["a"], length=3)
    e = lax.cond(
        c == 1,
        lambda: ppl.sample("d", dist.Normal(phi["a"], 0.5)),
        lambda: 1.0 * (ppl.sample("e", dist.Exponential(2.0 + phi["p"]), ppl.mvd()) < 0.3),
    )
    return jnp.sin(a) + (b**2).sum() + c * phi["a"] + h.sum() + squares.sum() + e, {"a": a}


PHI = {"a": 0.4, "p": 0.3, "v": np.array([0.2, -0.5]), "w": np.full((5, 4), 0.1)}


@pytest.mark.usefixtures("x64")
def test_a_right_objective_passes():
    audit = every.audit(KEY, PHI, 0.3, samples=4000)
    assert audit.ok
    assert audit.suspects == ()
    assert [r.parameter for r in audit.rows] == [
        "phi['a']",
        "phi['p']",
        "phi['v'][0]",
        "phi['v'][1]",
        "phi['w'] direction 1",
        "phi['w'] direction 2",
    ]
    assert {r.method for r in audit.rows} == {"finite differences"}
    # d/dv E |b|² = 2 v, within the bound of the test, of the reference alone too
    for i, exact in enumerate(2 * PHI["v"]):
        found = row(audit, f"phi['v'][{i}]")
        assert abs(found.reference - exact) < 5 * found.error + 0.1
    assert audit.samples == 4000
    each = statistics.NormalDist().cdf(audit.bound) - statistics.NormalDist().cdf(-audit.bound)
    assert each ** len(audit.rows) == pytest.approx(1 - FALSE_ALARMS)


def test_an_exact_objective_has_no_error_to_hide_behind():
    """In 32 bits: rounding and truncation are no bias, where nothing is random."""
    objective = ppl.expectation(lambda t: jnp.exp(3 * t["x"]) + 1e3 * jnp.sin(t["y"]))
    audit = objective.audit(KEY, {"x": 0.5, "y": 2.0}, samples=10)
    assert audit.ok
    assert row(audit, "t['x']").reference == pytest.approx(3 * np.exp(1.5), rel=1e-3)
    assert row(audit, "t['y']").reference == pytest.approx(1e3 * np.cos(2.0), rel=1e-3)


def test_a_support_that_moves():
    """Pathwise is right and REINFORCE is not, so the differences must be the reference."""

    @ppl.expectation
    def objective(t):
        x = ppl.sample("x", dist.Uniform(0.0, t["right"]), ppl.reparam())
        y = ppl.sample("y", dist.Uniform(0.0, t["wrong"]), ppl.reinforce())
        return x**2 + y**2

    audit = objective.audit(KEY, {"right": 1.5, "wrong": 1.5})
    assert abs(row(audit, "t['right']").z) <= audit.bound < abs(row(audit, "t['wrong']").z)
    assert audit.suspects == ("y",)


# --- wrong ones ---------------------------------------------------------------------------------


def test_every_wrong_choice_is_named_and_no_other():
    """Pathwise into jumps and a stop_gradient, a forgotten score, forgotten weights."""

    @ppl.expectation
    def objective(t):
        before = ppl.sample("before", dist.Normal(t["m"], 1.0), ppl.reparam())
        jump = ppl.sample("jump", dist.Normal(before + t["m"], 1.0), ppl.reparam())
        stopped = ppl.sample("stopped", dist.Normal(t["s"], 1.0), ppl.reparam())
        dropped = ppl.sample("dropped", dist.Exponential(1 / t["d"]), Score())
        weights = ppl.sample("weights", dist.Bernoulli(t["w"]), Unweighted())
        right = ppl.sample("right", dist.Bernoulli(t["r"]), ppl.enum())
        value = 2.0 * (jump > 0) + before**2 + stopped * lax.stop_gradient(stopped)
        return value + dropped + weights + right * before

    t = {"m": 0.4, "s": 0.9, "d": 1.7, "w": 0.3, "r": 0.3}
    audit = objective.audit(KEY, t, samples=5000)
    assert not audit.ok
    wrong = [r.parameter for r in audit.rows if abs(r.z) > audit.bound]
    assert sorted(wrong) == ["t['d']", "t['m']", "t['s']", "t['w']"]
    assert sorted(audit.suspects) == ["dropped", "jump", "stopped", "weights"]
    assert audit.notes == ()
    # the references are right: 2 φ(jump's mean / √2) 2 / √2 + 2 m + r, 2 s, 1, 1
    slope = 4 / np.sqrt(2) * np.exp(-(0.8**2) / 4) / np.sqrt(2 * np.pi)
    exact = {"m": slope + 0.8 + 0.3, "s": 1.8, "d": 1.0, "w": 1.0, "r": 0.4}
    for name, value in exact.items():
        found = row(audit, f"t['{name}']")
        assert abs(found.reference - value) < 5 * found.error + 0.1, name


def test_floor_and_a_choice_in_an_inner_expectation():
    @ppl.expectation
    def cell(m):
        x = ppl.sample("x", dist.Normal(m, 1.0), ppl.reparam())
        return jnp.floor(x) * x

    @ppl.expectation
    def objective(t):
        x = ppl.sample("x", dist.Normal(t["m"], 1.0))
        return jax.vmap(cell)(jnp.array([0.5, 1.0]) * t["m"]).sum() + x**2

    audit = objective.audit(KEY, {"m": 0.4})
    assert not audit.ok
    assert audit.suspects == (("cell", "x"),)


def test_a_parameter_in_a_comparison_is_no_fault_of_a_choice():
    """d/dt P(x < t) is the density at t; every estimator of x gives 0."""

    @ppl.expectation
    def objective(t, m):
        x = ppl.sample("x", dist.Normal(m, 1.0), ppl.reinforce())
        return 1.0 * (x < t)

    audit = objective.audit(KEY, 0.3, 0.0, argnums=(0, 1))
    assert [r.parameter for r in audit.rows] == ["t", "m"]
    assert abs(audit.rows[0].z) > audit.bound >= abs(audit.rows[1].z)
    assert audit.rows[0].reference == pytest.approx(0.381, abs=5 * audit.rows[0].error)
    assert audit.suspects == ()
    assert "bias of t: a parameter reaches a comparison" in audit.notes[0]


# --- the border of the domain -------------------------------------------------------------------


def test_at_probability_zero_the_reference_is_enumeration():
    """E = p: a choice that is never 1 has no score, and no differences."""

    def flip(p, estimator):
        return 1.0 * ppl.sample("b", dist.Bernoulli(p), estimator)

    right = ppl.expectation(lambda p: flip(p, ppl.enum())).audit(KEY, 0.0)
    assert right.ok
    (found,) = right.rows
    assert (found.method, found.reference) == ("enumeration", 1.0)
    wrong = ppl.expectation(lambda p: flip(p, ppl.reinforce())).audit(KEY, 0.0)
    assert not wrong.ok
    assert wrong.suspects == ("b",)


def test_near_the_border_the_step_is_smaller():
    objective = ppl.expectation(lambda s: ppl.sample("x", dist.Normal(0.0, s)) ** 2)
    (found,) = objective.audit(KEY, 0.02).rows
    assert found.method == "finite differences"
    assert found.reference == pytest.approx(0.04, rel=0.05)


# --- what it prints -----------------------------------------------------------------------------


def test_it_prints_as_text_and_as_html():
    row = Row("phi['<m>']", 1.0, 2.0, 0.1, -10.0, "finite differences")
    audit = ppl.Audit("elbo", (row,), 100, 3.29, ("x", ("inner", "x")), ("a note",))
    assert str(audit).splitlines() == [
        "audit of elbo",
        "parameter   estimate  reference  standard error  z         method",
        "phi['<m>']  1         2          0.1             -10.00 *  finite differences",
        "1 of 1 derivatives beyond |z| = 3.29, at 100 samples",
        "suspect: 'x', ('inner', 'x')",
        "a note",
    ]
    assert "<td>phi[&#x27;&lt;m&gt;&#x27;]</td>" in audit._repr_html_()
    unknown = dataclasses.replace(row, z=float("nan"))
    assert not ppl.Audit("elbo", (unknown,), 100, 3.29).ok


def test_nothing_to_audit():
    objective = ppl.expectation(lambda n: ppl.sample("x", dist.Normal(n, 1.0)))
    with pytest.raises(ppl.UnsupportedError, match=r"write 1\.0 for 1"):
        objective.audit(KEY, 1)


def test_a_declared_target():
    """The gradient of the wake phase is that of the IWELBO in the model, which its value is not; a
    factor of 1.2 on it is found."""

    @ppl.gen
    def model(theta):
        z = ppl.sample("z", dist.Normal(theta, 1.0))
        ppl.sample("x", dist.Normal(z, 0.8))

    @ppl.gen
    def guide():
        ppl.sample("z", dist.Normal(0.3, 1.1))

    bound = ppl.expectation(lambda theta: ppl.iwelbo(model(theta), guide(), {"x": 1.5}, 3))
    wake = ppl.expectation(lambda theta: ppl.wake_theta(model(theta), guide(), {"x": 1.5}, 3))
    more = ppl.expectation(lambda theta: 1.2 * wake(theta))
    assert not wake.audit(KEY, 0.2, samples=4000).ok
    audit = wake.audit(KEY, 0.2, samples=4000, target=bound)
    assert audit.ok and "held against the derivative of" in str(audit)
    assert not more.audit(KEY, 0.2, samples=4000, target=bound).ok


def test_a_declared_target_is_what_is_shown():
    """Its value, in the history of a fit too; the derivative is that of the surrogate."""
    target = ppl.expectation(
        lambda m, shift: -((ppl.sample("x", dist.Normal(m, 1e-6)) - shift) ** 2)
    )

    @ppl.expectation(target=target, has_aux=True)
    def surrogate(m, shift):
        k = ppl.sample("k", dist.Bernoulli(jax.nn.sigmoid(m)), ppl.reinforce())
        return 1.5 * m + 0.0 * k + 100.0, m

    (value, aux), grad = surrogate.value_and_grad(KEY, 0.3, 1.0)
    assert (float(value), float(aux), float(grad)) == pytest.approx((-0.49, 0.3, 1.5), rel=1e-4)
    assert float(surrogate.value(KEY, 0.3, shift=1.0)[0]) == pytest.approx(-0.49, rel=1e-4)
    fit = ppl.maximize(
        surrogate, 0.3, optax.sgd(0.1), key=KEY, steps=3, args=(1.0,), progress=False
    )
    m = 0.3 + 0.15 * np.arange(3)
    np.testing.assert_allclose(fit.history, -((m - 1.0) ** 2), rtol=1e-4)
    audit = surrogate.audit(KEY, 0.3, shift=1.0, samples=1000)
    assert not audit.ok  # 1.5 for 1.4
    assert surrogate.audit(KEY, 0.25, shift=1.0, samples=1000).ok
    with pytest.raises(ppl.UnsupportedError, match=r"same arguments\. Put @ppl\.expectation"):
        ppl.expectation(surrogate, target=lambda m: m)
