"""Every primitive of the installed JAX is in the table, or left out for a reason; users' own."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import ppl
from ppl import dist
from transforms import _jax
from transforms.analyses import primitives
from transforms.analyses.primitives import OPAQUE, PRIMITIVES


def of_other_packages():
    """Names of primitives that other tests have imported with equinox and lineax."""
    modules = [
        vars(m) for name, m in list(sys.modules.items()) if name.startswith(("equinox", "lineax"))
    ]
    return {x.name for names in modules for x in names.values() if isinstance(x, Primitive)}


def test_all_primitives_of_jax_are_known_or_left_out_for_a_reason():
    left_out = {name for names in OPAQUE.values() for name in names.split()}
    new = _jax.primitive_names() - PRIMITIVES.keys() - left_out - of_other_packages()
    assert not new, f"enter these in transforms/analyses/primitives.py: {sorted(new)}"
    assert not left_out & PRIMITIVES.keys()


# --- primitives of a user's own -------------------------------------------------------------------

KEY = jax.random.key(0)


def primitive(name, f, jvp):
    """An elementwise primitive with this derivative rule, as a user writes one."""
    new = Primitive(name)
    new.def_impl(f)
    new.def_abstract_eval(lambda x: jax.core.ShapedArray(x.shape, x.dtype))
    ad.defjvp(new, jvp)
    batching.defvectorized(new)
    mlir.register_lowering(new, mlir.lower_fun(f, multiple_results=False))
    return new.bind


def bend(name):
    return primitive(name, lambda x: jnp.log1p(jnp.exp(x)), lambda t, x: t * jax.nn.sigmoid(x))


def step(name):
    return primitive(name, lambda x: jnp.where(x > 0, 1.0, 0.0), lambda t, x: jnp.zeros_like(t))


def of_coins(f):
    @ppl.expectation
    def mean(logits):
        z = ppl.sample("z", dist.Bernoulli(logits=logits), ppl.enum())
        return jnp.sum(f(1.0 * z))

    return mean


def of_a_draw(f, estimator=None):
    return ppl.expectation(lambda m: f(ppl.sample("x", dist.Normal(m, 1.0), estimator)))


@pytest.fixture
def registered(monkeypatch):
    """What a test registers is forgotten."""
    monkeypatch.setattr(primitives, "PRIMITIVES", dict(PRIMITIVES))


def test_a_primitive_that_nobody_knows_mixes_all(registered):
    """Refused where that is too much; registered as elementwise it is told apart."""
    f, logits = bend("test_bend"), jnp.linspace(-1.0, 1.0, 24)
    with pytest.raises(ppl.UnsupportedError, match=r"2\*\*24 values"):
        of_coins(f).grad(KEY, logits)
    ppl.register_primitive("test_bend", axes="elementwise")
    slope = jax.grad(lambda l: jnp.sum(jax.nn.sigmoid(l) * (jnp.log1p(jnp.e) - jnp.log(2.0))))
    np.testing.assert_allclose(of_coins(f).grad(KEY, logits), slope(logits), rtol=1e-5)


def test_a_primitive_that_nobody_knows_is_compared_with_its_rule():
    """A step with derivative 0 is found; a bend with the right derivative is left alone."""
    m = jnp.zeros(())
    with pytest.warns(ppl.SoundnessWarning, match="test_step at .* whose derivative rule"):
        of_a_draw(step("test_step"), ppl.reparam()).grad(KEY, m)
    assert 0 < of_a_draw(bend("test_right"), ppl.reparam()).grad(KEY, m) < 1


def test_what_is_registered_is_believed(registered):
    ppl.register_primitive("test_jump", axes="elementwise", jumps=True)
    assert "reinforce" in str(of_a_draw(step("test_jump")).explain(jnp.zeros(())))


def test_a_linear_primitive_is_a_part_of_the_sum(registered):
    """Elements of a plate meet in it in no term: exact for 24 coins."""
    new = Primitive("test_total")
    new.def_impl(jnp.sum)
    new.def_abstract_eval(lambda x: jax.core.ShapedArray((), x.dtype))
    ad.deflinear2(new, lambda t, x: [jnp.full(x.aval.shape, 1.0) * t])
    mlir.register_lowering(new, mlir.lower_fun(jnp.sum, multiple_results=False))
    ppl.register_primitive("test_total", linear=True)

    @ppl.expectation
    def mean(logits):
        z = ppl.sample("z", dist.Bernoulli(logits=logits), ppl.enum())
        return new.bind(jnp.cos(1.0 * z))

    logits = jnp.linspace(-1.0, 1.0, 24)
    slope = jax.grad(lambda l: jnp.sum(jax.nn.sigmoid(l) * (jnp.cos(1.0) - 1.0)))
    np.testing.assert_allclose(mean.grad(KEY, logits), slope(logits), rtol=1e-5)
