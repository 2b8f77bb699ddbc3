"""Programs that are divided over eight virtual devices, which are another process.

All numbers are of ``tests/benchmarks/devices.py --brief``.
"""

import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    script = ROOT / "tests" / "benchmarks" / "devices.py"
    quickly = (
        "--xla_cpu_use_fusion_emitters=false"
        if importlib.metadata.version("jaxlib").startswith("0.10.")
        else ""
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": quickly, "NPROC": "1"}
    command = [sys.executable, "-W", "error", str(script), "--brief"]
    out = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert out.returncode == 0, out.stderr[-3_000:]
    return json.loads(out.stdout.splitlines()[-1])


@pytest.mark.parametrize("how", ["jit", "shard_map", "explicit"])
def test_a_gradient_costs_each_device_its_part(found, how):
    """Equal to the one by hand (the script checks it), in FLOPs and collectives too."""
    (row,) = [r for r in found["rows"] if r["how"] == how]
    assert row["× one device / n"] <= 1.05
    assert row["× one device / n"] <= 1.005 * row["by hand"]
    assert row["collectives"] == row["collectives by hand"] != "{}"


def test_a_fit_keeps_how_its_arguments_are_divided(found):
    """Rows and particles are; float32 sums in another order over 10 steps."""
    assert found["fit"]["far"] < 1e-5
    assert found["fit"]["compiled again"] == 0
    assert "'data': 4" in found["fit"]["sharding"]


def test_collectives_inside_an_objective_are_those_by_hand(found):
    np.testing.assert_allclose(*found["sums"].values(), rtol=1e-6)
