"""Expressions that are there often are calls of one program; what is computed is the same."""

import jax
import jax.numpy as jnp
import numpy as np

from ppl.fitting.fingerprint import program_digest
from transforms import _jax
from transforms.program.compiled import with_numbers
from transforms.program.computed_once import computed_once
from transforms.program.shared import OFTEN, shared


def rounds(x, y):
    """Forms that differ in wiring, signs of zero, types and parameters alone."""
    out = []
    for i in range(OFTEN):
        a, b = x[i % 3], y[i % 2]
        out += [a * b, a * a, a / b, b / a, jnp.where(a > b, a, b), jnp.where(a > b, b, a)]
        out += [jnp.arctan2(0.0, a), jnp.arctan2(-0.0, a), a**2, a**3, jnp.sum(x * a), jnp.max(y)]
        out += [jnp.sin(a * b) * b + a, jnp.sin(a * b) * a + a, jnp.sin(b * a) * b + b]
    return jnp.stack([o.astype(float) for o in out])


ARGS = jnp.array([-1.5, 0.3, 2.0]), jnp.array([0.7, -0.2])


def evaluated(closed):
    return lambda *args: _jax.evaluate(closed, *args)[0]


def test_values_and_derivatives_are_the_same():
    closed = jax.make_jaxpr(rounds)(*ARGS)
    alone = {eqn.outvars[0]: n for n, eqn in enumerate(closed.jaxpr.eqns)}
    for labels in ({}, alone):
        (new,) = shared([closed], labels)
        calls = {id(e.params["jaxpr"]) for e in new.jaxpr.eqns if e.primitive is _jax.jit_p}
        assert 10 < len(calls) < len(new.jaxpr.eqns) / 4
        for wrap in (jax.jit, lambda f: jax.jit(jax.jacrev(f, (0, 1)))):
            before, after = (wrap(evaluated(c))(*ARGS) for c in (closed, new))
            jax.tree.map(np.testing.assert_array_equal, before, after)
        signs = np.signbit(jax.jit(evaluated(new))(*ARGS))
        np.testing.assert_array_equal(signs, np.signbit(rounds(*ARGS)))


def test_constants_that_are_shown_alike_are_told_apart():
    """NumPy shows eight digits of an array, or as many as it is told to."""
    written = [np.float32(1 + i / 1000) for i in range(OFTEN)]
    closed = jax.make_jaxpr(lambda x: jnp.stack([x * c for c in written]))(1.0)
    with np.printoptions(precision=2):
        opened, numbers = with_numbers(closed)
        found = [evaluated(shared([closed])[0])(1.0), evaluated(computed_once(closed))(1.0)]
        found.append(evaluated(opened)(*numbers, 1.0))
        each = [jax.make_jaxpr(lambda x, c=c: x * c)(1.0) for c in written]
        assert len({program_digest(p, []) for p in each}) == OFTEN
    for values in found:
        np.testing.assert_array_equal(values, written)


def test_what_is_compiled_is_the_same():
    """Calls leave no trace: the program has the equations that it had, in any order."""
    closed = jax.make_jaxpr(rounds)(*ARGS)
    (new,) = shared([closed])
    names = [
        sorted(e.primitive.name for e in jax.make_jaxpr(evaluated(c))(*ARGS).jaxpr.eqns)
        for c in (closed, new)
    ]
    assert names[0] == names[1]


def test_an_expression_is_derived_once():
    """The first one ends in another sum."""
    (new,) = shared([jax.make_jaxpr(lambda x: sum(jnp.sin(v) * 2.0 for v in x))(jnp.ones(20))])
    calls = [e.params["jaxpr"] for e in new.jaxpr.eqns if e.primitive is _jax.jit_p]
    sines = [c for c in calls if any(e.primitive.name == "sin" for e in c.jaxpr.eqns)]
    assert len(sines) == 20 and len({id(c) for c in sines}) == 2
