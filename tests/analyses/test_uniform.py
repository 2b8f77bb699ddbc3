"""What is the same along an axis is computed once, and the results are those of the program."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ztest

import ppl
from ppl import dist
from transforms import _jax
from transforms.analyses.alike import NO, UniformInLoops, compress
from transforms.exact.turned import evaluate

KEY = jax.random.key(0)
A = np.asarray(jax.random.normal(KEY, (4, 5, 6)))
PICK = jax.vmap(lambda row, k: row[k])
TAKE = jax.vmap(lambda row, k: jnp.take_along_axis(row, k[None], -1)[0])


def on_diagonal(m: Any, k: Any) -> Any:
    """m[k, k], the place twice by a broadcast, which is the same along it."""
    numbers = jax.lax.GatherDimensionNumbers((), (0, 1), (0, 1))
    return jax.lax.gather(m, jnp.broadcast_to(k, (2,)), numbers, (1, 1))


# of arrays a and places k: what is read, k's shape, the axes along which k is the same
READS: dict[str, tuple[Any, tuple[int, ...], set[int]]] = {
    "an element of each row": (lambda a, k: PICK(a[:, 0], k), (4,), {0}),
    "by take_along_axis": (lambda a, k: TAKE(a[:, 0], k), (4,), {0}),
    "a row of each matrix": (lambda a, k: PICK(a, k), (4,), {0}),
    "a column of each matrix": (lambda a, k: jax.vmap(lambda m, k: m[:, k])(a, k), (4,), {0}),
    "many of each row": (lambda a, k: PICK(a[:, 0], k), (4, 3), {0}),
    "of two plates": (lambda a, k: jax.vmap(PICK)(a, k), (4, 5), {0, 1}),
    "of two plates, along one": (lambda a, k: jax.vmap(PICK)(a, k), (4, 5), {1}),
    "of two plates, the outer inside": (
        lambda a, k: jax.vmap(PICK, in_axes=(1, 1), out_axes=1)(a, k),
        (4, 5),
        {0},
    ),
    "slices of each row": (
        lambda a, k: jax.vmap(lambda r, k: jax.lax.dynamic_slice(r, (k,), (3,)))(a[:, 0], k),
        (4,),
        {0},
    ),
    "blocks of each matrix": (
        lambda a, k: jax.vmap(lambda m, k: jax.lax.dynamic_slice(m, (k, 1), (2, 3)))(a, k),
        (4,),
        {0},
    ),
    "of a diagonal": (lambda a, k: jax.vmap(on_diagonal)(a, k), (4,), {0}),
    "filled outside": (
        lambda a, k: jax.vmap(lambda r, k: r.at[9 * k].get(mode="fill", fill_value=-3.0))(
            a[:, 0], k
        ),
        (4,),
        {0},
    ),
    "of what is the same too": (lambda a, k: PICK(jnp.broadcast_to(a[0, 0], (4, 6)), k), (4,), {0}),
}


SOME = np.array([2, 0, 3])
# what is read of z; whether it is the same along its first axis if z is along all of its axes
SAME: dict[str, tuple[Any, bool]] = {
    "at any place": (lambda z: z.at[SOME].get(mode="clip"), True),
    "at pairs of places": (lambda z: z.at[SOME, SOME].get(mode="clip"), True),
    "outside": (lambda z: z.at[2 * SOME].get(mode="fill", fill_value=7.0), False),
    "a slice": (lambda z: z[1:], True),
    "a slice somewhere": (lambda z: jax.lax.dynamic_slice(z, (SOME[0], 0), (2, 3)), True),
}


@pytest.mark.parametrize("name", SAME)
def test_what_is_read_of_one_number_is_that_number(name: str) -> None:
    read, is_same = SAME[name]
    closed = jax.make_jaxpr(read)(np.ones((4, 5), np.float32))
    (found,) = UniformInLoops().run(closed, [frozenset({0, 1})])
    assert (0 in found) == is_same
    (of_rows,) = UniformInLoops().run(closed, [frozenset({1})])
    assert 0 not in of_rows


def equations(closed: _jax.ClosedJaxpr, name: str) -> list[Any]:
    found = []
    for eqn in closed.jaxpr.eqns:
        found += [eqn] if eqn.primitive.name == name else []
        found += equations(eqn.params["jaxpr"], name) if eqn.primitive is _jax.jit_p else []
    return found


def batches(eqn: Any) -> list[int]:
    """The sizes of the axes along which an array is read batch by batch, if more than one."""
    sizes, numbers = eqn.invars[0].aval.shape, eqn.params["dimension_numbers"]
    return [sizes[a] for a in numbers.operand_batching_dims if sizes[a] > 1]


@pytest.mark.parametrize("name", READS)
def test_reads_at_the_same_places(name):
    """Values and derivatives to rounding; under vmap over the places too, as enumeration does it.

    Where the places are the same along all the batches, none is left in the gather.
    """
    read, shape, axes = READS[name]
    less = [1 if i in axes else n for i, n in enumerate(shape)]
    k = np.broadcast_to(np.arange(int(np.prod(less))).reshape(less) % 3, shape)
    closed = jax.make_jaxpr(read)(A, k)
    once = compress(closed, [NO, frozenset(axes)])
    each = np.arange(3).reshape(-1, *[1] * len(shape)) + np.zeros_like(k)

    @functools.partial(ztest.compiled, static_argnums=0)
    def values(f, a, k, each):
        slopes = jax.grad(lambda a: jnp.sum(jnp.sin(f(a, k))))(a)
        return (f(a, k), jax.vmap(f, (None, 0))(a, each)), slopes

    run = lambda a, k: _jax.evaluate(once, a, k)[0]
    (got, slopes), (right, right_slopes) = (values(f, A, k, each) for f in (run, read))
    jax.tree.map(np.testing.assert_array_equal, got, right)
    np.testing.assert_allclose(slopes, right_slopes, rtol=1e-6)
    assert any(map(batches, equations(closed, "gather")))
    if len(axes) == len(shape) or shape == (4, 3):
        assert not any(map(batches, equations(once, "gather")))


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("along", [{0}, {1}, {0, 1}])
def test_one_array_is_read_at_different_places(name, along):
    """The array is the same along some axes, and has size 1 there in the new program; places are
    the same along others or nowhere. Values and derivatives to rounding."""
    read, shape, _ = READS[name]
    a = np.broadcast_to(
        A[tuple(slice(0, 1) if i in along else slice(None) for i in (0, 1))], A.shape
    )
    k = np.random.default_rng(1).integers(0, 3, shape)
    closed = jax.make_jaxpr(read)(a, k)

    @functools.partial(ztest.compiled, static_argnums=0)
    def values(f, a, k):
        return f(a, k), jax.grad(lambda x: jnp.sum(jnp.sin(f(x + 0 * a, k))))(a[:1, :1])

    for same in (frozenset(), frozenset({0, 1} - along) & frozenset(range(len(shape)))):
        for axis in same:
            k = np.broadcast_to(np.take(k, [0], axis), shape)
        once = compress(closed, [frozenset(along), same])
        run = lambda a, k, once=once: _jax.evaluate(once, a, k)[0]
        (got, slopes), (right, right_slopes) = (values(f, a, k) for f in (run, read))
        np.testing.assert_array_equal(got, right)
        np.testing.assert_allclose(slopes, right_slopes, rtol=1e-5, atol=1e-6)
    if along == {0, 1}:
        assert not any(map(batches, equations(once, "gather")))


def test_no_place_that_differs_is_taken_for_another():
    """Without a claim that the places are the same, nothing changes."""
    read, *_ = READS["an element of each row"]
    k = jnp.array([2, 0, 5, 1])
    once = compress(jax.make_jaxpr(read)(A, k), [NO, NO])
    np.testing.assert_array_equal(_jax.evaluate(once, A, k)[0], A[jnp.arange(4), 0, k])


def test_a_plate_with_logits_of_its_own_is_differentiated_whole():
    """The K runs together read all of the logits; nothing is scattered."""

    @ppl.expectation
    def f(logits):
        z = jax.vmap(lambda l: ppl.sample("z", dist.Categorical(logits=l), ppl.enum()))(logits)
        return jnp.sum(jnp.cos(1.0 * z))

    logits = jax.random.normal(KEY, (50, 4))
    exact = jax.grad(lambda l: jnp.sum(jax.nn.softmax(l) @ jnp.cos(jnp.arange(4.0))))(logits)
    np.testing.assert_allclose(f.grad(KEY, logits), exact, rtol=1e-4, atol=1e-6)
    assert not equations(jax.make_jaxpr(lambda l: f.grad(KEY, l))(logits), "scatter-add")


PLACES = np.random.default_rng(2).integers(-3, 5, (40, 30))
READ = {
    "rows": lambda t: t[PLACES],
    "columns": lambda t: t[:, PLACES],
    "numbers": lambda t: t[PLACES, PLACES],
    "filled": lambda t: jnp.asarray(t).at[9 * PLACES].get(mode="fill", fill_value=-3.0),
    "slices": lambda t: jax.vmap(lambda k: jax.lax.dynamic_slice(t, (k, 1), (2, 3)))(
        PLACES.ravel()
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_is_added_up_as_it_lies_in_memory(name):
    """In one axis of places, with no axis of the table left out: else XLA copies it."""
    read, t, w = READ[name], A[0], lambda x: jnp.sum(jnp.sin(x))
    once = lambda t: evaluate(jax.make_jaxpr(read)(t), t)[0]
    np.testing.assert_array_equal(once(t), read(t))
    np.testing.assert_allclose(
        jax.grad(lambda t: w(once(t)))(t), jax.grad(lambda t: w(read(t)))(t), rtol=1e-4
    )
    for eqn in equations(jax.make_jaxpr(jax.grad(lambda t: w(once(t))))(t), "scatter-add"):
        numbers = eqn.params["dimension_numbers"]
        assert not numbers.inserted_window_dims
        assert numbers.update_window_dims == (1, 2)


# --- topic models: words read the logits of their topic -------------------------------------------

DOCUMENTS, LENGTH, TOPICS, TERMS = 10, 30, 8, 50
WORDS = np.random.default_rng(0).integers(0, TERMS, (DOCUMENTS, LENGTH))
LOGITS = np.random.default_rng(1).normal(size=(TOPICS, TERMS)).astype("float32")
THETA = np.random.default_rng(2).dirichlet(np.ones(TOPICS), DOCUMENTS).astype("float32")


def word(theta, logits):
    topic = ppl.sample("topic", dist.Categorical(theta))
    ppl.sample("word", dist.Categorical(logits=logits[topic]))


@ppl.gen
def topics(logits):
    each = lambda theta: jax.vmap(lambda _: word(theta, logits))(jnp.arange(LENGTH))
    jax.vmap(each)(jnp.asarray(THETA))


def summed_out(logits, _):
    words = {"word": jnp.asarray(WORDS)}
    return ppl.marginal(topics(logits), ["word"], ppl.enumeration()).log_density(words)


def summed_out_by_hand(logits, _):
    log_p = jax.nn.log_softmax(logits)
    terms = jnp.log(THETA)[:, None] + log_p.T[jnp.asarray(WORDS)]
    return jax.nn.logsumexp(terms, -1).sum()


@ppl.gen
def assigned(r):
    one = lambda r: ppl.sample("topic", dist.Categorical(logits=r), ppl.enum())
    jax.vmap(jax.vmap(one))(r)


@ppl.expectation
def in_the_guide(logits, r):
    q = assigned(r).simulate()
    choices = ppl.merge(q.choices, {"word": jnp.asarray(WORDS)})
    return topics(logits).log_density(choices) - q.log_density


def in_the_guide_by_hand(logits, r):
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(r)
    terms = jnp.log(THETA)[:, None] + log_p.T[jnp.asarray(WORDS)] - log_q
    return jnp.sum(jnp.exp(log_q) * terms)


@pytest.mark.usefixtures("as_for_a_user")
@pytest.mark.parametrize(
    ("ours", "by_hand", "most"),
    [
        (summed_out, summed_out_by_hand, 1.05),
        (lambda *args: in_the_guide.surrogate(KEY, *args), in_the_guide_by_hand, 1.7),
    ],
    ids=["summed out", "in the guide"],
)
def test_a_topic_model_costs_what_it_costs_by_hand(ours, by_hand, most):
    """A word reads one of its topic's logits, which are normalised once: FLOPs (XLA's count) are
    at most ``most`` times those by hand. Sums of products with one-hot words took 24 times that.
    """
    args = jnp.asarray(LOGITS), jax.random.normal(KEY, (DOCUMENTS, LENGTH, TOPICS))
    ours, by_hand = (jax.jit(jax.value_and_grad(f, (0, 1))) for f in (ours, by_hand))
    (value, slopes), (exact, exact_slopes) = ours(*args), by_hand(*args)
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    for a, b in zip(slopes, exact_slopes, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    flops = [f.lower(*args).compile().cost_analysis()["flops"] for f in (ours, by_hand)]
    assert flops[0] <= most * flops[1]
