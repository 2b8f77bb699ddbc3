"""Every error of the contract: its type, the address, the user's own line, and the advice.

``messages.md`` is the table of them, word by word; ``python tests/messages/test_errors.py --write``
writes it.
"""

import functools
import inspect
import itertools
import math
import pathlib
import re
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from jax import lax

import ppl
from ppl import dist

KEY = jax.random.key(0)
CASES = {}


def case(error, *texts):
    """Register a function that must raise ``error`` with all of ``texts`` in its message.

    ``{file}:{n}`` in a text stands for the line of this file that ends in ``# line n``, in the
    body of the function.
    """

    def register(f):
        CASES[f.__name__] = (f, error, texts)
        return f

    return register


def _lines(f):
    source, start = inspect.getsourcelines(f)
    marks = (re.search(r"# line (\d+)$", text.rstrip()) for text in source)
    return {m[1]: start + i for i, m in enumerate(marks) if m}


@ppl.gen
def model(scale=1.0):
    x = ppl.sample("x", dist.Normal(0.0, scale))
    ppl.sample("heights", dist.Normal(jnp.zeros(3), 1.0))
    return x


MODEL = {"x": 1.0, "heights": jnp.zeros(3)}


def value(f, *args):
    return ppl.expectation(f).value(KEY, *args)


# --- addresses -----------------------------------------------------------------------------------


@case(ppl.AddressError, "model needs a value at address 'heights'", "Given: 'x'", "addresses: 'x'")
def missing_address():
    model().log_density({"x": 1.0})


@case(ppl.AddressError, "no choice at address 'hights'", "Did you mean 'heights'?")
def unknown_address():
    model().log_density({"x": 1.0, "hights": jnp.zeros(3)})


@case(ppl.AddressError, "no choice at address 'hights'", "Did you mean 'heights'?")
def unknown_address_in_generate():
    model().generate({"hights": jnp.zeros(3)}, KEY)


@case(ppl.AddressError, "no choice at address 'hights'", "Did you mean 'heights'?")
def unknown_address_in_trace():
    model().simulate(KEY)["hights"]


@case(ppl.AddressError, "address ('inner', 'y')", "Did you mean ('inner', 'x')?")
def unknown_nested_address():
    @ppl.gen
    def outer():
        ppl.sample("inner", model())

    outer().log_density({"inner": {"y": 1.0, "heights": jnp.zeros(3)}})


@case(ppl.AddressError, "'x'", "is used twice", "{file}:1:", "{file}:2:", "its own address")
def duplicate_address():
    @ppl.gen
    def g():
        ppl.sample("x", dist.Normal(0.0, 1.0))  # line 1
        ppl.sample("x", dist.Normal(0.0, 1.0))  # line 2

    g().simulate(KEY)


@case(ppl.AddressError, "'x'", "is used twice", "{file}:1:", "{file}:2:", "float32[2]")
def address_of_two_shapes_in_two_branches():
    @ppl.gen
    def g(flag):
        return lax.cond(
            flag,
            lambda: ppl.sample("x", dist.Normal(0.0, 1.0)),  # line 1
            lambda: ppl.sample("x", dist.Normal(jnp.zeros(2), 1.0)).sum(),  # line 2
        )

    g(True).simulate(KEY)


@case(ppl.AddressError, "'x'", "is used twice", "{file}:1:", "{file}:2:")
def duplicate_factor():
    @ppl.gen
    def g():
        ppl.sample("x", dist.Normal(0.0, 1.0))  # line 1
        ppl.factor("x", 1.0)  # line 2

    g().simulate(KEY)


@case(ppl.AddressError, "'m'", "lies inside ('m', 'x')", "{file}:1:", "Rename")
def address_inside_another():
    @ppl.gen
    def g():
        ppl.sample("m", model())
        ppl.sample("m", dist.Normal(0.0, 1.0))  # line 1

    g().simulate(KEY)


@case(ppl.AddressError, "{file}:1:", "is a string", 'ppl.sample("x", d)')
def address_is_no_string():
    value(lambda: ppl.sample(dist.Normal(0.0, 1.0), "x"))  # line 1


@case(ppl.AddressError, "merge: the address ('a', 'b') is in both", "Remove it")
def merge_overlap():
    ppl.merge({"a": {"b": 1.0}}, {"a": {"b": 2.0}})


@case(ppl.AddressError, "no random choice at address 'hight'", "Did you mean 'heights'?")
def with_estimators_unknown_address():
    ppl.with_estimators(model(), {"hight": ppl.reparam()})


@case(ppl.AddressError, "no choice at address 'hights' to keep", "Did you mean 'heights'?")
def marginal_unknown_address():
    ppl.marginal(model(), "hights").simulate(KEY)


@case(ppl.AddressError, "choice at address 'hights'")
def normalize_unknown_address():
    ppl.normalize(model(), {"hights": jnp.zeros(3)}).simulate(KEY)


@case(ppl.AddressError, "a dict from addresses to values", "list")
def choices_are_no_dict():
    model().log_density([1.0])


# --- shapes --------------------------------------------------------------------------------------


@case(ppl.ShapeError, "'y'", "(3, 1)", "(3,)", "{file}:1:", "d.expand(shape)")
def wrong_shape_of_a_choice():
    @ppl.gen
    def g():
        ppl.sample("y", dist.Normal(jnp.zeros(3), 1.0))  # line 1

    g().log_density({"y": jnp.zeros((3, 1))})


@case(ppl.ShapeError, "'y'", "(3,)", "()", "{file}:1:", "d.expand(shape)")
def data_for_a_scalar_choice():
    @ppl.gen
    def g():
        ppl.sample("y", dist.Normal(0.0, 1.0))  # line 1

    g().generate({"y": jnp.zeros(3)}, KEY)


@case(ppl.ShapeError, "'y'", "(3, 1)", "(3,)", "{file}:1:", "reshape the value")
def wrong_shape_of_an_observed_value():
    @ppl.gen
    def g():
        ppl.observe("y", dist.Normal(jnp.zeros(3), 1.0), jnp.zeros((3, 1)))  # line 1

    g().simulate(KEY)


@case(ppl.ShapeError, "'heights'", "(3, 1)", "(3,)")
def normalize_wrong_shape():
    ppl.normalize(model(), {"heights": jnp.zeros((3, 1))}).simulate(KEY)


@case(ppl.ShapeError, "'x'", "(2,)", "(3,)", "{file}:1:")
def wrong_number_of_steps():
    @ppl.gen
    def g():
        def step(c, t):
            return c + ppl.sample("x", dist.Normal(c, 1.0)), None  # line 1

        lax.scan(step, 0.0, jnp.arange(3.0))

    g().log_density({"x": jnp.zeros(2)})


# --- keys ----------------------------------------------------------------------------------------


@case(ppl.KeyRequiredError, "'x'", "{file}:1:", ".simulate(key)", "ppl.seed(f)(key")
def no_key_to_simulate():
    @ppl.gen
    def g():
        ppl.sample("x", dist.Normal(0.0, 1.0))  # line 1

    g().simulate()


@case(ppl.KeyRequiredError, "'x'", "{file}:1:", "@ppl.expectation", "ppl.seed(f)(key")
def no_key_to_sample():
    ppl.sample("x", dist.Normal(0.0, 1.0))  # line 1


@case(ppl.KeyRequiredError, "'x'", "{file}:1:", "ppl.seed(f)(key")
def no_key_to_sample_under_jit():
    jax.jit(lambda: ppl.sample("x", dist.Normal(0.0, 1.0)))()  # line 1


@case(ppl.KeyRequiredError, "the expectation f", "{file}:1:", "f.value(key, ...)")
def expectation_called_outside():
    @ppl.expectation
    def f(m):
        return ppl.sample("x", dist.Normal(m, 1.0))

    f(1.0)  # line 1


@case(TypeError, "a key is needed", "jax.random.key(0)", "got a dict", "{file}:1:")
def gradient_without_a_key():
    ppl.expectation(lambda p: p["m"]).grad({"m": 1.0})  # line 1


@case(TypeError, "a key is needed", "key<fry>[3]", "{file}:1:", "jax.vmap(f)(keys)")
def several_keys():
    model().simulate(jax.random.split(KEY, 3))  # line 1


@case(ppl.KeyRequiredError, "the expectation f", "{file}:1:", "f.value_and_grad(key, ...)")
def jit_of_an_expectation():
    @ppl.expectation
    def f(m):
        return ppl.sample("x", dist.Normal(m, 1.0))

    jax.jit(f)(1.0)  # line 1


@case(ppl.KeyRequiredError, "the expectation f", "{file}:1:", "f.value_and_grad(key, ...)")
def jax_gradient_of_an_expectation():
    @ppl.expectation
    def f(m):
        return ppl.sample("x", dist.Normal(m, 1.0))

    jax.grad(f)(1.0)  # line 1


@case(TypeError, "a key is needed", "jax.random.key(0)", "1.0")
def value_without_a_key():
    ppl.expectation(lambda m: m).value(1.0)


@case(TypeError, "a key is needed", "jax.random.key(0)", "got 0")
def integer_for_a_key():
    model().simulate(0)


# --- constructs ----------------------------------------------------------------------------------


@case(ppl.UnsupportedError, "'x'", "{file}:1:", "'while'", "{file}:2:", "jax.lax.scan", "mask")
def site_in_a_while_loop():
    @ppl.gen
    def g():
        body = lambda x: x + ppl.sample("x", dist.Normal(0.0, 1.0))  # line 1
        return lax.while_loop(lambda x: x < 1, body, 0.0)  # line 2

    g().simulate(KEY)


@case(ppl.UnsupportedError, "'x'", "{file}:1:", "'while'", "jax.lax.scan")
def site_in_a_while_loop_of_an_objective():
    def f(m):
        body = lambda x: x + ppl.sample("x", dist.Normal(m, 1.0))  # line 1
        return lax.while_loop(lambda x: x < 1, body, 0.0)

    value(f, 0.5)


@case(ppl.UnsupportedError, "'x'", "{file}:1:", "@ppl.expectation of its own", "jax.grad(inner)(x)")
def gradient_around_a_site():
    value(lambda m: jax.grad(lambda m: ppl.sample("x", dist.Normal(m, 1.0)) ** 2)(m), 1.0)  # line 1


@case(ppl.UnsupportedError, "'x'", "{file}:1:", "jax.grad(inner)(x)")
def gradient_around_a_site_in_a_loop():
    def f(m):
        def step(c, t):
            return c + ppl.sample("x", dist.Normal(m, 1.0)), None  # line 1

        return lax.scan(step, 0.0, None, length=3)[0]

    value(jax.grad(f), 1.0)


@case(ppl.UnsupportedError, "{file}:1:", "inside g", 'ppl.sample("name", g(...))')
def simulate_inside_a_program():
    @ppl.gen
    def g():
        return model().simulate().choices["x"]  # line 1

    g().simulate(KEY)


@case(ppl.UnsupportedError, "inside g", 'ppl.sample("name", g(...))')
def simulate_with_a_key_inside_a_program():
    @ppl.gen
    def g():
        return model().simulate(KEY).choices["x"]

    g().simulate(KEY)


@case(ppl.UnsupportedError, "{file}:1:", "inside g", 'ppl.factor("name", log_weight)')
def density_inside_a_program():
    @ppl.gen
    def g():
        return model().log_density(MODEL)  # line 1

    g().simulate(KEY)


@case(ppl.UnsupportedError, "expectation f", "{file}:1:", "in the objective")
def expectation_inside_a_program():
    @ppl.expectation
    def f():
        return ppl.sample("x", dist.Normal(0.0, 1.0))

    @ppl.gen
    def g():
        return f()  # line 1

    g().simulate(KEY)


@case(ppl.UnsupportedError, "factor 'w'", "{file}:1:", "outside @ppl.gen", "that is returned")
def factor_in_an_objective():
    def f():
        ppl.factor("w", 1.0)  # line 1
        return 1.0

    value(f)


@case(ppl.UnsupportedError, "'w'", "{file}:1:", "outside @ppl.gen")
def observe_in_an_objective():
    def f():
        ppl.observe("w", dist.Normal(0.0, 1.0), 1.0)  # line 1
        return 1.0

    value(f)


# --- what is given -------------------------------------------------------------------------------


@case(ppl.UnsupportedError, "'x'", "{file}:1:", "model itself", "Call it", "model(...)")
def program_not_called_in_sample():
    value(lambda: ppl.sample("x", model))  # line 1


@case(ppl.UnsupportedError, "model", "{file}:1:", "without being called", "model(...)")
def program_not_called():
    model.simulate(KEY)  # line 1


@case(ppl.UnsupportedError, "model", "without being called", "model(...)")
def program_not_called_in_elbo():
    value(lambda: ppl.elbo(model, model(), {}))


@case(ppl.UnsupportedError, "model", "{file}:1:", "without being called")
def program_not_called_in_marginal():
    ppl.marginal(model, "x")  # line 1


@case(ppl.UnsupportedError, "'x'", "{file}:1:", "given 1.0", "dist.Normal(0.0, 1.0)")
def number_for_a_distribution():
    value(lambda: ppl.sample("x", 1.0))  # line 1


@case(ppl.UnsupportedError, "'x'", "{file}:1:", "ppl.reinforce() with its parentheses")
def estimator_without_parentheses():
    value(lambda: ppl.sample("x", dist.Normal(0.0, 1.0), ppl.reinforce))  # line 1


@case(ppl.UnsupportedError, "'x'", "{file}:1:", "the function mvd", "with its parentheses")
def estimator_without_parentheses_from_outside():
    ppl.with_estimators(model(), {"x": ppl.mvd})  # line 1


@case(ppl.UnsupportedError, "'x'", "{file}:1:", "ppl.with_estimators(g,")
def estimator_of_a_program():
    value(lambda: ppl.sample("x", model(), ppl.reparam()))  # line 1


@case(ppl.UnsupportedError, "enum", "'x' ~ Normal", "{file}:1:", "not finite", "ppl.reparam()")
def enumeration_of_a_normal():
    value(lambda: ppl.sample("x", dist.Normal(0.0, 1.0), ppl.enum()))  # line 1


@case(ppl.UnsupportedError, "reparam", "'x' ~ Bernoulli", "{file}:1:", "Use", "ppl.reinforce()")
def pathwise_bernoulli():
    value(lambda: ppl.sample("x", dist.Bernoulli(0.5), ppl.reparam()) * 1.0)  # line 1


@case(ppl.UnsupportedError, "mvd", "'x' ~ VonMises", "{file}:1:", "no measure-valued", "Use")
def measure_valued_von_mises():
    value(lambda: ppl.sample("x", dist.VonMises(0.0, 1.0), ppl.mvd()))  # line 1


@case(ppl.UnsupportedError, "'x'", "{file}:1:", "2**30 values", "@ppl.expectation of")
def enumeration_too_large():
    d = dist.Bernoulli(jnp.full(30, 0.5))
    value(lambda: 1.0 * ppl.sample("x", d, ppl.enum()).sum() ** 2)  # line 1


@case(ValueError, "unknown baseline 'leave'", "'loo'", "ppl.moving_average(decay)")
def unknown_baseline():
    ppl.reinforce("leave")


@case(ppl.UnsupportedError, "the objective f", "scalar", "float32[3]", ".sum()", "has_aux=True")
def vector_objective():
    def f():
        return ppl.sample("x", dist.Normal(jnp.zeros(3), 1.0))

    value(f)


@case(ppl.UnsupportedError, "the objective f", "int32[]")
def integer_objective():
    def f():
        return ppl.sample("x", dist.Bernoulli(0.5))

    value(f)


@case(ppl.UnsupportedError, "the objective f", "has_aux=True")
def pair_without_has_aux():
    def f():
        return 1.0, 2.0

    value(f)


@case(ppl.UnsupportedError, "has_aux=True", "(value, aux)")
def has_aux_without_a_pair():
    ppl.expectation(lambda: jnp.zeros(()), has_aux=True).value(KEY)


@case(ppl.UnsupportedError, "{file}:1:", "the function <lambda>", "@ppl.expectation")
def fit_of_a_function():
    ppl.maximize(lambda m: m, 1.0, optax.sgd(0.1), key=KEY, steps=1)  # line 1


@case(ppl.UnsupportedError, "neither an array nor hashable", "pytree")
def unhashable_argument():
    class Config:
        __hash__ = None

    value(lambda c: 1.0, Config())


@case(ppl.UnsupportedError, "'x'", "{file}:1:", "mvd", "first derivatives only", "ppl.reinforce()")
def second_derivative_of_a_measure_valued_site():
    f = ppl.expectation(lambda m: ppl.sample("x", dist.Normal(m, 1.0), ppl.mvd()) ** 2)  # line 1
    jax.hessian(lambda m: f.surrogate(KEY, m))(1.0)


# --- approximate densities -----------------------------------------------------------------------


@case(ppl.UnsupportedError, "marginal(model) cannot propose", "ppl.importance(n, proposal)")
def no_proposal_for_a_marginal():
    ppl.marginal(ppl.marginal(model(), "x"), "x", ppl.importance(2)).simulate(KEY)


@case(ppl.UnsupportedError, "cannot enumerate 'x'", "not finite. Use ppl.importance")
def enumerate_a_continuous_marginal():
    ppl.marginal(model(), "heights", ppl.enumeration()).simulate(KEY)


@case(ppl.UnsupportedError, "marginal(model)", "@ppl.gen")
def enumerate_a_marginal():
    ppl.normalize(ppl.marginal(model(), "x"), {}, ppl.enumeration()).simulate(KEY)


@case(ValueError, "the number n of particles is 0", "an integer, 1 or more")
def no_particles():
    ppl.importance(0)


@case(ppl.UnsupportedError, "a proposal is", "got 1.0", "@ppl.gen above")
def number_for_a_proposal():
    by = ppl.importance(2, lambda data: 1.0)
    ppl.normalize(model(), {"heights": jnp.zeros(3)}, by).simulate(KEY)


# --- the first hour: what JAX, numpyro and Python say, and a note ---------------------------------


def simulate(f):
    ppl.gen(f)().simulate(KEY)


@case(jax.errors.TracerBoolConversionError, "{file}:1:", "jnp.where(c, a, b)", "jax.lax.cond")
def if_on_a_draw():
    def f():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        if x > 0:  # line 1
            return x
        return -x

    simulate(f)


@case(jax.errors.TracerBoolConversionError, "{file}:1:", "jnp.where(c, a, b)", "& | ~")
def if_on_a_parameter():
    def f(m):
        return m if m > 0 else -m  # line 1

    value(f, 1.0)


@case(jax.errors.TracerIntegerConversionError, "{file}:1:", "range(k)", "jnp.where(i < k")
def range_of_a_draw():
    def f():
        for i in range(ppl.sample("k", dist.Poisson(3.0))):  # line 1
            ppl.sample(f"x{i}", dist.Normal(0.0, 1.0))

    simulate(f)


@case(jax.errors.TracerIntegerConversionError, "{file}:1:", "jnp.array(xs)[k]")
def list_indexed_by_a_draw():
    simulate(lambda: [1.0, 2.0][ppl.sample("k", dist.Bernoulli(0.5))])  # line 1


@case(KeyError, "{file}:1:", "p['net'] has no 'bias'", "keys are 'biases', 'w'", "mean 'biases'?")
def parameter_of_another_name():
    params = {"net": {"biases": 0.0, "w": 1.0}}
    value(lambda p: p["net"]["w"] + p["net"]["bias"], params)  # line 1


@case(TypeError, "{file}:1:", "a dict", "jnp.array(xs)[k]")
def dict_indexed_by_a_draw():
    simulate(lambda: {0: 1.0, 1: 2.0}[ppl.sample("k", dist.Bernoulli(0.5))])  # line 1


@case(jax.errors.ConcretizationTypeError, "{file}:1:", "float(x)", "x.astype(float)")
def float_of_a_draw():
    simulate(lambda: float(ppl.sample("x", dist.Normal(0.0, 1.0))))  # line 1


@case(jax.errors.ConcretizationTypeError, "{file}:1:", "jnp.exp(x) for math.exp(x)")
def math_of_a_draw():
    simulate(lambda: math.exp(ppl.sample("x", dist.Normal(0.0, 1.0))))  # line 1


@case(jax.errors.TracerArrayConversionError, "{file}:1:", "jnp.sin(x) for np.sin(x)")
def numpy_of_a_draw():
    simulate(lambda: np.sin(ppl.sample("x", dist.Normal(0.0, 1.0))))  # line 1


@case(TypeError, "{file}:1:", "a shape", "functools.partial(f, n=3)")
def shape_from_an_argument():
    value(lambda m, n: (m * jnp.zeros(n)).sum(), 1.0, 3)  # line 1


@case(IndexError, "{file}:1:", "a slice", "jnp.arange(n) < k")
def slice_by_a_draw():
    simulate(lambda: jnp.arange(5.0)[: ppl.sample("k", dist.Poisson(3.0))])  # line 1


@case(jax.errors.NonConcreteBooleanIndexError, "{file}:1:", "jnp.where(mask, x, 0.0)")
def mask_of_draws():
    def f():
        x = ppl.sample("x", dist.Normal(jnp.zeros(3), 1.0))
        return x[x > 0]  # line 1

    simulate(f)


@case(TypeError, "{file}:1:", "both branches", "1.0 * k")
def branches_of_two_types():
    def f(flag):
        return lax.cond(  # line 1
            flag,
            lambda: ppl.sample("x", dist.Normal(0.0, 1.0)),
            lambda: ppl.sample("k", dist.Poisson(1.0)),
        )

    ppl.gen(f)(True).simulate(KEY)


@case(TypeError, "{file}:1:", "the state of a loop", "start with 0.0 for 0")
def carry_of_two_types():
    def step(x, _):
        return ppl.sample("x", dist.Normal(x, 1.0)), None

    simulate(lambda: lax.scan(step, jnp.zeros((), int), None, length=3))  # line 1


@case(ValueError, "{file}:1:", "inside their constraints", "jnp.exp(s)")
def negative_scale():
    simulate(lambda: ppl.sample("x", dist.Normal(0.0, -1.0)))  # line 1


@case(ValueError, "{file}:1:", "shapes broadcast")
def parameters_that_do_not_broadcast():
    simulate(lambda: ppl.sample("x", dist.Normal(jnp.zeros(3), jnp.ones(2))))  # line 1


@case(AttributeError, "{file}:1:", "jnp.array([0.5, 0.5]) for a list")
def list_of_probabilities():
    simulate(lambda: ppl.sample("k", dist.Categorical([0.5, 0.5])))  # line 1


@case(TypeError, "{file}:1:", "takes no data", 'ppl.observe("x", d, data)')
def observed_like_in_pyro():
    simulate(lambda: ppl.sample("x", dist.Normal(0.0, 1.0), obs=1.0))  # line 1


@case(TypeError, "{file}:1:", "takes no key", "d.expand(shape)")
def sample_with_a_key():
    simulate(lambda: ppl.sample("x", dist.Normal(0.0, 1.0), rng_key=KEY))  # line 1


@case(TypeError, "{file}:1:", "an address and a distribution")
def sample_without_an_address():
    simulate(lambda: ppl.sample(dist.Normal(0.0, 1.0)))  # line 1


@case(TypeError, "{file}:1:", "not a value", 'ppl.sample("name", g(...))')
def program_used_as_its_value():
    simulate(lambda: model() + 1.0)  # line 1


@case(TypeError, "{file}:1:", "trace.choices")
def trace_used_as_its_choices():
    value(lambda: model().log_density(model().simulate() | {"x": 1.0}))  # line 1


# --- the first hour: what is refused --------------------------------------------------------------


@case(ppl.UnsupportedError, "numpyro.sample 'x'", "{file}:1:", "ppl.sample('x', d)")
def numpyro_sample():
    simulate(lambda: numpyro.sample("x", dist.Normal(0.0, 1.0)))  # line 1


@case(ppl.UnsupportedError, "numpyro.sample 'x'", "{file}:1:", "ppl.observe('x', d, data)")
def numpyro_sample_with_data():
    simulate(lambda: numpyro.sample("x", dist.Normal(0.0, 1.0), obs=1.0))  # line 1


@case(ppl.UnsupportedError, "numpyro.plate 'n'", "{file}:1:", "jax.vmap")
def numpyro_plate():
    def f():
        with numpyro.plate("n", 3):  # line 1
            ppl.sample("x", dist.Normal(0.0, 1.0))

    simulate(f)


@case(ppl.UnsupportedError, "numpyro.factor 'w'", "{file}:1:", "ppl.factor('w', log_weight)")
def numpyro_factor():
    simulate(lambda: numpyro.factor("w", 1.0))  # line 1


@case(ppl.UnsupportedError, "numpyro.param 'm'", "{file}:1:", "an argument of your function")
def numpyro_param():
    value(lambda: numpyro.param("m", 1.0))  # line 1


@case(AttributeError, "ppl has no plate", "{file}:1:", "jax.vmap")
def plate():
    ppl.plate("n", 3)  # line 1


@case(AttributeError, "ppl has no Normal", "{file}:1:", "dist.Normal(...)")
def distribution_of_ppl():
    ppl.Normal(0.0, 1.0)  # line 1


@case(AttributeError, "ppl has no reinforced", "{file}:1:", "Did you mean ppl.reinforce?")
def misspelt_name():
    ppl.reinforced()  # line 1


@case(AttributeError, "has no log_prob", "{file}:1:", "log_density(choices)")
def log_prob_of_a_program():
    model().log_prob(MODEL)  # line 1


@case(AttributeError, "a trace has no heights", "{file}:1:", "trace['heights']")
def address_as_an_attribute():
    model().simulate(KEY).heights  # noqa: B018  # line 1


@case(ppl.AddressError, "no choice at address 0", "{file}:1:", "'heights'")
def trace_indexed_by_a_number():
    model().simulate(KEY)[0]  # line 1


@case(ppl.AddressError, "a dict from addresses to values", "got None", "{file}:1:")
def no_data():
    value(lambda: ppl.elbo(model(), model(), None))  # line 1


@case(ppl.AddressError, "a dict from addresses to values", "a Trace", "{file}:1:", ".choices")
def trace_for_choices():
    model().log_density(model().simulate(KEY))  # line 1


@case(ppl.AddressError, "with 0 for an address", "{file}:1:")
def number_for_an_address_of_data():
    model().log_density({0: 1.0})  # line 1


@case(ppl.AddressError, "no choice at address 'w'", "{file}:1:", "a guide and the data together")
def guide_with_an_address_more():
    @ppl.gen
    def guide():
        ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("w", dist.Normal(0.0, 1.0))

    value(lambda: ppl.elbo(model(), guide(), {"heights": jnp.zeros(3)}))  # line 1


@case(ppl.AddressError, "needs a value at address 'x'", "{file}:1:", "draw it in the guide")
def guide_with_an_address_less():
    @ppl.gen
    def guide():
        ppl.sample("heights", dist.Normal(jnp.zeros(3), 1.0))

    value(lambda: ppl.elbo(model(), guide(), {}))  # line 1


@case(ppl.AddressError, "the address 'x' is in both", "{file}:1:", "Remove it")
def data_that_the_guide_draws():
    value(lambda: ppl.elbo(model(), model(), {"x": 1.0}))  # line 1


@case(ppl.ShapeError, "'x'", "is None", "{file}:1:", "jnp.array(...)")
def data_of_none():
    model().log_density({**MODEL, "x": None})  # line 1


@case(ppl.ShapeError, "'x'", "is complex", "{file}:1:", "jnp.real(x)")
def complex_data():
    model().log_density({**MODEL, "x": 1.0 + 2.0j})  # line 1


@case(ppl.ShapeError, "'y'", "(5,)", "(5, 5)", "{file}:1:", "{file}:2:")
def column_against_a_row():
    @ppl.gen
    def g():
        ppl.sample("y", dist.Normal(jnp.zeros((5, 1)), jnp.ones(5)))  # line 1

    g().log_density({"y": jnp.zeros(5)})  # line 2


@case(ppl.AddressError, "'x'", "is used twice", "{file}:1:", 'f"x{i}"', "jax.vmap")
def one_address_in_a_loop():
    def f():
        for _ in range(3):
            ppl.sample("x", dist.Normal(0.0, 1.0))  # line 1

    simulate(f)


@case(ppl.AddressError, "{file}:1:", "not known", 'ppl.sample(f"x{i}", d)')
def address_made_of_a_draw():
    def f():
        k = ppl.sample("k", dist.Poisson(3.0))
        ppl.sample(f"x{k}", dist.Normal(0.0, 1.0))  # line 1

    simulate(f)


@case(
    ppl.UnsupportedError, "'x'", "{file}:1:", "the estimator mvd", "ppl.sample('x', d, ppl.mvd())"
)
def estimator_before_the_distribution():
    simulate(lambda: ppl.sample("x", ppl.mvd(), dist.Normal(0.0, 1.0)))  # line 1


@case(ppl.UnsupportedError, "loc of 'x' ~ Normal", "{file}:1:", "a list", "jnp.array([0.0, 1.0])")
def list_for_a_parameter():
    simulate(lambda: ppl.sample("x", dist.Normal([0.0, 1.0], 1.0)))  # line 1


@case(ppl.UnsupportedError, "loc of 'x' ~ Normal", "{file}:1:", "a Program", "ppl.sample(address")
def program_for_a_parameter():
    simulate(lambda: ppl.sample("x", dist.Normal(model(), 1.0)))  # line 1


@case(ppl.UnsupportedError, "'x'", "{file}:1:", "the class Normal", "dist.Normal(0.0, 1.0)")
def distribution_not_called():
    simulate(lambda: ppl.sample("x", dist.Normal))  # line 1


@case(ppl.UnsupportedError, "'x'", "{file}:1:", "the function g", "@ppl.gen")
def program_without_gen():
    def g():
        return ppl.sample("x", dist.Normal(0.0, 1.0))

    simulate(lambda: ppl.sample("x", g))  # line 1


@case(ppl.UnsupportedError, "the guide", "{file}:1:", "the function guide", "@ppl.gen")
def guide_without_gen():
    def guide():
        ppl.sample("x", dist.Normal(0.0, 1.0))

    value(lambda: ppl.elbo(model(), guide, {}))  # line 1


@case(ppl.UnsupportedError, "ppl.with_estimators", "{file}:1:", "generative function")
def with_estimators_of_an_objective():
    ppl.with_estimators(ppl.expectation(lambda: 1.0), {"x": ppl.mvd()})  # line 1


@case(ppl.UnsupportedError, "{file}:1:", "a list", "a dict from addresses to estimators")
def with_a_list_of_estimators():
    ppl.with_estimators(model(), [ppl.mvd()])  # line 1


@case(ppl.UnsupportedError, "@ppl.expectation", "{file}:1:", "the generative function model")
def expectation_of_a_program():
    ppl.expectation(model)  # line 1


@case(ppl.UnsupportedError, "@ppl.gen", "{file}:1:", "is given 3")
def gen_of_a_number():
    ppl.gen(3)  # line 1


@case(ppl.UnsupportedError, "the objective f", "returns None", "Add a return")
def objective_without_a_return():
    def f():
        ppl.sample("x", dist.Normal(0.0, 1.0))

    value(f)


@case(ppl.UnsupportedError, "f (", "returns 'a'", "numbers, arrays")
def program_that_returns_a_string():
    def f():
        return "a"

    simulate(f)


@case(ppl.UnsupportedError, "{file}:1:", "argument 0", "integers only", "2.0 for 2")
def gradient_of_an_integer():
    ppl.expectation(lambda m: 1.0 * m).grad(KEY, 2)  # line 1


@case(ValueError, "argnums is 1", "{file}:1:", "1 argument(s)")
def gradient_of_no_argument():
    ppl.expectation(lambda m: m).grad(KEY, 2.0, argnums=1)  # line 1


@case(ValueError, "samples is 0", "{file}:1:", "an integer, 1 or more")
def no_samples():
    ppl.expectation(lambda m: m).value(KEY, 2.0, samples=0)  # line 1


@case(ValueError, "samples is 1000.0", "{file}:1:", "an integer")
def samples_with_a_point():
    ppl.expectation(lambda m: m).value(KEY, 2.0, samples=1e3)  # line 1


@case(ValueError, "n is 0", "{file}:1:", "an integer, 1 or more")
def importance_weighted_by_nothing():
    value(lambda: ppl.iwelbo(model(), model(), {}, 0))  # line 1


@case(ValueError, "unknown baseline the function moving_average", "{file}:1:")
def baseline_without_parentheses():
    ppl.reinforce(ppl.moving_average)  # line 1


@case(ValueError, "decay is 2.0", "{file}:1:", "ppl.moving_average(0.9)")
def decay_out_of_range():
    ppl.moving_average(2.0)  # line 1


@case(ppl.AddressError, "keep is None", "{file}:1:", "['x', 'y']", "[] for the evidence")
def marginal_of_nothing():
    ppl.marginal(model(), None)  # line 1


@case(ppl.UnsupportedError, "by is 5", "{file}:1:", "ppl.importance(10)")
def number_for_an_algorithm():
    ppl.normalize(model(), {}, 5)  # line 1


# --- the first hour: a fit ------------------------------------------------------------------------


def fit(params=1.0, optimizer=optax.sgd(0.1), f=lambda m, *_: m, **rest):  # noqa: B008
    rest = {"key": KEY, "steps": 2, "progress": False, **rest}
    ppl.maximize(ppl.expectation(f), params, optimizer, **rest)  # line 1


@case(ppl.UnsupportedError, "the optimizer", "{file}:", "'adam'", "optax.adam(1e-2)")
def optimizer_by_name():
    fit(optimizer="adam")


@case(ppl.UnsupportedError, "the optimizer", "{file}:", "the function adam", "optax.adam(1e-2)")
def optimizer_not_called():
    fit(optimizer=optax.adam)


@case(ppl.UnsupportedError, "['m']", "{file}:", "the integer 3", "Type 3.0")
def integer_parameter():
    fit({"m": 3, "s": 1.0})


@case(ppl.UnsupportedError, "None", "{file}:", "nothing to fit")
def no_parameters():
    fit(None)


@case(TypeError, "a key is needed", "{file}:", "got 0")
def integer_key_of_a_fit():
    fit(key=0)


@case(ValueError, "steps is 100.0", "{file}:", "an integer")
def steps_with_a_point():
    fit(steps=100.0)


@case(ppl.UnsupportedError, "args", "{file}:", "3.0", "args=(x,)")
def arguments_without_a_tuple():
    fit(args=3.0)


@case(ppl.UnsupportedError, "callback", "{file}:", "is 3", "a function")
def number_for_a_callback():
    fit(callback=3)


@case(ppl.UnsupportedError, "checkpoint", "{file}:", "'no/such/fit.npz'", "a folder that exists")
def checkpoint_in_no_folder():
    fit(checkpoint="no/such/fit.npz")


@case(ppl.UnsupportedError, "batches", "{file}:", "is 3", "ppl.minibatches(data, size)")
def number_for_batches():
    fit(batches=3)


@case(ValueError, "different shapes", "(2,) and (3,)", "drop_last=True")
def batches_of_different_lengths():
    fit(batches=[jnp.ones(3), jnp.ones(2)])


@case(ValueError, "no more batches", "not a generator")
def generator_of_batches():
    fit(batches=(jnp.ones(3) for _ in range(1)))


@case(ValueError, "numbers of rows", "{file}:1:", "3, 4")
def data_of_different_lengths():
    ppl.minibatches([jnp.ones(3), jnp.ones(4)], 2)  # line 1


@case(ppl.NonFiniteError, "'x' ({file}:1:", "not finite at step 0", "learning rate")
def fit_that_is_not_finite():
    f = lambda s: ppl.sample("x", dist.Normal(0.0, jnp.sqrt(s)))  # line 1
    fit(-1.0, f=f)


def fit_of(y, distribution):
    @ppl.gen
    def counts():
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("y", distribution(jnp.exp(z) * jnp.ones(3)))

    @ppl.gen
    def about(m):
        ppl.sample("z", dist.Normal(m, 1.0))

    f = ppl.expectation(lambda m, y: ppl.elbo(counts(), about(m), {"y": y}))
    ppl.maximize(f, 0.0, optax.sgd(0.1), key=KEY, steps=2, args=(y,), progress=False)


@case(
    ppl.NonFiniteError, "data are not numbers", "float32[3]", "has 1 NaN", "d.mask(~jnp.isnan(y))"
)
def fit_to_data_that_are_not_numbers():
    fit_of(jnp.array([1.0, jnp.nan, 2.0]), lambda m: dist.Normal(m, 1.0))


@case(ppl.SupportError, "data at 'y'", "the support of Poisson ({file}:", "from -1 to 2")
def fit_to_data_outside_a_support_that_are_an_argument():
    fit_of(jnp.array([1.0, -1.0, 2.0]), dist.Poisson)


@case(ppl.SupportError, "integers from 0 on", "from 1 to 3, and 2.5 is no integer")
def data_that_are_no_integers():
    fit_of(jnp.array([1.0, 2.5, 3.0]), dist.Poisson)


@case(ppl.SupportError, "the support of Poisson", "1 of 3 are NaN", "d.mask(~jnp.isnan(y))")
def counts_of_which_one_is_missing():
    fit_of(jnp.array([1.0, jnp.nan, 2.0]), dist.Poisson)


@case(ppl.NonFiniteError, "'s' ~ Normal at {file}:2:", "'s' ~ HalfNormal ({file}:1:", "Type a")
def fit_of_a_guide_that_reaches_outside():
    @ppl.gen
    def positive():
        ppl.sample("s", dist.HalfNormal(1.0))  # line 1

    @ppl.gen
    def normal(m):
        ppl.sample("s", dist.Normal(m, 1.0))  # line 2

    f = ppl.expectation(lambda m: ppl.elbo(positive(), normal(m), {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ppl.SoundnessWarning)
        ppl.maximize(f, -9.0, optax.adam(0.1), key=KEY, steps=2, progress=False)


@case(ppl.UnsupportedError, "'m', 'y' have one joint density", "{file}:1:", "ppl.marginal(of_the_")
def scale_of_a_part_of_a_marginal():
    @ppl.gen
    def mixture():
        m = ppl.sample("m", dist.Normal(0.0, 1.0))
        z = ppl.sample("z", dist.Bernoulli(0.5))
        ppl.sample("y", dist.Normal(m + z, 1.0))

    kept = ppl.marginal(mixture(), ["m", "y"], by=ppl.enumeration())
    ppl.scale(kept, {"y": 2.0}).log_density({"m": 0.0, "y": 1.0})  # line 1


@case(TypeError, "<lambda> ({file}:", "takes (m, y). Give it these by position or by keyword")
def objective_without_one_of_its_arguments():
    value(lambda m, y: ppl.sample("x", dist.Normal(m, y)), 0.0)  # line 1


@case(TypeError, "model ({file}:", "takes (scale=1.0). Give it these by position or by keyword")
def program_with_an_argument_too_many():
    model(1.0, 2.0).simulate(KEY)


@case(ppl.ShapeError, "'heights'", "{file}:1:", "a guide of your own", "d.mask(observed)")
def observed_in_part_where_no_guide_draws_the_rest():
    part = ppl.partly(jnp.zeros(3), jnp.array([True, False, True]))
    ppl.infer(model(), {"heights": part}, key=KEY, progress=False)  # line 1


@case(ppl.UnsupportedError, "{file}:1:", "without being called", "imported(...)")
def numpyro_model_that_is_not_called():
    def imported():
        numpyro.sample("x", dist.Normal(0.0, 1.0))

    ppl.from_numpyro(imported).simulate(KEY)  # line 1


@case(TypeError, "imported ({file}:", "takes (y). Give it these by position or by keyword")
def numpyro_model_without_its_argument():
    def imported(y):  # line 1
        numpyro.sample("x", dist.Normal(0.0, 1.0), obs=y)

    ppl.from_numpyro(imported)().log_density({}, KEY)


# --- the tests ------------------------------------------------------------------------------------

TABLE = pathlib.Path(__file__).with_name("messages.md")
UP_TO_DATE = "run: python tests/messages/test_errors.py --write"
PLACE = re.compile(rf"{re.escape(__file__)}:(\d+)(?::\d+ \([^()]*(?:\(\))?[^()]*\))?")


def raised(name):
    """The error of a case, and what of its text is ours: a note where the error is another's."""
    f, error, _ = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of JAX, on the way to the error
        with pytest.raises(error) as info:
            f()
    notes = [n for n in getattr(info.value, "__notes__", ()) if n.startswith(__file__)]
    return info.value, notes[0] if notes else str(info.value)


HEAD = (
    "# Messages\n\nEvery message of the library, written by `python tests/messages/test_errors.py "
    "--write`. `example.py:1` is the\nline marked `# line 1` in `test_errors.py`, `_` another "
    "line. An error of JAX, numpyro or Python stands\nhere with the note that is added to it.\n"
)


def entry(name, error, message):
    """A message in the table, with the marks of the lines in place of their numbers."""
    marks = {str(n): mark for mark, n in _lines(CASES[name][0]).items()}
    text = PLACE.sub(lambda m: f"example.py:{marks.get(m[1], '_')}", message)
    return f"**{name.replace('_', ' ')}**: `{type(error).__name__}`\n\n> {text}\n"


@functools.cache
def written():
    """The table: its head, and its entries by the names of the cases, in order."""
    head, *entries = re.split(r"\n(?=\*\*[^*\n]+\*\*: `)", TABLE.read_text())
    return head, {e[2 : e.index("**: `")].replace(" ", "_"): e for e in entries}, len(entries)


@pytest.mark.parametrize("name", CASES)
def test_message(name):
    """It says what it should, as the table has it, with a line of the user and none of ours."""
    f, _, texts = CASES[name]
    error, message = raised(name)
    lines = _lines(f)
    for text in texts:
        expected = text.replace("{file}", __file__)
        expected = re.sub(r"(?<=\.py:)\d+(?=:)", lambda m: str(lines[m[0]]), expected)
        assert expected in message, f"{expected!r} is not in: {message}"
    assert f"{__file__}:" in message
    for package in ("ppl", "transforms", "estimators", "site-packages"):
        assert f"/{package}/" not in message
    assert message.endswith((".", "?")) and "!" not in message
    assert entry(name, error, message) == written()[1].get(name), UP_TO_DATE


def test_the_table_has_the_cases_in_order():
    head, entries, n = written()
    assert (head, list(entries), n) == (HEAD, list(CASES), len(CASES)), UP_TO_DATE


def test_numpyro_under_a_handler_of_its_own_is_left_alone():
    def theirs():
        numpyro.sample("x", dist.Normal(0.0, 1.0), obs=1.0)

    def f():
        return numpyro.infer.util.log_density(theirs, (), {}, {})[0]

    assert jnp.allclose(ppl.expectation(f).value(KEY), dist.Normal(0.0, 1.0).log_prob(1.0))


def test_all_errors_have_one_base_class():
    for error, parent in itertools.product(
        [ppl.AddressError, ppl.KeyRequiredError, ppl.ShapeError, ppl.UnsupportedError],
        [ppl.PPLError],
    ):
        assert issubclass(error, parent)


if __name__ == "__main__" and "--write" in sys.argv:
    TABLE.write_text("\n".join([HEAD, *(entry(name, *raised(name)) for name in CASES)]))
