"""Every error of the contract: its type, the address, the user's own line, and the advice."""

import inspect
import itertools
import re

import jax
import jax.numpy as jnp
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


@case(ppl.AddressError, "'x'", "is used twice", "{file}:1:", "{file}:2:")
def duplicate_address_in_two_branches():
    @ppl.gen
    def g(flag):
        return lax.cond(
            flag,
            lambda: ppl.sample("x", dist.Normal(0.0, 1.0)),  # line 1
            lambda: ppl.sample("x", dist.Normal(0.0, 2.0)),  # line 2
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


@case(ppl.UnsupportedError, "'x'", "{file}:1:", "float", "dist.Normal(0.0, 1.0)")
def number_for_a_distribution():
    value(lambda: ppl.sample("x", 1.0))  # line 1


@case(ppl.UnsupportedError, "'x'", "{file}:1:", "ppl.reinforce() with its parentheses")
def estimator_without_parentheses():
    value(lambda: ppl.sample("x", dist.Normal(0.0, 1.0), ppl.reinforce))  # line 1


@case(ppl.UnsupportedError, "'x'", "{file}:1:", "'mvd'", "with its parentheses")
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


@case(ppl.UnsupportedError, "'x'", "{file}:1:", "1073741824 joint values", "@ppl.expectation of")
def enumeration_too_large():
    d = dist.Bernoulli(jnp.full(30, 0.5))
    value(lambda: 1.0 * ppl.sample("x", d, ppl.enum()).sum())  # line 1


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


@case(ppl.UnsupportedError, "the objective is function", "@ppl.expectation")
def fit_of_a_function():
    ppl.maximize(lambda m: m, 1.0, optax.sgd(0.1), key=KEY, steps=1, progress=False)


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


@case(ppl.UnsupportedError, "cannot enumerate 'x'", "not finite")
def enumerate_a_continuous_marginal():
    ppl.marginal(model(), "heights", ppl.enumeration()).simulate(KEY)


@case(ppl.UnsupportedError, "marginal(model)", "@ppl.gen")
def enumerate_a_marginal():
    ppl.normalize(ppl.marginal(model(), "x"), {}, ppl.enumeration()).simulate(KEY)


@case(ValueError, "at least one particle", "n=0")
def no_particles():
    ppl.importance(0)


@case(ppl.UnsupportedError, "a proposal is", "float")
def number_for_a_proposal():
    by = ppl.importance(2, lambda data: 1.0)
    ppl.normalize(model(), {"heights": jnp.zeros(3)}, by).simulate(KEY)


@pytest.mark.parametrize("name", CASES)
def test_message(name):
    f, error, texts = CASES[name]
    with pytest.raises(error) as raised:
        f()
    message = str(raised.value)
    lines = _lines(f)
    for text in texts:
        mark = re.fullmatch(r"\{file\}:(\d+):", text)
        expected = f"{__file__}:{lines[mark[1]]}:" if mark else text
        assert expected in message, f"{expected!r} is not in: {message}"


def test_all_errors_have_one_base_class():
    for error, parent in itertools.product(
        [ppl.AddressError, ppl.KeyRequiredError, ppl.ShapeError, ppl.UnsupportedError],
        [ppl.PPLError],
    ):
        assert issubclass(error, parent)


def test_messages_do_not_name_the_library():
    for f, error, _ in CASES.values():
        with pytest.raises(error) as raised:
            f()
        for package in ("ppl", "transforms", "estimators"):
            assert f"/{package}/" not in str(raised.value)


if __name__ == "__main__":  # python tests/test_errors.py shows all messages
    for name, (f, error, _) in CASES.items():
        try:
            f()
        except error as raised:
            print(f"{name}\n    {type(raised).__name__}: {raised}\n")
