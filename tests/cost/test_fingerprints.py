"""What value and gradient of some programs cost, exactly: a net under changes of the inside.

``python tests/cost/test_fingerprints.py --write`` renews ``fingerprints.txt``; a commit that
changes it says why. The numbers are those of the program as it is lowered, before XLA optimizes,
with the random bits of the tests.
"""

import argparse
import pathlib
import sys

if __name__ == "__main__":
    tests = pathlib.Path(__file__).parents[1]
    sys.path[:0] = [str(tests), str(tests / "benchmarks")]

import bits  # noqa: F401  those of the tests
import jax
import kept
import pytest
from fingerprinted import PROGRAMS

FILE = pathlib.Path(__file__).parent / "fingerprints.txt"
KEY = jax.random.key(0)


def equations(jaxpr):
    """Number of equations, those inside loops and functions included."""
    subs = jax.extend.core.jaxprs_in_params
    return sum(1 + sum(equations(s) for s in subs(e.params)) for e in jaxpr.eqns)


def programs(name):
    """The value, and the gradient with it, and their arguments."""
    objective, args, samples = PROGRAMS[name]
    both = objective.value, objective.value_and_grad
    return [jax.jit(lambda *args, f=f: f(KEY, *args, samples=samples)) for f in both], args


def fingerprint(name):
    """Equations, FLOPs and bytes of the value and of the gradient with it."""
    numbers = []
    both, args = programs(name)
    for f in both:
        traced = f.trace(*args)
        cost = traced.lower().cost_analysis()
        numbers += [equations(traced.jaxpr.jaxpr), cost.get("flops", 0), cost["bytes accessed"]]
    return " ".join(f"{n:.0f}" for n in numbers)


def recorded():
    lines = FILE.read_text().splitlines()
    return dict(line.rsplit(": ", 1) for line in lines if not line.startswith("#"))


@pytest.mark.filterwarnings("ignore::ppl.SoundnessWarning")
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_cost_of_a_program_is_that_kept(name):
    both, args = programs(name)
    line = recorded()[name]

    def test():
        assert fingerprint(name) == line

    kept.passed(jax.jit(lambda *args: [f(*args) for f in both]), args, line, test)


def test_all_that_is_kept_is_tested():
    assert set(recorded()) == set(PROGRAMS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--write", action="store_true", help="renew fingerprints.txt")
    lines = [f"{name}: {fingerprint(name)}" for name in PROGRAMS]
    head = "# equations, FLOPs, bytes of the value; equations, FLOPs, bytes of value and gradient"
    text = "\n".join([head, *lines]) + "\n"
    if parser.parse_args().write:
        FILE.write_text(text)
    else:
        sys.stdout.write(text)
