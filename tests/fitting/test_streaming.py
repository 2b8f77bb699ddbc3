"""Batches of data that need not fit into memory."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppl
from ppl import dist
from ppl.fitting.memory import Memory

KEY = jax.random.key(0)
N, D, SIZE, BLOCK = 240, 3, 24, 4


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A memory-mapped array f32[n, d]."""
    path = tmp_path_factory.mktemp("data") / "rows.npy"
    values = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
    np.save(path, values)
    return np.load(path, mmap_mode="r")


@ppl.gen
def model(shape):
    m = ppl.sample("m", dist.Normal(jnp.zeros(D), 1.0).to_event(1))
    ppl.sample("x", dist.Normal(m, 1.0).expand(shape).to_event(2))


@ppl.gen
def guide(phi):
    ppl.sample("m", dist.Normal(phi, 0.1).to_event(1))


@ppl.expectation
def elbo(phi, x):
    scaled = ppl.scale(model(x.shape), {"x": N / len(x)})
    return ppl.elbo(scaled, guide(phi), {"x": x})


def fit(batches, steps, **how):
    start = jnp.zeros(D)
    how = {"key": KEY, "steps": steps, "progress": False, "batches": batches, **how}
    return ppl.maximize(elbo, start, optax.sgd(1e-3), **how)


@pytest.mark.parametrize("block", [1, BLOCK])
def test_an_epoch_takes_every_row_once_in_another_order(rows, block):
    batches = ppl.epochs(rows, SIZE, key=KEY, block=block)
    assert len(batches) == N // SIZE
    found = batches.after(0)
    epochs = [np.concatenate([next(found) for _ in range(len(batches))]) for _ in range(2)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch, 0), np.sort(rows, 0))
    assert not np.array_equal(*epochs)
    np.testing.assert_array_equal(next(batches.after(13)), epochs[1][3 * SIZE : 4 * SIZE])


def test_the_mean_gradient_of_an_epoch_is_that_of_the_data(rows, x64):
    """Of a plate that is scaled by n / size: exact, for one key."""
    batches = ppl.epochs(rows.astype(float), SIZE, key=KEY)
    epoch = [b for b, _ in zip(batches, range(len(batches)), strict=False)]
    phi = jnp.full(D, 0.3)
    gradient = jax.vmap(lambda x: elbo.grad(KEY, phi, x))(np.stack(epoch)).mean(0)
    np.testing.assert_allclose(gradient, elbo.grad(KEY, phi, np.asarray(rows, float)), rtol=1e-12)


def test_a_fit_reads_ahead_in_a_thread_and_no_more_than_its_steps(rows):
    batches = ppl.epochs(rows, SIZE, key=KEY)
    read, threads = [], set()

    def source():
        for i, batch in zip(range(250), batches, strict=False):
            read.append(i)
            threads.add(threading.current_thread() is threading.main_thread())
            yield batch

    streamed = fit(source(), 250)
    assert read == [*range(250)]
    assert threads == {True, False}
    whole = fit([b for b, _ in zip(batches, range(250), strict=False)], 250)
    np.testing.assert_array_equal(streamed.history, whole.history)
    np.testing.assert_array_equal(streamed.params, fit(batches, 250).params)


def test_a_fit_that_goes_on_reads_no_batch_twice(rows):
    batches = ppl.epochs(rows, SIZE, key=KEY, block=BLOCK)
    whole = fit(batches, 150)
    first = fit(batches, 70)
    np.testing.assert_array_equal(fit(batches, 150, state=first.state).params, whole.params)


@pytest.mark.parametrize("how", [{}, {"restarts": 2}])
def test_a_source_may_write_a_batch_over_the_one_before(how):
    """Arrays of NumPy beside random keys, which do not go through NumPy."""
    seen = ppl.expectation(lambda m, b: m + b["x"].sum() + jax.random.uniform(b["key"]))
    keys, n = jax.random.split(KEY, 7), 130

    def source():
        x = np.zeros(3, np.float32)
        for i in range(n):
            x[:] = i
            yield {"x": x, "key": keys[i % 7]}

    start = jnp.zeros([2] * len(how))
    settings = {"key": KEY, "steps": n, "progress": False, **how}
    fit = ppl.maximize(seen, start, optax.sgd(0.0), batches=source(), **settings)
    right = 3.0 * np.arange(n) + np.resize(jax.vmap(jax.random.uniform)(keys), n)
    np.testing.assert_allclose(fit.history, right, rtol=1e-6)


def test_an_error_of_a_source_is_raised(rows):
    def source():
        for i, batch in enumerate(ppl.epochs(rows, SIZE, key=KEY)):
            if i == 130:
                raise OSError("the disk is gone")
            yield batch

    with pytest.raises(OSError, match="the disk is gone"):
        fit(source(), 200)


def test_what_makes_no_batches_is_refused(rows):
    with pytest.raises(ValueError, match="is given 240 rows, batches of 25 and blocks of 4"):
        ppl.epochs(rows, 25, key=KEY, block=BLOCK)
    with pytest.raises(ValueError, match="Give a size of at most 240"):
        ppl.epochs(rows, 241, key=KEY)


def test_memory_that_jax_reads_is_not_written_again():
    """Neither while an array is held, nor while code that reads it runs."""
    memory, made = Memory(), []

    def put(value):
        found = memory.empty((64, 64), np.float32)
        found[:] = value
        made.append(found.ctypes.data)
        return jax.device_put(found)

    held = [put(float(i)) for i in range(3)]
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 2000, lambda i, c: jnp.tanh(c @ x) * 0 + x, x))
    running = [slow(put(7.0)) for _ in range(2)]
    [put(-1.0) for _ in range(8)]
    assert [float(a.max()) for a in held] == [0.0, 1.0, 2.0]
    assert [float(a.min()) for a in running] == [7.0, 7.0]


def test_memory_is_used_again_once_nothing_reads_it():
    memory, where = Memory(), set()
    for i in range(20):
        found = memory.empty((3, 5), np.float64)
        found[:] = i
        where.add(found.ctypes.data)
        del found
    assert len(where) == 1
    assert memory.empty((0, 4), np.float32).shape == (0, 4)


@pytest.mark.parametrize("order", ["C", "F", "strided", "swapped"])
def test_rows_of_any_array_are_read(order):
    whole = np.arange(240.0, dtype=np.float32).reshape(40, 6)
    data = {
        "C": whole[:, :3].copy(),
        "F": np.asfortranarray(whole[:, :3]),
        "strided": whole[:, :3],
        "swapped": whole[:, :3].astype(">f4"),
    }[order]
    batches = ppl.epochs({"x": data}, 8, key=KEY)
    epoch = [b["x"] for b, _ in zip(batches, range(5), strict=False)]
    np.testing.assert_array_equal(np.sort(np.concatenate(epoch), 0), whole[:, :3])
    seen = ppl.expectation(lambda phi, batch: phi * 0 + batch["x"].sum())
    how = {"key": KEY, "steps": 5, "batches": batches, "progress": False}
    found = ppl.maximize(seen, 0.0, optax.sgd(0.0), **how).history
    np.testing.assert_array_equal(found, [b.astype(np.float32).sum() for b in epoch])


def test_batches_may_hold_random_keys():
    noise = ppl.expectation(lambda phi, key: phi * 0 + jax.random.normal(key))
    keys = list(jax.random.split(KEY, 3))
    how = {"key": KEY, "steps": 6, "batches": keys, "progress": False}
    found = ppl.maximize(noise, 0.0, optax.sgd(0.0), **how).history
    np.testing.assert_array_equal(found, np.tile([jax.random.normal(k) for k in keys], 2))


def test_a_source_may_write_over_its_batches():
    """As a reader of a device or a pipe that has one buffer."""
    buffer = np.zeros(3, np.float32)

    def source():
        for i in range(250):
            buffer[:] = i
            yield {"x": buffer}

    seen = ppl.expectation(lambda phi, batch: phi * 0 + batch["x"].sum())
    how = {"key": KEY, "steps": 250, "progress": False, "tolerance": 0.0}
    found = ppl.maximize(seen, 0.0, optax.sgd(0.0), batches=source(), **how).history
    np.testing.assert_array_equal(found, 3 * np.arange(250))


@jax.tree_util.register_pytree_node_class
class Pair:
    """A batch as a library makes it, which says nothing of when two are equal."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def tree_flatten(self):
        return (self.x, self.y), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


def test_batches_are_any_pytrees():
    seen = ppl.expectation(lambda phi, batch: phi * 0 + batch.x.sum() - batch.y)
    batches = [Pair(np.full(3, i), float(i)) for i in range(4)]
    how = {"key": KEY, "steps": 4, "batches": batches, "progress": False}
    found = ppl.maximize(seen, 0.0, optax.sgd(0.0), **how).history
    np.testing.assert_array_equal(found, 2 * np.arange(4))


def test_batches_of_several_types_are_not_cut_off():
    seen = ppl.expectation(lambda phi, x: phi * 0 + x)
    batches = [1, jnp.float32(2.5), 0.5, np.int8(3)]
    how = {"key": KEY, "steps": 4, "batches": batches, "progress": False}
    found = ppl.maximize(seen, 0.0, optax.sgd(0.0), **how).history
    np.testing.assert_array_equal(found, [1.0, 2.5, 0.5, 3.0])
