"""Fits that go on, that are resumed from files, and that run inside other transformations."""

import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppl
from ppl import dist

KEY = jax.random.key(0)
PARAMS = {"m": 0.0, "s": 0.5, "n": jnp.array(7)}


def payoff(p, noise=0.1):
    x = ppl.sample("x", dist.Normal(p["m"], noise))
    return -((x - 2.0) ** 2) - (p["s"] - 1.0) ** 2


objective = ppl.expectation(payoff)


def fit(params=None, optimizer=None, f=objective, **kwargs):
    kwargs = {"key": KEY, "steps": 250, "progress": False, **kwargs}
    return ppl.maximize(f, params or PARAMS, optimizer or optax.adam(0.1), **kwargs)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, (a.params, a.history), (b.params, b.history))


# --- state= ---------------------------------------------------------------------------------------


def test_a_fit_goes_on_where_it_ended():
    whole, part = fit(), fit(steps=130)
    same(fit(state=part.state), whole)  # from the parameters it began with
    same(fit(part.params, state=part.state), whole)  # or ended with
    once_more = fit(steps=180, state=part.state)
    same(fit(state=once_more.state), whole)
    batches = [np.float32(i) for i in range(7)]
    f = ppl.expectation(lambda m, batch: 0.0 * m["m"] + batch)
    three = fit(f=f, batches=batches, steps=3)
    got = fit(f=f, batches=batches, steps=9, state=three.state)
    np.testing.assert_array_equal(got.history, np.arange(9) % 7)


@jax.tree_util.register_pytree_node_class
class Anonymous:
    """Parameters that do not say what they are: their repr is an address."""

    def __init__(self, m):
        self.m = m

    def tree_flatten(self):
        return (self.m,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_parameters_of_a_class_of_the_users(tmp_path):
    f = ppl.expectation(lambda p: payoff({"m": p["net"].m.sum(), "s": p["s"]}))
    start = {"net": Anonymous(jnp.zeros(2)), "s": 0.5}
    whole, path = fit(start, f=f), tmp_path / "fit.npz"
    part = fit(start, f=f, steps=130, checkpoint=path)
    same(fit(start, f=f, state=part.state), whole)
    same(fit(start, f=f, checkpoint=path), whole)
    with pytest.raises(
        ValueError, match=r"here net\.0 float32\[3\], s float32\[\], in the file net"
    ):
        fit({**start, "net": Anonymous(jnp.zeros(3))}, f=f, checkpoint=path)


def test_a_state_of_another_fit_is_refused():
    state = fit(steps=3).state
    with pytest.raises(ValueError, match="its optimizer are"):
        fit(optimizer=optax.sgd(0.1), state=state)
    with pytest.raises(ValueError, match="neither those"):
        fit({**PARAMS, "m": 1.0}, state=state)
    with pytest.raises(ValueError, match="Type steps=6 for 3 more"):
        fit(steps=3, state=state)
    with pytest.raises(ppl.UnsupportedError, match=r"Give fit\.state"):
        fit(state={"step": 3})


# --- checkpoints ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The files of a fit of 230 steps: those after 230 and after 200."""
    path = tmp_path_factory.mktemp("fits") / "fit.npz"
    fit(steps=230, checkpoint=path)
    return path.read_bytes(), (path.parent / "fit.npz.previous").read_bytes()


def place(folder, now, before=None):
    path = folder / "fit.npz"
    path.write_bytes(now)
    if before is not None:
        (folder / "fit.npz.previous").write_bytes(before)
    return path


def flipped(data, i):
    return data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :]


def damaged(data):
    yield b""
    yield data[: len(data) // 2]
    yield data[:-1]
    yield b"not a checkpoint"
    for where in range(30, len(data), len(data) // 6):
        yield flipped(data, where)


def test_a_damaged_file_falls_back_to_the_one_before(written, tmp_path):
    whole = fit()
    for data in damaged(written[0]):
        path = place(tmp_path, data, written[1])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            same(fit(checkpoint=path), whole)
        # a bit that means nothing to the format of the file does no harm
        assert [str(w.message) for w in caught if ".previous" in str(w.message)] or len(
            data
        ) == len(written[0])
        assert (tmp_path / "fit.npz.previous").exists()
    same(fit(checkpoint=path), whole)  # what was written over it is whole


def test_a_damaged_file_without_one_before_is_refused(written, tmp_path):
    for data in (b"", written[0][:300], b"not a checkpoint"):
        path = place(tmp_path, data)
        with pytest.raises(ValueError, match=r"no checkpoint of a fit.*missing.*Remove"):
            fit(checkpoint=path)
    with pytest.raises(ValueError, match=r"\.previous, is damaged"):
        fit(checkpoint=place(tmp_path, b"", flipped(written[1], len(written[1]) // 2)))


def test_more_steps_with_the_same_file(written, tmp_path):
    same(fit(checkpoint=place(tmp_path, written[0])), fit())


OTHERS = {
    "optimizer": {"optimizer": optax.adam(0.2)},
    "the optimizer's state": {"optimizer": optax.sgd(0.1)},
    "samples": {"samples": 2},
    "key": {"key": jax.random.key(1)},
    "objective": {"f": ppl.expectation(lambda p: payoff(p, 0.2))},
    "the parameters": {
        "params": {**PARAMS, "m": jnp.zeros(2)},
        "f": ppl.expectation(lambda p: payoff({**p, "m": p["m"].sum()})),
    },
    "integers": {"params": {**PARAMS, "n": jnp.array(8)}},
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_file_of_another_fit_is_refused(written, tmp_path, what):
    path = place(tmp_path, written[0])
    with pytest.raises(ValueError, match=f"is of another fit. What differs: .*{what}"):
        fit(checkpoint=path, **OTHERS[what])
    assert path.read_bytes() == written[0]


def test_a_file_of_other_data_or_direction_is_refused(tmp_path):
    path = tmp_path / "fit.npz"
    f = ppl.expectation(lambda m, x: -((m - x) ** 2))
    kwargs = {"key": KEY, "steps": 2, "progress": False, "checkpoint": path}
    ppl.maximize(f, 0.0, optax.sgd(0.1), args=(1.0,), **kwargs)
    with pytest.raises(ValueError, match="What differs: args"):
        ppl.maximize(f, 0.0, optax.sgd(0.1), args=(2.0,), **kwargs)
    with pytest.raises(ValueError, match=r"direction .here minimize, in the file maximize"):
        ppl.minimize(f, 0.0, optax.sgd(0.1), args=(1.0,), **kwargs)


OTHER_PROCESS = """
import sys
sys.path[:0] = ["tests", "tests/fitting"]
import bits, test_fits
test_fits.fit(steps=100, checkpoint=sys.argv[1])
"""


def test_another_process_knows_the_file(tmp_path):
    """With another order of sets, in which numpyro keeps the parameters of a distribution."""
    path = tmp_path / "fit.npz"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", OTHER_PROCESS, str(path)], check=True, env=environment)
    resumed, whole = fit(checkpoint=path), fit()
    close = lambda a, b: np.testing.assert_allclose(
        a, b, rtol=1e-4, atol=1e-5
    )  # compiled otherwise
    jax.tree.map(close, (resumed.params, resumed.history), (whole.params, whole.history))


# --- inside jit and vmap --------------------------------------------------------------------------


def test_restarts_side_by_side():
    keys, starts = jax.random.split(KEY, 3), jnp.arange(3.0)

    def restart(key, m, steps=20, state=None):
        return fit({**PARAMS, "m": m}, key=key, steps=steps, state=state)

    many = jax.jit(jax.vmap(restart))(keys, starts)
    alone = restart(keys[1], 1.0)
    np.testing.assert_allclose(many.params["m"][1], alone.params["m"], rtol=1e-6)
    np.testing.assert_allclose(many.history[1], alone.history, rtol=1e-5, atol=1e-6)
    assert many.state["step"].tolist() == [20, 20, 20]
    more = jax.vmap(lambda key, m, state: restart(key, m, 30, state))(keys, starts, many.state)
    own = restart(keys[1], 1.0, 30, jax.tree.map(lambda a: a[1], many.state))
    np.testing.assert_allclose(more.params["m"][1], own.params["m"], rtol=1e-6)
    whole = restart(keys[1], 1.0, 30)
    np.testing.assert_allclose(own.history, whole.history, rtol=1e-5, atol=1e-6)


def test_inside_jit():
    inside = jax.jit(lambda: fit(steps=20).params)()
    np.testing.assert_allclose(inside["m"], fit(steps=20).params["m"], rtol=1e-6)
    with pytest.raises(ppl.UnsupportedError, match=r"inside jax\.jit.*callback"):
        jax.jit(lambda: fit(callback=print).params)()
    with pytest.raises(ppl.UnsupportedError, match="checkpoint"):
        jax.jit(lambda: fit(checkpoint="fit.npz").params)()


def test_what_is_not_finite_shows_in_the_history():
    f = ppl.expectation(lambda p: jnp.sqrt(p))
    run = lambda p: ppl.minimize(f, p, optax.sgd(0.5), steps=6, key=KEY)
    got = jax.vmap(run)(jnp.array([1.0, 4.0]))
    assert np.isnan(got.history).sum(1).tolist() == [2, 0]
    assert got.state["step"].tolist() == [4, 6]
    for p, steps, found in zip([1.0, 4.0], [4, 6], got.params, strict=True):
        for _ in range(steps):
            p -= 0.25 / p**0.5
        np.testing.assert_allclose(found, p, rtol=1e-5)


# --- what failed is what is diagnosed -------------------------------------------------------------


def jumps(estimator):
    @ppl.expectation
    def f(m):
        u = ppl.sample("u", dist.Normal(m, 1.0), estimator)
        v = ppl.sample("v", dist.Normal(jnp.where(u > 1.5, jnp.nan, 0.0), 1.0), ppl.reparam())
        return u + v

    return f


ENUMERATED = ppl.expectation(
    lambda m: ppl.sample(
        "v",
        dist.Normal(
            jnp.where(ppl.sample("z", dist.Categorical(jnp.ones(3) / 3)) == 2, jnp.nan, m), 1
        ),
        ppl.reinforce(),
    )
)


@pytest.mark.filterwarnings("ignore:the gradient of f is biased")  # NaN is no continuous end
@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("name", ["reparam", "reinforce", "mvd", "enum"])
def test_the_draws_that_failed_are_diagnosed(name, samples):
    """Deterministic: a draw above 1.5 makes the parameters of 'v' NaN, and a step fails."""
    f = ENUMERATED if name == "enum" else jumps(getattr(ppl, name)())
    for seed in (0, 1, 2) if samples > 1 else (0,):
        with pytest.raises(ppl.NonFiniteError, match="first at the random choice 'v'"):
            ppl.maximize(
                f,
                0.0,
                optax.sgd(0.0),
                key=jax.random.key(seed),
                steps=300,
                samples=samples,
                progress=False,
            )


# --- keyword arguments ----------------------------------------------------------------------------


@ppl.expectation
def named(m, b, c=2.0, *, d=1.0):
    return b * c * d * ppl.sample("x", dist.Normal(m, 1.0), ppl.reparam())


def test_keyword_arguments():
    wanted = named.value_and_grad(KEY, 0.5, 2.0, 3.0)
    assert wanted[1] == 6.0
    assert named.value_and_grad(KEY, 0.5, 2.0, c=3.0) == wanted
    assert named.value_and_grad(KEY, 0.5, c=3.0, b=2.0, d=1.0) == wanted
    assert named.value_and_grad(KEY, m=0.5, c=3.0, b=2.0) == wanted
    assert named.grad(KEY, 0.5, b=2.0, d=4.0, argnums=(0, 1))[0] == 16.0
    assert named.grad(KEY, 0.5, b=2.0, c=3.0, argnums=1) == pytest.approx(wanted[0] / 2)
    value = named.value(KEY, 0.5, 2.0, d=3.0)
    np.testing.assert_allclose(value, 2 * wanted[0], rtol=1e-6)
    np.testing.assert_allclose(named.surrogate(KEY, 0.5, b=2.0, d=3.0), value, rtol=1e-6)
    assert "x " in str(named.explain(0.5, b=2.0, d=3.0))
    assert named.audit(KEY, 0.5, b=2.0, d=3.0, samples=200).ok
    outer = ppl.expectation(lambda m: named(m, b=2.0, d=3.0))
    np.testing.assert_allclose(outer.grad(KEY, 0.5), 12.0, rtol=1e-6)
    tuned = ppl.tune(named, KEY, 0.5, b=2.0, d=3.0, budget=0.1, addresses=["x"])
    np.testing.assert_allclose(tuned.objective.grad(KEY, 0.5, b=2.0), 4.0, rtol=1e-6)


def test_a_wrong_keyword_is_named():
    with pytest.raises(TypeError, match=r"named \(.*test_fits.*unexpected keyword argument 'e'"):
        named.value(KEY, 0.5, 2.0, e=1.0)
    with pytest.raises(
        TypeError, match=r"missing a required argument: 'b'.*It takes \(m, b, c=2.0"
    ):
        named.grad(KEY, 0.5, c=1.0)
