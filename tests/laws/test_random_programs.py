"""Random programs: value, gradient, densities and the checker's verdict, against exact numbers.

``random_programs.generate`` draws small objectives: one to three units out of single choices,
plates, loops, branches, switches, ``jit`` and ``checkpoint``, generative functions, inner
expectations, subsampled plates, masked and expanded choices, small probabilities and integers, with
nine laws, seven estimators and payoffs with kinks, jumps and guarded divisions. Each is held to its
exact value and gradient, in float64:

- where nothing is random (all enumerated) to 1e-8, and with a small probability to 1e-4 in 32 bits;
- else by the two stages of ``ztest``: 8,192 estimates (2,048 of four samples each) with
  |z| <= 3.3, or 8 times as many fresh ones with |z| <= 4.3. A program is compared in 3 or 4
  numbers, each of which fails wrongly with probability 1.7e-8 (normal approximation): 1.4e-4 for a
  run of 2,000 programs. A difference below 1e-7 (quadrature) is none.

A program is *biased* if the mean of its gradient estimates is not the derivative of its value;
that mean is known too and compared in its place (unless an estimator chooses itself: the checker
then makes as few choices pathwise as it can). The checker must find bias in exactly these, and in
those that are biased at other parameters only, which it does not know. What it says is what the
gradient warns of; a long run asks ``explain`` too in every fourth program only, which takes as long
as a third of the rest.
Log densities of traces are compared at 1e-9.

    python tests/laws/test_random_programs.py --programs 2000 --seed 0
    python tests/laws/test_random_programs.py --mutants
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import functools
import itertools
import pathlib
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path[:0] = [str(path) for path in pathlib.Path(__file__).parents[1:3]]

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import kept
import numpy as np
import pytest
import random_programs as rp
import ztest
from random_programs import (
    Block,
    Branch,
    Draw,
    Guide,
    Integer,
    Library,
    Many,
    Plate,
    Program,
    Subsample,
    walk,
)
from test_mutants import Mean, Score

import ppl
from estimators.enumeration import Enum
from transforms.gradient import surrogate

pytestmark = pytest.mark.usefixtures("x64")

ESTIMATES = 8192
ENUMERATED = 1e-8
QUADRATURE = 1e-7
MEASURABLE = 1e-4
"""Less is no bias; the quadrature of kinks at moving places errs by a few 1e-6."""
SINGLE = 1e-4
"""Relative, in 32 bits: a density that adds up in a program of this size."""
IN_CI = 7
KINDS = {"biased", "unsupported"}
"""What a finding of the checker may say of a gradient."""

COUNTEREXAMPLES: tuple[Program, ...] = (
    # an enumerated choice in a branch not taken, under vmap, had a total weight of 1.5
    Program(
        theta=(0.5, -0.7),
        samples=1,
        body=Block(
            steps=(
                Plate(
                    name="p1",
                    by="vmap",
                    n=2,
                    body=Block(
                        steps=(
                            Draw("b2", "bernoulli", ("0.4*tanh(0.3 + -0.8*t[0])",), "enum"),
                            Branch(
                                name="y3",
                                on="b2",
                                then=Block(steps=(), out="0.7*t[1]"),
                                other=Block(
                                    steps=(
                                        Draw(
                                            "b4",
                                            "categorical",
                                            ("1.2*sin(0.3)", "-1.1*sin(0.3 + 0.9*t[1])"),
                                            "enum",
                                        ),
                                    ),
                                    out="sin(0.9*b4)",
                                ),
                            ),
                        ),
                        out="-0.5*sin(y3) + 0.7*t[0]*b2",
                    ),
                    join="sum",
                ),
            ),
            out="p1",
        ),
    ),
)
"""Programs that failed once, and what was wrong."""


class Expected(NamedTuple):
    """The value, the mean of the gradient estimates, and whether that is not the gradient."""

    value: float
    grad: np.ndarray
    biased: bool


def expected(program: Program) -> Expected:
    """What the estimators of a program have on average."""
    for nodes in (rp.NODES, 2 * rp.NODES):  # a bias stays where quadrature is finer
        value, grad = rp.exact(program, nodes=nodes)
        _, mean = rp.exact(program, pathwise=True, nodes=nodes)
        biased = not np.allclose(mean, grad, rtol=MEASURABLE, atol=MEASURABLE)
        if not biased:
            break
    return Expected(value, mean if biased else grad, biased)


def verdict(objective: Any, args: tuple[Any, ...]) -> set[str]:
    """The kinds of what the checker finds."""
    return {f.kind for f in objective.explain(*args).findings}


class Wrong(AssertionError):
    """A number is not what it should be."""


def check(program: Program, library: Library | None = None, explained: bool = True) -> Expected:
    """Assert that a program has its exact value, gradient, densities and verdict.

    With a ``library`` of its own, which may be spoilt, value, gradient and densities only. The
    verdict is what the gradient warns of; where ``explained``, ``explain`` must say the same.
    """
    t = jnp.asarray(program.theta)
    objective = rp.objective(program, library)
    right = expected(program)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ppl.SoundnessWarning)
        check_numbers(program, objective, t, right)
    if library is None:
        warned = [str(w.message) for w in caught if w.category is ppl.SoundnessWarning]
        found = {kind for kind in KINDS if any(f" is {kind}: " in text for text in warned)}
        label = "biased" if right.biased else "sound"
        flagged = "biased" in found
        assert flagged == right.biased or (flagged and biased_elsewhere(program)), (
            f"verdict {found} for a {label} program"
        )
        assert "unsupported" not in found and bool(found) == bool(warned), f"verdict {warned}"
        assert not explained or verdict(objective, (t,)) & KINDS == found
        check_in_32_bits(program, right)
    return right


def check_in_32_bits(program: Program, right: Expected) -> None:
    """Where nothing is random, the numbers to single precision."""
    if not (enumerated(program) and has_rare(program)) or sums_large_integers(program):
        return
    with jax.enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("ignore", ppl.SoundnessWarning)
        t = jnp.asarray(program.theta, jnp.float32)
        run = ztest.compiled(lambda t: rp.objective(program).value_and_grad(jax.random.key(0), t))
        value, grad = jax.device_get(run(t))
    exact = np.array([right.value, *right.grad])
    got = np.array([value, *grad])
    if not np.all(np.abs(got - exact) <= SINGLE * (1.0 + np.abs(exact).max())):
        raise Wrong(f"in 32 bits {got} for {exact}")


def sums_large_integers(program: Program) -> bool:
    """Whether 32-bit integers of a plate are added, which wraps in 32 bits and not in 64."""
    plates = [s for s in walk(program) if isinstance(s, Plate)]
    return any(isinstance(s, Integer) and s.dtype == "int32" for p in plates for s in walk(p))


def has_rare(program: Program) -> bool:
    """Whether a probability is small."""
    draws = (s for s in walk(program) if isinstance(s, Draw))
    return any(s.params[0].startswith(rp.RARE) for s in draws)


def biased_elsewhere(program: Program) -> bool:
    """Whether a program is biased at other parameters: those that put a jump into a support."""
    rng = np.random.default_rng(0)
    others = rng.normal(size=(20, len(program.theta))).tolist()
    return any(expected(dataclasses.replace(program, theta=tuple(t))).biased for t in others)


def chooses_itself(program: Program) -> bool:
    """Whether the library chooses an estimator."""
    return any(isinstance(s, Draw) and s.estimator == "auto" for s in walk(program))


def check_numbers(program: Program, objective: Any, t: jax.Array, right: Expected) -> None:
    """Compare the means of value and gradient, and densities; compiled once."""
    exact = np.array([right.value, *right.grad])
    if right.biased and chooses_itself(program):
        exact = exact[:1]
    n = 1 if enumerated(program) else ESTIMATES // program.samples
    tolerance = ENUMERATED if enumerated(program) else QUADRATURE
    blocks = density_blocks(program)

    def off(key: jax.Array) -> jax.Array:
        value, grad = objective.value_and_grad(key, t, samples=program.samples)
        return jnp.array([value, *grad])[: exact.size] - exact

    @ztest.compiled
    def run(key: jax.Array) -> Any:
        each = jax.vmap(off)(jax.random.split(key, n))
        traces = []
        for block, env in blocks:
            g = rp.generative(block, env)(t)
            trace = g.simulate(key)
            traces.append((trace.choices, trace.log_density, g.log_density(trace.choices)))
        return each.sum(0), (each**2).sum(0), traces

    def z(keys: jax.Array) -> np.ndarray:
        drawn = [jax.device_get(run(key)[:2]) for key in keys]
        mean, square = np.sum(drawn, axis=0) / (len(keys) * n)
        se = np.sqrt(np.maximum(square - mean**2, 0.0) / (len(keys) * n))
        excess = np.maximum(np.abs(mean) - tolerance * (1.0 + np.abs(exact)), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(excess == 0.0, 0.0, np.sign(mean) * excess / se)

    first, second = jax.random.split(jax.random.key(0))

    def test() -> None:
        if not np.max(np.abs(z(first[None]))) <= ztest.FIRST:
            scores = z(jax.random.split(second, ztest.MORE))
            if not np.max(np.abs(scores)) <= ztest.SECOND:
                raise Wrong(f"z = {scores.round(2)} for {exact}")

        theta = [float(a) for a in t]
        for (block, env), (choices, *got) in zip(blocks, run(second)[2], strict=True):
            log_p = rp.exact_log_density(block, {**env, "t": theta}, jax.device_get(choices))
            np.testing.assert_allclose(got, log_p, rtol=1e-9, atol=1e-9, err_msg="log density")

    claim = [repr(program), rp.exact_log_density, tolerance, n, ztest.FIRST, ztest.SECOND]
    kept.passed(run, [first], claim, test)


def enumerated(program: Program) -> bool:
    """Whether nothing is drawn."""
    drawn = lambda s: isinstance(s, Subsample) or (isinstance(s, Draw) and s.estimator != "enum")
    return not any(map(drawn, walk(program)))


def density_blocks(program: Program) -> list[tuple[Block, dict[str, float]]]:
    """The parts of a program that are generative functions, with values for what is outside."""
    names = [s.name for s in program.body.steps]
    outside = {n + suffix: 0.3 for n in names for suffix in ("", "_ld", "_at")}
    outside |= {s.name: 0.3 for s in walk(program) if not isinstance(s, Block | Program)}
    many = [s for s in walk(program) if isinstance(s, Many)]
    outside |= {f"{s.name}_{k}": 0.3 for s in many for k in range(s.n)}
    guides = [(s.body, outside) for s in program.body.steps if isinstance(s, Guide)]
    return [(b, env) for b, env in [(program.body, {}), *guides] if rp.has_density(b)]


@hypothesis.settings(
    max_examples=IN_CI,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(st.randoms(use_true_random=False).map(rp.generate))
def test_a_random_program(program: Program) -> None:
    check(program)


def test_biased_programs_are_found() -> None:
    """The first three; without their numbers, which is cheap."""
    biased = (p for p in map(functools.partial(numbered, 0), range(100)) if expected(p).biased)
    for program in itertools.islice(biased, 3):
        assert "biased" in verdict(rp.objective(program), (jnp.asarray(program.theta),)), program


def test_counterexamples() -> None:
    for program in COUNTEREXAMPLES:
        check(program)


def test_the_exact_gradient_is_that_of_the_exact_value() -> None:
    """Central differences, which see jumps that move."""
    for i in range(20):
        program = numbered(0, i)
        _, grad = rp.exact(program)
        for k, g in enumerate(grad):
            values = []
            for h in (1e-4, -1e-4):
                theta = [a + h * (j == k) for j, a in enumerate(program.theta)]
                values.append(rp.exact(Program(tuple(theta), 1, program.body))[0])
            assert abs((values[0] - values[1]) / 2e-4 - g) < 1e-5 * (1.0 + abs(g)), program


# --- mutants ------------------------------------------------------------------------------------


@jax.tree_util.register_static
class MeanOfWeights(Enum):
    """Weighs the joint values of a batch by the mean of the weights of its elements."""

    def mass(self, d: Any, value: jax.Array) -> jax.Array:
        p = super().mass(d, value)
        return jnp.ones_like(p).at[0].set(p.mean()) if p.ndim else p


@contextlib.contextmanager
def reused_draws() -> Iterator[None]:
    """Alternatives of a choice keep the draws of the others that are replayed."""
    corrections = surrogate.Replays.corrections

    def reusing(replays: Any, first: Any) -> Any:
        kept = {
            s.path: (first.made[s.path][0], jax.lax.stop_gradient(first.made[s.path][2]))
            for s in replays.sites
        }
        return corrections(replays, first._replace(given={**first.given, **kept}))

    surrogate.Replays.corrections = reusing
    try:
        yield
    finally:
        surrogate.Replays.corrections = corrections


class Mutant(NamedTuple):
    """A mistake, and which programs it can show in."""

    touches: Callable[[Program], bool]
    estimators: Mapping[str, Callable[[], Any]] = {}
    plate_factor: bool = True
    patch: Callable[[], Any] = contextlib.nullcontext

    def caught(self, program: Program) -> bool:
        """Whether the z-test rejects the program with the mistake in it."""
        library = Library({**rp.ESTIMATORS, **self.estimators}, self.plate_factor)
        with self.patch():
            try:
                check(program, library)
            except Wrong:
                return True
        return False


def draws(program: Program, *estimators: str) -> int:
    """How many choices have one of these estimators."""
    return sum(isinstance(s, Draw) and s.estimator in estimators for s in walk(program))


def enumerates_a_batch(program: Program) -> bool:
    plates = [s for s in walk(program) if isinstance(s, Plate) and s.by == "batch"]
    return any(isinstance(s, Draw) and s.estimator == "enum" for p in plates for s in walk(p))


SCORES = "reinforce", "constant", "loo"
MUTANTS = {
    "dropped score": Mutant(
        lambda p: draws(p, *SCORES) > 0, dict.fromkeys(SCORES, lambda: Score(False))
    ),
    "reused draws": Mutant(lambda p: draws(p, "mvd") > 1, patch=reused_draws),
    "own-sample baseline": Mutant(
        lambda p: draws(p, "loo") > 0, {"loo": lambda: Score(control=Mean(True))}
    ),
    "mean of the weights": Mutant(enumerates_a_batch, {"enum": MeanOfWeights}),
    "missing plate factor": Mutant(
        lambda p: any(isinstance(s, Subsample) for s in walk(p)), plate_factor=False
    ),
}
COIN = Draw("b1", "probability", ("1.2*tanh(0.5 + -1.1*t[0])",), "loo")
CATCHES = {
    "dropped score": Program((0.2, 0.5, 0.5), 4, Block((COIN,), "0.7*b1")),
    "reused draws": Program(
        (0.2, 0.2),
        1,
        Block(
            (
                Draw("b1", "probability", ("1.2*t[0]",), "mvd"),
                Draw("b2", "probability", ("0.5 + 1.2*b1*t[1]",), "mvd"),
            ),
            "b1*b2",
        ),
    ),
    "own-sample baseline": Program((0.2, 0.5, 0.5), 4, Block((COIN,), "0.7*b1")),
    "mean of the weights": Program(
        (0.5, -0.7),
        1,
        Block(
            (
                Draw("b1", "bernoulli", ("-0.8*sin(0.5 + 0.7*t[1])",), "enum"),
                Plate(
                    "p2",
                    "batch",
                    3,
                    Block(
                        (
                            Draw(
                                "b3",
                                "logits",
                                (
                                    "-0.5*sin(0.3 + 0.9*t[0] + 0.4*b1 + -0.8*0.5*i)",
                                    "1.2*sin(-0.6 + -0.5*t[0] + -0.5*b1*t[0] + -0.5*0.5*i)",
                                ),
                                "enum",
                            ),
                        ),
                        "0.9*b3 + -0.8*t[0]*b1",
                    ),
                    "sum",
                ),
            ),
            "0.7*b1*t[1] + -1.1*sin(p2)*t[1]",
        ),
    ),
    "missing plate factor": Program(
        (-0.7, -0.7),
        4,
        Block(
            (
                Subsample("s1", 4, 1, Block((), "0.9*t[0]*1.0")),
                Draw("b2", "probability", ("0.4*tanh(0.1 + -0.5*t[1])",), "loo"),
            ),
            "-0.8*b2 + -1.1*s1",
        ),
    ),
}
"""A small program that catches each mutant; ``--mutants`` says how soon a random one does."""


def numbered(seed: int, i: int) -> Program:
    """Program ``i`` of a long run."""
    return rp.generate(random.Random(f"{seed}-{i}"))


honest = functools.cache(check)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str) -> None:
    honest(CATCHES[name])
    assert MUTANTS[name].caught(CATCHES[name])


# --- long runs ----------------------------------------------------------------------------------


def run_programs(programs: int, seed: int, start: int = 0) -> int:
    """Check programs one by one; prints failures and a summary, returns how many failed."""
    counts: collections.Counter[str] = collections.Counter()
    failures, begun = 0, time.process_time()
    for i in range(start, start + programs):
        program = numbered(seed, i)
        steps = [s for s in walk(program) if not isinstance(s, Block | Program)]
        counts.update({type(s).__name__ for s in steps})
        counts.update({s.estimator for s in steps if isinstance(s, Draw)})
        try:
            right = check(program, explained=i % 4 == 0)
            counts["biased" if right.biased else "sound"] += 1
        except Exception as e:
            failures += 1
            if not isinstance(e, AssertionError):
                traceback.print_exc(limit=-4)
            print(f"program {i}: {type(e).__name__}: {str(e)[:600]}\n    {program!r}", flush=True)
        if i % 20 == 19:
            jax.clear_caches()
            spent = time.process_time() - begun
            print(f"... {i + 1} programs, {failures} failures, {spent:.0f} s", flush=True)
    print(f"{programs} programs, seed {seed}, {failures} failures: {dict(sorted(counts.items()))}")
    return failures


def run_mutants(seed: int, limit: int = 200) -> int:
    """Print for each mutant how many programs catch it; returns how many were not caught."""
    missed = 0
    for name, mutant in MUTANTS.items():
        touched = [i for i in range(limit) if mutant.touches(numbered(seed, i))]
        first = next((i for i in touched if mutant.caught(numbered(seed, i))), None)
        missed += first is None
        after = "not caught" if first is None else f"caught after {first + 1} programs"
        print(f"{name}: {after} ({len(touched)} of {limit} contain it)", flush=True)
    return missed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--programs", type=int, default=2000)
    parser.add_argument("--start", type=int, default=0, help="number of the first program")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutants", action="store_true")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("error")
    if options.mutants:
        sys.exit(run_mutants(options.seed) > 0)
    sys.exit(run_programs(options.programs, options.seed, options.start) > 0)
