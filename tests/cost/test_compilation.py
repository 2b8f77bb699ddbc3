"""What is compiled: its size does not grow with loops, and nothing is traced or paid for twice."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import ppl
from ppl import dist

KEY = jax.random.key(0)
ESTIMATORS = {
    "reparam": ppl.reparam(),
    "reinforce": ppl.reinforce(),
    "loo": ppl.reinforce("loo"),
    "mvd": ppl.mvd(),
}


def equations(jaxpr):
    """Number of equations, those inside loops and functions included."""
    subs = jax.extend.core.jaxprs_in_params
    return sum(1 + sum(equations(s) for s in subs(e.params)) for e in jaxpr.eqns)


def walk(length, estimator):
    @ppl.expectation
    def f(m):
        def step(c, _):
            return 0.5 * c + ppl.sample("x", dist.Normal(m, 1.0), estimator), None

        return lax.scan(step, 0.0, None, length=length)[0] ** 2

    return f


@pytest.mark.parametrize("name", ["reinforce", "mvd"])
def test_a_chain_in_straight_line_is_linear(name):
    """Each site adds as many equations as the last, though each term has all the scores before, and
    each choice all terms after it."""

    def size(n):
        @ppl.expectation
        def f(m):
            x, total = 0.0, 0.0
            for i in range(n):
                x = ppl.sample(f"x{i}", dist.Normal(m + 0.5 * x, 1.0), ESTIMATORS[name])
                total += jnp.cos(x)
            return total

        return equations(jax.make_jaxpr(jax.grad(lambda m: f.surrogate(KEY, m)))(0.3).jaxpr)

    four, eight, sixteen = map(size, (4, 8, 16))
    assert sixteen - eight == 2 * (eight - four)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_size_does_not_depend_on_the_length_of_a_loop(name):
    samples = 2 if name == "loo" else 1

    def size(length):
        f = walk(length, ESTIMATORS[name])
        grad = jax.grad(lambda m: f.surrogate(KEY, m, samples=samples))
        return equations(jax.make_jaxpr(grad)(0.5).jaxpr)

    # measure-valued alternatives of more than 64 steps run in batches of 64
    assert size(100 if name == "mvd" else 10) == size(10_000)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_do_not_retrace(name):
    traces = []

    @ppl.expectation
    def f(m, data):
        traces.append(1)
        return (data["y"] - ppl.sample("x", dist.Normal(m, 1.0), ESTIMATORS[name])).sum() ** 2

    for i in range(4):
        data = {"y": jnp.arange(3.0) + i}
        f.value(jax.random.key(i), 0.5 + i, data, samples=2)
        f.value_and_grad(jax.random.key(i), 0.5 + i, data, samples=2)
        f.grad(jax.random.key(i), 0.5 + i, data, samples=2)
        if i == 0:
            traces.clear()
    assert not traces
    f.value(KEY, 0.5, {"y": jnp.arange(4.0)}, samples=2)
    assert traces


def flops(f, *args):
    return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]


def test_the_value_does_not_pay_for_alternatives():
    w = jnp.ones((64, 64))

    def objective(estimator):
        @ppl.expectation
        def f(p):
            x = 1.0 * ppl.sample("x", dist.Bernoulli(jnp.full(64, p)), estimator)
            return jnp.tanh(w @ jnp.tanh(w @ x)).sum()

        return f

    value = {n: objective(e).surrogate for n, e in [("mvd", ppl.mvd()), ("re", ppl.reinforce())]}
    cost = {n: flops(f, KEY, 0.3) for n, f in value.items()}
    assert cost["mvd"] < 1.1 * cost["re"]
    with_grad = flops(jax.grad(value["mvd"], argnums=1), KEY, 0.3)
    assert with_grad > 20 * cost["mvd"]  # each of the 64 elements has an alternative


def test_pathwise_costs_what_hand_written_code_costs():
    w = jnp.ones((32, 32))

    @ppl.expectation
    def f(w):
        x = ppl.sample("x", dist.Normal(jnp.zeros(32), 1.0))
        return jnp.tanh(w @ x).sum()

    def by_hand(key, w):
        return jnp.tanh(w @ jax.random.normal(key, (32,))).sum()

    ours = flops(jax.value_and_grad(f.surrogate, argnums=1), KEY, w)
    theirs = flops(jax.value_and_grad(by_hand, argnums=1), KEY, w)
    assert ours < 1.05 * theirs


def test_enumeration_of_a_loop_shares_what_comes_before():
    """Step t is run for the joint values of the choices up to t: 1 + 2 + 4 times, not 3 · 8."""

    def cost(estimator):
        @ppl.expectation
        def f(w):
            def step(x, _):
                x = jnp.tanh(w @ x)
                return x + ppl.sample("b", dist.Bernoulli(0.3), estimator), None

            return jax.lax.scan(step, jnp.ones(200), length=3)[0].sum()

        w = jnp.eye(200)
        compiled = jax.jit(lambda w: f.surrogate(jax.random.key(0), w)).lower(w).compile()
        analysis = compiled.cost_analysis()
        return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]

    once = 2 * 200 * 200
    assert 7 * once <= cost(ppl.enum()) < 7.2 * once


def test_a_loop_of_no_steps():
    @ppl.expectation
    def f(t):
        def step(x, _):
            return x + ppl.sample("b", dist.Bernoulli(t), ppl.enum()), None

        return 3.0 * t + jax.lax.scan(step, 0.0, length=0)[0]

    value, grad = f.value_and_grad(jax.random.key(0), 0.5)
    assert (float(value), float(grad)) == (1.5, 3.0)


def test_alternatives_begin_at_their_choice():
    """What comes before a measure-valued choice is computed once: also in programs that are
    nested and jitted."""

    @ppl.gen
    def inner(t):
        x = ppl.sample("x", dist.Normal(jnp.tanh(t), 1.0), ppl.reparam())
        b = ppl.sample("b", dist.Bernoulli(jax.nn.sigmoid(jnp.tanh(x))), ppl.mvd())
        return jnp.tanh(x * b)

    @jax.jit
    def outer(t):
        return ppl.sample("inner", inner(jnp.tanh(t)))

    @ppl.expectation
    def f(t):
        return jnp.tanh(outer(jnp.tanh(t)))

    def tanhs(jaxpr):
        subs = jax.extend.core.jaxprs_in_params
        return sum(
            (e.primitive.name == "tanh") + sum(tanhs(s) for s in subs(e.params)) for e in jaxpr.eqns
        )

    grad = jax.make_jaxpr(jax.grad(lambda t: f.surrogate(KEY, t)))(0.3)
    assert tanhs(grad.jaxpr) == 6 + 2


def weighted(p):
    x = ppl.sample("x", dist.Bernoulli(jnp.full((37, 3), p)), ppl.enum())
    y = ppl.sample("y", dist.Normal(p, 1.0), ppl.reinforce())
    parts = jnp.concatenate([jnp.cos(1.0 * x).T, jnp.sin(1.0 * x).T])
    return 0.5 * parts[1:].sum(1).mean() - (y**2).reshape(1)[0] / 3.0


def test_without_jit_estimates_are_the_same():
    grad = ppl.expectation(weighted).grad
    with jax.disable_jit():
        bare = grad(KEY, 0.3)
    assert jnp.allclose(bare, grad(KEY, 0.3), rtol=1e-5)


def test_an_estimator_as_an_argument_is_not_taken_for_another():
    @ppl.expectation
    def f(m, estimator):
        return ppl.sample("x", dist.Normal(m, 1.0), estimator) ** 2

    for estimator in ESTIMATORS.values():

        @ppl.expectation
        def alone(m, estimator=estimator):
            return ppl.sample("x", dist.Normal(m, 1.0), estimator) ** 2

        expected = alone.grad(KEY, 1.0, samples=2)
        assert jnp.allclose(f.grad(KEY, 1.0, estimator, samples=2), expected, rtol=1e-5)


def test_an_argument_is_not_taken_for_one_of_another_class():
    """To JAX the trees of dataclasses without fields are equal."""

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class One:
        value = 1.0

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Two:
        value = 2.0

    @ppl.expectation
    def f(m, kind):
        return kind[0].value * ppl.sample("x", dist.Normal(m, 1.0))

    assert [f.grad(KEY, 0.3, (k,)) for k in (One(), Two(), One())] == [1.0, 2.0, 1.0]
    assert jnp.allclose(2 * f.value(KEY, 0.3, (One(),)), f.value(KEY, 0.3, (Two(),)))
