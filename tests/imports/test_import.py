"""What ``import ppl`` loads: numpyro, and of ours next to nothing until a name is used."""

import subprocess
import sys

import pytest

import ppl

CODE = """
import sys, numpyro
before = set(sys.modules)
import ppl
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
print(*sorted(name for name in sys.modules if name.startswith("ppl.")))
assert ppl.guides.flow and ppl.plots.history and ppl.dist is numpyro.distributions
"""


def test_it_loads_what_is_used():
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    packages, ours = run.stdout.splitlines()
    assert packages == "ppl transforms"
    assert ours == "ppl._beside ppl._names"


def test_its_names():
    assert dir(ppl) == ppl.__all__
    assert not hasattr(ppl, "__wrapped__") and not hasattr(ppl, "_beside_")
    with pytest.raises(AttributeError, match=r"Did you mean ppl\.sample"):
        ppl.smaple  # noqa: B018
