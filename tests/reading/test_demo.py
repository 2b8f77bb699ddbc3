"""The programs of the demo against exact values (``acceptance.json``), and a tiny run of it."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ztest import check

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from ppl.demo import cone, digits

RING = {"log_sx": -2.0, "log_sy": -2.3}


def field(x, y, log_sx, log_sy):
    return {"x": x, "y": y, "log_sx": log_sx, "log_sy": log_sy}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("objective", "phi", "exact"),
    [
        (
            cone.elbo,
            field(2.0, 0.3, -1.5, -1.0),
            (
                -44.12045168941776,
                field(
                    166.95685668453513, 19.369486145617785, -41.80006865576969, 7.212823971058401
                ),
            ),
        ),
        (
            cone.hvi,
            RING,
            (-13.220079117434612, {"log_sx": -7.036677344857409, "log_sy": -3.425291486084683}),
        ),
    ],
    ids=["elbo", "hvi"],
)
def test_value_and_gradient_at_a_probe(objective, phi, exact):
    check(lambda key: objective.value_and_grad(key, phi), exact, n=40_000)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("objective", "phi", "exact", "se", "sd"),
    [
        (
            cone.iwelbo,
            field(0.0007076612, 2.1660568996, -0.5717224187, -2.5993821079),
            -7.53400950267169,
            0.00019859551833338493,
            0.93935465719924,
        ),
        (
            cone.iwhvi,
            {"log_sx": -3.057916353899282, "log_sy": -3.057698531107823},
            -8.179553059161565,
            3.0819863074911626e-05,
            0.9812460061802255,
        ),
        (
            cone.diwhvi,
            {"log_sx": -2.0639674398172354, "log_sy": -2.0683056701357914},
            -7.307483652426503,
            0.00047020758927801613,
            1.3022687960217358,
        ),
    ],
    ids=["iwelbo", "iwhvi", "diwhvi"],
)
def test_value_at_the_optimum(objective, phi, exact, se, sd):
    check(lambda key: objective.value(key, phi), exact, n=20_000, error=se / sd)


@pytest.mark.usefixtures("x64")
def test_a_learned_kernel_reaches_the_exact_marginal():
    """At the optimum of the exact marginal, von Mises with κ = 5 / σ² is its reverse kernel up to
    the radius: 2e-4 nats are left."""
    log_s = -3.394687040254036
    phi = {"log_sx": log_s, "log_sy": log_s, "log_kappa": jnp.log(5.0) - 2.0 * log_s}
    keys = jax.random.split(jax.random.key(0), 20_000)
    values = jax.jit(jax.vmap(lambda key: cone.learned_hvi.value(key, phi)))(keys)
    assert -5.3240 < values.mean() < -5.3232


WIDE = {"log_sx": 0.5, "log_sy": 0.6}
"""A ring so wide that the weights below are bounded."""


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "guide",
    [
        lambda: cone.points_of_ring(WIDE, 1),
        lambda: cone.points_of_ring(WIDE, 5),
        lambda: cone.points_of_learned_ring(WIDE | {"log_kappa": 0.0}),
    ],
    ids=["1", "5", "learned"],
)
def test_the_marginal_of_the_ring_fulfils_its_contract(guide):
    """E[exp w] = p(x) from ``log_density``; E[exp(-w) | x] = 1 / p(x) from ``simulate``, so that
    the mean of exp(-w) over the draws inside of a square is its area."""
    x, y = 1.7, 1.3
    u = np.linspace(-np.pi, np.pi, 4096, endpoint=False)
    sx, sy = np.exp(WIDE["log_sx"]), np.exp(WIDE["log_sy"])
    zx, zy = (x - cone.RADIUS * np.cos(u)) / sx, (y - cone.RADIUS * np.sin(u)) / sy
    exact = np.exp(-0.5 * (zx**2 + zy**2)).mean() / (2 * np.pi * sx * sy)

    def both(key):
        w = guide().log_density({"x": x, "y": y}, key)
        t = guide().simulate(key)
        inside = (jnp.abs(t["x"] - x) < 1.0) & (jnp.abs(t["y"] - y) < 1.0)
        return {"density": jnp.exp(w), "area": jnp.where(inside, jnp.exp(-t.log_density), 0.0)}

    check(both, {"density": float(exact), "area": 4.0}, n=40_000)


def test_the_cone_writes_its_table_and_picture(tmp_path):
    lines = []
    results = cone.fit_all(cone.CASES[:1], lines.append, steps=10, draws=100)
    cone.draw(results, tmp_path / "cone.png", points=10)
    assert [line.split()[0] for line in lines] == ["objective", "ELBO", "log"]
    assert (tmp_path / "cone.png").stat().st_size > 10_000


def test_the_digits_write_their_numbers_and_picture(tmp_path):
    lines = []
    digits.main(tmp_path, lines.append, steps=20)
    before, after = (float(lines[i].split()[1]) for i in (1, 2))
    assert before < after < 0.0
    assert (tmp_path / "digits.png").stat().st_size > 5_000


def test_without_matplotlib_it_says_what_to_install():
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.argv = ['demo']\n"
        "from ppl.demo.__main__ import main; main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "pip install 'programmable-vi[demo]'" in run.stderr
