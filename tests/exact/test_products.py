"""Chains summed out by products of matrices, in 32 bits, beside the recursion on logarithms in 64.

Each case is a hidden Markov model of 24 states; in some of them a product loses what later steps
need, which must show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.nn import log_softmax, logsumexp

import ppl
from ppl import dist
from transforms import _jax
from transforms.analyses.dependence import Along, Dependence, Dependences
from transforms.exact import products

K, T = 24, 9
RNG = np.random.default_rng(0)
X, A, M = RNG.normal(size=T), RNG.normal(size=(K, K)), RNG.normal(size=K)
I, J = np.indices((K, K))


def by_hand(a: Any, m: Any, x: Any) -> jax.Array:
    law = log_softmax(a)
    seen = -((x[:, None] - m) ** 2) / 2 - jnp.log(2 * jnp.pi) / 2
    step = lambda alpha, e: (logsumexp(alpha[:, None] + law, 0) + e, None)
    return logsumexp(lax.scan(step, law[0] + seen[0], seen[1:])[0])


recursion = jax.jit(jax.value_and_grad(by_hand, (0, 1)))


def sequence(a: jax.Array, m: jax.Array) -> None:
    def step(z: Any, _: Any) -> Any:
        z = ppl.sample("z", dist.CategoricalLogits(logits=a[z]))
        ppl.sample("x", dist.Normal(m[z], 1.0))
        return z, None

    lax.scan(step, 0, length=T)


program = ppl.gen(sequence)


def ours(a: Any, m: Any, x: Any) -> jax.Array:
    return ppl.marginal(program(a, m), ["x"], ppl.enumeration()).log_density({"x": x})


CASES: dict[str, tuple[Any, Any, Any]] = {
    "all states mix": (A, M, X),
    "zeros, states that are not reached": (np.where((I <= J) & (J <= I + 1), A, -np.inf), M, X),
    "zeros, and observations far from all states": (np.where(I <= J, A, -np.inf), M, 30 * X),
    # a state of e^-120 at first, that all later ones ask for, and others do not lead to
    "a state that is rare until it is needed": (
        np.where(I == J, 0.0, np.where((I == 0) & (J == 1), -120.0, -1e4)),
        np.where(J[0] == 1, 6.0, 0.0),
        np.where(np.arange(T) == 0, 0.0, 7.0),
    ),
    "logarithms of -1e4": (
        np.where(I == J, 0.0, -1e4 - 10 * np.abs(A)),
        300.0 * np.arange(K),
        300.0 * RNG.integers(0, K, T),
    ),
}


@pytest.fixture(scope="module")
def compiled() -> Callable[..., Any]:
    return jax.jit(jax.value_and_grad(ours, (0, 1)))


@pytest.mark.parametrize("name", CASES)
def test_a_chain_is_right_in_32_bits(name: str, compiled: Callable[..., Any]) -> None:
    value, slopes = compiled(*(np.asarray(x, np.float32) for x in CASES[name]))
    a, m, x = CASES[name]
    with jax.enable_x64():  # JAX's own sum has no derivative at 0
        exact = recursion(np.maximum(a, -1e8), m, x)
    np.testing.assert_allclose(value, exact[0], rtol=1e-5)
    for found, wanted in zip(slopes, exact[1], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


# --- one sum --------------------------------------------------------------------------------------

GONE = -jnp.inf
TABLES: dict[str, tuple[list[float], list[float], bool]] = {
    "at the same place": ([0, -200.0], [-1.0, -200], True),
    "at different ones": ([0, -200.0], [-200.0, 0], False),
    "at one of them, which is not there": ([0, GONE], [GONE, 0], True),
    "at one of them, beside what is small": ([0, GONE], [-200, GONE], True),
    "nowhere": ([GONE, GONE], [0, 0], True),
    "not a number": ([0, jnp.nan], [0, 0], True),
}


def of_steps(*each: products.Watch) -> products.Watch:
    return jax.tree.map(lambda *xs: jnp.stack(xs), *each)


def test_what_is_small_in_one_step_does_not_doubt_what_is_0_in_another() -> None:
    yes, no = np.array([True]), np.array([False])
    zero, small = products.Watch(yes, [no]), products.Watch(no, [yes])
    are_fine = jax.jit(lambda *each: of_steps(*each).is_fine())
    assert are_fine(zero, small)
    assert not are_fine(zero, products.Watch(yes, [yes]))


@jax.jit
def log_sum(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A sum, whether it is fine, and JAX's own."""
    value, watch = products.log_sum([x, y], [False, True])
    return value[0, 0], of_steps(watch).is_fine(), logsumexp(x + y)


@pytest.mark.parametrize("name", TABLES)
def test_a_sum_that_is_lost_is_known(name: str) -> None:
    a, b, is_fine = TABLES[name]
    x, y = (np.array(xs, np.float32)[:, None, None] for xs in (a, b))
    value, found_fine, exact = log_sum(x, y)
    assert found_fine == is_fine
    if is_fine:
        np.testing.assert_allclose(value, exact, rtol=1e-6)


def checked(a: jax.Array, b: jax.Array) -> jax.Array:
    """The log of the sum of exp(a + b) over the first axis."""
    found, watch = products.log_sum([a, b], [False, False])
    again = lambda xs: [logsumexp(xs[0] + xs[1], 0)]
    return products.unless_lost([of_steps(watch)], [found], again, [a, b])[0]


def test_one_that_is_lost_among_many_is_done_again_with_all() -> None:
    a = np.array([[0, -1.0], [0, -200.0]], np.float32)
    b = np.array([[-2.0, 0], [-200.0, 0]], np.float32)
    found, exact = jax.jit(jax.vmap(checked))(a, b), np.logaddexp.reduce(a + b, 1)
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    jaxpr = jax.make_jaxpr(jax.vmap(jax.grad(checked)))(a, b)
    assert "cond[" in str(jaxpr)  # both branches would cost both


def test_a_sum_does_not_depend_on_whether_others_are_lost() -> None:
    closed = _jax.traced(checked, *[jax.ShapeDtypeStruct((2, 3), jnp.float32)] * 2)
    ins: list[Dependence] = [{0: (Along(0), Along(1))}, {}]
    (found,) = Dependences(lambda _: False).run(closed, ins)
    assert found == {0: (None, Along(0))}


def test_products_are_taken_where_they_spare_exponentials() -> None:
    assert products.pays([(K, 1), (K, K)], [False, True])
    assert not products.pays([(K, 1), (K, K)], [False, False])
    assert not products.pays([(8, 1), (8, 8)], [False, True])
    assert not products.pays([(4, 1, 200), (4, 4, 1)], [False, True])


def test_sequences_of_a_plate_share_a_matrix() -> None:
    """Each step multiplies the states of all sequences by one matrix."""
    n = 30

    @ppl.gen
    def plate(a: jax.Array, m: jax.Array) -> None:
        jax.vmap(lambda _: sequence(a, m))(jnp.arange(n))

    def value(a: jax.Array, m: jax.Array, x: jax.Array) -> jax.Array:
        return ppl.marginal(plate(a, m), ["x"], ppl.enumeration()).log_density({"x": x})

    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((K, K), (K,), (n, T))]
    shapes = [sorted(v.aval.shape for v in e.invars) for e in dots(jax.make_jaxpr(value)(*args))]
    assert shapes == [sorted([(K, K), (K, n)])]


def dots(closed: Any) -> list[Any]:
    """The products of matrices in a program, those in loops and branches too."""
    found = [e for e in closed.jaxpr.eqns if e.primitive.name == "dot_general"]
    return found + [d for e in closed.jaxpr.eqns for s in _jax.sub_jaxprs(e) for d in dots(s)]
