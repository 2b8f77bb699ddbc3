"""The paper's tables and figures, measured beside hand-written JAX and every peer installed.

    python tests/benchmarks/report.py table1 table2 table4 figure7 [--mnist FOLDER] [--out FOLDER]
    python tests/benchmarks/report.py gmm hmm variance growth scaling [--out FOLDER]

Each writes NAME.txt, NAME.json and NAME.png. ``table1``: the VAE. ``table2``: AIR, a step of every
strategy. ``figure7``: AIR, count accuracy against training time (under an hour on 2 cores).
``table4``: the cone. ``gmm``, ``hmm``: a mixture and a hidden Markov model, their discrete choices
summed out. ``variance``: of REINFORCE. ``growth``: cost against size. ``scaling``: large
programs, beside the best form by hand. NumPyro comes with the library; its enumeration (``pip
install funsor``), Pyro (``pip install torch pyro-ppl``) and GenJAX (``pip install genjax``, Python
3.12) are skipped by name where they are missing. Without ``--mnist`` the digits are those of
scikit-learn.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import air
import air_training
import cone_by_hand
import growth
import images
import jax
import jax.numpy as jnp
import measure
import mixtures
import numpy as np
import scaling
import vae
import variance
from matplotlib.figure import Figure
from measure import Contender, Row, compiled, gradient

import ppl
from ppl.demo import cone

KEY = jax.random.key(0)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@functools.cache
def peer(name: str) -> ModuleType | None:
    """The module ``peers.name``, or None, with a word, where its package is not installed."""
    try:
        return importlib.import_module(f"peers.{name}_peers")
    except ModuleNotFoundError as error:
        say(f"({name} is left out: {error.name} is not installed)")
        return None


# --- Table 1 --------------------------------------------------------------------------------------


def table1(options: argparse.Namespace) -> Iterator[Row]:
    """VAE: value and gradient by hand, by us, and by NumPyro."""
    digits = images.digits(options.mnist).reshape(-1, vae.PIXELS)
    params = vae.init(KEY)
    several = functools.partial(compiled, repeats=1 if options.small else 3)
    for n in (8,) if options.small else (64, 128, 256, 512, 1024):
        rows = np.random.default_rng(0).integers(len(digits), size=n)
        x = jnp.asarray(digits[rows] > 0.5, jnp.float32)
        batched = [
            several("by hand", gradient(vae.batched_by_hand), KEY, params, x),
            several("ours", gradient(vae.batched.surrogate), KEY, params, x),
        ]
        if numpyro := peer("numpyro"):
            batched.append(several("NumPyro", numpyro.vae_gradient, KEY, params, x))
        yield from measure.rows(batched, options.blocks, options.seconds, batch=n)
        mapped = [
            several("by hand, vmap", gradient(vae.mapped_by_hand), KEY, params, x),
            several("ours, vmap", gradient(vae.mapped.surrogate), KEY, params, x),
        ]
        yield from measure.rows(mapped, options.blocks, options.seconds, batch=n)


# --- Table 2 --------------------------------------------------------------------------------------


def table2(options: argparse.Namespace) -> Iterator[Row]:
    """AIR: value and gradient of a batch under every strategy; the first of each is 1."""
    n, size, most = (2, 32, 1) if options.small else (64, air.CANVAS, 2)
    x, _ = images.canvases(images.digits(options.mnist), n, size, most)
    params, x = air.init(KEY, size), jnp.asarray(x)
    others: dict[str, dict[str, Contender]] = {}
    if numpyro := peer("numpyro"):
        run = compiled("NumPyro", numpyro.air_gradient, KEY, params, x, repeats=1)
        others["NumPyro"] = {"REINFORCE": run}
    if genjax := peer("genjax"):
        others["GenJAX"] = {
            name: compiled("GenJAX", f, KEY, params, x, repeats=1)
            for name, f in genjax.air().items()
        }
    if pyro := peer("pyro"):
        runs = {name: Contender("Pyro", run) for name, run in pyro.air(np.asarray(x)).items()}
        others["Pyro"] = runs
        others["Pyro, in parallel"] = {
            "ENUM": Contender("Pyro, in parallel", runs["ENUM, parallel"].run)
        }
    base = None
    for name in options.strategies or air.STRATEGIES:
        strategy = air.STRATEGIES[name]
        surrogate = strategy.expectation().surrogate
        ours = compiled("ours", gradient(surrogate), KEY, params, x, repeats=1)
        base = base or ours
        contenders = [ours]
        if name in air.BY_HAND:
            by_hand = gradient(air.BY_HAND[name])
            contenders.insert(0, compiled("by hand", by_hand, KEY, params, x, repeats=1))
        contenders += [runs[name] for runs in others.values() if name in runs]
        for row in measure.rows(contenders, options.blocks, options.seconds, estimator=name):
            if "MFLOP" in row:
                row["FLOPs / REINFORCE"] = row["MFLOP"] * 1e6 / base.flops
            yield row


# --- Figure 7 -------------------------------------------------------------------------------------

PUBLISHED = {
    "ENUM": 0.984,
    "MVD": 0.984,
    "IWAE + MVD": 0.984,
    "hybrid": 0.950,
    "REINFORCE": 0.275,
    "IWAE + REINFORCE": 0.479,
    "RWS": 0.666,
}


def figure7(options: argparse.Namespace) -> Iterator[Row]:
    """AIR: accuracy of the counts, after training on 10,000 canvases, on 1,000 others."""
    digits = images.digits(options.mnist)
    n, held_out, size, epochs = (128, 32, 32, 2.0) if options.small else (10_000, 1_000, 50, 20.0)
    fewer = {"RWS": 0.3 * epochs}  # 20 particles; the paper too trained it for fewer
    cut = len(digits) * 4 // 5
    most = 1 if options.small else 2
    training, _ = images.canvases(digits[:cut], n, size, most)
    others, counts = images.canvases(digits[cut:], held_out, size, most, seed=1)
    for name in options.strategies or (["ENUM"] if options.small else air.STRATEGIES):
        curve = air_training.train(
            air.STRATEGIES[name],
            training,
            others,
            counts,
            epochs=options.epochs or fewer.get(name, epochs),
            rate=options.rate,
            every=2 if options.small else 200,
        )
        for point in curve:
            yield {"estimator": name, **point, "published": PUBLISHED[name]}


# --- Table 4 --------------------------------------------------------------------------------------


def table4(options: argparse.Namespace) -> Iterator[Row]:
    """The cone: what each objective reaches, and the cost of a step, fused in a loop."""
    steps, draws = (20, 100) if options.small else (1200, 200_000)
    results = [cone.fit(case, steps, draws) for case in cone.CASES]
    for r in results:
        row = {"objective": r.case.label, "program": "ours", "reached": r.value, "±": r.error}
        yield row | {"optimum": r.case.optimum, "published": r.case.published}
    if not options.small:
        options.out.mkdir(parents=True, exist_ok=True)
        cone.draw(results, options.out / "figure2.png")
    loop, samples = (10, 4) if options.small else (1000, 64)
    contenders: dict[str, list[Contender]] = {}

    def add(objective: str, program: str, f: Callable[..., Any]) -> None:
        run = measure.looped(f, loop)
        contenders.setdefault(objective, []).append(compiled(program, run, KEY, cone.FIELD))

    for label, objective, by_hand in (
        ("ELBO", cone.elbo, cone_by_hand.elbo),
        ("IWELBO, n=5", cone.iwelbo, cone_by_hand.iwelbo),
    ):
        add(label, "by hand", gradient(functools.partial(by_hand, samples=samples)))
        add(label, "ours", gradient(functools.partial(objective.surrogate, samples=samples)))
    if numpyro := peer("numpyro"):
        add("ELBO", "NumPyro", numpyro.cone_gradient("ELBO"))
    for label, group in contenders.items():
        yield from measure.rows(group, options.blocks, options.seconds, loop, objective=label)
    if pyro := peer("pyro"):
        for label, name, objective in (
            ("ELBO", "ELBO", cone.elbo),
            ("IWELBO, n=5", "IWELBO(5)", cone.iwelbo),
        ):
            program = pyro.cone(name, samples, steps, seed=0)
            phi = program["fit"]()
            keys = jax.random.split(jax.random.key(1), draws)
            values = jax.vmap(lambda k, f=objective, phi=phi: f.value(k, phi))(keys)
            row = {"objective": label, "program": "Pyro", "reached": float(values.mean())}
            row["±"] = float(values.std() / draws**0.5)
            (times,) = measure.interleaved(
                [Contender("Pyro", program["step"])], options.blocks, options.seconds
            ).values()
            yield row | {"ms": 1e3 * times[0]}


# --- a mixture and a hidden Markov model ----------------------------------------------------------


def gmm(options: argparse.Namespace) -> Iterator[Row]:
    """Assignments summed out of the model, and averaged over in the guide."""
    sizes = (3, 2) if options.small else (1000, 8)
    yield from summed_out(options, "marginal", mixtures.gmm(*sizes), "GMM")
    yield from summed_out(options, "guide", mixtures.gmm_guided(*sizes))


def hmm(options: argparse.Namespace) -> Iterator[Row]:
    """States summed out of the model, and averaged over in the guide."""
    sizes = (3, 2) if options.small else (100, 16)
    yield from summed_out(options, "marginal", mixtures.hmm(*sizes), "HMM")
    yield from summed_out(options, "guide", mixtures.hmm_guided(*sizes))


def summed_out(
    options: argparse.Namespace, objective: str, problem: mixtures.Problem, peers: str | None = None
) -> Iterator[Row]:
    """A gradient by itself, in a loop, and in a loop with Adam, and how exact it is."""
    steps, repeats = (3, 1) if options.small else (200, 3)
    kinds = {
        "gradient": (1, lambda slope: slope),
        "in a loop": (steps, lambda slope: mixtures.repeated(slope, steps)),
        "Adam in a loop": (steps, lambda slope: mixtures.ascent(slope, steps)),
    }
    if peers and (numpyro := peer("numpyro_mixtures")):
        forms = {**problem.forms, **getattr(numpyro, peers)}
        problem = dataclasses.replace(problem, forms=forms)
    errors = mixtures.errors(problem)
    slopes = {name: gradient(form.estimate) for name, form in problem.forms.items()}
    for what, (per, wrap) in list(kinds.items())[-1 if options.small else 0 :]:
        contenders = [
            compiled(name, wrap(f), KEY, problem.params, problem.data, repeats=repeats)
            for name, f in slopes.items()
        ]
        label = f"{objective}, {what}"
        for row in measure.rows(contenders, options.blocks, options.seconds, per, measured=label):
            yield row | errors[row["program"]]


# --- the variance of gradients --------------------------------------------------------------------


def variances(options: argparse.Namespace) -> Iterator[Row]:
    """The trace of the covariance, how often the naive estimate has that of others, and bias."""
    flips, steps, batch, pairs = (4, 3, 2, 40) if options.small else (100, 20, 32, 20_000)
    digits = images.digits(options.mnist)[:batch].reshape(batch, -1) > 0.5
    loss = variance.summed(ppl.reinforce())
    numpyro = peer("numpyro_variance")
    for name, problem, chunk in (
        ("flips", variance.flips(flips, variance.flips_terms, variance.flips_elbo), 500),
        ("flips, summed loss", variance.flips(flips, variance.summed_terms, loss), 500),
        ("chain", variance.chain(steps), 500),
        ("vae", variance.vae(digits), 25),
    ):
        estimates = dict(problem.estimates)
        if numpyro and name in numpyro.ESTIMATES:
            estimates["NumPyro"] = numpyro.ESTIMATES[name]
        found = {
            program: variance.spread(f, problem, pairs, min(pairs, chunk))
            for program, f in estimates.items()
        }
        exact = variance.exact_gradient(problem)
        first = next(iter(found.values()))
        for program, own in found.items():
            row = {"problem": name, "program": program, "variance": own.variance}
            row |= {"± %": 100 * own.error / own.variance}
            row["naive / it"], row["±"] = first.over(own)
            if "NumPyro" in found:
                row["it / NumPyro"], row["±, NumPyro"] = own.over(found["NumPyro"])
            yield row | {"worst z": own.z(first if exact is None else exact)}


# --- cost against size ----------------------------------------------------------------------------


def grown(options: argparse.Namespace) -> Iterator[Row]:
    """Cost against size, to 100,000, and the exponents of the growth."""
    sizes = (2,) if options.small else (100, 1_000, 10_000, 100_000)
    for name, program in growth.PROGRAMS.items():
        for row in growth.rows(program, sizes, options.blocks, options.seconds):
            yield {"program": name, **row}


def large(options: argparse.Namespace) -> Iterator[Row]:
    """Topics, mixtures, particles, chains, grids and trees; values and slopes are compared."""
    for name in list(scaling.PAIRS)[: 1 if options.small else None]:
        yield from scaling.compare(name, options.blocks, options.seconds)


# --- pictures -------------------------------------------------------------------------------------


def bars(rows: list[Row], file: pathlib.Path, title: str) -> None:
    """A bar for each row: milliseconds."""
    rows = [row for row in rows if "ms" in row]
    labels = [" ".join(str(v) for v in list(row.values())[:2]) for row in rows]
    figure = Figure(figsize=(8, 0.24 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    colours = {"ours": "tab:red", "by hand": "0.45"}
    colour = [colours.get(row["program"].split(",")[0], "tab:blue") for row in rows]
    axes.barh(labels, [row["ms"] for row in rows], color=colour)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="ms for a value and gradient", title=title)
    figure.savefig(file, dpi=130)


def curves(rows: list[Row], file: pathlib.Path, title: str) -> None:
    """Accuracy against seconds, a line for each estimator."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["estimator"] for row in rows):
        own = [row for row in rows if row["estimator"] == name]
        axes.plot([r["seconds"] for r in own], [r["accuracy"] for r in own], label=name)
    axes.set(xlabel="seconds of training", ylabel="count accuracy", ylim=(0, 1), title=title)
    axes.legend()
    figure.savefig(file, dpi=130)


def ratios(rows: list[Row], file: pathlib.Path, title: str) -> None:
    """A bar for each row: how many times less it varies than the naive estimate."""
    labels = [f"{row['problem']} {row['program']}" for row in rows]
    figure = Figure(figsize=(8, 0.24 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    axes.barh(labels, [row["naive / it"] for row in rows], xerr=[row["±"] for row in rows])
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="variance of the naive estimate / its variance", title=title)
    figure.savefig(file, dpi=130)


def lines(rows: list[Row], file: pathlib.Path, title: str) -> None:
    """Milliseconds against size, a line for each program."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["program"] for row in rows):
        own = [row for row in rows if row["program"] == name and row.get("ms")]
        if own:
            axes.plot([r["size"] for r in own], [r["ms"] for r in own], "o-", label=name)
    axes.set(xscale="log", yscale="log", xlabel="size", ylabel="ms for a value and gradient")
    axes.set(title=title)
    axes.legend()
    figure.savefig(file, dpi=130)


# --- the command ----------------------------------------------------------------------------------

REPORTS = {
    "table1": (table1, bars, "Table 1: gradient of a VAE, 784-200-10-200-784"),
    "table2": (table2, bars, "Table 2: gradient of Attend-Infer-Repeat"),
    "figure7": (figure7, curves, "Figure 7: count accuracy of Attend-Infer-Repeat"),
    "table4": (table4, bars, "Table 4: the cone"),
    "gmm": (gmm, bars, "A Gaussian mixture, assignments summed out"),
    "hmm": (hmm, bars, "A hidden Markov model, states summed out"),
    "variance": (variances, ratios, "Variance of REINFORCE gradients"),
    "growth": (grown, lines, "Cost of a gradient against size"),
    "scaling": (large, bars, "Large programs"),
}

SUMMED_OUT = (
    "By hand: {form}. NumPyro: TraceEnum_ELBO{numpyro}. Loops: 200 steps, compiled.\n"
    "Errors: of the gradient given the global choices, against that by hand in 64 bits, in parts\n"
    "per million of the largest slope of an array; the worst array counts."
)

NOTES = {
    "table1": "Value and gradient; NumPyro: Trace_ELBO().loss.",
    "table2": (
        "The first program of each estimator is 1. Pyro runs on one thread, its fastest on two\n"
        "shared cores; its RenyiELBO gives the choices of IWAE + REINFORCE no gradient at all\n"
        "(exactly 0), so its time there is for less work. ENUM: sequential, as in the paper."
    ),
    "figure7": (
        "10,000 canvases of 50 x 50, batches of 64, Adam at 1e-3; accuracy on 1,000 others.\n"
        "Seconds leave out compilation and evaluation. Published: one run of the paper's\n"
        "artifact, on a GPU, 41 epochs, Adam at 1e-4."
    ),
    "table4": "Steps of 64 estimates in a compiled loop; Pyro step by step, with Adam.",
    "gmm": SUMMED_OUT.format(form="a matrix product and logsumexp", numpyro=""),
    "hmm": SUMMED_OUT.format(form="a scan over time", numpyro=" with markov, a loop in Python"),
    "variance": (
        "One estimate each, no baselines: trace of the covariance, from independent pairs, and\n"
        "its standard error. Worst z: of all numbers of the mean gradient against the exact one\n"
        "(VAE: against the naive one). NumPyro: TraceGraph_ELBO."
    ),
    "growth": (
        "MB: XLA's temporary memory. Exponents: since the size before; without a size, fitted\n"
        "through all. GMM: 8 components; HMM: 16 states; plates: flips with a\n"
        "summed loss; chain: its ELBO."
    ),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reports", nargs="+", choices=REPORTS)
    parser.add_argument("--mnist", type=pathlib.Path, help="folder with IDX files of images")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    parser.add_argument("--blocks", type=int, default=15, help="blocks that are interleaved")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a block")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument(
        "--strategies", nargs="+", choices=air.STRATEGIES, help="of table2 and figure7"
    )
    parser.add_argument("--epochs", type=float, help="of figure7")
    parser.add_argument("--rate", type=float, default=1e-3, help="of figure7, Adam")
    options = parser.parse_args(arguments)
    for name in options.reports:
        rows, picture, title = REPORTS[name]
        found: list[Row] = []
        text = ""
        for row in rows(options):
            found.append(row)
            say(measure.table([row]).splitlines()[1])
            text = measure.save(options.out, name, title, found, NOTES.get(name, ""))
        picture(found, options.out / f"{name}.png", title)
        say("\n" + text)


if __name__ == "__main__":
    main()
