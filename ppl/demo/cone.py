"""The cone of Becker et al. (PLDI 2024): one model, six objectives.

The posterior of (x, y) given z = x² + y² + noise is a thin ring. A mean-field guide can cover a
piece of it only; a ring with a hidden angle can cover it all, if the bound integrates the angle
out well enough.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import ppl
from ppl import dist

Params = Mapping[str, Any]

RADIUS = math.sqrt(5.0)
DATA = {"z": 5.0}
LOG_EVIDENCE = -5.3232
"""log p(z = 5), by quadrature: no bound can be larger."""


# --- the model, two guides, and a reverse kernel ------------------------------------------------


@ppl.gen
def model() -> None:
    x = ppl.sample("x", dist.Normal(0.0, 10.0))
    y = ppl.sample("y", dist.Normal(0.0, 10.0))
    r = x**2 + y**2
    ppl.sample("z", dist.Normal(r, 0.1 + r / 100.0))


@ppl.gen
def mean_field(phi: Params) -> None:
    ppl.sample("x", dist.Normal(phi["x"], jnp.exp(phi["log_sx"])))
    ppl.sample("y", dist.Normal(phi["y"], jnp.exp(phi["log_sy"])))


@ppl.gen
def ring(phi: Params) -> None:
    angle = ppl.sample("angle", dist.Uniform(-jnp.pi, jnp.pi))
    ppl.sample("x", dist.Normal(RADIUS * jnp.cos(angle), jnp.exp(phi["log_sx"])))
    ppl.sample("y", dist.Normal(RADIUS * jnp.sin(angle), jnp.exp(phi["log_sy"])))


@ppl.gen
def angle_given(xy: Params, phi: Params) -> None:
    towards = jnp.arctan2(xy["y"], xy["x"])
    ppl.sample("angle", dist.VonMises(towards, jnp.exp(phi["log_kappa"])))


def points_of_ring(phi: Params, m: int) -> ppl.Generative:
    """The ring without its angle, which is integrated out by ``m`` draws from its prior."""
    return ppl.marginal(ring(phi), ["x", "y"], ppl.importance(m))


def points_of_learned_ring(phi: Params) -> ppl.Generative:
    """The ring without its angle, which a learned kernel infers from the point."""
    return ppl.marginal(ring(phi), ["x", "y"], ppl.importance(1, lambda xy: angle_given(xy, phi)))


# --- the objectives -----------------------------------------------------------------------------


@ppl.expectation
def elbo(phi: Params) -> jax.Array:
    return ppl.elbo(model(), mean_field(phi), DATA)


@ppl.expectation
def iwelbo(phi: Params) -> jax.Array:
    return ppl.iwelbo(model(), mean_field(phi), DATA, n=5)


@ppl.expectation
def hvi(phi: Params) -> jax.Array:
    return ppl.elbo(model(), points_of_ring(phi, m=1), DATA)


@ppl.expectation
def iwhvi(phi: Params) -> jax.Array:
    return ppl.elbo(model(), points_of_ring(phi, m=5), DATA)


@ppl.expectation
def diwhvi(phi: Params) -> jax.Array:
    return ppl.iwelbo(model(), points_of_ring(phi, m=5), DATA, n=5)


@ppl.expectation
def learned_hvi(phi: Params) -> jax.Array:
    return ppl.elbo(model(), points_of_learned_ring(phi), DATA)


# --- what each of them reaches ------------------------------------------------------------------

FIELD = {"x": 0.5, "y": 2.0, "log_sx": 0.0, "log_sy": 0.0}
RING = {"log_sx": 0.0, "log_sy": 0.0}


def resampled(q: ppl.Generative) -> ppl.Generative:
    """The posterior that a bound with 5 particles of ``q`` implies."""
    return ppl.normalize(model(), DATA, ppl.importance(5, q))


@dataclasses.dataclass(frozen=True)
class Case:
    """An objective, where its fit starts, the posterior it implies, and what is known of it."""

    label: str
    objective: ppl.Expectation
    start: Params
    posterior: Callable[[Params], ppl.Generative]
    published: float | None
    optimum: float


CASES = (
    Case("ELBO", elbo, FIELD, mean_field, -8.08, -8.0745),
    Case("IWELBO, n=5", iwelbo, FIELD, lambda phi: resampled(mean_field(phi)), -7.79, -7.534),
    Case("HVI", hvi, RING, lambda phi: points_of_ring(phi, 1), -9.75, -9.7481),
    Case("IWHVI, m=5", iwhvi, RING, lambda phi: points_of_ring(phi, 5), -8.18, -8.1796),
    Case(
        "DIWHVI, n=m=5", diwhvi, RING, lambda phi: resampled(points_of_ring(phi, 5)), -7.33, -7.3075
    ),
    Case(
        "HVI, learned kernel",
        learned_hvi,
        RING | {"log_kappa": 0.0},
        points_of_learned_ring,
        None,
        -5.3234,
    ),
)


@dataclasses.dataclass(frozen=True)
class Result:
    """The fitted parameters of a case, and an independent estimate of its objective."""

    case: Case
    params: Params
    value: float
    error: float
    seconds: float


def fit(case: Case, steps: int, draws: int) -> Result:
    """Fit a case, and estimate what it reached from ``draws`` fresh draws."""
    start = time.perf_counter()
    schedule = optax.cosine_decay_schedule(0.1, steps)
    params = ppl.maximize(
        case.objective,
        case.start,
        optax.adam(schedule, b2=0.99),
        key=jax.random.key(0),
        steps=steps,
        samples=64,
        progress=False,
    ).params
    keys = jax.random.split(jax.random.key(1), draws)
    one = jax.jit(jax.vmap(lambda key: case.objective.value(key, params)))
    values = np.asarray(one(keys), np.float64)
    error = values.std() / np.sqrt(draws)
    return Result(case, params, values.mean(), error, time.perf_counter() - start)


def fit_all(
    cases: Iterable[Case], say: Callable[[str], Any], *, steps: int = 1200, draws: int = 200_000
) -> list[Result]:
    """Fit the cases, and say a row of a table as each is done."""
    row = "{:<20} {:>9} {:>10} {:>10} {:>9} {:>8}".format
    say(row("objective", "reached", "±", "published", "optimum", "seconds"))
    results = []
    for case in cases:
        r = fit(case, steps, draws)
        published = "–" if case.published is None else f"{case.published:.2f}"
        numbers = f"{r.value:.4f}", f"{r.error:.5f}", published, f"{case.optimum:.4f}"
        say(row(case.label, *numbers, f"{r.seconds:.1f}"))
        results.append(r)
    say(row("log p(z = 5)", "", "", "", f"{LOG_EVIDENCE:.4f}", ""))
    return results


# --- the picture --------------------------------------------------------------------------------


def draw(results: Iterable[Result], file: Path, points: int = 5000) -> None:
    """A panel per result: draws of the implied posterior over the true one, and a close-up."""
    results = list(results)
    keys = jax.random.split(jax.random.key(2), points)
    grid = jnp.linspace(-3.0, 3.0, 601)

    def density(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.exp(model().log_density({"x": x, "y": y} | DATA) - LOG_EVIDENCE)

    truth = jax.jit(jax.vmap(jax.vmap(density, (0, None)), (None, 0)))(grid, grid)
    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.8 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    for panel, result in zip(panels, results, strict=False):
        posterior = result.case.posterior(result.params)
        xy = jax.jit(jax.vmap(lambda key, q=posterior: q.simulate(key).choices))(keys)
        closeup = panel.inset_axes((0.3, 0.27, 0.4, 0.4))
        for axes, size in ((panel, 1.5), (closeup, 6.0)):
            axes.imshow(truth, cmap="Greys", vmax=1.6 * truth.max(), origin="lower",
                        extent=(-3, 3, -3, 3), interpolation="bilinear")  # fmt: skip
            axes.scatter(xy["x"], xy["y"], size, color="tab:red", alpha=0.5, linewidths=0)
        panel.set(xlim=(-2.9, 2.9), ylim=(-2.9, 2.9), xticks=(-2, 0, 2), yticks=(-2, 0, 2))
        closeup.set(xlim=(-0.5, 0.5), ylim=(1.75, 2.75), xticks=(), yticks=())
        panel.indicate_inset_zoom(closeup, edgecolor="black")
        panel.set(title=f"{result.case.label}: {result.value:.3f}", xlabel="x", ylabel="y")
        panel.label_outer()
    figure.suptitle(
        "Posterior of the cone (grey), what each bound finds (red), and the bound on "
        f"log p(z = 5) = {LOG_EVIDENCE:.3f}"
    )
    figure.savefig(file, dpi=130)


def main(out: Path, say: Callable[[str], Any]) -> None:
    """Fit all, print the table, save ``cone.png``."""
    say("The cone: x, y ~ N(0, 10); z ~ N(x² + y², .1 + (x² + y²)/100); z = 5")
    draw(fit_all(CASES, say), out / "cone.png")
    say(f"posteriors: {out / 'cone.png'}")
