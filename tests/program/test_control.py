"""A primitive that runs a program is one record of ``KINDS``; all passes know it then."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

import ppl
from ppl import dist
from transforms.program import control

KEY = jax.random.key(0)


def call_primitive():
    """A primitive that runs a program, as JAX might come with one."""
    new = Primitive("test_call")
    new.multiple_results = True
    run = lambda *args, program: jaxpr_as_fun(program)(*args)
    new.def_impl(run)
    new.def_abstract_eval(lambda *args, program: [v.aval for v in program.jaxpr.outvars])
    mlir.register_lowering(new, mlir.lower_fun(run, multiple_results=True))

    def batched(args, dims, *, program):
        args = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)]
        axes = [None if d is None else 0 for d in dims]
        mapped = jax.vmap(jaxpr_as_fun(program), axes)
        outs = new.bind(*args, program=jax.make_jaxpr(mapped)(*args))
        return outs, [0] * len(outs)

    batching.primitive_batchers[new] = batched
    ad.primitive_jvps[new] = lambda xs, ts, *, program: jax.jvp(jaxpr_as_fun(program), xs, ts)
    return new


def called(new, f):
    def g(*args):
        (out,) = new.bind(*args, program=jax.make_jaxpr(f)(*args))
        return out

    return g


@pytest.fixture
def call(monkeypatch):
    new = call_primitive()
    whole = lambda eqn: control.Whole(eqn, eqn.params["program"])
    monkeypatch.setitem(control.KINDS, new, whole)
    return new


def payoff(z, x, t):
    return jnp.sum(z * t) + x * t + jnp.where(x < 50.0, x, 0.0)


def objective(new, estimator):
    @ppl.expectation
    def f(t):
        draw = lambda t: ppl.sample("z", dist.Bernoulli(0.3 * t * jnp.ones(12)), ppl.enum()) * 1.0
        z = called(new, draw)(t)
        x = called(new, lambda t: ppl.sample("x", dist.Normal(t, 1.0), estimator))(t)
        return called(new, payoff)(z, x, t)

    return f


def test_choices_and_payoffs_in_a_primitive_that_is_new(call):
    """A jump is found inside, a pathwise gradient is right, elements of a plate are apart."""
    with pytest.warns(ppl.SoundnessWarning, match="reaches <"):
        objective(call, ppl.reparam()).grad(KEY, 0.5)
    smooth = ppl.expectation(
        lambda t: called(call, lambda x, t: x * t)(
            called(call, lambda t: ppl.sample("x", dist.Normal(t, 1.0)))(t), t
        )
    )
    keys = jax.random.split(KEY, 4000)
    grads = jax.vmap(lambda k: smooth.grad(k, 0.5))(keys)
    # x t' + t: 1.0 at t = .5 in the mean, with sd 1: |z| < 4.5, one false alarm in 150,000
    assert abs(float(grads.mean()) - 1.0) < 4.5 / np.sqrt(4000)

    @ppl.expectation
    def counts(t):
        draw = lambda t: ppl.sample("z", dist.Bernoulli(0.3 * t * jnp.ones(24)), ppl.enum()) * 1.0
        return called(call, lambda z, t: jnp.sum(z**2 * t))(called(call, draw)(t), t)

    # apart from each other: 2 values in step, not 2**24
    np.testing.assert_allclose(counts.value_and_grad(KEY, 0.5), (1.8, 7.2), rtol=1e-5)


def test_the_densities_of_choices_in_it(call):
    @ppl.gen
    def g():
        x = called(call, lambda m: ppl.sample("x", dist.Normal(m, 1.0)))(1.0)
        ppl.sample("y", dist.Normal(x, 2.0))

    choices = {"x": 0.5, "y": -1.0}
    exact = dist.Normal(1.0, 1.0).log_prob(0.5) + dist.Normal(0.5, 2.0).log_prob(-1.0)
    np.testing.assert_allclose(g().log_density(choices), exact, rtol=1e-6)
    assert set(g().simulate(KEY).choices) == {"x", "y"}


def test_without_a_record_it_is_refused():
    f = objective(call_primitive(), ppl.reparam())
    with pytest.raises(ppl.UnsupportedError, match="inside 'test_call'"):
        f.grad(KEY, 0.5)


def test_the_programs_of_an_equation_are_replaced_where_they_are():
    body = lambda c, x: (c + x, c)
    for f in [
        lambda x: jax.lax.scan(body, 0.0, x)[0],
        lambda x: jax.lax.cond(x[0] > 0, jnp.sum, jnp.prod, x),
        lambda x: jax.checkpoint(jnp.sin)(x)[0],
        lambda x: jax.lax.while_loop(lambda c: c < 3.0, lambda c: c + 1.0, x[0]),
    ]:
        closed = jax.make_jaxpr(f)(jnp.arange(3.0))
        eqn = next(e for e in closed.jaxpr.eqns if control.control(e) is not None)
        found: list[ClosedJaxpr] = []
        same = control.with_programs(eqn, lambda p: (found.append(p), p)[1])
        kind = control.control(same)
        programs = {
            control.Loop: lambda k: [k.body],
            control.Branches: lambda k: list(k.programs),
            control.Whole: lambda k: [k.program],
            control.Until: lambda k: [k.test, k.body],
        }[type(kind)](kind)
        assert [str(p) for p in programs] == [str(p) for p in found]
