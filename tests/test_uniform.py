"""What is the same along an axis is computed once, and the results are those of the program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from ppl import dist
from transforms import _jax
from transforms.analyses.alike import NO, compress

KEY = jax.random.key(0)
A = jax.random.normal(KEY, (4, 5, 6))
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
    k = jnp.broadcast_to(jnp.arange(int(np.prod(less))).reshape(less) % 3, shape)
    closed = jax.make_jaxpr(read)(A, k)
    once = compress(closed, [NO, frozenset(axes)])
    run = lambda a, k: _jax.evaluate(once, a, k)[0]
    np.testing.assert_array_equal(run(A, k), read(A, k))
    loss = lambda f: jax.grad(lambda a: jnp.sum(jnp.sin(f(a, k))))(A)
    np.testing.assert_allclose(loss(run), loss(read), rtol=1e-6)
    each = jnp.arange(3).reshape(-1, *[1] * len(shape)) + 0 * k
    np.testing.assert_array_equal(
        jax.vmap(run, (None, 0))(A, each), jax.vmap(read, (None, 0))(A, each)
    )
    assert any(map(batches, equations(closed, "gather")))
    if len(axes) == len(shape) or shape == (4, 3):
        assert not any(map(batches, equations(once, "gather")))


def test_no_place_that_differs_is_taken_for_another():
    """Without a claim that the places are the same, nothing changes."""
    read, *_ = READS["an element of each row"]
    k = jnp.array([2, 0, 5, 1])
    once = compress(jax.make_jaxpr(read)(A, k), [NO, NO])
    np.testing.assert_array_equal(_jax.evaluate(once, A, k)[0], A[jnp.arange(4), 0, k])


def test_a_plate_with_logits_of_its_own_is_differentiated_by_rows():
    """Each of the K runs reads a column of the logits; none adds number by number."""

    @ppl.expectation
    def f(logits):
        z = jax.vmap(lambda l: ppl.sample("z", dist.Categorical(logits=l), ppl.enum()))(logits)
        return jnp.sum(jnp.cos(1.0 * z))

    logits = jax.random.normal(KEY, (50, 4))
    exact = jax.grad(lambda l: jnp.sum(jax.nn.softmax(l) @ jnp.cos(jnp.arange(4.0))))(logits)
    np.testing.assert_allclose(f.grad(KEY, logits), exact, rtol=1e-4, atol=1e-6)
    found = equations(jax.make_jaxpr(lambda l: f.grad(KEY, l))(logits), "scatter-add")
    assert found and not any(e.params["dimension_numbers"].operand_batching_dims for e in found)
