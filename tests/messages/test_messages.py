"""``jax.debug.print`` and its relatives in programs with random choices: what the run drew."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import ppl
from ppl import dist

KEY = jax.random.key(1)
P = jnp.array([0.15, 0.3, 0.45])


def told(program, *args, **kwargs):
    """What a run of ``program(tell)`` tells the host, and its value and gradient."""
    heard = []

    def tell(kind, *values):
        def host(*values):
            heard.append(tuple(np.asarray(v).item() for v in values))

        if kind == "debug":
            jax.debug.callback(host, *values)
        elif kind == "unordered":
            io_callback(host, None, *values)
        else:
            like = jax.ShapeDtypeStruct((), jnp.int32)
            io_callback(lambda *v: (host(*v), np.int32(0))[1], like, *values)

    out = ppl.expectation(program(tell)).value_and_grad(*args, **kwargs)
    jax.block_until_ready(out)
    jax.effects_barrier()
    return heard, out


def one(tell, kind, estimator):
    def f(p):
        x = ppl.sample("x", dist.Bernoulli(p), estimator)
        tell(kind, x)
        return 1.0 * x

    return f


def around(where, f):
    return {
        "plain": f,
        "jit": jax.jit(f),
        "scan": lambda p: jax.lax.scan(lambda c, q: (c + f(q), None), 0.0, p * P / 0.3)[0],
        "vmap": lambda p: jax.vmap(f)(p * P / 0.3).sum(),
        "cond": lambda p: jax.lax.cond(p > 0, f, lambda p: 0.0, p),
    }[where]


@pytest.mark.parametrize(
    ("where", "kind"),
    [("jit", "debug"), ("scan", "debug"), ("scan", "result"), ("cond", "unordered")],
)
def test_what_was_drawn_is_told_once(where, kind):
    """By mvd replays run for the gradient, which are no runs of the user's."""
    for estimator in (ppl.reinforce(), ppl.mvd()):
        heard, (value, _) = told(
            lambda tell: around(where, one(tell, kind, estimator)), KEY, 0.3, samples=3
        )
        assert len(heard) == (9 if where == "scan" else 3)
        assert sum(x for (x,) in heard) / 3 == pytest.approx(float(value))


def test_under_vmap_each_element_is_told():
    heard, (value, _) = told(
        lambda tell: around("vmap", one(tell, "debug", ppl.mvd())), KEY, 0.3, samples=3
    )
    assert len(heard) == 9
    assert sum(x for (x,) in heard) / 3 == pytest.approx(float(value))


@pytest.mark.parametrize(
    ("where", "times", "kind"),
    [("plain", 1, "debug"), ("vmap", 3, "debug"), ("scan", 3, "unordered"), ("cond", 1, "debug")],
)
def test_of_an_enumeration_each_value_is_told(where, times, kind):
    heard, (value, grad) = told(lambda tell: around(where, one(tell, kind, ppl.enum())), KEY, 0.3)
    assert collections.Counter(heard) == {(0,): times, (1,): times}
    n = 3.0 if times == 3 else 1.0
    assert (float(value), float(grad)) == pytest.approx((0.3 * n, n))


def test_of_a_chain_each_pair_of_values_is_told_in_each_step():
    def program(tell):
        def f(p):
            def step(before, t):
                k = ppl.sample("k", dist.Bernoulli(p + 0.1 * before * t), ppl.enum())
                tell("debug", before, k, t)
                return k, jnp.cos(1.0 * k * t + before)

            return jax.lax.scan(step, 0, jnp.arange(1.0, 4.0))[1].sum()

        return f

    heard, _ = told(program, KEY, 0.3)
    pairs = {(b, k, t) for b in (0, 1) for k in (0, 1) for t in (1.0, 2.0, 3.0)}
    assert collections.Counter(heard) == dict.fromkeys(
        (p for p in pairs if p[2] > 1 or p[0] == 0), 1
    )


def test_a_printed_objective_has_the_gradient_of_one_that_is_not():
    def program(speak):
        @ppl.expectation
        def f(p):
            k = ppl.sample("k", dist.Bernoulli(p), ppl.enum())
            y = ppl.sample("y", dist.Bernoulli(p), ppl.mvd())
            x = ppl.sample("x", dist.Normal(p, 1.0), ppl.reinforce())
            if speak:
                jax.debug.callback(lambda *_: None, k, y, x)
            return (k + y * x) ** 2

        return f

    quiet, speaking = (program(speak).grad(KEY, 0.3, samples=5) for speak in (False, True))
    assert float(quiet) == pytest.approx(float(speaking))


def test_a_chain_that_is_too_large_gets_the_advice_of_an_objective():
    logits = jnp.zeros(1100)

    @ppl.expectation
    def f(t):
        def step(before, _):
            k = ppl.sample("k", dist.Categorical(logits=t * logits), ppl.enum())
            return k, jnp.sin(1.0 * k) * jnp.cos(1.0 * before)

        return jax.lax.scan(step, 0, None, length=3)[1].sum()

    with pytest.raises(ppl.UnsupportedError, match=r"1,210,000.*use ppl.reinforce\(\)") as error:
        f.grad(KEY, 0.3)
    assert "importance" not in str(error.value)
    assert "enumeration()" not in str(error.value)
