"""The benchmarks: their data, their programs against those by hand, exact costs, the command."""

import gzip
import json

import air
import images
import jax
import jax.numpy as jnp
import measure
import numpy as np
import pytest
import report
import ztest

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


@pytest.mark.parametrize("name", air.BY_HAND)
def test_by_hand_and_ours_agree(name):
    """Their mean values, and gradients for ``pres`` and ``where`` in the first step."""
    size = 12
    params = air.init(KEY, size)
    x = images.canvases(np.ones((1, 9, 9), np.float32), 2, size, most=1)[0]

    def numbers(f, key):
        value, grad = measure.gradient(f)(key, params, x)
        return {"value": value, "predict": grad["predict"]["b"]}

    ours = air.STRATEGIES[name].expectation().surrogate

    def difference(key):
        a, b = jax.random.split(key)
        return jax.tree.map(jnp.subtract, numbers(ours, a), numbers(air.BY_HAND[name], b))

    zero = {"value": np.zeros(()), "predict": np.zeros(7)}
    ztest.check(difference, zero, n=2_000, chunk=500)


def test_cost_of_air():
    """FLOPs before XLA's optimization: those by hand; enumeration shares the first steps."""
    params, x = air.init(KEY), jnp.ones((2, 50, 50))

    def flops(f):
        return measure.cost_of(jax.jit(measure.gradient(f)).lower(KEY, params, x))["flops"]

    ours = {n: flops(air.STRATEGIES[n].expectation().surrogate) for n in ("REINFORCE", "ENUM")}
    for name, f in air.BY_HAND.items():
        assert ours[name] <= 1.001 * flops(f)
    assert ours["ENUM"] <= 2.45 * ours["REINFORCE"]


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "peer", lambda name: None)
    report.main(["table1", "--small", "--blocks=2", "--seconds=0", f"--out={tmp_path}"])
    assert "by hand, vmap" in capsys.readouterr().out
    found = json.loads((tmp_path / "table1.json").read_text())
    ours = found["rows"][1]
    assert ours["program"] == "ours" and ours["batch"] == 8
    assert ours["× FLOPs"] <= 1.003 and ours["× bytes"] <= 1.003
    assert found["environment"]["jax"] == jax.__version__
    assert (tmp_path / "table1.png").stat().st_size > 0
    assert "× FLOPs" in (tmp_path / "table1.txt").read_text()


def test_a_missing_peer_is_named(capsys, monkeypatch):
    report.peer.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "pyro", None)
    assert report.peer("pyro") is None
    assert "pyro is left out: pyro" in capsys.readouterr().out
    report.peer.cache_clear()
