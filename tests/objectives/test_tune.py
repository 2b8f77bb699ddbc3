"""``ppl.tune`` returns what an exhaustive measurement by other means finds best.

Time is counted in the FLOPs that XLA counts, 1 µs each, so nothing here depends on the machine.
"""

import importlib
import itertools
import types
from typing import Any

import jax
import jax.numpy as jnp
import kept
import numpy as np
import optax
import pytest
import ztest

import ppl
from ppl import dist

KEY = jax.random.key(0)
REPARAM, ENUM, MVD, SCORE, LOO = (
    ppl.reparam(),
    ppl.enum(),
    ppl.mvd(),
    ppl.reinforce(),
    ppl.reinforce("loo"),
)
module = importlib.import_module("ppl.objectives.tune")


@pytest.fixture
def costs(monkeypatch):
    """Seconds of a gradient by its estimators, in the order of the addresses; by default 1e-4."""
    table, run = {}, module.Trial.run
    clock = types.SimpleNamespace(now=0.0, step=0.0)

    def timed(trial, key, n):
        clock.step = n * table.get(tuple(trial.assignment.values()), 1e-4)
        return run(trial, key, n)

    def perf_counter():
        clock.now += clock.step
        return clock.now

    monkeypatch.setattr(module.Trial, "run", timed)
    monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=perf_counter))
    return table


# --- three problems, as functions of the estimators at their choices ------------------------------


def mixture(k_by=None, m_by=None):
    """A cost of which of three components, and of a draw from it."""

    @ppl.expectation
    def cost(phi):
        k = ppl.sample("k", dist.CategoricalLogits(phi["logits"]), k_by)
        m = ppl.sample("m", dist.Normal(phi["m"][k], jnp.exp(phi["s"])), m_by)
        return (m - 1.0) ** 2 + jnp.array([0.5, 2.0, 0.3])[k]

    return cost


def jump(x_by=None):
    @ppl.expectation
    def cost(phi):
        x = ppl.sample("x", dist.Normal(phi["m"], jnp.exp(phi["s"])), x_by)
        return jnp.where(x > 0.5, 2.0, 0.1 * x)

    return cost


def network(z_by=None):
    """A small network of three binary units and a noise, whose estimator is chosen."""
    w = jnp.array([[0.5, -1.0, 0.3], [1.2, 0.4, -0.7]])

    @ppl.expectation
    def loss(phi):
        z = ppl.sample("z", dist.Bernoulli(logits=phi["a"]).to_event(1), z_by)
        e = ppl.sample("e", dist.Normal(phi["b"], 0.3), ppl.reparam())
        return jnp.sum((jnp.tanh(w @ z + e) - 0.4) ** 2)

    return loss


CONTINUOUS, DISCRETE = [REPARAM, MVD, SCORE], [ENUM, MVD, SCORE]
PROBLEMS = {
    "mixture": (
        mixture,
        {"logits": jnp.array([0.1, 0.4, -0.3]), "m": jnp.array([-1.0, 0.5, 2.0]), "s": -0.3},
        1,
        {"k": [*DISCRETE, ppl.unordered()], "m": CONTINUOUS},
    ),
    "jump": (jump, {"m": 0.2, "s": 0.1}, 4, {"x": [MVD, SCORE, LOO]}),
    "network": (
        network,
        {"a": jnp.array([0.3, -0.2, 0.9]), "b": 0.1},
        2,
        {"z": [*DISCRETE, ppl.disarm(), LOO]},
    ),
}
BUDGETS = {"mixture": 40.0, "jump": 10.0, "network": 20.0}


def measured(objective, phi, samples, n=10_000):
    """FLOPs of a gradient; its variance and standard error, from independent ones, by the textbook.

    One trace serves both.
    """
    f = jax.jit(jax.value_and_grad(lambda phi, key: objective.surrogate(key, phi, samples=samples)))

    def measure():
        cost = f.lower(phi, KEY).cost_analysis()
        assert cost is not None
        grads = jax.vmap(lambda key: f(phi, key)[1])
        drawn = ztest.compiled(grads)(jax.random.split(jax.random.key(7), n))
        flat = [np.reshape(g, (n, -1)) for g in jax.tree.leaves(drawn)]
        flat = np.concatenate(flat, 1, dtype=float)
        square = np.sum((flat - flat.mean(0)) ** 2, 1)
        return cost["flops"], square.mean(), square.std() / np.sqrt(n)

    flops, variance, error = kept.numbers(f, [phi, KEY], [phi, n], measure)
    return flops, (variance, error)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_best_of_an_exhaustive_measurement(costs, name):
    """Merit within 10 % of the best; all variances within 5 standard errors (16 numbers: a false
    alarm has probability 1e-5, normal approximation); no row is missing."""
    make, phi, samples, options = PROBLEMS[name]
    exact = {}
    for estimators in itertools.product(*options.values()):
        objective = make(*estimators)
        flops, exact[estimators] = measured(objective, phi, samples)
        costs[estimators] = 1e-6 * flops
    merits = {e: exact[e][0] * costs[e] for e in exact}
    tuned = ppl.tune(make(), KEY, phi, budget=BUDGETS[name], samples=samples)
    rows = {tuple(t.assignment.values()): t for t in tuned.tried}
    assert tuned.exhaustive and set(exact) == {e for e, t in rows.items() if not t.why_not}
    for estimators, (value, error) in exact.items():
        row = rows[estimators]
        assert row.seconds == pytest.approx(costs[estimators])
        assert abs(row.variance - value) <= 5 * np.hypot(row.error, error)
    assert merits[tuple(tuned.assignment.values())] <= 1.1 * min(merits.values())
    assert tuned.tried[0].assignment == tuned.assignment
    assert tuned.tried[0].error <= 0.1 * tuned.tried[0].variance


def test_the_seconds_are_the_least_of_all_turns():
    """Whatever else the machine does adds to some turns, and would tip a median."""
    busy = iter([3e-6, 9e-6, 2e-6, 8e-6, 9e-6])
    trial = module.Trial({})
    clock = types.SimpleNamespace(now=0.0)

    def loop(n, key):
        clock.now += float(n) * next(busy)
        return np.array([1.0, 0.0, 0.0])

    trial.loop = loop
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
        for n in (10, 20, 10, 40, 30):
            trial.run(KEY, n)
    assert trial.seconds == pytest.approx(2e-6)


def test_closed_forms(costs):
    """x² under N(m, 1) at m = 1: derivatives 2x, of variance 4, and x²(x - m), of variance 30."""
    objective = ppl.expectation(lambda m: ppl.sample("x", dist.Normal(m, 1.0)) ** 2)
    tuned = ppl.tune(objective, KEY, 1.0, budget=8.0)
    rows = {t.assignment["x"]: t for t in tuned.tried}
    for estimator, exact in {REPARAM: 4.0, SCORE: 30.0}.items():
        row = rows[estimator]
        assert abs(row.variance - exact) <= 5 * row.error <= 0.4 * exact
    assert tuned.before is rows[REPARAM]
    assert tuned.objective.explain(1.0).sites[0].why == "chosen"


@pytest.mark.parametrize("n", [2, 3, 7])
def test_a_turn_is_unbiased_however_short(n):
    """|z| <= 4 of the mean of 4,000 turns: a false alarm has probability 6e-5."""
    objective = ppl.expectation(lambda m: ppl.sample("x", dist.Normal(m, 1.0)) ** 2)
    traced = objective.explain(1.0).traced
    turn = jax.vmap(lambda key: module._loop(traced, n, key, [jnp.asarray(1.0)])[0])
    drawn = turn(jax.random.split(KEY, 4000))
    assert abs(drawn.mean() - 4.0) <= 4 * drawn.std() / np.sqrt(4000)


def test_rounding_is_no_variance(costs):
    def f(m):
        x = ppl.sample("x", dist.Normal(m, 1.0))
        return jnp.exp(x) / jnp.exp(x - m)  # exp(m)

    costs[MVD,] = 2e-4
    tuned = ppl.tune(ppl.expectation(f), KEY, 0.3, budget=1.0)
    assert tuned.assignment == {"x": REPARAM} and tuned.tried[0].variance == 0.0


def test_an_exact_gradient_wins_and_the_cheaper_of_two(costs):
    @ppl.expectation
    def f(p):
        return jnp.exp(ppl.sample("k", dist.Bernoulli(p)) * 1.3)

    for quick, slow in itertools.permutations([ENUM, MVD]):
        costs |= {(quick,): 1e-2, (slow,): 2e-2, (SCORE,): 1e-6}
        tuned = ppl.tune(f, KEY, 0.3, budget=10.0)
        assert tuned.assignment == {"k": quick}
        assert [t.variance for t in tuned.tried[:2]] == [0.0, 0.0]
        assert [t.assignment["k"] for t in tuned.tried[:3]] == [quick, slow, SCORE]


def test_what_is_not_admissible_says_why(costs):
    tuned = ppl.tune(jump(), KEY, {"m": 0.2, "s": 0.1}, budget=1.0)
    (row,) = (t for t in tuned.tried if t.why_not)
    assert row.assignment == {"x": REPARAM} and row.merit == np.inf
    assert row.why_not.startswith(f"biased: > ({__file__}:")
    tuned = ppl.tune(
        ppl.expectation(lambda m: jnp.exp(ppl.sample("x", dist.Uniform(0.0, m)))), KEY, 0.7
    )
    why = {t.assignment["x"]: t.why_not for t in tuned.tried}
    assert why[SCORE].startswith("unsupported: Uniform") and not why[REPARAM] and not why[MVD]
    blind = ppl.expectation(
        lambda m: jnp.sqrt(jnp.maximum(ppl.sample("x", dist.Normal(m, 1.0)), 0.0))
    )
    why = {t.assignment["x"]: t.why_not for t in ppl.tune(blind, KEY, 0.7, budget=1.0).tried}
    assert why[REPARAM] == "its value or gradient is not finite" and not why[SCORE]


def test_what_is_too_large_or_too_slow_is_left_out(costs, monkeypatch):
    costs[MVD,] = 1.0
    f = ppl.expectation(lambda m: jnp.sin(ppl.sample("x", dist.Normal(m, 1.0))))
    why = {t.assignment["x"]: t.why_not for t in ppl.tune(f, KEY, 0.7, budget=2.0).tried}
    assert why == {REPARAM: "", MVD: "slow: 1 s for one gradient", SCORE: ""}
    monkeypatch.setattr(module, "MEMORY", -1)
    with pytest.raises(ppl.UnsupportedError, match="GiB of memory"):
        ppl.tune(f, KEY, 0.7)


def test_one_address_at_a_time(costs, monkeypatch):
    """The best is better than all that differ from it at one address."""
    make, phi, _, options = PROBLEMS["mixture"]
    monkeypatch.setattr(module, "EXHAUSTIVE", 5)
    tuned = ppl.tune(make(), KEY, phi, budget=20.0)
    assert not tuned.exhaustive and "one address at a time" in str(tuned)
    rows = {tuple(t.assignment.values()): t.merit for t in tuned.tried}
    k, m = tuned.assignment.values()
    for neighbours in ([(e, m) for e in options["k"]], [(k, e) for e in options["m"]]):
        assert rows[k, m] == min(rows[e] for e in neighbours)
    assert tuned.before.assignment == {"k": ENUM, "m": REPARAM} and len(rows) < 12


def test_choices_of_one_address_are_changed_together(costs):
    @ppl.expectation
    def f(m):
        x = ppl.sample("x", dist.Normal(m, 1.0))
        ys = jax.vmap(lambda _: ppl.sample("x", dist.Normal(x, 1.0)))(jnp.arange(3))
        return jnp.sum(jnp.cos(ys))

    tuned = ppl.tune(f, KEY, 0.3, budget=2.0)
    assert list(tuned.assignment) == ["x"] and sum(not t.why_not for t in tuned.tried) == 3
    rows = tuned.objective.explain(0.3).sites
    assert [r.estimator for r in rows] == [tuned.assignment["x"].name] * 2


def test_expectations_inside_data_and_auxiliary_output(costs, monkeypatch):
    monkeypatch.setattr(module, "EXHAUSTIVE", 1)  # 7 programs, not 12

    @ppl.expectation
    def inner(p, x):
        k = ppl.sample("k", dist.Bernoulli(p))
        return (k - x) ** 2

    @ppl.expectation(has_aux=True, strict=True)
    def outer(xs, kind, phi, n):
        u = ppl.sample("u", dist.Normal(phi["m"], 1.0))
        total = jax.vmap(inner, (None, 0))(jax.nn.sigmoid(phi["p"]), xs).sum()
        return (total + {"sin": jnp.sin}[kind](u)) / n, u

    args = (jnp.array([0.1, 0.4]), "sin", {"m": 0.5, "p": -0.2}, 3)
    costs |= dict.fromkeys([(REPARAM, ENUM)], 1e-5)
    tuned = ppl.tune(outer, KEY, *args, argnums=2, budget=2.0)
    assert tuned.assignment == {"u": REPARAM, ("inner", "k"): ENUM}
    (value, aux), grads = tuned.objective.value_and_grad(KEY, *args, argnums=2)
    (want, _), wanted = outer.value_and_grad(KEY, *args, argnums=2)
    assert tuned.objective.strict and tuned.objective.name == "outer" and np.shape(aux) == ()
    np.testing.assert_allclose([value, grads["p"]], [want, wanted["p"]], rtol=1e-6)
    tuned = ppl.tune(outer, KEY, *args, argnums=(0, 2), budget=2.0, addresses=[("inner", "k")])
    assert list(tuned.assignment) == [("inner", "k")]


def test_chosen_estimators_stay_unless_named(costs):
    @ppl.expectation
    def f(m):
        x = ppl.sample("x", dist.Normal(m, 1.0), ppl.reinforce(1.0))
        y = ppl.sample("y", dist.Normal(m, 1.0))
        return (x + y) ** 2

    assert list(ppl.tune(f, KEY, 0.3, budget=2.0).assignment) == ["y"]
    costs[None,] = 1e-9
    tuned = ppl.tune(f, KEY, 0.3, budget=2.0, addresses=["x"])
    assert tuned.assignment == {} and len(tuned.tried) == 4
    assert tuned.before is tuned.tried[0] and tuned.before.assignment == {"x": None}
    assert "as it is" in str(tuned)


def test_the_same_key_gives_the_same(costs):
    make, phi, _, _ = PROBLEMS["jump"]
    a, b, c = (
        [t.variance for t in ppl.tune(make(), jax.random.key(seed), phi, budget=0.5).tried[:2]]
        for seed in (1, 1, 2)
    )
    assert a == b and a != c


def test_it_prints_and_fits():
    make, phi, _, _ = PROBLEMS["jump"]
    tuned = ppl.tune(make(), KEY, phi, budget=0.5, samples=2)
    text, page = str(tuned), tuned._repr_html_()
    assert repr(tuned) == text and 'ppl.reinforce("loo")' in text and "biased: >" in text
    assert f"Best for cost: {{'x': {module.TYPED[tuned.assignment['x']]}}}" in text
    assert "Tried: all combinations." in text and "as it was" in text
    assert page.count("<tr>") == 5 and "reinforce(&quot;loo&quot;)" in page
    fit = ppl.maximize(tuned.objective, phi, optax.adam(0.1), key=KEY, steps=30, progress=False)
    assert fit.params["m"] > 0.3


def test_keys_of_another_kind(costs):
    f = ppl.expectation(lambda m: jnp.sin(ppl.sample("x", dist.Normal(m, 1.0), ppl.reinforce())))
    for key in (jax.random.key(0, impl="rbg"), jax.random.PRNGKey(0)):
        assert ppl.tune(f, key, 0.3, budget=0.2, addresses=["x"]).tried


# --- errors ---------------------------------------------------------------------------------------


def chosen(m):
    return ppl.sample("x", dist.Normal(m, 1.0), ppl.reparam())


UNDECORATED: Any = chosen


def hopeless(m):
    return jnp.where(ppl.sample("x", dist.Normal(0.0, 1.0)) < m, 1.0, 0.0)


ERRORS = {
    "no choice": (lambda: ppl.tune(ppl.expectation(lambda m: m**2), KEY, 0.3), "objective.grad("),
    "all chosen": (lambda: ppl.tune(ppl.expectation(chosen), KEY, 0.3), "addresses=['x']"),
    "no objective": (lambda: ppl.tune(UNDECORATED, KEY, 0.3), "Add @ppl.expectation."),
    "integers": (lambda: ppl.tune(mixture(), KEY, 3), "Type 2.0 for 2"),
    "no numbers": (lambda: ppl.tune(mixture(), KEY, "a"), "Type 1.0 or"),
    "no such argument": (lambda: ppl.tune(mixture(), KEY, 1.0, argnums=1), "argnums is"),
    "no such address": (
        lambda: ppl.tune(jump(), KEY, {"m": 0.0, "s": 0.0}, addresses=["X"]),
        "'x'?",
    ),
    "small budget": (
        lambda: ppl.tune(jump(), KEY, {"m": 0.0, "s": 0.0}, budget=1e-9),
        "Type budget=",
    ),
    "nothing is right": (lambda: ppl.tune(ppl.expectation(hopeless), KEY, 0.3), ".explain("),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_show_the_line_and_what_to_type(name):
    run, text = ERRORS[name]
    with pytest.raises((ppl.PPLError, ValueError)) as info:
        run()
    message = str(info.value)
    assert f"{__file__}:" in message and text in message and message.endswith((".", "?"))
    assert "/ppl/" not in message


def test_sizes_of_nested_estimates(costs):
    """Of an unbiased function of a mean the size with the least variance x seconds; time is n here.
    A plug-in, of which another size is another objective, is not compared."""

    def likelihood():
        z = ppl.sample("z", dist.Normal(0.0, 1.0), REPARAM)
        return jnp.exp(dist.Normal(z, 0.8).log_prob(1.0))

    @ppl.expectation
    def evidence(theta, n):
        return theta * ppl.debias(jnp.log, likelihood, n=n)

    @ppl.expectation
    def plug_in(theta, n):
        return theta * jnp.log(ppl.mean(likelihood, n))

    tried = [1, 4, 16]
    costs |= {(n,): 1e-4 * (1 + n) for n in tried}
    tuned = ppl.tune(evidence, KEY, 1.5, sizes={"n": tried}, budget=3.0)
    keys, merits = jax.random.split(jax.random.key(1), 4000), {}
    for n in tried:
        fixed = ppl.expectation(lambda theta, n=n: theta * ppl.debias(jnp.log, likelihood, n=n))
        merits[n] = (1 + n) * float(jnp.var(jax.vmap(lambda key: fixed.grad(key, 1.5))(keys)))
    assert tuned.sizes == {"n": min(merits, key=merits.__getitem__)}, merits
    assert not tuned.assignment and len(tuned.tried) == 3 and "'n': " in repr(tuned), tuned
    assert tuned.objective.value(KEY, 1.5, samples=50) == pytest.approx(-1.5 * 1.47, abs=0.5)
    with pytest.raises(ppl.UnsupportedError, match=r"no admissible estimators\. As it is: plug-in"):
        ppl.tune(plug_in, KEY, 1.5, sizes={"n": [4, 16]}, budget=3.0)
