"""The benchmarks: their data, their programs against those by hand, exact costs, the command."""

import dataclasses
import gzip
import json
import re

import air
import growth
import images
import jax
import jax.numpy as jnp
import kept
import measure
import mixtures
import numpy as np
import pytest
import report
import variance
import ztest
from peers import numpyro_variance_peers

import ppl

KEY = jax.random.key(0)


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files(tmp_path, compress):
    pixels = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    data = b"\x00\x00\x08\x03" + np.array(pixels.shape, ">u4").tobytes() + pixels.tobytes()
    name = "t10k-images-idx3-ubyte" + ".gz" * compress
    (tmp_path / name).write_bytes(gzip.compress(data) if compress else data)
    np.testing.assert_array_equal(images.digits(tmp_path), np.float32(pixels) / 255)
    (tmp_path / name).write_bytes(gzip.compress(b"\x00\x00\x0d\x03") if compress else b"PNG")
    with pytest.raises(ValueError, match="no IDX file of unsigned bytes"):
        images.digits(tmp_path)


def test_no_idx_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="images-idx3-ubyte"):
        images.digits(tmp_path)


def test_canvases():
    """As many separate digits as said; here a digit is a square of one grey of its own."""
    squares = np.zeros((200, 28, 28), np.float32)
    squares[:, 4:24, 4:24] = np.linspace(0.3, 1.0, 200)[:, None, None]
    x, counts = images.canvases(squares, 30, most=2, seed=3)
    assert x.shape == (30, 50, 50) and np.bincount(counts).tolist() == [10, 10, 10]
    for image, count in zip(x, counts, strict=True):
        greys, sizes = np.unique(image.round(4), return_counts=True)
        assert sum(sizes[greys > 0] > 100) == count
    again, _ = images.canvases(squares, 30, most=2, seed=3)
    np.testing.assert_array_equal(x, again)


def test_resampling_is_bilinear():
    """Halfway between pixels, their mean; beyond the last pixel, nothing."""
    image = jnp.arange(9.0).reshape(3, 3)
    np.testing.assert_allclose(air.resample(image, 3, 1.0, 0.0, 0.0), image)
    np.testing.assert_allclose(air.resample(image, 3, 1.0, 0.5, 0.0)[:, :2], image[:, :2] + 0.5)
    np.testing.assert_allclose(air.resample(image, 3, 1.0, 0.0, 5.0), 0.0)


@pytest.fixture
def small_air(monkeypatch):
    """Two steps and small networks."""
    sizes = {"STEPS": 2, "WHAT": 4, "HIDDEN": 8, "DENSE": 8, "WINDOW": 8}
    start = (jnp.ones(()), jnp.zeros(3), jnp.zeros(4)), (jnp.zeros(8), jnp.zeros(8))
    for name, value in {**sizes, "START": start}.items():
        monkeypatch.setattr(air, name, value)


@pytest.mark.parametrize("name", air.BY_HAND)
def test_by_hand_and_ours_agree(name, small_air):
    """Their mean values, and gradients for ``pres`` and ``where`` in the first step."""
    size = 12
    params = air.init(KEY, size)
    x = images.canvases(np.ones((1, 9, 9), np.float32), 2, size, most=1)[0]

    def numbers(f, key):
        value, grad = measure.gradient(f)(key, params, x)
        return {"value": value, "predict": grad["predict"]["b"]}

    ours = air.Strategy(air.STRATEGIES[name].estimators[: air.STEPS]).expectation().surrogate

    def difference(key):
        a, b = jax.random.split(key)
        return jax.tree.map(jnp.subtract, numbers(ours, a), numbers(air.BY_HAND[name], b))

    zero = {"value": np.zeros(()), "predict": np.zeros(7)}
    ztest.check(difference, zero, n=2_000, chunk=500)


def test_cost_of_air():
    """FLOPs before XLA's optimization: those by hand; enumeration shares the first steps."""
    params, x = jax.eval_shape(air.init, KEY), jnp.ones((2, 50, 50))

    def flops(f):
        run = jax.jit(measure.gradient(f))
        measured = lambda: [measure.cost_of(run.lower(KEY, params, x))["flops"]]
        return kept.numbers(run, [KEY, params, x], "FLOPs", measured)[0]

    ours = {n: flops(air.STRATEGIES[n].expectation().surrogate) for n in ("REINFORCE", "ENUM")}
    for name, f in air.BY_HAND.items():
        assert ours[name] <= 1.001 * flops(f)
    assert ours["ENUM"] <= 2.45 * ours["REINFORCE"]


@pytest.mark.usefixtures("as_for_a_user")
def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "peer", lambda name: None)
    report.main(["table1", "--small", "--blocks=2", "--seconds=0", f"--out={tmp_path}"])
    assert "by hand, vmap" in capsys.readouterr().out
    found = json.loads((tmp_path / "table1.json").read_text())
    ours = found["rows"][1]
    assert ours["program"] == "ours" and ours["batch"] == 8
    assert ours["× FLOPs"] <= 1.005 and ours["× bytes"] <= 1.003  # FLOPs: are pixels 0 or 1?
    assert found["environment"]["jax"] == jax.__version__
    assert (tmp_path / "table1.png").stat().st_size > 0
    assert "× FLOPs" in (tmp_path / "table1.txt").read_text()


def test_a_missing_peer_is_named(capsys, monkeypatch):
    report.peer.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "pyro", None)
    assert report.peer("pyro") is None
    assert "pyro is left out: pyro" in capsys.readouterr().out
    report.peer.cache_clear()


# --- discrete choices summed out ------------------------------------------------------------------

SUMMED_OUT = {
    "GMM": lambda: mixtures.gmm(3, 2),
    "GMM, guide": lambda: mixtures.gmm_guided(3, 2),
    "HMM": lambda: mixtures.hmm(3, 3),
    "HMM, guide": lambda: mixtures.hmm_guided(3, 3),
}


@pytest.mark.usefixtures("as_for_a_user")
def test_a_long_chain_takes_the_memory_of_that_by_hand():
    """No table of transitions for every step where they do not change; XLA's count."""
    problem = mixtures.hmm(1000, 8)

    args = KEY, problem.params, problem.data
    ours, by_hand = (
        jax.jit(measure.gradient(problem.forms[name].estimate)) for name in ("ours", "by hand")
    )

    def memory(f):
        return f.lower(*args).compile().memory_analysis().temp_size_in_bytes

    def test():
        assert memory(ours) <= 1.15 * memory(by_hand)

    kept.passed(jax.jit(lambda *args: (ours(*args), by_hand(*args))), args, 1.15, test)


def test_what_is_the_same_in_a_plate_is_computed_once():
    """Integers, such as indices, have no axis for the plate."""
    n = 7
    problem = mixtures.gmm(n, 2)
    f = jax.grad(problem.forms["ours"].exact)
    jaxpr = jax.make_jaxpr(f)(problem.choices, problem.params, problem.data)
    assert not re.search(rf"i\d+\[(\d+,)*{n}(,\d+)*\] = (concatenate|select_n|add|lt)", str(jaxpr))


@pytest.mark.parametrize("name", SUMMED_OUT)
def test_sums_are_those_by_hand(name):
    """Given the global choices, to rounding: value, and gradient in them and in the parameters."""
    problem = SUMMED_OUT[name]()
    with jax.enable_x64(True):
        wide = mixtures.doubled(problem)
        found = {n: mixtures.value_and_slopes(f, wide) for n, f in wide.forms.items()}
    value, slopes = found.pop("by hand")
    assert found
    for own, own_slopes in found.values():
        np.testing.assert_allclose(own, value, rtol=1e-9)
        assert mixtures.error(own_slopes, slopes) < 1e-9


@pytest.mark.parametrize("name", ["GMM", "HMM"])
def test_sums_by_hand_are_over_all_assignments(name):
    """Of the models' log densities, one assignment after the other."""
    problem = SUMMED_OUT[name]()
    data, states = problem.data, len(problem.params["loc"])
    by_hand, weight = {
        "GMM": (mixtures.gmm_by_hand, mixtures.gmm_weight),
        "HMM": (mixtures.hmm_by_hand, mixtures.hmm_weight),
    }[name]

    @jax.jit
    def both(c, params):
        def log_p(z):
            if name == "GMM":
                log_x = mixtures.normal(data, c["mu"][z], c["scale"][z, None]).sum()
                return jnp.log(c["w"][z]).sum() + log_x
            rows = c["P"][jnp.append(0, z[:-1]), z]
            return jnp.log(rows).sum() + mixtures.normal(data, c["mu"][z], mixtures.NOISE).sum()

        every = jnp.array(list(np.ndindex(*[states] * len(data))))
        value = by_hand(c, params, data) - weight(c, params)
        return value, jax.nn.logsumexp(jax.vmap(log_p)(every))

    with jax.enable_x64(True):
        value, exact = both(problem.choices, problem.params)
    np.testing.assert_allclose(value, exact, rtol=1e-5)


@pytest.mark.parametrize("name", SUMMED_OUT)
def test_estimates_with_sums_have_the_same_mean(name):
    """By hand and ours, which draw the global choices."""
    problem = SUMMED_OUT[name]()

    def numbers(form, key):
        f = measure.gradient(problem.forms[form].estimate)
        return f(key, problem.params, problem.data)

    def difference(key):
        a, b = jax.random.split(key)
        return jax.tree.map(jnp.subtract, numbers("ours", a), numbers("by hand", b))

    zero = jax.tree.map(lambda a: np.zeros(a.shape), jax.eval_shape(difference, KEY))
    ztest.check(difference, zero, n=4_000, chunk=2_000)


# --- the variance of gradients --------------------------------------------------------------------

FLIPS = {
    "flips": lambda: variance.flips(3, variance.flips_terms, variance.flips_elbo),
    "flips, summed loss": lambda: variance.flips(
        3, variance.summed_terms, variance.summed(ppl.reinforce())
    ),
    "chain": lambda: variance.chain(3),
}


@pytest.mark.parametrize("name", FLIPS)
def test_estimates_are_unbiased(name):
    problem = FLIPS[name]()
    estimates = dict(problem.estimates)
    if name in numpyro_variance_peers.ESTIMATES:
        estimates["NumPyro"] = numpyro_variance_peers.ESTIMATES[name]
    exact = jax.jit(jax.value_and_grad(problem.exact))(problem.params, problem.data)
    for f in estimates.values():
        slope = measure.gradient(f)
        numbers = lambda key, slope=slope: slope(key, problem.params, problem.data)
        ztest.check(numbers, exact, n=100_000, error=1e-4)


def test_estimates_of_the_vae_have_the_same_mean():
    problem = variance.vae(np.arange(8).reshape(2, 4) % 3 == 0)

    def numbers(f, key):
        value, slopes = measure.gradient(f)(key, problem.params, problem.data)
        return {"value": value, "latent": slopes["latent"]["b"], "pixels": slopes["pixels"]["b"]}

    first, *others = problem.estimates.values()
    for other in [*others, numpyro_variance_peers.ESTIMATES["vae"]]:

        def difference(key, other=other):
            a, b = jax.random.split(key)
            return jax.tree.map(jnp.subtract, numbers(first, a), numbers(other, b))

        zero = jax.tree.map(lambda a: np.zeros(a.shape), jax.eval_shape(difference, KEY))
        ztest.check(difference, zero, n=10_000, chunk=5_000)


def test_spread():
    """Of a gradient that is normal with standard deviations 1, 2 and 3."""
    scales = jnp.arange(1.0, 4.0)
    noise = lambda key, x, _: (x * scales * jax.random.normal(key, (3,))).sum()
    problem = variance.Problem({}, jnp.ones(3), jnp.zeros(0))
    found = variance.spread(noise, problem, pairs=20_000, chunk=1_000)
    assert found.pairs == 20_000
    assert abs(found.variance - 14.0) < 4 * found.error
    exact_error = (2 * np.sum(np.arange(1, 4) ** 4.0) / 20_000) ** 0.5
    np.testing.assert_allclose(found.error, exact_error, rtol=0.1)
    np.testing.assert_allclose(found.each, [1.0, 4.0, 9.0], rtol=0.1)
    assert found.z(np.zeros(3)) < 4 < found.z(np.full(3, 0.1))
    ratio, error = found.over(found)
    assert ratio == 1.0
    np.testing.assert_allclose(error, 2**0.5 * found.error / found.variance)


# --- growth ---------------------------------------------------------------------------------------


def test_exponents():
    sizes = (10, 100, 1_000)
    rows = [{"size": n, "ms": 3.0 * n**2, "MB": None if n == 10 else 0.1 * n} for n in sizes]
    found = growth.exponents(rows)
    np.testing.assert_allclose(found["time ~ size^"], 2.0)
    np.testing.assert_allclose(found["memory ~ size^"], 1.0)
    assert "memory ~ size^" not in growth.exponents(rows[:2])


def test_growth_stops(monkeypatch):
    """Where a size is refused, or needs too much memory."""

    def program(size):
        if size > 20:
            raise ppl.UnsupportedError("too many elements. Use fewer.")
        return lambda key, x: (x**2).sum(), (jnp.ones(size),)

    *measured, refused = growth.rows(program, (10, 20, 30, 40), blocks=1, seconds=0.0)
    assert [row["size"] for row in measured] == [10, 20] and all(row["ms"] for row in measured)
    assert refused == {"size": 30, "stopped": "refused: too many elements. Use fewer."}
    monkeypatch.setitem(growth.LIMIT, "MB", -1.0)
    (row,) = growth.rows(program, (10, 20), blocks=1, seconds=0.0)
    assert row["ms"] is None and row["stopped"] == "too much memory"


@pytest.mark.parametrize("name", ["hmm", "variance", "growth", "scaling"])
def test_commands_for_dependencies(name, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "peer", lambda name: None)
    few = dict(list(growth.PROGRAMS.items())[-3:])  # mixtures are measured by other commands
    monkeypatch.setattr(growth, "PROGRAMS", few)

    def by_hand_alone(problem):
        """The other form is held to it above."""

        def alone(*sizes):
            found = problem(*sizes)
            return dataclasses.replace(found, forms={"by hand": found.forms["by hand"]})

        return alone

    for of in ("hmm", "hmm_guided"):
        monkeypatch.setattr(mixtures, of, by_hand_alone(getattr(mixtures, of)))
    report.main([name, "--small", "--blocks=1", "--seconds=0", f"--out={tmp_path}"])
    rows = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
    assert (tmp_path / f"{name}.png").stat().st_size > 0
    if name == "growth":
        assert [row["program"] for row in rows] == list(growth.PROGRAMS)
        assert all(row["ms"] > 0 and row["equations"] > 0 for row in rows)
    elif name == "variance":
        assert {row["problem"] for row in rows} == {*FLIPS, "vae"}
        assert all(row["variance"] > 0 and row["±"] > 0 for row in rows)
    elif name == "scaling":
        assert [row["program"] for row in rows] == ["by hand", "ours"]
        assert rows[1]["× FLOPs"] <= 1.02
    else:
        assert [row["program"] for row in rows] == ["by hand", "by hand"]
        assert all(row["ms"] > 0 and row["64 bits"] < 1e-3 for row in rows)
